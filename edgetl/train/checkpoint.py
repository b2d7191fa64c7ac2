"""One file holds all that training needs to go on bit for bit: safetensors, with scalars as json in its metadata.

The one before the newest is kept, too, for the day on which a disk has damaged the newest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from edgetl import rundir
from edgetl.errors import TrainingError
from edgetl.weights import parse_safetensors

SCHEMA = 1
START_AGAIN = "Give --overwrite to start again."


@dataclass
class State:
    """Tensors by part and name, and plain scalars."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    scalars: dict[str, Any] = field(default_factory=dict)

    def put(self, part: str, values: Mapping[str, torch.Tensor]) -> None:
        """Adds tensors under `part.`; made contiguous, because safetensors refuses channels_last."""
        self.tensors |= {
            f"{part}.{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in values.items()
        }

    def part(self, part: str) -> dict[str, torch.Tensor]:
        """Tensors of one part by their own names."""
        prefix = f"{part}."
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


def write(path: Path, state: State) -> None:
    """Writes a checkpoint whole or not at all."""
    scalars = json.dumps({"schema": SCHEMA, **state.scalars})
    rundir.write_bytes(path, safetensors.torch.save(state.tensors, metadata={"edgetl": scalars}))


def write_newest(folder: Path, state: State) -> None:
    """Writes the newest checkpoint of a training; the one that was the newest becomes the one before."""
    path, before = folder / rundir.CHECKPOINT, folder / rundir.PREVIOUS
    if path.is_file():
        link = folder / f".{rundir.PREVIOUS}{rundir.UNFINISHED}"
        try:
            link.unlink(missing_ok=True)
            link.hardlink_to(path)  # both names are there until the new file is whole
            link.replace(before)
        except OSError:  # a disk without hard links: for a moment only the one before is there, which is found
            path.replace(before)
    write(path, state)


def newest(folder: Path, warn: Callable[[str], None]) -> bytes | None:
    """The bytes of the newest checkpoint that is whole; None where there is none.

    Args:
        folder: of the training.
        warn: told when the newest is damaged, so that training goes on from the one before.

    Raises:
        TrainingError: the newest is damaged and no other is there, or it is a pickle or of a newer schema.
    """
    path, before = folder / rundir.CHECKPOINT, folder / rundir.PREVIOUS
    if not path.is_file():  # killed between two renames
        return before.read_bytes() if before.is_file() else None
    data = path.read_bytes()
    try:
        parse(data, str(path))
    except TrainingError as problem:
        if not before.is_file() or data[:1] == b"\x80" or data[:2] == b"PK" or "schema" in problem.message:
            raise
        warn(f"{problem.message} Training goes on from the checkpoint before it.")
        return before.read_bytes()
    return data


def read(path: Path) -> State:
    """The state in a checkpoint; see `parse`."""
    return parse(path.read_bytes(), str(path))


def parse(data: bytes, where: str) -> State:
    """The state in the bytes of a checkpoint.

    Args:
        data: of the file.
        where: what it is called in errors.

    Raises:
        TrainingError: a pickle, a damaged file, no checkpoint of edgetl, or one of a newer schema.
    """
    tensors = parse_safetensors(data, where=where, hint=START_AGAIN)
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    if "edgetl" not in metadata:
        raise TrainingError(f"{where} is not a checkpoint of edgetl.", hint=START_AGAIN)
    scalars = json.loads(metadata["edgetl"])
    if scalars["schema"] > SCHEMA:
        raise TrainingError(
            f"{where} has schema {scalars['schema']}; this version reads up to {SCHEMA}.", hint="Update edgetl."
        )
    return State(tensors, scalars)


def put_optimizer(state: State, optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str]) -> None:
    """Adds the optimizer's slots as `optimizer.<parameter>.<slot>`."""
    for parameter, slots in optimizer.state.items():
        values = {f"{names[parameter]}.{slot}": torch.as_tensor(value) for slot, value in slots.items()}
        state.put("optimizer", values)


def load_optimizer(state: State, optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str]) -> None:
    """Puts the slots back, on the device and in the memory format of their parameters."""
    saved = state.part("optimizer")
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            prefix = f"{names[parameter]}."
            slots = {
                name.removeprefix(prefix): value
                for name, value in saved.items()
                if name.startswith(prefix) and "." not in name.removeprefix(prefix)
            }
            if slots:
                optimizer.state[parameter] = {slot: _like(value, parameter) for slot, value in slots.items()}


def _like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    if value.shape != parameter.shape:
        return value  # AdamW's step count: a scalar on the CPU
    return torch.empty_like(parameter).copy_(value)
