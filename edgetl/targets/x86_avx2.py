"""x86 CPUs with AVX2 and without VNNI (PCs and servers of 2013 to 2020, many NUCs), ONNX Runtime.

Their kernels multiply uint8 by int8 and add each two products in 16 bits, which saturates silently
(`vpmaddubsw`): 2 * 255 * 127 is 64,770, and 32,767 is the most that fits. With weights of 7 bits, at most 64,
the sum stays at 32,640. ONNX Runtime, "Quantize ONNX models", section "When and why do I need to try U8U8".
"""

from __future__ import annotations

from edgetl.targets import Target

TARGET = Target(
    name="x86-avx2",
    precisions=("fp32", "int8"),
    backends=("cpu",),
    opset=18,
    requires={"int8": ("avx2",)},
    judges=("avx2",),
    better=("vnni",),
    quantize={
        "activations": "uint8",
        "weights": "int8",
        "per_channel": True,
        "reduce_range": True,
        "rounding": "compensated",  # of half as many steps, which is what makes up for most of the lost bit
        "methods": ("min-max", "percentile-99.999", "percentile-99.99", "mse", "entropy"),
    },
)
