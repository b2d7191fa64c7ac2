"""RandAugment, TrivialAugment and random erasing against torchvision's own; cutmix against what is in the pixels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_photos
from hypothesis import given, settings
from hypothesis import strategies as st
from stop_at import StopAt
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from edgetl import rundir
from edgetl.datasets import Item
from edgetl.events import ignore
from edgetl.recipe import Distill, Finetune, build
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import augment, blends, policies
from edgetl.train.blends import Blend
from edgetl.train.cells import Cells
from edgetl.train.loader import Batch, TrainLoader
from edgetl.train.store import ImageStore
from edgetl.train.student import distill
from edgetl.train.teacher import finetune

PIXELS = Preprocess(size_hw=(18, 24), mean=(0.5, 0.4, 0.3), std=(0.2,) * 3)
GRAY = [128.0, 102.0, 77.0]
STRONG = {"auto_augment": "randaugment", "randaugment_magnitude": 20, "random_erasing": 0.5}


def options(**values: object) -> Finetune:
    return Finetune(data="", out="", teacher="", **values)  # type: ignore[arg-type]


def loader(rows: int = 11, views: int = 0, known: int | None = None, cells: Cells | None = None,
           seed: int = 3, device: str = "cpu", **values: object) -> TrainLoader:
    """Batches of four; every image of one colour of its own, unlabelled ones from `known` on."""
    shapes = np.array([(20 + row, 24) for row in range(rows)], np.int64)
    lengths = shapes.prod(axis=1) * 3
    pixels = np.repeat(np.arange(rows, dtype=np.uint8) * 16 + 5, lengths)
    items = [Item(str(row), row % 3 if known is None or row < known else -1) for row in range(rows)]
    store = ImageStore(Path(), shapes, np.cumsum(lengths) - lengths, pixels)
    return TrainLoader(store, items, 3, PIXELS, options(workers=0, seed=seed, **values), 4, torch.device(device), views,
                       cells=cells)


def noise(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, 18, 24), np.uint8))


# --------------------------------------------------------------------------------------------- against torchvision


def drawn_by_torchvision(policy: str, seed: int) -> tuple[list[float], torch.Tensor]:
    """The draws that make torchvision's transform with a seed what it is, as numbers in [0, 1), and what it makes."""
    names = tuple(policies.SPACES[policy])
    filled = {"interpolation": InterpolationMode.BILINEAR, "fill": GRAY}
    if policy == policies.RANDAUGMENT:
        transform: v2.Transform = v2.RandAugment(num_ops=1, magnitude=20, **filled)
    else:
        transform = v2.TrivialAugmentWide(**filled)
    torch.manual_seed(seed)
    which = int(torch.randint(len(names), ()))
    strength = policies.SPACES[policy][names[which]]
    level = 0
    if strength != policies.NO_STRENGTH and policy == policies.TRIVIALAUGMENT:
        level = int(torch.randint(policies.LEVELS, ()))
    negative = strength.signed and float(torch.rand(())) <= 0.5
    torch.manual_seed(seed)
    made = transform(noise(seed))
    return [(which + 0.5) / len(names), (level + 0.5) / policies.LEVELS, 0.25 if negative else 0.75], made


@pytest.mark.parametrize("policy", [policies.RANDAUGMENT, policies.TRIVIALAUGMENT])
def test_every_change_is_that_of_torchvision(policy: str) -> None:
    seen = set()
    for seed in range(120):
        draws, wanted = drawn_by_torchvision(policy, seed)
        (change,) = policies.chosen(policy, [draws], 20, (18, 24))
        seen.add((change.name, change.magnitude < 0))
        assert torch.equal(policies.changed(noise(seed), change, GRAY), wanted), change
    signed = {name for name, strength in policies.SPACES[policy].items() if strength.signed}
    assert {name for name, _ in seen} == set(policies.SPACES[policy])
    assert {name for name, negative in seen if negative} == signed


