"""NVIDIA GPUs (Jetson, RTX, data centre), TensorRT 10 and 11 or TensorRT for RTX.

INT8 is symmetric on both sides: TensorRT refuses zero points other than 0 and biases in int32. What is not rounded is
computed in fp16, for Q/DQ over a float32 remainder cannot beat fp16. QuantizeLinear takes fp16 from operator set 19 on;
later ones are no use and need a newer parser.
NVIDIA, "TensorRT Documentation", chapters "Working with Quantized Types" and "Explicit Quantization".
"""

from __future__ import annotations

from edgetl.targets import Target

OPSET = 19

TARGET = Target(
    name="tensorrt",
    precisions=("fp32", "fp16", "int8"),
    backends=("tensorrt",),
    opset=OPSET,
    comes="backend",
    quantize={
        "placement": "inputs",  # of layers and residual additions, see compress.placement; not outputs
        "activations": "int8",
        "symmetric": True,
        "weights": "int8",
        "per_channel": True,
        "reduce_range": False,
        "scales": "float16",  # steps that the fp16 graph can express
        "remainder": "fp16",  # what the export casts all the rest to
        "opset": OPSET,
        "rounding": "compensated",
        # Least square error first: positive values have 7 bits here, and their range matters more than with 8. On two
        # students cut out of EfficientNet-Lite0 it kept the most signal, 33.4 and 33.2 dB; min-max kept 32.0 and 31.6.
        "methods": ("mse", "percentile-99.99", "percentile-99.999", "entropy", "min-max"),
    },
)
