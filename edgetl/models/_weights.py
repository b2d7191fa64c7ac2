"""Loads other people's weights into a model: safetensors, or a state dict read with `weights_only=True`."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from edgetl.errors import EdgetlError
from edgetl.models import WeightsReport

PREFIXES = ("module.", "model.", "backbone.")
PLAIN = "Save it with torch.save(model.state_dict(), FILE) or as safetensors."


def read_file(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from safetensors or a state dict; wrappers and prefixes of the usual tools are taken off.

    Raises:
        EdgetlError: no such file, or it holds more than tensors.
    """
    if not path.is_file():
        raise EdgetlError(f"The file of weights {path} does not exist.")
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise EdgetlError(f"The file of weights {path} cannot be read: {problem.strerror}.") from problem
    return _plain_state(_parse(data, path), path)


def _parse(data: bytes, path: Path) -> Any:
    if path.suffix == ".safetensors":
        from edgetl.weights import parse_safetensors

        return parse_safetensors(data, where=str(path), hint=PLAIN)
    try:
        with warnings.catch_warnings():
            # A plain pickle makes torch warn of its protocol before it is refused.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as problem:
        # On damaged files torch's reader raises UnpicklingError, IndexError, KeyError, struct.error and more.
        raise EdgetlError(
            f"{path} is not a plain state dict of tensors, and edgetl loads nothing else.", hint=PLAIN
        ) from problem


def _plain_state(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping):
        raise EdgetlError(f"{path} holds {type(loaded).__name__}, expected a state dict of tensors.")
    state = {str(name): tensor for name, tensor in loaded.items() if isinstance(tensor, torch.Tensor)}
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def load_file(module: torch.nn.Module, path: Path) -> WeightsReport:
    """Loads what fits of a file of weights, and says what did not.

    Raises:
        EdgetlError: nothing, or less than half of the model's tensors, was found in the file.
    """
    return load_state(module, read_file(path), source=str(path))


def load_state(
    module: torch.nn.Module, state: Mapping[str, torch.Tensor], *, source: str, notes: Iterable[str] = ()
) -> WeightsReport:
    """See `load_file`; a head of another number of classes counts as mismatched and stays new.

    Args:
        module: what is filled.
        state: tensors by name.
        source: what the report calls them.
        notes: what was done to them before.
    """
    own = module.state_dict()
    matched = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    report = WeightsReport(
        source,
        matched=tuple(matched),
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in state if name not in own),
        mismatched=tuple(name for name in state if name in own and name not in matched),
        reasons=(
            *notes,
            *(
                f"{name} is {list(state[name].shape)} in the file and {list(own[name].shape)} in the model"
                for name in state
                if name in own and name not in matched
            ),
        ),
    )
    if len(matched) * 2 < len(own):
        raise EdgetlError(
            f"{source} holds weights of another model: {len(matched)} of {len(own)} tensors fit; missing "
            f"{list(report.missing[:3])}, unexpected {list(report.unexpected[:3])}.",
            hint="Check --teacher and --weights.",
        )
    module.load_state_dict(matched, strict=False)
    return report


@contextlib.contextmanager
def explained_download(model: str, hub: bool) -> Iterator[None]:
    """Turns a failed download of published weights into one sentence with the way out."""
    try:
        yield
    except (OSError, RuntimeError) as problem:  # urllib, requests, huggingface_hub and httpx raise these
        if not hub:
            raise
        raise EdgetlError(
            f"The published weights of {model} cannot be had: {type(problem).__name__}: {problem}",
            hint="Bring the file with --weights FILE (of a teacher of distill with --teacher-options weights=FILE), or "
            "start from scratch with --no-pretrained.",
        ) from problem
