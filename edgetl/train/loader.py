"""Batches of training views, in an order and with views that depend on nothing but (seed, epoch, image).

With K views an image, epoch e shows view e mod K: the same pixels, bit for bit, every K epochs. Where they are drawn
anew every R epochs, epoch e shows view (e div R) K + (e mod R) mod K: K other views from then on. Mixup and cutmix then
mix an image with a partner that is drawn for the view, where without views they mix each batch with itself.

Images without a label (-1) come after the labelled ones, in the store and in each batch, so that a slice parts them. An
epoch shows all images of both kinds once, spread so that every batch has its share of both. A labelled image is mixed
with labelled ones only: its target is known, and its views are the same whether there are others or not.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgetl.datasets import Item
from edgetl.errors import DataError, EdgetlError
from edgetl.recipe_fields import TrainFields
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import augment, blends
from edgetl.train.balance import Rows
from edgetl.train.blends import Blend, Box
from edgetl.train.cells import Cells
from edgetl.train.store import ImageStore

# Streams of random numbers, kept apart by the first word of their seed; cutmix has its own beside those of mixup.
ORDER, VIEW, MIX, PARTNER, CUT, CUT_PARTNER = range(6)
VIEWS_VERSION = 2  # changes when the same options would draw other views


@dataclass(frozen=True)
class Part:
    """Rows that make a batch: those of a step, or a part of them."""

    step: int
    rows: NDArray[np.int64]
    whole: tuple[int, int] | None  # see `Batch`


@dataclass(frozen=True)
class Rendered:
    """Views of a batch before they go to the device; where partners are mixed in, they follow the images."""

    images: torch.Tensor  # uint8 [N, C, H, W], or [2 N, C, H, W]
    factors: torch.Tensor  # [N or 2 N, 3] of brightness, contrast and saturation
    erased: tuple[Box | None, ...]  # [N or 2 N]
    index: torch.Tensor  # int64 [N or 2 N] rows
    blends: tuple[Blend, ...] | None  # [N] where partners are mixed in


@dataclass(frozen=True)
class Batch:
    """What a task sees in one step."""

    images: torch.Tensor  # float32 [N, C, H, W] in 0..255, RGB first; each network normalises for itself
    labels: torch.Tensor  # int64 [N]; -1 where there is none
    # float32 [N, K] probabilities (or values, see `edgetl.train.aim`): smoothed and mixed labels; 0 where there is none
    targets: torch.Tensor
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
        drawn: Rows | None = None,
        truth: torch.Tensor | None = None,
    ) -> None:
        """See the module.

        Args:
            store: pixels of the images.
            items: the images in the order of the store; those without a label (-1) come last.
            classes: how many there are.
            preprocess: of the student, or what `channels.shown` makes of it.
            options: what decides the views.
            batch_size: most images in a batch.
            device: where batches go.
            views: of each image, drawn once; 0 draws new ones every epoch.
            refresh: epochs after which the views are drawn anew; 0 is never.
            cells: how a step's images are dealt out; a batch is a cell. None: a batch is a step.
            drawn: rows of an epoch, as many as there are images; None shows each once.
            truth: float32 [N, K] targets of the images, smoothed already; None: their class is theirs.

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
        self.views, self.refresh, self.cells, self.drawn = views, refresh, cells or Cells(), drawn
        self.truth = truth
        self.labels = np.array([item.label for item in items], np.int64)
        self.labelled = int((self.labels >= 0).sum())
        if (self.labels[: self.labelled] < 0).any():
            raise ValueError("images without a label must come after the others")
        # Batches of nearly equal size instead of a small last one: every image is seen and batch norm stays sound.
        self.steps = math.ceil(len(items) / batch_size)
        self.smallest = len(items) // self.steps  # images in the smallest batch

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
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
        if self.drawn is not None:
            return self.drawn(self._rng(ORDER, epoch))
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
        mirrored = blends.wanted(self.options) and not self.views
        return [
            Part(step, rows[cell], (len(rows), known)) for cell in self.cells.of(len(rows), known, mirrored=mirrored)
        ]

    def _view(self, epoch: int) -> int:
        return view_of(epoch, self.views, self.refresh)

    def _render(self, epoch: int, index: NDArray[np.int64]) -> Rendered:
        """What needs no device."""
        view = self._view(epoch)
        blended = None
        if self.views and blends.wanted(self.options):
            partners, blended = zip(*(self._partner(view, row) for row in index.tolist()), strict=True)
            index = np.concatenate([index, np.array(partners, np.int64)])
        images = torch.empty((len(index), *self.preprocess.input_shape), dtype=torch.uint8)
        factors = torch.empty((len(index), 3))
        erased = []
        for place, row in enumerate(index.tolist()):
            pixels = self.store[row]
            size = pixels.shape[0], pixels.shape[1]
            one = augment.draw_view(self._rng(VIEW, view, row), size, self.options, self.preprocess)
            images[place] = augment.render(pixels, one, self.preprocess)
            factors[place] = torch.tensor([one.brightness, one.contrast, one.saturation])
            erased.append(one.erased)
        return Rendered(images, factors, tuple(erased), torch.from_numpy(index), blended)

    def _partner(self, view: int, row: int) -> tuple[int, Blend]:
        """The image that is mixed into a view of another one, and how."""
        rng = self._rng(PARTNER, view, row)
        among = self.labelled if row < self.labelled else len(self.labels)
        partner = int(rng.integers(among))
        return partner, blends.drawn(rng, self._rng(CUT_PARTNER, view, row), self.options, self.preprocess.size_hw)

    def _finish(self, rendered: Rendered, epoch: int, part: Part) -> Batch:
        """The batch on the training device: colours, erased boxes, soft targets, mixup and cutmix."""
        index = rendered.index
        own = len(index) if rendered.blends is None else len(index) // 2
        known = int((index[:own] < self.labelled).sum())
        images = rendered.images.to(self.device, non_blocking=True).float()
        if self.options.color_jitter > 0:
            images = augment.jitter_colors(images, rendered.factors.to(self.device, non_blocking=True))
        if self.options.random_erasing > 0:
            augment.erase(images, rendered.erased, self.preprocess)
        labels = torch.from_numpy(self.labels)[index].to(self.device)
        targets = (smoothed(labels.clamp(min=0), self.classes, self.options.label_smoothing) if self.truth is None
                   else self.truth[index].to(self.device))
        if rendered.blends is not None:
            images = blends.with_partners(images[:own], images[own:], rendered.blends)
            shares = blends.shares_of(rendered.blends).to(self.device)
            targets = blends.blended(targets[:own], targets[own:], shares)
            labels, index = labels[:own], index[:own]
        elif blends.wanted(self.options):
            mix, cut = (self._rng(stream, epoch, part.step) for stream in (MIX, CUT))
            blend = blends.drawn(mix, cut, self.options, self.preprocess.size_hw)
            images = blends.blended_apart(images, blend, known)
            targets = blends.mixed_apart(targets, blend.share, known)
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
