"""A bundle small enough to be made by hand, in milliseconds, with a checker in plain numpy.

The graph is conv 3x3 -> relu -> global average pool -> gemm, dynamic in N; `reference_logits` computes the same.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np

from edgetl.runtime.manifest import GOLDEN, MANIFEST, SCHEMA, Manifest, Variant, to_json
from edgetl.runtime.preprocess import Preprocess, prepare
from edgetl.runtime.session import GraphSpec, TensorSpec

LABELS = ("cat", "dog", "fox")
SIZE = 16
PREPROCESS = Preprocess(size_hw=(SIZE, SIZE), crop_fraction=0.8)
CHANNELS = 4


def parameters(classes: int = len(LABELS)) -> dict[str, np.ndarray]:
    """The weights of the tiny graph, always the same."""
    rng = np.random.default_rng(3)
    shapes = {"conv_w": (CHANNELS, 3, 3, 3), "conv_b": (CHANNELS,), "fc_w": (classes, CHANNELS), "fc_b": (classes,)}
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def make_graph(classes: int = len(LABELS)) -> bytes:
    """The tiny graph as ONNX bytes, opset 17."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Conv", ["image", "conv_w", "conv_b"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc_w", "fc_b"], ["logits"], transB=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])
    weights = [numpy_helper.from_array(value, name) for name, value in parameters(classes).items()]
    graph = helper.make_graph(nodes, "tiny", [image], [logits], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def reference_logits(images: np.ndarray, classes: int = len(LABELS)) -> np.ndarray:
    """[N, K] float64 that the tiny graph must give for [N, 3, SIZE, SIZE]."""
    weights = parameters(classes)
    return reference_features(images) @ weights["fc_w"].T + weights["fc_b"]


def reference_features(images: np.ndarray) -> np.ndarray:
    """[N, CHANNELS] float64 of what goes into the last layer of the tiny graph."""
    weights = parameters()
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    conv = np.einsum("nchwij,kcij->nkhw", windows, weights["conv_w"]) + weights["conv_b"][:, None, None]
    return np.maximum(conv, 0).mean(axis=(2, 3))


def graph_spec(classes: int = len(LABELS)) -> GraphSpec:
    """What the tiny graph takes and gives."""
    image = TensorSpec("image", "image", "float32", ("N", 3, SIZE, SIZE), "NCHW")
    return GraphSpec(inputs=(image,), outputs=(TensorSpec("logits", "logits", "float32", ("N", classes), "NC"),))


def make_photo(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    """A colourful picture with edges and noise, [H, W, 3] uint8: other channels, filters or crops change it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    picture = np.stack([y * 255 / height, x * 255 / width, np.full_like(x, 40 + 20 * seed)], axis=2)
    picture[height // 4 : height // 2, width // 5 : width // 2] = rng.integers(0, 256, 3)
    picture[(x + y) % 13 < 3] = rng.integers(0, 256, 3)
    return np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """The bytes of an image file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def make_variant(name: str, graph: bytes, file: str, classes: int = len(LABELS), **changes) -> Variant:
    """The manifest's entry of a tiny graph."""
    spec = graph_spec(classes)
    values = {
        "name": name,
        "file": file,
        "target": "portable",
        "precision": "fp32",
        "opset": 17,
        "sha256": hashlib.sha256(graph).hexdigest(),
        "size_bytes": len(graph),
        "inputs": spec.inputs,
        "outputs": spec.outputs,
        "backends": ("cpu", "openvino"),
    }
    return Variant(**{**values, **changes})


def make_golden(preprocess: Preprocess, classes: int = len(LABELS)) -> bytes:
    """golden.npz of two pictures, a PNG and a JPEG."""
    sources = [encode(make_photo(0)), encode(make_photo(1), "JPEG")]
    tensor = np.stack([prepare(source, preprocess) for source in sources])
    arrays = {f"source_{index:03d}": np.frombuffer(source, np.uint8) for index, source in enumerate(sources)}
    buffer = io.BytesIO()
    np.savez(buffer, tensor=tensor, logits=reference_logits(tensor, classes).astype(np.float32), **arrays)
    return buffer.getvalue()


def make_bundle(
    folder: Path, *, labels: tuple[str, ...] = LABELS, preprocess: Preprocess = PREPROCESS, second: dict | None = None
) -> Path:
    """A whole bundle in `folder`, which must not exist; returns it.

    Args:
        folder: where to.
        labels: as many as the graph shall have classes.
        preprocess: of the manifest and the golden file.
        second: fields of a second variant, "other", with its own copy of the graph; None for one variant only.
    """
    folder.mkdir(parents=True)
    graph, golden = make_graph(len(labels)), make_golden(preprocess, len(labels))
    variants = [make_variant("fp32", graph, "fp32.onnx", len(labels))]
    if second is not None:
        variants.append(make_variant("other", graph, "other.onnx", len(labels), **second))
    for variant in variants:
        (folder / variant.file).write_bytes(graph)
    (folder / GOLDEN).write_bytes(golden)
    recorded = {"file": GOLDEN, "sha256": hashlib.sha256(golden).hexdigest(), "size_bytes": len(golden), "count": 2}
    manifest = Manifest(
        schema=SCHEMA,
        name="tiny",
        task="classify",
        labels=labels,
        preprocess=preprocess,
        variants=tuple(variants),
        golden={**recorded, "kind": "synthetic"},
    )
    (folder / MANIFEST).write_text(to_json(manifest))
    return folder


def give_features(bundle: Path) -> Path:
    """Makes the first variant of a tiny bundle give its features too, and the golden file hold them."""
    import onnx

    manifest = json.loads((bundle / MANIFEST).read_text())
    variant, recorded = manifest["variants"][0], manifest["golden"]
    model = onnx.load(bundle / variant["file"])
    next(node for node in model.graph.node if node.op_type == "Flatten").output[0] = "features"
    next(node for node in model.graph.node if node.op_type == "Gemm").input[0] = "features"
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["N", CHANNELS])
    )
    with np.load(bundle / GOLDEN) as arrays:
        golden = {**arrays, "features": reference_features(arrays["tensor"]).astype(np.float32)}
    buffer = io.BytesIO()
    np.savez(buffer, **golden)
    for entry, data in ((variant, model.SerializeToString()), (recorded, buffer.getvalue())):
        (bundle / entry["file"]).write_bytes(data)
        entry.update(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    output = {"name": "features", "role": "features", "dtype": "float32", "shape": ["N", CHANNELS], "layout": "NC"}
    variant["outputs"].append(output)
    variant["features_tolerance"] = 1e-3
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    return bundle


HEADS = {
    "multilabel": [{"name": "labels", "kind": "multilabel", "thresholds": [0.5, 0.9, 0.1]}],
    "regress": [{"name": "values", "kind": "regress", "spreads": [1.0, 20.0, 0.5]}],
    "classify": [{"name": "animal", "kind": "classify"}],
}


def give_heads(bundle: Path, heads: list[dict]) -> Path:
    """Makes a tiny bundle say what these heads say; those without labels or outputs get all of the bundle's."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    whole = {"labels": manifest["labels"], "outputs": [0, len(manifest["labels"])]}
    manifest |= {"schema": 3, "task": heads[0]["kind"], "heads": [{**whole, **head} for head in heads]}
    for name in ("reject_below", "rejection", "drift_reference"):
        manifest.pop(name, None)
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    return bundle


def edit_manifest(bundle: Path, *keys: str | int, value: object) -> None:
    """Writes one value into a bundle's manifest, e.g. `edit_manifest(b, "preprocess", "color", value="bgr")`."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    place = manifest
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (bundle / MANIFEST).write_text(json.dumps(manifest))
