"""INT8 graphs that NNCF writes, in place of edgetl's own quantizer: `--quantizer nncf`.

NNCF inserts pairs of Q/DQ by OpenVINO's rules of fusion, corrects biases, and chooses ranges by min-max with averages
over the images. github.com/openvinotoolkit/nncf, "Post-Training Quantization for ONNX".
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.compress import quantize
from edgetl.compress.calibrate import BATCH, Reader
from edgetl.compress.quantize import Quantized
from edgetl.errors import EdgetlError, GateFailed, MissingDependency
from edgetl.runtime import telemetry

SILENT = "NNCF_CI"  # with it in the environment NNCF reports nothing to its maker
NAME = "nncf"


def write(graph: bytes, scheme: Mapping[str, Any], reader: Reader, *, align: bool) -> Quantized:
    """NNCF's INT8 graph of a float32 one: same inputs, outputs and metadata.

    Args:
        graph: float32 ONNX file.
        scheme: `Target.quantize`: its types of activations, and whether weights keep to 7 bits.
        reader: training images.
        align: whether channels of neighbouring convolutions are first scaled against one another, so that a range that
            all channels share fits each. Full bias correction, its other remedy, fails on ONNX graphs (NNCF 3.4).

    Raises:
        MissingDependency: nncf or onnx is absent.
        EdgetlError: NNCF cannot work with the graph.
        GateFailed: it left everything in float.
    """
    nncf, onnx = _packages()
    source = quantize.of_opset(onnx.load_from_string(graph), scheme.get("opset", 0))
    preset = "MIXED" if scheme["activations"] == "uint8" else "PERFORMANCE"  # asymmetric activations, or symmetric
    overflow = "ENABLE" if scheme["reduce_range"] else "DISABLE"
    images, most = _Images(reader, _is_fixed(source)), len(reader) * BATCH  # it takes no more than there are
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=getattr(nncf.OverflowFix, overflow),
                                                   disable_channel_alignment=not align)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # stdout is for results
            made = nncf.quantize(source, nncf.Dataset(images), preset=getattr(nncf.QuantizationPreset, preset),
                                 subset_size=most, advanced_parameters=advanced)
    except (nncf.InternalError, nncf.ValidationError, nncf.UnsupportedModelError, LookupError, RuntimeError,
            ValueError) as problem:
        raise EdgetlError(f"NNCF cannot quantize this graph: {type(problem).__name__}: {_first_line(problem)}",
                          hint="Leave out --quantizer, and edgetl's own does it.") from problem
    if not any(node.op_type == "DequantizeLinear" for node in made.graph.node):
        raise GateFailed("NNCF left every node of this graph in float.", hint="Leave out --quantizer.")
    return Quantized(quantize.finished(made, source), {
        "method": NAME, "version": nncf.__version__, "preset": preset.lower(), "overflow_fix": overflow.lower(),
        "channel_alignment": align})


def _packages() -> tuple[Any, Any]:
    telemetry.off()
    os.environ.setdefault(SILENT, "1")
    try:
        import nncf
        import onnx
    except ModuleNotFoundError as problem:
        raise MissingDependency(problem.name or NAME, extra=NAME, purpose="Quantizing with NNCF") from problem
    return nncf, onnx


def _is_fixed(model: Any) -> bool:
    """Whether a call takes so many images and no other number."""
    return bool(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value > 0)


class _Images:
    """What a call takes while NNCF collects statistics: one image, where the graph leaves the number free.

    Read anew each time that they are gone through, so that they are never all in memory.

    Args:
        reader: training images.
        fixed: whether a call takes as many as the reader gives, and no other number.
    """

    def __init__(self, reader: Reader, fixed: bool) -> None:
        self._reader, self._fixed = reader, fixed

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        self._reader.set_range(0, len(self._reader))
        for feeds in iter(self._reader.get_next, None):
            (name, images), = feeds.items()
            step = len(images) if self._fixed else 1
            for begin in range(0, len(images), step):
                yield {name: np.ascontiguousarray(images[begin:begin + step])}


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or "no reason given").splitlines()[0][:300]
