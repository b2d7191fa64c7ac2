"""The ONNX graph of a torch network: float32, any number of images, everything foldable folded."""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.compress.surgery import drop_unused
from edgetl.errors import BundleError, GateFailed, MissingDependency
from edgetl.events import Event, Listener, ignore
from edgetl.export import parity
from edgetl.models import Network
from edgetl.runtime import preprocess as preprocessing
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.session import GraphSpec, TensorSpec, open_session

if TYPE_CHECKING:
    import torch
    from torch import nn

OPSET = 18  # what the dynamo exporter itself writes; every runtime of the last years reads it
IR_VERSION = 10  # newer files are refused by the ONNX Runtime that many devices still have
INPUT, OUTPUT, BATCH = "image", "logits", "N"


@dataclass(frozen=True)
class Exported:
    """A graph with the proof that it answers as the network does."""

    graph: bytes
    spec: GraphSpec
    exporter: str  # "dynamo" | "torchscript"
    reason: str | None  # why the first choice, dynamo, was not taken
    opset: int
    parity: parity.Parity


def export(network: Network, labels: Sequence[str], *, opset: int = OPSET, listener: Listener = ignore) -> Exported:
    """The network as a graph, parity-checked. Where the dynamo exporter fails, TorchScript's is tried and told of.

    Raises:
        GateFailed: neither exporter gives a graph that answers as the network does.
        MissingDependency: onnx, onnxscript or onnxruntime is absent.
    """
    import torch

    require_packages()
    module = copy.deepcopy(network.module).cpu().float().eval()
    try:
        return _export_with("dynamo", _dynamo, module, network, labels, opset, None)
    except (torch.onnx.OnnxExporterError, GateFailed, BundleError) as problem:
        reason = f"{type(problem).__name__}: {str(problem).strip().splitlines()[0]}"
    text = f"The dynamo exporter could not be used ({reason}); the older TorchScript exporter is tried."
    listener(Event("export", "warning", {"text": text}))
    try:
        return _export_with("torchscript", _torchscript, module, network, labels, opset, reason)
    except (torch.onnx.OnnxExporterError, RuntimeError, BundleError) as problem:
        raise GateFailed(f"Neither exporter can write {network.model} as ONNX. dynamo: {reason}; "
                         f"torchscript: {str(problem).strip().splitlines()[0]}") from problem


def require_packages() -> None:
    """Raises MissingDependency where a package that an export needs is absent."""
    import importlib.util

    for package, extra in (("onnx", "train"), ("onnxscript", "train"), ("onnxruntime", "cpu")):
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(package, extra=extra, purpose="Exporting to ONNX")


def _export_with(exporter: str, write: Callable[[nn.Module, torch.Tensor, int], bytes], module: nn.Module,
                 network: Network, labels: Sequence[str], opset: int, reason: str | None) -> Exported:
    spec = spec_of(network.preprocess, len(labels))
    sample = _sample(spec)
    written = write(module, sample, opset)
    graph = tidy(written, metadata_of(network.preprocess, labels))
    session = open_session("cpu", graph, spec, threads=1)
    try:
        proof = parity.check(answers_of(module), session, spec, graph=graph)
    finally:
        session.close()
    return Exported(graph, spec, exporter, reason, opset, proof)


def spec_of(preprocess: Preprocess, classes: int, precision: str = "fp32") -> GraphSpec:
    """One image input [N, C, H, W] and one logits output [N, classes]."""
    image = TensorSpec(INPUT, "image", "float32", (BATCH, len(preprocess.mean), *preprocess.size_hw), "NCHW")
    return GraphSpec((image,), (TensorSpec(OUTPUT, "logits", "float32", (BATCH, classes), "NC"),), precision)


def metadata_of(preprocess: Preprocess, labels: Sequence[str]) -> dict[str, str]:
    """What a graph that has lost its bundle still says: labels and preprocessing as JSON."""
    return {"edgetl.labels": json.dumps(list(labels)), "edgetl.task": "classify",
            "edgetl.preprocess": json.dumps(preprocessing.to_dict(preprocess))}


def answers_of(module: nn.Module) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """A function from images [N, C, H, W] to the module's own logits [N, K]."""
    import torch

    def answers(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = module(torch.from_numpy(np.ascontiguousarray(images))).float().cpu().numpy()
        return logits
    return answers


def _sample(spec: GraphSpec) -> torch.Tensor:
    import torch

    # Two images: an exporter may take a batch of one for a constant.
    sides = [side for side in spec.inputs[0].shape[1:] if isinstance(side, int)]
    return torch.randn(2, *sides, generator=torch.Generator().manual_seed(0))


def _dynamo(module: nn.Module, sample: torch.Tensor, opset: int) -> bytes:
    import torch

    program = torch.onnx.export(module, (sample,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT],
                                dynamic_shapes=({0: torch.export.Dim(BATCH)},), opset_version=opset,
                                external_data=False, verbose=False)
    if program is None:
        raise torch.onnx.OnnxExporterError("the exporter returned no program")
    written: bytes = program.model_proto.SerializeToString()
    return written


def _torchscript(module: nn.Module, sample: torch.Tensor, opset: int) -> bytes:
    import torch

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # It says that it is old, which is why it comes second, and that traced conditions are constants, which the
        # parity check at other batch sizes judges.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        file = Path(folder) / "graph.onnx"
        torch.onnx.export(module, (sample,), file, dynamo=False, input_names=[INPUT], output_names=[OUTPUT],
                          dynamic_axes={INPUT: {0: BATCH}, OUTPUT: {0: BATCH}}, opset_version=opset)
        return file.read_bytes()


def tidy(graph: bytes, metadata: Mapping[str, str]) -> bytes:
    """The graph without what no runtime needs, with global means as pools, and with `metadata` in it."""
    import onnx
    import onnxscript.optimizer

    model = onnxscript.optimizer.optimize(onnx.load_from_string(graph))
    pool_global_means(model)
    drop_unused(model)
    _drop_notes(model)
    model.ir_version = min(model.ir_version, IR_VERSION)
    model.producer_name, model.producer_version = "edgetl", ""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def pool_global_means(model: Any) -> None:
    """Turns ReduceMean over height and width into GlobalAveragePool, in place.

    The values are the same; the runtimes have an integer kernel for the pool only, and a mean left in float would cost
    two conversions in the middle of an INT8 graph.
    """
    from onnx import helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    ranks = _ranks(model)
    nodes = []
    for node in model.graph.node:
        keeps = _mean_over_pixels(node, constants) if ranks.get(node.input[0] if node.input else "") == 4 else None
        if keeps is None:
            nodes.append(node)
            continue
        pooled = node.output[0] if keeps else f"{node.output[0]}_pooled"
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=f"{node.name}_pool"))
        if not keeps:
            nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}_flat", axis=1))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _ranks(model: Any) -> dict[str, int]:
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    return {value.name: len(value.type.tensor_type.shape.dim) for value in values}


def _mean_over_pixels(node: Any, constants: Mapping[str, Any]) -> bool | None:
    """Whether a mean over axes 2 and 3 keeps them as sides of 1; None for any other node."""
    from onnx import helper, numpy_helper

    if node.op_type != "ReduceMean":
        return None
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    axes = attributes.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1] in constants:
        axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
    if axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
        return None
    return bool(attributes.get("keepdims", 1))


def _drop_notes(model: Any) -> None:
    """Exporters note the lines of Python, with the paths of this machine, on every node."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
