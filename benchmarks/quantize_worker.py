"""One quantizer of other people on one graph, in a process of its own: what `quantize_peers.py` starts.

    python benchmarks/quantize_worker.py TOOL GRAPH.onnx IMAGES.npy OUT.onnx --input NAME

Needs numpy, onnx and the tool; nothing of edgetl, so that any interpreter that has the tool will do. Writes OUT.onnx,
and as its last line what was done as json: {tool, version, settings}.

ort-default    `onnxruntime.quantization.quantize_static` as it is called with nothing but a graph and images: int8
               activations, int8 weights, a scale a tensor, min-max
ort-best       what ONNX Runtime's documentation advises for x86 with VNNI: the graph prepared by
               `quant_pre_process`, Q/DQ, uint8 activations, int8 weights, a scale a channel
               (onnxruntime.ai/docs/performance/model-optimizations/quantization.html)
nncf           `nncf.quantize` as it is called with nothing but a graph and images
nncf-mixed     the same with `preset=MIXED`, which NNCF advises for activations that are not symmetric
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 8


class Images:
    """Calibration images as ONNX Runtime asks for them.

    Args:
        images: float32 [n, ...].
        name: of the graph's input.
        batch: images at once.
    """

    def __init__(self, images: np.ndarray, name: str, batch: int) -> None:
        self._feeds = iter([{name: images[at : at + batch]} for at in range(0, len(images), batch)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch by the input's name; None at the end."""
        return next(self._feeds, None)


def ort_default(graph: Path, images: np.ndarray, name: str, out: Path) -> dict[str, Any]:
    """See the module."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime
    from onnxruntime.quantization import quantize_static

    quantize_static(graph, out, Images(images, name, BATCH))
    return {"version": onnxruntime.__version__, "settings": {}}


def ort_best(graph: Path, images: np.ndarray, name: str, out: Path) -> dict[str, Any]:
    """See the module."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    chosen = {
        "quant_format": QuantFormat.QDQ,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
    }
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(graph, prepared, skip_symbolic_shape=True)
        quantize_static(prepared, out, Images(images, name, BATCH), **chosen)
    return {"version": onnxruntime.__version__, "settings": {key: str(one) for key, one in chosen.items()}}


def nncf_default(graph: Path, images: np.ndarray, name: str, out: Path) -> dict[str, Any]:
    """See the module."""
    return _nncf(graph, images, name, out, {})


def nncf_mixed(graph: Path, images: np.ndarray, name: str, out: Path) -> dict[str, Any]:
    """See the module."""
    return _nncf(graph, images, name, out, {"preset": "MIXED"})


def _nncf(graph: Path, images: np.ndarray, name: str, out: Path, said: Mapping[str, str]) -> dict[str, Any]:
    os.environ.setdefault("NNCF_CI", "1")  # else it reports to its maker
    import nncf
    import onnx

    chosen = {key: getattr(nncf.QuantizationPreset, value) for key, value in said.items()}
    dataset = nncf.Dataset([{name: images[at : at + 1]} for at in range(len(images))])
    onnx.save(nncf.quantize(onnx.load(graph), dataset, subset_size=len(images), **chosen), out)
    return {"version": nncf.__version__, "settings": {"subset_size": len(images), **said}}


Tool = Callable[[Path, np.ndarray, str, Path], dict[str, Any]]
TOOLS: Mapping[str, Tool] = {
    "ort-default": ort_default,
    "ort-best": ort_best,
    "nncf": nncf_default,
    "nncf-mixed": nncf_mixed,
}


def main() -> None:
    """Writes the graph; tools print what they like, so the record is the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("graph", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--input", required=True)
    asked = parser.parse_args()
    done = TOOLS[asked.tool](asked.graph, np.load(asked.images), asked.input, asked.out)
    sys.stdout.flush()
    print("\n" + json.dumps({"tool": asked.tool, **done}))


if __name__ == "__main__":
    main()
