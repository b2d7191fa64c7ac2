"""Saves a trained model as safetensors + json and builds it again; nothing is ever pickled.

A slimmed model is its original architecture with smaller tensors: the shapes in the file are the whole description.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl import heads, rundir
from edgetl.errors import EdgetlError, TrainingError
from edgetl.models import Network, WeightsReport, create
from edgetl.runtime import preprocess

if TYPE_CHECKING:
    import torch
    from torch import nn

SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """A RUN folder, opened."""

    network: Network  # on the CPU, in eval mode
    labels: tuple[str, ...]
    record: Mapping[str, Any]  # run.json
    folder: Path


def save(folder: Path, network: Network, record: Mapping[str, Any]) -> None:
    """Writes model.safetensors and run.json into an existing folder, each whole or not at all.

    Args:
        folder: where to.
        network: the model.
        record: what run.json says besides what the network itself says; must hold "labels".
    """
    import safetensors.torch

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.module.state_dict().items()}
    rundir.write_bytes(folder / rundir.MODEL, safetensors.torch.save(_untie(tensors)))
    own = {
        "schema": SCHEMA,
        "kind": "run",
        "model": network.model,
        "head": network.head,
        "preprocess": preprocess.to_dict(network.preprocess),
        "parameters": parameter_count(network.module),
    }
    rundir.write_json(folder / rundir.RUN, {**own, **record})


def _untie(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of tensors that share memory, which safetensors refuses."""
    seen: set[int] = set()
    untied = {}
    for name, tensor in tensors.items():
        untied[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return untied


def is_run(path: Path) -> bool:
    """Whether a path is a RUN folder."""
    return (path / rundir.RUN).is_file()


def brings_weights(model: str) -> bool:
    """Whether a model comes with weights of its own: a RUN folder, or slim:R, which is cut out of the teacher."""
    return model.startswith("slim:") or is_run(Path(model))


def require_read(model: str, file: str | None) -> None:
    """Returns when the file of weights that is named beside a model would be read.

    Raises:
        EdgetlError: the model brings its own weights.
    """
    if file is not None and brings_weights(model):
        raise EdgetlError(
            f"{model} brings its own weights, so --weights {file} would not be read.",
            hint="Leave --weights out, or name a FAMILY/VARIANT.",
        )


def read_record(folder: Path) -> dict[str, Any]:
    """run.json of a RUN folder.

    Raises:
        EdgetlError: the folder is no RUN, or of a schema that this version cannot read.
    """
    if not folder.is_dir():
        raise EdgetlError(
            f"{folder} does not exist.", hint="Give the folder that `edgetl finetune` or `edgetl distill` wrote."
        )
    if not is_run(folder):
        raise EdgetlError(
            f"{folder} is not a RUN folder: it has no {rundir.RUN}.",
            hint="Give the folder that `edgetl finetune` or `edgetl distill` wrote with --out.",
        )
    record = rundir.read_json(folder / rundir.RUN, EdgetlError)
    if not isinstance(record, dict) or record.get("kind") != "run" or not isinstance(record.get("schema"), int):
        raise EdgetlError(f"{folder / rundir.RUN} is not the record of a run.")
    if record["schema"] > SCHEMA:
        raise EdgetlError(
            f"{folder / rundir.RUN} has schema {record['schema']}; this version reads up to {SCHEMA}.",
            hint="Update edgetl.",
        )
    return record


def load(folder: Path, *, any_task: bool = False) -> Run:
    """The model of a RUN folder, on the CPU and in eval mode.

    Args:
        folder: the RUN.
        any_task: also one that does not say one class an image.

    Raises:
        EdgetlError: no RUN there, or its files do not fit together, or it is one of another task.
    """
    record = read_record(folder)
    if not any_task:
        heads.require_one_class(record, str(folder))
    try:
        tensors = (folder / rundir.MODEL).read_bytes()
    except FileNotFoundError as problem:
        raise EdgetlError(f"{folder / rundir.MODEL} does not exist.") from problem
    network = rebuild(record, tensors, where=str(folder / rundir.MODEL))
    return Run(network, tuple(record["labels"]), record, folder)


def rebuild(record: Mapping[str, Any], tensors: bytes, *, where: str = rundir.MODEL) -> Network:
    """A network from run.json's values and the bytes of its safetensors file, in eval mode.

    Raises:
        EdgetlError: the bytes are not safetensors, or do not fit the architecture.
    """
    state = parse_safetensors(tensors, where=where)
    wants = preprocess.from_dict(record["preprocess"], where=rundir.RUN)
    network = create(record["model"], classes=len(record["labels"]), pretrained=False, image_size=wants.size_hw[0],
                     channels=wants.channels, foreign=False)
    shrink_to(network.module, state, where=where)
    missing, unexpected = network.module.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise EdgetlError(
            f"{where} does not fit {record['model']}: missing {missing[:3]}, unexpected {unexpected[:3]}."
        )
    network.module.eval()
    return Network(network.model, network.module, network.head, wants, WeightsReport(where, matched=tuple(state)))


def parse_safetensors(
    data: bytes, *, where: str, hint: str = "Copy it again from where it was made, or train again."
) -> dict[str, torch.Tensor]:
    """Tensors by name; a pickle or anything else that is not safetensors is refused with a sentence."""
    import safetensors
    import safetensors.torch

    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(data)
    except safetensors.SafetensorError as problem:
        kind = "a pickle, which edgetl never loads" if data[:1] == b"\x80" or data[:2] == b"PK" else "not safetensors"
        raise TrainingError(f"{where} is {kind} (or is damaged): {problem}.", hint=hint) from problem
    return tensors


def parameter_count(module: nn.Module) -> int:
    """Number of trainable values of a module, head included."""
    return sum(parameter.numel() for parameter in module.parameters())


def shrink_to(module: nn.Module, state: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Gives layers the sizes of the tensors in `state`, in place: how a slimmed model is built again.

    Understands convolutions (depthwise and grouped), linear layers and batch norms.

    Raises:
        EdgetlError: a tensor of another layer has another size.
    """
    from torch import nn

    for name, layer in module.named_modules():
        sizes = {key: state[f"{name}.{key}"].shape for key, _ in _own_tensors(layer) if f"{name}.{key}" in state}
        if all(tensor.shape == sizes.get(key, tensor.shape) for key, tensor in _own_tensors(layer)):
            continue
        weight = sizes.get("weight")
        if isinstance(layer, nn.Conv2d) and weight is not None:
            _shrink_conv(layer, weight)
        elif isinstance(layer, nn.Linear) and weight is not None:
            layer.out_features, layer.in_features = weight
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and weight is not None:
            layer.num_features = weight[0]
        else:
            raise EdgetlError(
                f"{where}: the sizes of '{name}' ({type(layer).__name__}) differ from the architecture's."
            )
        for key, tensor in _own_tensors(layer):
            if key in sizes:
                tensor.data = tensor.data.new_empty(sizes[key])


def _own_tensors(layer: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]


def _shrink_conv(layer: nn.Conv2d, weight: torch.Size) -> None:
    depthwise = layer.groups == layer.in_channels and layer.groups > 1
    layer.groups = weight[0] if depthwise and weight[1] == 1 else layer.groups
    layer.out_channels, layer.in_channels = weight[0], weight[1] * layer.groups
