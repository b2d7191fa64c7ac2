"""The nearest neighbours' read-out: the paper's rule in loops, and what a probe leaves in the record."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.train import readouts


def by_hand(train, labels, image, k, classes):
    """The class of one image, from the paper's words."""
    found = []
    for row, label in zip(train.tolist(), labels.tolist(), strict=True):
        product = sum(a * b for a, b in zip(row, image.tolist(), strict=True))
        found.append((product / math.hypot(*row) / math.hypot(*image.tolist()), label))
    votes = [0.0] * classes
    for similarity, label in sorted(found, reverse=True)[:k]:
        votes[label] += math.exp(similarity / 0.07)
    return votes.index(max(votes))


@given(st.integers(0, 999), st.integers(1, 30), st.integers(2, 4))
@settings(deadline=None, max_examples=20)
def test_each_number_of_neighbours_is_right_as_often_as_by_the_papers_rule(seed, n, classes):
    generator = torch.Generator().manual_seed(seed)
    train, val = torch.randn(n, 5, generator=generator), torch.randn(9, 5, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    truth = torch.randint(classes, (9,), generator=generator)
    found = readouts.nearest_neighbours(train, labels, val, truth, classes)
    assert list(found.tried) == sorted({min(k, n) for k in (1, 5, 10, 20, 50)})
    for k, share in found.tried.items():
        right = sum(by_hand(train, labels, image, k, classes) == label for image, label in zip(val, truth, strict=True))
        assert share == pytest.approx(right / 9)
    best = max(found.tried.values())
    assert (found.k, found.val_accuracy) == (min(k for k, share in found.tried.items() if share == best), best)


def test_length_does_not_matter_and_pieces_are_one_whole(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    train, val = torch.randn(40, 8, generator=generator), torch.randn(30, 8, generator=generator)
    labels, truth = torch.randint(3, (40,), generator=generator), torch.randint(3, (30,), generator=generator)
    whole = readouts.nearest_neighbours(train, labels, val, truth, 3)
    monkeypatch.setattr(readouts, "AT_ONCE", 7)
    longer = torch.rand(40, 1, generator=generator) * 9 + 0.1
    assert readouts.nearest_neighbours(train * longer, labels, 3 * val, truth, 3) == whole


def test_clusters_are_known_without_training():
    centres = 10 * torch.eye(3)
    labels = torch.arange(60) % 3
    near = centres[labels] + torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    found = readouts.nearest_neighbours(near[:30], labels[:30], near[30:], labels[30:], 3)
    assert (found.k, found.val_accuracy) == (1, 1.0)
    assert found.sentence() == "nearest neighbours: by the nearest training image, 100.0 % of the validation images"
    tried = dict.fromkeys(("1", "5", "10", "20", "30"), 1.0)
    assert found.to_json() == {"k": 1, "val_accuracy": 1.0, "tried": tried}
