"""`edgetl quantize`."""

from __future__ import annotations

from edgetl.recipe_quantize import Quantize

EXAMPLE = """
edgetl quantize model.onnx --data photos --out model.int8.onnx
edgetl quantize resnet.onnx --data photos --labels classes.txt --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 \
--out resnet.int8.onnx
"""


def quantize(options: Quantize, as_json: bool) -> None:
    """Quantize any classifier in ONNX to INT8, within limits and never to something slower.

    Exit 3, and nothing is written, where no INT8 graph is within the limits or none is faster.
    """
    from edgetl import pipeline
    from edgetl.cli import present, progress

    with progress.shown() as listener:
        made = pipeline.quantize_with(options, listener)
    if as_json:
        present.document(made.to_json())
        return
    latency = "not measured: accuracy was judged on this processor, which is not what the graph is made for"
    if made.latency_s is not None and made.fp32_latency_s is not None:
        latency = f"{1e3 * made.latency_s:.3f} ms (fp32 {1e3 * made.fp32_latency_s:.3f} ms), one image, one thread"
    kernels = made.calibration["fused"]
    present.pairs({
        "wrote": made.out, "target": made.target, "against fp32": made.found.sentence() if made.accuracy is not None
        else f"agreement {100 * made.found.agreement:.2f} % of {made.found.n} images",
        "accuracy": present.percent(made.accuracy), "latency": latency,
        "size": f"{made.size_bytes / 1e6:.2f} MB (fp32 {made.fp32_size_bytes / 1e6:.2f} MB)",
        "method": made.calibration["method"],
        "kernels": "-" if kernels is None else f"{kernels['integer_nodes']} integer, {kernels['float_nodes']} float"})
