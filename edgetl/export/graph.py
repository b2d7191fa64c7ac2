"""The ONNX graph of a torch network: float32, any number of images, everything foldable folded."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.compress.surgery import drop_unused, spell_einsums
from edgetl.errors import BundleError, EdgetlError, GateFailed, MissingDependency
from edgetl.events import Event, Listener, ignore
from edgetl.export import parity
from edgetl.export.metadata import metadata_of
from edgetl.models import Network
from edgetl.runtime.heads import Head
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.session import GraphSpec, TensorSpec, open_session

if TYPE_CHECKING:
    import torch
    from torch import nn

OPSET = 18  # what the dynamo exporter itself writes; every runtime of the last years reads it
IR_VERSION = 10  # newer files are refused by the ONNX Runtime that many devices still have
INPUT, BATCH = "image", "N"
LOGITS, FEATURES = "logits", "features"  # outputs, which have the names of their roles
LARGEST = (1 << 31) - (1 << 24)  # bytes of weights: protobuf writes no message of 2 GiB, and the nodes want some room


@dataclass(frozen=True)
class Exported:
    """A graph with the proof that it answers as the network does."""

    graph: bytes
    spec: GraphSpec
    exporter: str  # "dynamo" | "torchscript"
    reason: str | None  # why the first choice, dynamo, was not taken
    opset: int
    parity: parity.Parity


def export(network: Network, labels: Sequence[str], *, heads: Sequence[Head] = (), opset: int = OPSET,
           with_features: bool = False, listener: Listener = ignore) -> Exported:
    """The network as a graph, parity-checked. Where the dynamo exporter fails, TorchScript's is tried and told of.

    Args:
        network: the model.
        labels: in the order of its logits.
        heads: what they say, for the graph's metadata; none: one class an image.
        opset: of the graph.
        with_features: whether the graph has the features as a second output, see `with_features_of`.
        listener: told where the second exporter had to be taken.

    Raises:
        EdgetlError: features are asked for, and the network has none of the shape [N, D]; or it is too large for ONNX.
        GateFailed: neither exporter gives a graph that answers as the network does.
        MissingDependency: onnx, onnxscript or onnxruntime is absent.
    """
    import torch

    require_packages()
    require_room(network)
    module = copy.deepcopy(network.module).cpu().float().eval()
    spec = spec_of(network.preprocess, len(labels))
    if with_features:
        module = with_features_of(module, network.head)
        spec = spec_of(network.preprocess, len(labels), features=features_length(module, spec, network.model))
    metadata = metadata_of(network.preprocess, labels, heads=heads)
    try:
        return _export_with("dynamo", _dynamo, module, spec, metadata, opset, None)
    except (torch.onnx.OnnxExporterError, GateFailed, BundleError) as problem:
        reason = f"{type(problem).__name__}: {str(problem).strip().splitlines()[0]}"
    text = f"The dynamo exporter could not be used ({reason}); the older TorchScript exporter is tried."
    listener(Event("export", "warning", {"text": text}))
    try:
        return _export_with("torchscript", _torchscript, module, spec, metadata, opset, reason)
    except (torch.onnx.OnnxExporterError, RuntimeError, BundleError) as problem:
        raise GateFailed(f"Neither exporter can write {network.model} as ONNX. dynamo: {reason}; "
                         f"torchscript: {str(problem).strip().splitlines()[0]}") from problem


def require_packages() -> None:
    """Raises MissingDependency where a package that an export needs is absent."""
    import importlib.util

    for package, extra in (("onnx", "train"), ("onnxscript", "train"), ("onnxruntime", "cpu")):
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(package, extra=extra, purpose="Exporting to ONNX")


def require_room(network: Network) -> None:
    """Raises EdgetlError where the weights do not fit into one ONNX file."""
    size = 4 * sum(tensor.numel() for tensor in network.module.state_dict().values())
    if size > LARGEST:
        raise EdgetlError(f"{network.model} has {size / 1e9:.1f} GB of float32 weights, and one ONNX file holds less "
                          "than 2.1 GB.", hint="Choose a smaller variant, or distill it into one.")


def _export_with(exporter: str, write: Callable[[nn.Module, GraphSpec, int], bytes], module: nn.Module,
                 spec: GraphSpec, metadata: Mapping[str, str], opset: int, reason: str | None) -> Exported:
    graph = tidy(write(module, spec, opset), metadata)
    session = open_session("cpu", graph, spec, threads=1)
    try:
        proof = parity.check(outputs_of(module, spec), session, spec, graph=graph)
    finally:
        session.close()
    return Exported(graph, spec, exporter, reason, opset, proof)


def spec_of(preprocess: Preprocess, classes: int, precision: str = "fp32", *, features: int | None = None) -> GraphSpec:
    """One image input [N, C, H, W], a logits output [N, classes], and with `features` a second one [N, features]."""
    image = TensorSpec(INPUT, "image", "float32", (BATCH, len(preprocess.mean), *preprocess.size_hw), "NCHW")
    widths = {LOGITS: classes} | ({} if features is None else {FEATURES: features})
    outputs = tuple(TensorSpec(name, name, "float32", (BATCH, width), "NC") for name, width in widths.items())
    return GraphSpec((image,), outputs, precision)


def with_features_of(module: nn.Module, head: str) -> nn.Module:
    """The module with a second output: what goes into its head [N, D], averaged over height and width if it has them.

    These are the features that a linear probe is fitted on; two images are alike where theirs point the same way.
    """
    from torch import nn

    class WithFeatures(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            caught: list[torch.Tensor] = []
            handle = self.module.get_submodule(head).register_forward_pre_hook(
                lambda _, inputs: caught.append(inputs[0]))
            try:
                logits: torch.Tensor = self.module(images)
            finally:
                handle.remove()
            return logits, caught[0].mean((2, 3)) if caught[0].ndim == 4 else caught[0]

    return WithFeatures().train(module.training)


def features_length(module: nn.Module, spec: GraphSpec, model: str) -> int:
    """D of a module that `with_features_of` made.

    Raises:
        EdgetlError: its features are not [N, D].
    """
    import torch

    with torch.inference_mode():
        _, found = module(_sample(spec))
    if found.ndim != 2:
        raise EdgetlError(f"What goes into the last layer of {model} has the shape {list(found.shape)}; expected "
                          "[N, D] or [N, C, H, W].", hint="Export without --with-features.")
    return int(found.shape[1])


def outputs_of(module: nn.Module, spec: GraphSpec) -> Callable[[NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """A function from images [N, C, H, W] to the module's own outputs, by the names that they have in `spec`."""
    import torch

    def outputs(images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        with torch.inference_mode():
            found = module(torch.from_numpy(np.ascontiguousarray(images)))
        values = found if isinstance(found, tuple) else (found,)
        return {one.name: value.float().cpu().numpy() for one, value in zip(spec.outputs, values, strict=True)}
    return outputs


def _sample(spec: GraphSpec) -> torch.Tensor:
    import torch

    # Two images: an exporter may take a batch of one for a constant.
    sides = [side for side in spec.inputs[0].shape[1:] if isinstance(side, int)]
    return torch.randn(2, *sides, generator=torch.Generator().manual_seed(0))


def _dynamo(module: nn.Module, spec: GraphSpec, opset: int) -> bytes:
    import torch

    program = torch.onnx.export(module, (_sample(spec),), dynamo=True, input_names=[INPUT],
                                output_names=[one.name for one in spec.outputs],
                                dynamic_shapes=({0: torch.export.Dim(BATCH)},), opset_version=opset,
                                external_data=False, verbose=False)
    if program is None:
        raise torch.onnx.OnnxExporterError("the exporter returned no program")
    written: bytes = program.model_proto.SerializeToString()
    return written


def _torchscript(module: nn.Module, spec: GraphSpec, opset: int) -> bytes:
    import torch

    names = [one.name for one in spec.outputs]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # It says that it is old, which is why it comes second, and that traced conditions are constants, which the
        # parity check at other batch sizes judges.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        file = Path(folder) / "graph.onnx"
        torch.onnx.export(module, (_sample(spec),), file, dynamo=False, input_names=[INPUT], output_names=names,
                          dynamic_axes={name: {0: BATCH} for name in (INPUT, *names)}, opset_version=opset)
        return file.read_bytes()


def tidy(graph: bytes, metadata: Mapping[str, str]) -> bytes:
    """The graph without what no runtime needs, with global means as pools, and with `metadata` in it."""
    import onnx
    import onnxscript.optimizer

    model = onnxscript.optimizer.optimize(onnx.load_from_string(graph))
    pool_global_means(model)
    spell_einsums(model)
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
