"""Batches of training views, in an order and with views that depend on nothing but (seed, epoch, image)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgetl.datasets import Item
from edgetl.errors import DataError
from edgetl.recipe import TrainFields
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import augment
from edgetl.train.store import ImageStore

ORDER, VIEW, MIX = 0, 1, 2  # streams of random numbers, kept apart by the first word of their seed


@dataclass(frozen=True)
class Batch:
    """What a task sees in one step."""

    images: torch.Tensor  # float32 [N, 3, H, W] in 0..255, RGB; each network normalises for itself
    labels: torch.Tensor  # int64 [N]
    targets: torch.Tensor  # float32 [N, K] probabilities: smoothed and mixed labels
    index: torch.Tensor  # int64 [N] rows of the store


class TrainLoader:
    """Epochs of batches over the training images."""

    def __init__(
        self,
        store: ImageStore,
        items: Sequence[Item],
        classes: int,
        preprocess: Preprocess,
        options: TrainFields,
        batch_size: int,
        device: torch.device,
    ) -> None:
        if len(items) < 2:
            raise DataError(f"Training needs at least 2 images, found {len(items)}.")
        self.store, self.classes, self.preprocess, self.options, self.device = (
            store,
            classes,
            preprocess,
            options,
            device,
        )
        self.labels = np.array([item.label for item in items], np.int64)
        # Batches of nearly equal size instead of a small last one: every image is seen and batch norm stays sound.
        self.steps = math.ceil(len(items) / batch_size)
        self.smallest = len(items) // self.steps  # images in the smallest batch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch from step `start` on; prepared ahead by `options.workers` threads."""
        order = self._rng(ORDER, epoch).permutation(len(self.labels))
        parts = list(enumerate(np.array_split(order, self.steps)))[start:]
        if self.options.workers == 0:
            yield from (self._finish(self._render(epoch, index), epoch, step) for step, index in parts)
            return
        yield from self._prefetched(epoch, parts)

    def _prefetched(self, epoch: int, parts: Sequence[tuple[int, NDArray[np.int64]]]) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.options.workers, thread_name_prefix="edgetl-loader")
        waiting: deque[Future[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = deque()
        try:
            ahead = 2 * self.options.workers
            for _, index in parts[:ahead]:
                waiting.append(pool.submit(self._render, epoch, index))
            for place, (step, _) in enumerate(parts):
                rendered = waiting.popleft().result()
                if place + ahead < len(parts):
                    waiting.append(pool.submit(self._render, epoch, parts[place + ahead][1]))
                yield self._finish(rendered, epoch, step)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _render(self, epoch: int, index: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """uint8 [N, 3, H, W], colour factors [N, 3] and rows [N]: what needs no device."""
        height, width = self.preprocess.size_hw
        images = torch.empty((len(index), 3, height, width), dtype=torch.uint8).to(memory_format=torch.channels_last)
        factors = torch.empty((len(index), 3))
        for place, row in enumerate(index.tolist()):
            pixels = self.store[row]
            view = augment.draw_view(
                self._rng(VIEW, epoch, row), (pixels.shape[0], pixels.shape[1]), self.options, self.preprocess
            )
            images[place] = augment.render(pixels, view, self.preprocess)
            factors[place] = torch.tensor([view.brightness, view.contrast, view.saturation])
        return images, factors, torch.from_numpy(index)

    def _finish(self, rendered: tuple[torch.Tensor, torch.Tensor, torch.Tensor], epoch: int, step: int) -> Batch:
        """The batch on the training device: colours, soft targets and mixup."""
        pixels, factors, index = rendered
        images = pixels.to(self.device, non_blocking=True).float()
        if self.options.color_jitter > 0:
            images = augment.jitter_colors(images, factors.to(self.device, non_blocking=True))
        labels = torch.from_numpy(self.labels)[index].to(self.device)
        targets = smoothed(labels, self.classes, self.options.label_smoothing)
        if self.options.mixup > 0:
            share = float(self._rng(MIX, epoch, step).beta(self.options.mixup, self.options.mixup))
            images, targets = augment.mixed(images, share), augment.mixed(targets, share)
        return Batch(images.contiguous(memory_format=torch.channels_last), labels, targets, index)

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.options.seed, *stream])


def smoothed(labels: torch.Tensor, classes: int, smoothing: float) -> torch.Tensor:
    """Probabilities [N, K]: 1 - smoothing on the label, and smoothing spread over all classes."""
    off = smoothing / classes
    return torch.full((len(labels), classes), off, device=labels.device).scatter_(
        1, labels[:, None], 1 - smoothing + off
    )
