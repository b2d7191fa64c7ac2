"""A RUN as a .tflite file in float32 for one image at a time, so that LiteRT can be measured on the very same model.

PYTHONPATH=. python benchmarks/to_tflite.py RUN OUT.tflite [--onnx FILE.onnx] [--layout NHWC|NCHW]

litert-torch wants an older torch than edgetl may have, so this runs in an environment of its own, on edgetl's source:

    python -m venv litert
    litert/bin/pip install litert-torch==0.10.0 torch==2.14.1 torchvision==0.29.1 timm==1.0.31 onnxruntime==1.31.1
    PYTHONPATH=. litert/bin/python benchmarks/to_tflite.py run student.tflite --onnx bundle/fp32.onnx

The file is written only if its logits on random images are those of the torch model and, with --onnx, of that graph in
ONNX Runtime. NHWC is the layout that LiteRT computes in; with NCHW the file begins with a transposition.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from edgetl import weights

PACKAGES = ("litert-torch", "litert-converter", "ai-edge-litert", "torch", "torchvision", "timm", "onnxruntime")
TOLERANCE = 1e-4  # of the largest logit; float32 in another order of additions stays far below it
IMAGES = 32


def convert(module: torch.nn.Module, shape: tuple[int, int, int], layout: str) -> bytes:
    """The .tflite file of a module that takes images [1, C, H, W]."""
    import litert_torch

    channels, height, width = shape
    if layout == "NHWC":
        module, example = litert_torch.to_channel_last_io(module, args=[0]), torch.zeros(1, height, width, channels)
    else:
        example = torch.zeros(1, *shape)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "model.tflite")
        litert_torch.convert(module.eval(), (example,)).export(str(file))
        return file.read_bytes()


def litert_logits(model: bytes, images: np.ndarray, layout: str) -> np.ndarray:
    """Logits [N, K] of images [N, C, H, W], one at a time."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    (wants,), (gives,) = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for image in images.transpose(0, 2, 3, 1) if layout == "NHWC" else images:
        interpreter.set_tensor(wants["index"], np.ascontiguousarray(image[None]))
        interpreter.invoke()
        rows.append(interpreter.get_tensor(gives["index"])[0])
    return np.stack(rows)


def torch_logits(module: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Logits [N, K] of the module itself."""
    with torch.no_grad():
        return module(torch.from_numpy(images)).numpy()


def onnx_logits(file: Path, images: np.ndarray) -> np.ndarray:
    """Logits [N, K] of an ONNX graph in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def compared(found: np.ndarray, references: dict[str, Callable[[], np.ndarray]]) -> dict[str, dict[str, float]]:
    """The largest difference of the logits from each reference; ends the program where one is too large."""
    differences = {}
    for name, reference in references.items():
        wanted = reference()
        largest, scale = float(np.abs(found - wanted).max()), float(np.abs(wanted).max())
        differences[name] = {"largest_difference": largest, "largest_logit": scale,
                             "same_class": float((found.argmax(1) == wanted.argmax(1)).mean())}
        if not largest <= TOLERANCE * scale:
            raise SystemExit(f"The converted model differs from {name} by {largest:.3g} where logits reach {scale:.3g};"
                             f" expected at most {TOLERANCE * scale:.3g}. Nothing was written.")
    return differences


def main() -> None:
    """Converts, compares, writes the file and prints what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--onnx", type=Path, help="the bundle's fp32 graph, compared in ONNX Runtime")
    parser.add_argument("--layout", choices=("NHWC", "NCHW"), default="NHWC", help="of the file's input")
    options = parser.parse_args()
    network = weights.load(options.run).network
    shape = (len(network.preprocess.mean), *network.preprocess.size_hw)
    model = convert(network.module, shape, options.layout)
    images = np.random.default_rng(0).normal(size=(IMAGES, *shape)).astype(np.float32)
    references = {"torch": lambda: torch_logits(network.module, images)}
    if options.onnx is not None:
        references[options.onnx.name] = lambda: onnx_logits(options.onnx, images)
    found = compared(litert_logits(model, images, options.layout), references)
    options.out.write_bytes(model)
    print(json.dumps({"out": str(options.out), "size_bytes": len(model), "layout": options.layout, "images": IMAGES,
                      "against": found, "versions": {one: metadata.version(one) for one in PACKAGES}}, indent=1))


if __name__ == "__main__":
    main()
