"""A bundle whose graph does next to nothing, so that what stands around the graph can be measured."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgetl.runtime.manifest import MANIFEST, SCHEMA, Manifest, Variant, to_json
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.session import TensorSpec

FILE = "fp32.onnx"


def make_graph(classes: int, size: int) -> bytes:
    """Global average pool and one fully connected layer, in ONNX: [N, 3, size, size] -> [N, classes]."""
    weights = np.random.default_rng(0).normal(0, 1, (classes, 3)).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights"], ["logits"], transB=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, size, size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])
    graph = helper.make_graph(nodes, "small", [image], [logits], [numpy_helper.from_array(weights, "weights")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def make_bundle(folder: Path, classes: int, size: int) -> Path:
    """A whole bundle in `folder`, which must not exist; returns it."""
    folder.mkdir(parents=True)
    graph = make_graph(classes, size)
    (folder / FILE).write_bytes(graph)
    variant = Variant(
        name="fp32",
        file=FILE,
        target="portable",
        precision="fp32",
        opset=17,
        sha256=hashlib.sha256(graph).hexdigest(),
        size_bytes=len(graph),
        inputs=(TensorSpec("image", "image", "float32", ("N", 3, size, size), "NCHW"),),
        outputs=(TensorSpec("logits", "logits", "float32", ("N", classes), "NC"),),
        backends=("cpu", "openvino"),
    )
    labels = tuple(f"class {place}" for place in range(classes))
    wants = Preprocess(size_hw=(size, size))
    manifest = Manifest(SCHEMA, "small", "classify", labels, wants, (variant,))
    (folder / MANIFEST).write_text(to_json(manifest))
    return folder
