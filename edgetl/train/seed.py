"""The only place that seeds, and the state of torch's generators for checkpoints."""

from __future__ import annotations

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds torch's generators; data order and views have generators of their own."""
    torch.manual_seed(seed)


def seed_stream(*words: int) -> None:
    """Seeds torch's generators with several numbers at once; each combination has a stream of its own."""
    torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]))


def random_states() -> dict[str, torch.Tensor]:
    """States of torch's generators as uint8 tensors, by device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore(states: dict[str, torch.Tensor]) -> None:
    """Puts back what `random_states` gave."""
    torch.set_rng_state(states["cpu"])
    for name, state in states.items():
        if name.startswith("cuda:") and torch.cuda.is_available():
            torch.cuda.set_rng_state(state, int(name.removeprefix("cuda:")))
