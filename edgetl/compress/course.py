"""What a training of an INT8 graph consists of, for those who do not know torch; see `compress.qat`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import EdgetlError

Answer = Callable[[NDArray[np.float32]], NDArray[Any]]  # images [N, C, H, W] -> scores [N, K]


class Untrainable(EdgetlError):
    """A graph that cannot be trained."""


@dataclass(frozen=True)
class Course:
    """How long and on what an INT8 graph is trained."""

    epochs: int
    updates: int  # of an epoch
    images: Callable[[int], Iterator[NDArray[np.float32]]]  # by epoch: batches [N, C, H, W] of training images
    teacher: Answer
    output: str  # of both graphs: the scores
    threads: int = 0  # 0 leaves torch's own choice
    note: Callable[[str], None] = lambda text: None