def test_randaugment_makes_several_changes_of_one_magnitude_and_trivialaugment_one() -> None:
    draws = [[0.99, 0.1, 0.9], [0.36, 0.2, 0.1]]
    found = policies.chosen(policies.RANDAUGMENT, draws, 30, (18, 24))
    assert [(one.name, round(one.magnitude, 4)) for one in found] == [("Equalize", 0), ("Rotate", -30)]
    assert [one.name for one in policies.chosen(policies.TRIVIALAUGMENT, draws, 0, (18, 24))] == ["Equalize"]
    assert policies.chosen(policies.NONE, draws, 30, (18, 24)) == ()


def test_erasing_fills_the_box_with_what_the_network_takes_for_nothing() -> None:
    images = torch.full((2, 3, 18, 24), 9.0)
    augment.erase(images, [(2, 3, 4, 5), None], PIXELS)
    inside = images[0, :, 2:6, 3:8]
    assert inside.mean((1, 2)).tolist() == inside.amax((1, 2)).tolist() == pytest.approx([127.5, 102.0, 76.5])
    assert int((images != 9).sum()) == 3 * 4 * 5
    swapped = Preprocess(size_hw=(18, 24), mean=(0.5, 0.4, 0.3), std=(0.2,) * 3, color="bgr")
    assert augment.mean_color(swapped) == pytest.approx((76.5, 102.0, 127.5))


# ------------------------------------------------------------------------------------------------------------ draws


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.sampled_from(sorted(policies.SPACES)), st.floats(0, 1))
def test_a_view_is_replayed_and_no_option_moves_the_draws_of_another(
    seed: int, ops: int, policy: str, chance: float
) -> None:
    def view(**values: object) -> augment.View:
        return augment.draw_view(np.random.default_rng(seed), (50, 60), options(**values), PIXELS)

    plain = view()
    full = view(auto_augment=policy, randaugment_ops=ops, random_erasing=chance)
    assert full == view(auto_augment=policy, randaugment_ops=ops, random_erasing=chance)
    for name in ("top", "left", "height", "width", "hflip", "brightness", "contrast", "saturation"):
        assert getattr(full, name) == getattr(plain, name)
    assert full.erased == view(random_erasing=chance).erased and plain.erased is None and plain.changes == ()
    assert len(full.changes) == (ops if policy == policies.RANDAUGMENT else 1)
    assert full.changes[:1] == view(auto_augment=policy).changes[:1]
    if full.erased is not None:
        top, left, height, width = full.erased
        assert top >= 0 and left >= 0 and height >= 1 and width >= 1 and top + height <= 18 and left + width <= 24


def test_every_change_and_every_level_comes_as_often_and_so_does_erasing() -> None:
    views = [
        augment.draw_view(np.random.default_rng([0, number]), (50, 60),
                          options(auto_augment="trivialaugment", random_erasing=0.25), PIXELS)
        for number in range(2800)
    ]  # fmt: skip
    names = Counter(view.changes[0].name for view in views)
    assert set(names) == set(policies.SPACES["trivialaugment"])
    assert min(names.values()) > 140 and max(names.values()) < 260  # 200 each; more than four standard deviations
    angles = {abs(view.changes[0].magnitude) for view in views if view.changes[0].name == "Rotate"}
    assert len(angles) > 25 and max(angles) <= 135  # of 31 levels
    erased = [view.erased for view in views if view.erased is not None]
    assert 600 < len(erased) < 800
    shares = [height * width / (18 * 24) for _, _, height, width in erased]
    assert min(shares) < 0.05 and 0.3 < max(shares) < 0.37


def test_torchs_own_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    for batch in loader(cutmix=1.0, mixup=0.4, **STRONG).epoch(0):
        assert bool(torch.isfinite(batch.images).all())
    assert torch.equal(torch.get_rng_state(), before)


# ----------------------------------------------------------------------------------------------------------- cutmix


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True), st.integers(1, 64),
       st.integers(1, 64))  # fmt: skip
