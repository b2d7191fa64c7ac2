"""One file holds all that training needs to go on bit for bit: safetensors, with scalars as json in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def read(path: Path) -> State:
    """The state in a checkpoint.

    Raises:
        TrainingError: a pickle, a damaged file, no checkpoint of edgetl, or one of a newer schema.
    """
    data = path.read_bytes()
    tensors = parse_safetensors(data, where=str(path), hint=START_AGAIN)
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    if "edgetl" not in metadata:
        raise TrainingError(f"{path} is not a checkpoint of edgetl.", hint=START_AGAIN)
    scalars = json.loads(metadata["edgetl"])
    if scalars["schema"] > SCHEMA:
        raise TrainingError(
            f"{path} has schema {scalars['schema']}; this version reads up to {SCHEMA}.", hint="Update edgetl."
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
