"""Batches of training views, in an order and with views that depend on nothing but (seed, epoch, image).

With K views an image, epoch e shows view e mod K: the same pixels, bit for bit, every K epochs. Where they are drawn
anew every R epochs, epoch e shows view (e div R) K + (e mod R) mod K: K other views from then on. Mixup then mixes an
image with a partner that is drawn for the view, where without views it mixes each batch with itself.

Images without a label (-1) come after the labelled ones, in the store and in each batch, so that a slice parts them. An
epoch shows all images of both kinds once, spread so that every batch has its share of both. A labelled image is mixed
with labelled ones only: its target is known, and its views are the same whether there are others or not.
"""

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
from edgetl.errors import DataError, EdgetlError
from edgetl.recipe_fields import TrainFields
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import augment
from edgetl.train.cells import Cells
from edgetl.train.store import ImageStore

ORDER, VIEW, MIX, PARTNER = 0, 1, 2, 3  # streams of random numbers, kept apart by the first word of their seed
VIEWS_VERSION = 1  # changes when the same options would draw other views


@dataclass(frozen=True)
class Part:
    """Rows that make a batch: those of a step, or a part of them."""

    step: int
    rows: NDArray[np.int64]
    whole: tuple[int, int] | None  # see `Batch`


@dataclass(frozen=True)
class Rendered:
    """Views of a batch before they go to the device; where partners are mixed in, they follow the images."""

    images: torch.Tensor  # uint8 [N, 3, H, W], or [2 N, 3, H, W]
    factors: torch.Tensor  # [N or 2 N, 3] of brightness, contrast and saturation
    index: torch.Tensor  # int64 [N or 2 N] rows
    shares: torch.Tensor | None  # [N] of the image itself where it is mixed


