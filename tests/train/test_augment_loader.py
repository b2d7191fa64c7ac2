"""Views and batches are pure functions of (seed, epoch, image); colours and mixup against closed forms."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.datasets import Item
from edgetl.errors import DataError
from edgetl.recipe import Finetune
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import augment, blends
from edgetl.train.loader import TrainLoader, smoothed
from edgetl.train.store import ImageStore

PREPROCESS = Preprocess(size_hw=(16, 16))


def options(**values: object) -> Finetune:
    return Finetune(data="", out="", teacher="", **values)  # type: ignore[arg-type]


def store_of(tmp_path: Path, sizes: list[tuple[int, int]]) -> ImageStore:
    rng = np.random.default_rng(0)
    shapes = np.array(sizes, np.int64)
    lengths = shapes.prod(axis=1) * 3
    return ImageStore(
        tmp_path, shapes, np.cumsum(lengths) - lengths, rng.integers(0, 256, int(lengths.sum()), np.uint8)
    )


def loader_of(tmp_path: Path, n: int = 11, batch_size: int = 4, **values: object) -> TrainLoader:
    items = [Item(str(row), row % 3) for row in range(n)]
    return TrainLoader(
        store_of(tmp_path, [(20 + row, 24) for row in range(n)]),
        items,
        3,
        PREPROCESS,
        options(**values),
        batch_size,
        torch.device("cpu"),
    )


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**31), st.floats(0.01, 1), st.floats(0.1, 1))
def test_every_box_lies_inside_its_image(height: int, width: int, seed: int, least: float, crop: float) -> None:
    rng = np.random.default_rng(seed)
    wants = Preprocess(size_hw=(8, 8), crop_fraction=crop)
    view = augment.draw_view(rng, (height, width), options(crop_scale=least), wants)
    assert 0 <= view.top <= view.top + view.height <= height and view.height >= 1
    assert 0 <= view.left <= view.left + view.width <= width and view.width >= 1


def test_one_option_does_not_move_the_draws_of_another() -> None:
    plain = augment.draw_view(np.random.default_rng(3), (50, 60), options(), PREPROCESS)
    other = augment.draw_view(
        np.random.default_rng(3), (50, 60), options(hflip=False, vflip=True, color_jitter=0.5), PREPROCESS
    )
    assert (plain.top, plain.left, plain.height, plain.width) == (other.top, other.left, other.height, other.width)


def test_without_cropping_a_view_is_what_evaluation_sees() -> None:
    view = augment.draw_view(
        np.random.default_rng(0), (40, 80), options(crop_scale=1.0), Preprocess(size_hw=(8, 8), crop_fraction=0.5)
    )
    assert (view.top, view.left, view.height, view.width) == (10, 30, 20, 20)


def test_flips_are_flips() -> None:
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)

    def shown(h: bool, v: bool) -> torch.Tensor:
        return augment.render(pixels, augment.View(0, 0, 16, 16, h, v, 1, 1, 1), PREPROCESS)

    assert torch.equal(shown(False, False).permute(1, 2, 0), torch.from_numpy(pixels))
    assert torch.equal(shown(True, True), shown(False, False).flip((1, 2)))
    assert torch.equal(shown(True, False), shown(False, False).flip(2))


def test_color_factors_of_one_change_nothing_and_zero_saturation_is_gray() -> None:
    images = torch.rand(2, 3, 5, 5) * 255
    torch.testing.assert_close(augment.jitter_colors(images.clone(), torch.ones(2, 3)), images)
    gray = augment.jitter_colors(images.clone(), torch.tensor([[1.0, 1.0, 0.0]] * 2))
    torch.testing.assert_close(gray, augment.gray(images).expand_as(images))
    dark = augment.jitter_colors(images.clone(), torch.tensor([[0.5, 1.0, 1.0]] * 2))
    torch.testing.assert_close(dark, images * 0.5)


def test_mixup_is_the_weighted_sum_with_the_reversed_batch() -> None:
    values = torch.tensor([[1.0], [3.0], [9.0]])
    torch.testing.assert_close(blends.mixed(values.clone(), 0.75), torch.tensor([[3.0], [3.0], [7.0]]))


def test_smoothed_labels_sum_to_one() -> None:
    targets = smoothed(torch.tensor([0, 2]), 4, 0.2)
    torch.testing.assert_close(targets, torch.tensor([[0.85, 0.05, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05]]))


def test_an_epoch_shows_every_image_once(tmp_path: Path) -> None:
    loader = loader_of(tmp_path)
    batches = list(loader.epoch(0))
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(11))
    assert max(len(batch.index) for batch in batches) - min(len(batch.index) for batch in batches) <= 1
    assert batches[0].images.shape[1:] == (3, 16, 16)
    order = [torch.cat([batch.index for batch in loader.epoch(epoch)]).tolist() for epoch in (0, 1)]
    assert order[0] != order[1]


def test_workers_compute_on_one_thread_each_and_leave_the_training_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    render = augment.render
    monkeypatch.setattr(augment, "render", lambda *given: (seen.append(torch.get_num_threads()), render(*given))[1])
    torch.set_num_threads(3)
    try:
        for _ in loader_of(tmp_path, workers=2).epoch(0):
            assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_depend_on_neither_workers_nor_where_the_epoch_began(tmp_path: Path, workers: int) -> None:
    whole = list(loader_of(tmp_path, workers=0, mixup=0.3).epoch(2))
    tail = list(loader_of(tmp_path, workers=workers, mixup=0.3).epoch(2, start=1))
    assert len(tail) == len(whole) - 1
    for one, other in zip(whole[1:], tail, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets)


def test_another_seed_gives_other_views(tmp_path: Path) -> None:
    one, other = (next(loader_of(tmp_path, n=4, batch_size=4, seed=seed).epoch(0)) for seed in (0, 1))
    assert not torch.equal(one.images, other.images)


def test_a_single_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2 images, found 1"):
        loader_of(tmp_path, n=1)
