"""Where a training is, and how good it has become."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Score:
    """How good the network is on the validation split."""

    accuracy: float
    loss: float

    def better_than(self, other: Score | None) -> bool:
        """Higher accuracy; of equals the lower loss."""
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


@dataclass
class Progress:
    """Where training is; all of it goes into the checkpoint."""

    epoch: int = 0
    step: int = 0  # within the epoch
    sums: dict[str, float] = field(default_factory=dict)  # of the running epoch, weighted by images
    images: int = 0
    labelled: int = 0  # images with a label
    seconds: float = 0.0  # of training steps in the running epoch
    best: Score | None = None
    best_epoch: int = -1
    drops: int = 0  # of the learning rate, with --schedule plateau
    dropped_epoch: int = -1  # after which the last of them was
    done: bool = False
