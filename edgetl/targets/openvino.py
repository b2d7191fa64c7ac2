"""Processors by OpenVINO alone, in every precision that it computes in.

A graph in bf16 or fp16 has weights of two bytes, and OpenVINO computes in that precision where the processor can; where
it cannot, the backend refuses, for OpenVINO would take another in silence. INT8 is that of the target x86-vnni, whose
graphs OpenVINO runs too; this one leaves ONNX Runtime out of it. OpenVINO, "CPU Device", sections "Supported Model Data
Types" and "Floating Point Data Types Specifics".
"""

from __future__ import annotations

from edgetl.targets import Target

TARGET = Target(
    name="openvino",
    precisions=("fp32", "bf16", "fp16", "int8"),
    backends=("openvino",),
    opset=18,
    requires={"bf16": ("bf16_arithmetic",), "fp16": ("fp16_arithmetic",), "int8": ("vnni",)},
    quantize={
        "activations": "uint8",
        "weights": "int8",
        "per_channel": True,
        "reduce_range": False,
        "rounding": "compensated",
        "methods": ("min-max", "percentile-99.999", "percentile-99.99", "mse", "entropy"),
    },
    comes="asked",
)
