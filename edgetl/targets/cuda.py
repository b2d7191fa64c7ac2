"""NVIDIA GPUs, ONNX Runtime's CUDA provider: where TensorRT is not there, or takes too long to build its engines.

There is no INT8: the provider has no integer convolutions, and would convert between the rounded values. bf16 needs
operator set 22 and a card of 2020 or later (compute capability 8.0). ONNX Runtime, "CUDA Execution Provider", and the
table of operator kernels, docs/OperatorKernels.md.
"""

from __future__ import annotations

from edgetl.targets import Target

TARGET = Target(
    name="cuda",
    precisions=("fp32", "fp16"),
    backends=("cuda",),
    opset=18,
    comes="backend",
)
