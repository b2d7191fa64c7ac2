"""64-bit ARM CPUs (Raspberry Pi, Jetson, phones, Graviton, Apple), ONNX Runtime.

Their kernels multiply int8 by int8 and add in 32 bits (`sdot`, `smmla`, or `smlal` where those are not there), so
nothing saturates. uint8 activations would be as exact, but older kernels convert them first. ONNX Runtime, "Quantize
ONNX models", section "Data type selection": S8S8 on ARM.
"""

from __future__ import annotations

from edgetl.targets import Target

TARGET = Target(
    name="arm",
    precisions=("fp32", "int8"),
    backends=("cpu",),
    opset=18,
    requires={"int8": ("neon",)},
    judges=("neon", "vnni"),
    quantize={
        "activations": "int8",
        "weights": "int8",
        "per_channel": True,
        "reduce_range": False,
        "rounding": "compensated",
        "methods": ("min-max", "percentile-99.999", "percentile-99.99", "mse", "entropy"),
    },
)
