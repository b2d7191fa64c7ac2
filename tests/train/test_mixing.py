"""Several teachers as one answer, in closed form; and whose class is whose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgetl.errors import DataError, EdgetlError
from edgetl.models import Network
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import classes, mixing
from edgetl.train.loader import Batch
from edgetl.train.mixing import Mixed, confidences, pooled
from edgetl.train.softlabels import Live


def random_logits(teachers: int, images: int, count: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(teachers, images, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(targets: torch.Tensor) -> Batch:
    images = len(targets)
    return Batch(torch.zeros(images, 3, 2, 2), targets.argmax(1), targets, torch.arange(images))


def mixed(logits: torch.Tensor, mix: str = "mean", weights: tuple[float, ...] = ()) -> Mixed:
    return Mixed([Live(lambda images, one=one: one) for one in logits.float()], mix, weights)


@pytest.mark.parametrize("mix", ["mean", "confidence"])
def test_one_teacher_twice_is_one_teacher(mix: str) -> None:
    one = random_logits(1, 5, 4).float()
    targets = torch.eye(4)[[0, 1, 2, 3, 0]]
    said = mixed(one.expand(2, -1, -1), mix).answers(batch(targets))
    torch.testing.assert_close(said, one[0], rtol=1e-6, atol=1e-6)
    alone = mixed(one, mix).answers(batch(targets))
    assert torch.equal(alone, one[0])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.floats(0.5, 8), st.integers(0, 1000))
def test_the_pool_is_the_geometric_mean_at_every_temperature(teachers: int, temperature: float, seed: int) -> None:
    logits = random_logits(teachers, 3, 5, seed)
    shares = np.random.default_rng(seed).uniform(0.1, 1, teachers)
    shares /= shares.sum()
    found = (pooled(logits, torch.from_numpy(shares)) / temperature).softmax(1).numpy()
    each = np.exp(logits.numpy() / temperature)
    each /= each.sum(2, keepdims=True)
    product = np.prod(each ** shares[:, None, None], axis=0)
    np.testing.assert_allclose(found, product / product.sum(1, keepdims=True), rtol=1e-9)


def test_weights_count_by_their_shares() -> None:
    logits = random_logits(2, 3, 4).float()
    targets = torch.eye(4)[:3]
    said = mixed(logits, "weighted", (2, 1)).answers(batch(targets))
    torch.testing.assert_close(said, (2 * logits[0] + logits[1]) / 3)
    assert torch.equal(said, mixed(logits, "weighted", (4, 2)).answers(batch(targets)))
    torch.testing.assert_close(mixed(logits).ask(torch.zeros(3, 3, 2, 2)), logits.mean(0))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(0, 1000))
def test_confidences_are_the_paper_s(teachers: int, seed: int) -> None:
    logits, chance = random_logits(teachers, 4, 6, seed), np.random.default_rng(seed)
    labels = chance.integers(0, 6, 4)
    found = confidences(logits, torch.eye(6, dtype=torch.float64)[labels]).numpy()
    values = logits.numpy()
    loss = np.log(np.exp(values).sum(2)) - values[:, np.arange(4), labels]
    weight = (1 - np.exp(loss) / np.exp(loss).sum(0)) / (teachers - 1)
    np.testing.assert_allclose(found, weight, rtol=1e-9)
    np.testing.assert_allclose(found.sum(0), 1)


def test_confidence_picks_the_one_who_is_surer_of_the_true_class() -> None:
    right, wrong, unsure = torch.tensor([[9.0, 0, 0]]), torch.tensor([[0, 9.0, 0]]), torch.zeros(1, 3)
    label, none = torch.eye(3)[:1], torch.zeros(1, 3)
    assert confidences(torch.stack([wrong, right]), label)[1] > 0.99
    first, second = confidences(torch.stack([right, unsure]), label)
    assert first > second
    # Without a label, the surer one counts for more, right or wrong.
    first, second = confidences(torch.stack([unsure, wrong]), none)
    assert second > first
    assert torch.equal(*confidences(torch.stack([right, wrong]), none))


def test_flush_reaches_every_source() -> None:
    flushed: list[int] = []

    class Source(Live):
        def flush(self) -> None:
            flushed.append(1)

    Mixed([Source(lambda images: images), Source(lambda images: images)], mixing.MEAN).flush()
    assert len(flushed) == 2


# ------------------------------------------------------------------------------------------------- names of classes

IMAGENET = [("n01", "tench", "Tinca tinca"), ("n02", "goldfish"), ("n03", "crane"), ("n04", "crane"), ("T-shirt",)]


@pytest.mark.parametrize(
    ("labels", "places"),
    [
        (("goldfish", "tench"), (1, 0)),
        (("Tinca_tinca", "GOLDFISH"), (0, 1)),
        (("n04", "n03"), (3, 2)),
        (("t-shirt",), (4,)),
    ],
)
def test_classes_are_found_by_any_of_their_names(labels: tuple[str, ...], places: tuple[int, ...]) -> None:
    assert classes.columns(IMAGENET, labels, teacher="T") == places


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (("tench", "carp", "ant"), r"the data has \['ant', 'carp'\] that the teacher lacks, the teacher has .*'n02'"),
        (("tench", "crane"), r"cannot be told apart by the data's names \['crane'\]"),
        (("tench", "n01"), r"cannot be told apart by the data's names \['n01', 'tench'\]"),
    ],
)
def test_what_cannot_be_matched_is_listed(labels: tuple[str, ...], says: str) -> None:
    with pytest.raises(DataError, match=says):
        classes.columns(IMAGENET, labels, teacher="T")


def test_a_long_list_is_cut_short() -> None:
    with pytest.raises(DataError, match="and 992 more"):
        classes.columns([(f"class {one}",) for one in range(1000)], ("other",), teacher="T")


def network(head: nn.Module) -> Network:
    return Network("made/up", nn.Sequential(nn.Flatten(1), head), "1", Preprocess(size_hw=(1, 1)))


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_is_cut_to_the_classes_of_the_data(bias: bool) -> None:
    torch.manual_seed(0)
    whole = network(nn.Linear(3, 5, bias=bias))
    images = torch.rand(2, 3, 1, 1)
    said = whole.module(images).detach()
    part = classes.selected(whole, (4, 0, 2))
    torch.testing.assert_close(part.module(images), said[:, [4, 0, 2]])
    assert part.module[1].out_features == 3  # type: ignore[index]


def test_a_head_of_single_pixels_is_cut_and_any_other_refused() -> None:
    head: Any = nn.Conv2d(3, 4, 1)
    module = nn.Sequential(nn.Identity(), head, nn.Flatten())
    found = classes.selected(Network("made/up", module, "1", Preprocess(size_hw=(1, 1))), (3, 1))
    assert found.module(torch.rand(2, 3, 1, 1)).shape == (2, 2) and head.out_channels == 2
    with pytest.raises(EdgetlError, match="The head of made/up is Identity"):
        classes.selected(network(nn.Identity()), (0,))
