"""Which images of a batch a process sees, and in which micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cells:
    """How each batch is dealt out: to processes, and to micro-batches that come one after the other."""

    ranks: int = 1
    rank: int = 0
    micro: int = 1

    def of(self, size: int, labelled: int, *, mirrored: bool) -> list[NDArray[np.int64]]:
        """Places in a batch that this process sees, by micro-batch; ascending, so labelled ones stay first.

        Args:
            size: of the batch.
            labelled: how many of the batch, its first ones, have a label.
            mirrored: keep place i with the place that mixup mixes it with: the i-th from the end of those with a label,
                or of those without.
        """
        count = self.ranks * self.micro
        # The processes share each micro-batch, which is the same however many they are.
        mine = range(self.rank * self.micro, (self.rank + 1) * self.micro)
        if not mirrored:
            return [np.arange(cell, size, count) for cell in mine]
        return [np.concatenate([_mirrored(0, labelled, cell, count), _mirrored(labelled, size, cell, count)])
                for cell in mine]  # fmt: skip


def _mirrored(begin: int, end: int, cell: int, count: int) -> NDArray[np.int64]:
    first = np.arange(cell, (end - begin + 1) // 2, count, dtype=np.int64)
    return np.unique(np.concatenate([begin + first, end - 1 - first]))