def test_the_share_of_cutmix_is_what_is_left_of_the_image(
    share: float, row: float, column: float, height: int, width: int
) -> None:
    blend = blends.cut_blend(share, row, column, (height, width))
    images = torch.zeros(2, 1, height, width)
    images[1] = 1
    mixed = blends.blended_apart(images, blend, 2)
    assert float(mixed[0].mean()) == pytest.approx(1 - blend.share, abs=1e-6)
    assert blend.share >= share - (1 / height + 1 / width)  # sides are cut to whole pixels, and to the image
    assert blend.box is not None and min(blend.box) >= 0


def test_the_box_of_cutmix_has_the_sides_of_the_paper() -> None:
    assert blends.cut_blend(0.75, 0.5, 0.5, (40, 80)) == Blend(0.75, (10, 20, 20, 40))
    assert blends.cut_blend(0.75, 0.0, 0.99, (40, 80)) == Blend(1 - 10 * 21 / 3200, (0, 59, 10, 21))


def plain(batch: Batch) -> list[float]:
    """The share of each image's own pixels, where every image has one colour and nothing was done to it."""
    own = (batch.index * 16 + 5).view(-1, 1, 1)
    return (batch.images[:, 0] == own).float().mean((1, 2)).tolist()


@pytest.mark.parametrize("views", [0, 2])
def test_labels_are_mixed_by_the_area_that_is_seen(views: int) -> None:
    made = loader(15, views, color_jitter=0, label_smoothing=0, cutmix=1.0)
    shares = []
    for batch in made.epoch(0):
        partner = batch.index.flip(0)
        for place, share in enumerate(plain(batch)):
            left = float(batch.targets[place, batch.labels[place]])
            assert left >= share - 1e-5  # more where the partner has the same label
            if views == 0 and batch.labels[place] != partner[place] % 3:
                assert left == pytest.approx(share, abs=1e-5)
            shares.append(share)
        assert batch.targets.sum(1).tolist() == pytest.approx([1.0] * len(batch.index))
    assert len(set(shares)) > (5 if views else 2) and min(shares) < 1


def test_unlabelled_images_are_cut_into_their_own_kind_only() -> None:
    for batch in loader(15, known=9, color_jitter=0, cutmix=1.0).epoch(0):
        colors = batch.images[:, 0].unique(dim=0)
        assert len(colors)
        for image in batch.images[: batch.labelled]:
            assert float(image.max()) < 9 * 16 + 5
        for image in batch.images[batch.labelled :]:
            assert float(image.min()) >= 9 * 16 + 5
        assert float(batch.targets[batch.labelled :].abs().sum()) == 0


@pytest.mark.parametrize("views", [0, 2])
def test_with_both_each_of_mixup_and_cutmix_has_its_half(views: int) -> None:
    made = loader(11, views, mixup=0.4, cutmix=1.0)
    if views:
        found = [made._partner(0, row)[1] for row in range(11)] + [made._partner(1, row)[1] for row in range(11)]
    else:
        found = [blends.drawn(np.random.default_rng([0, one]), np.random.default_rng([1, one]), made.options, (8, 8))
                 for one in range(200)]  # fmt: skip
    cut = sum(one.box is not None for one in found) / len(found)
    assert 0.25 < cut < 0.75
    assert all(one.box is not None for one in (
        blends.drawn(np.random.default_rng(one), np.random.default_rng(one), options(cutmix=1.0), (8, 8))
        for one in range(20)))  # fmt: skip


def test_cutmix_leaves_the_partners_and_shares_of_mixup_alone() -> None:
    alone, both = (loader(11, 2, mixup=0.4, cutmix=cutmix) for cutmix in (0.0, 1.0))
    for row in range(11):
        (partner, blend), (other, either) = alone._partner(1, row), both._partner(1, row)
        assert partner == other and (either.box is not None or either == blend)


# ------------------------------------------------------------------------------------------------------- in batches


@pytest.mark.parametrize("workers", [0, 2])
def test_views_with_everything_come_again_bit_for_bit(workers: int) -> None:
    more = {**STRONG, "cutmix": 1.0, "mixup": 0.3}
    made, other = loader(9, 2, **more), loader(9, 2, **more)
    object.__setattr__(other.options, "workers", workers)
    first = {int(row): image for batch in made.epoch(0) for row, image in zip(batch.index, batch.images, strict=True)}
    again = {int(row): image for batch in other.epoch(2) for row, image in zip(batch.index, batch.images, strict=True)}
    assert first.keys() == again.keys() and all(torch.equal(first[row], again[row]) for row in first)


