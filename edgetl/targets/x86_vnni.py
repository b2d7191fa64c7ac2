"""x86 CPUs with AVX512-VNNI or AVX-VNNI (servers since 2019, laptops since 2021), ONNX Runtime or OpenVINO.

INT8 is uint8 activations and int8 weights, multiplied and summed without saturation.
"""

from __future__ import annotations

from edgetl.targets import Target

TARGET = Target(
    name="x86-vnni",
    precisions=("fp32", "int8"),
    backends=("cpu", "openvino"),
    opset=18,
    # Without VNNI, pairs of u8 * s8 products are summed in 16 bits, which saturates silently.
    requires={"int8": ("vnni",)},
    quantize={
        "activations": "uint8",  # asymmetric; with int8 activations the same graph is half as fast here
        "weights": "int8",
        "per_channel": True,
        "reduce_range": False,
        # EfficientNet-Lite0: rounding the weights costs twice as much as rounding the activations, unless compensated.
        "rounding": "compensated",
        # Tried in this order until one passes the gate on the validation split.
        "methods": ("min-max", "percentile-99.999", "percentile-99.99", "mse", "entropy"),
    },
)