@dataclass(frozen=True)
class Batch:
    """What a task sees in one step."""

    images: torch.Tensor  # float32 [N, 3, H, W] in 0..255, RGB; each network normalises for itself
    labels: torch.Tensor  # int64 [N]; -1 where there is none
    targets: torch.Tensor  # float32 [N, K] probabilities: smoothed and mixed labels; 0 where there is none
    index: torch.Tensor  # int64 [N] rows of the store
    view: int = 0  # which view of the images; of no meaning where views are not drawn once
    unlabelled: int = 0  # images without a label; they come last
    whole: tuple[int, int] | None = None  # images, and those with a label, of the step of which this is a part

    @property
    def labelled(self) -> int:
        """How many images have a label; they come first."""
        return len(self.labels) - self.unlabelled

    @property
    def step_images(self) -> int:
        """Images of the whole step."""
        return self.whole[0] if self.whole is not None else len(self.labels)


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
        views: int = 0,
        refresh: int = 0,
        cells: Cells | None = None,
    ) -> None:
        """See the module.

        Args:
            store: pixels of the images.
            items: the images in the order of the store; those without a label (-1) come last.
            classes: how many there are.
            preprocess: of the student.
            options: what decides the views.
            batch_size: most images in a batch.
            device: where batches go.
            views: of each image, drawn once; 0 draws new ones every epoch.
            refresh: epochs after which the views are drawn anew; 0 is never.
            cells: how a step's images are dealt out; a batch is a cell. None: a batch is a step.

        Raises:
            DataError: fewer than two images.
        """
        if len(items) < 2:
            raise DataError(f"Training needs at least 2 images, found {len(items)}.")
        self.store, self.classes, self.preprocess, self.options, self.device = (
            store,
            classes,
            preprocess,
            options,
            device,
        )
        self.views, self.refresh, self.cells = views, refresh, cells or Cells()
        self.labels = np.array([item.label for item in items], np.int64)
        self.labelled = int((self.labels >= 0).sum())
        if (self.labels[: self.labelled] < 0).any():
            raise ValueError("images without a label must come after the others")
        # Batches of nearly equal size instead of a small last one: every image is seen and batch norm stays sound.
        self.steps = math.ceil(len(items) / batch_size)
        self.smallest = len(items) // self.steps  # images in the smallest batch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch from step `start` on; prepared ahead by `options.workers` threads."""
        steps = list(enumerate(self._split(self._order(epoch))))[start:]
        parts = [part for step, rows in steps for part in self._dealt(step, rows)]
        if self.options.workers == 0:
            yield from (self._finish(self._render(epoch, part.rows), epoch, part) for part in parts)
            return
        yield from self._prefetched(epoch, parts)

    def _prefetched(self, epoch: int, parts: Sequence[Part]) -> Iterator[Batch]:
        threads = torch.get_num_threads()
        # A worker that computes with threads of its own takes the cores from the training: 1.6 times as slow on two.
        pool = ThreadPoolExecutor(
            self.options.workers, "edgetl-loader", initializer=torch.set_num_threads, initargs=(1,)
        )
        waiting: deque[Future[Rendered]] = deque()
        try:
            ahead = 2 * self.options.workers
            for part in parts[:ahead]:
                waiting.append(pool.submit(self._render, epoch, part.rows))
            for place, part in enumerate(parts):
                rendered = waiting.popleft().result()
                if place + ahead < len(parts):
                    waiting.append(pool.submit(self._render, epoch, parts[place + ahead].rows))
                yield self._finish(rendered, epoch, part)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)  # the workers' 1 would be that of every thread which begins later

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """All rows; where there are both kinds, each is spread evenly over the epoch."""
        order = self._rng(ORDER, epoch).permutation(len(self.labels))
        known = order < self.labelled
        kinds = order[known], order[~known]
        places = np.concatenate([(np.arange(len(kind)) + 0.5) / max(1, len(kind)) for kind in kinds])
        return np.concatenate(kinds)[np.argsort(places, kind="stable")]

    def _split(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The rows of each batch, labelled ones first."""
        parts = np.array_split(order, self.steps)
        return [part[np.argsort(part >= self.labelled, kind="stable")] for part in parts]

    def _dealt(self, step: int, rows: NDArray[np.int64]) -> list[Part]:
        """What this process sees of a step's rows, by micro-batch."""
        if self.cells == Cells():
            return [Part(step, rows, None)]
        known = int((rows < self.labelled).sum())
        mirrored = self.options.mixup > 0 and not self.views
        return [
            Part(step, rows[cell], (len(rows), known)) for cell in self.cells.of(len(rows), known, mirrored=mirrored)
        ]

    def _view(self, epoch: int) -> int:
        return view_of(epoch, self.views, self.refresh)

    def _render(self, epoch: int, index: NDArray[np.int64]) -> Rendered:
        """What needs no device."""
        view = self._view(epoch)
        shares = None
        if self.views and self.options.mixup > 0:
            drawn = [self._partner(view, row) for row in index.tolist()]
            index = np.concatenate([index, np.array([partner for partner, _ in drawn], np.int64)])
            shares = torch.tensor([share for _, share in drawn])
        height, width = self.preprocess.size_hw
        images = torch.empty((len(index), 3, height, width), dtype=torch.uint8).to(memory_format=torch.channels_last)
        factors = torch.empty((len(index), 3))
        for place, row in enumerate(index.tolist()):
            pixels = self.store[row]
            size = pixels.shape[0], pixels.shape[1]
            one = augment.draw_view(self._rng(VIEW, view, row), size, self.options, self.preprocess)
            images[place] = augment.render(pixels, one, self.preprocess)
            factors[place] = torch.tensor([one.brightness, one.contrast, one.saturation])
        return Rendered(images, factors, torch.from_numpy(index), shares)

    def _partner(self, view: int, row: int) -> tuple[int, float]:
        """The image that is mixed into a view of another one, and the share that is left to that one."""
        rng = self._rng(PARTNER, view, row)
        among = self.labelled if row < self.labelled else len(self.labels)
        return int(rng.integers(among)), float(rng.beta(self.options.mixup, self.options.mixup))

    def _finish(self, rendered: Rendered, epoch: int, part: Part) -> Batch:
        """The batch on the training device: colours, soft targets and mixup."""
        index = rendered.index
        own = len(index) if rendered.shares is None else len(index) // 2
        known = int((index[:own] < self.labelled).sum())
        images = rendered.images.to(self.device, non_blocking=True).float()
        if self.options.color_jitter > 0:
            images = augment.jitter_colors(images, rendered.factors.to(self.device, non_blocking=True))
        labels = torch.from_numpy(self.labels)[index].to(self.device)
        targets = smoothed(labels.clamp(min=0), self.classes, self.options.label_smoothing)
        if rendered.shares is not None:
            shares = rendered.shares.to(self.device)
            images, targets = (augment.blended(value[:own], value[own:], shares) for value in (images, targets))
            labels, index = labels[:own], index[:own]
        elif self.options.mixup > 0:
            share = float(self._rng(MIX, epoch, part.step).beta(self.options.mixup, self.options.mixup))
            images, targets = (augment.mixed_apart(value, share, known) for value in (images, targets))
        targets[known:] = 0
        contiguous = images.contiguous(memory_format=torch.channels_last)
        return Batch(contiguous, labels, targets, index, self._view(epoch), own - known, part.whole)

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.options.seed, *stream])


def view_of(epoch: int, views: int, refresh: int = 0) -> int:
    """The number of the view that an epoch shows, see the module; without views each epoch has its own."""
    if not views:
        return epoch
    return epoch // refresh * views + epoch % refresh % views if refresh else epoch % views


def require_refresh(views: int, refresh: int) -> None:
    """Returns when views can be drawn anew after so many epochs.

    Raises:
        EdgetlError: there are none that stay, or some would never be shown.
    """
    if refresh and not views:
        raise EdgetlError(
            f"--refresh-views {refresh} draws the views anew, and without --views every epoch has new ones already.",
            hint="Give --views K, or leave --refresh-views out.",
        )
    if 0 < refresh < views:
        raise EdgetlError(
            f"--refresh-views {refresh} is less than --views {views}: some views would never be shown.",
            hint=f"Give --refresh-views {views} or more, best a multiple of {views}.",
        )


def smoothed(labels: torch.Tensor, classes: int, smoothing: float) -> torch.Tensor:
    """Probabilities [N, K]: 1 - smoothing on the label, and smoothing spread over all classes."""
    off = smoothing / classes
    return torch.full((len(labels), classes), off, device=labels.device).scatter_(
        1, labels[:, None], 1 - smoothing + off
    )