def test_two_processes_see_the_batch_that_one_sees() -> None:
    more = {**STRONG, "cutmix": 1.0, "mixup": 0.3}
    whole = next(loader(8, **more).epoch(1))
    parts = [next(loader(8, cells=Cells(2, rank), **more).epoch(1)) for rank in (0, 1)]
    seen = {int(row): image for part in parts for row, image in zip(part.index, part.images, strict=True)}
    assert sorted(seen) == sorted(whole.index.tolist())
    assert all(torch.equal(seen[int(row)], image) for row, image in zip(whole.index, whole.images, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here")
@pytest.mark.parametrize("views", [0, 2])
def test_a_gpu_is_shown_the_same_views(views: int) -> None:
    more = {**STRONG, "cutmix": 1.0, "mixup": 0.3, "color_jitter": 0.4}
    for one, other in zip(loader(9, views, **more).epoch(0), loader(9, views, device="cuda", **more).epoch(0),
                          strict=True):  # fmt: skip
        torch.testing.assert_close(other.images.cpu(), one.images, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(other.targets.cpu(), one.targets)
        assert torch.equal(other.index, one.index) and torch.equal(other.labels.cpu(), one.labels)


@pytest.mark.usefixtures("written_once")
def test_a_student_of_kept_views_with_everything_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"data": str(write_photos(tmp_path / "photos", classes=2, images=8)), "pretrained": False, "workers": 0,
              "image_size": 32, "batch_size": "8", "threads": 1, **STRONG, "mixup": 0.3, "cutmix": 1.0}  # fmt: skip
    loose = write_photos(tmp_path / "loose", classes=1, images=5, seed=7)
    teacher = finetune(build(Finetune, {**shared, "teacher": "timm/test_resnet", "out": str(tmp_path / "teacher"),
                                        "epochs": 1}, where="test"))  # fmt: skip

    def student(out: str, listener: Any = ignore, **more: object) -> bytes:
        given = {**shared, "teacher": str(teacher), "student": "timm/test_efficientnet", "out": str(tmp_path / out),
                 "epochs": 2, "views": 1, "control": False, "checkpoint_minutes": 0, "unlabeled": [str(loose)],
                 "loss": ["labels:0.5,kd:1"], **more}  # fmt: skip
        monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / f"cache of {out}"))
        return (distill(build(Distill, given, where="test"), listener=listener) / rundir.MODEL).read_bytes()

    whole = student("whole")
    with pytest.raises(ZeroDivisionError):
        student("broken", StopAt(3, ZeroDivisionError()))
    assert student("broken", resume=True) == whole


def old_jitter(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """The formula, as slow as it reads."""
    def gray(values: torch.Tensor) -> torch.Tensor:
        return (values * torch.tensor(augment.LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)

    brightness, contrast, saturation = (factors[:, column].view(-1, 1, 1, 1) for column in range(3))
    images = (images * brightness).clamp(0, 255)
    images = torch.lerp(gray(images).mean(dim=(1, 2, 3), keepdim=True), images, contrast).clamp(0, 255)
    return torch.lerp(gray(images).expand_as(images), images, saturation).clamp(0, 255)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_colours_are_those_of_the_formula(layout: torch.memory_format) -> None:
    rng = np.random.default_rng(5)
    images = torch.from_numpy(rng.integers(0, 256, (6, 3, 17, 23)).astype(np.float32)).contiguous(memory_format=layout)
    kept = images.clone()
    factors = torch.from_numpy(rng.uniform(0, 2, (6, 3)).astype(np.float32))
    torch.testing.assert_close(augment.jitter_colors(images, factors), old_jitter(images, factors), rtol=0, atol=1e-4)
    assert torch.equal(images, kept)
