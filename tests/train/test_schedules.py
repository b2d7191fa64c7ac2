"""Schedules against closed forms and torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.recipe import Finetune
from edgetl.train import schedules
from edgetl.train.progress import Progress, Score

KINDS = ("cosine", "one-cycle", "plateau", "constant")


def rates(kind: str, total: int, **values: float) -> list[float]:
    found = {"warmup": 0, "peak": 2.0, **values}
    return [schedules.rate_at(step, kind=kind, total=total, **found) for step in range(total)]  # type: ignore[arg-type]


def torch_rates(scheduler: torch.optim.lr_scheduler.LRScheduler, total: int) -> list[float]:
    found = []
    for _ in range(total):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        if len(found) < total:
            scheduler.step()
    return found


def optimizer(rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], rate)


def test_cosine_is_that_of_torch() -> None:
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer(2.0), 40, eta_min=0.25)
    assert rates("cosine", 40, floor=0.25) == pytest.approx(torch_rates(theirs, 40))


@pytest.mark.parametrize("total", [10, 37, 100])
def test_one_cycle_is_that_of_torch(total: int) -> None:
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer(2.0), 2.0, total_steps=total, cycle_momentum=False, final_div_factor=2.0 / 25 / 0.01
    )
    assert rates("one-cycle", total, floor=0.01, warmup=5) == pytest.approx(torch_rates(theirs, total))


def test_plateau_falls_to_a_tenth_and_never_below_the_floor() -> None:
    found = [schedules.rate_at(9, kind="plateau", total=99, warmup=0, peak=2.0, floor=0.01, drops=n) for n in range(4)]
    assert found == pytest.approx([2.0, 0.2, 0.02, 0.01])


@pytest.mark.parametrize("kind", ["cosine", "plateau", "constant"])
def test_the_warm_up_rises_in_a_line_to_the_peak(kind: str) -> None:
    found = rates(kind, 20, warmup=4)
    assert found[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    total=st.integers(1, 300),
    warmup=st.integers(0, 50),
    peak=st.floats(1e-6, 10),
    floor=st.floats(0, 20),
    drops=st.integers(0, 9),
)
def test_no_rate_is_above_the_peak_or_below_nothing(
    kind: str, total: int, warmup: int, peak: float, floor: float, drops: int
) -> None:
    for step in {0, 1, total // 3, total // 2, total - 1, total}:
        rate = schedules.rate_at(
            step, kind=kind, total=total, warmup=warmup, peak=peak, floor=floor, drops=drops
        )  # fmt: skip
        assert 0 <= rate <= peak * (1 + 1e-12)


def plateau_drops(accuracies: list[float], patience: int) -> list[int]:
    """Drops after each epoch, as the loop counts them."""
    options = Finetune(data="", out="", teacher="", schedule="plateau", plateau_epochs=patience)
    progress, found = Progress(), []
    for epoch, accuracy in enumerate(accuracies):
        progress.epoch = epoch
        score = Score(accuracy, 1.0)
        if score.better_than(progress.best):
            progress.best, progress.best_epoch = score, epoch
        progress.drops, progress.dropped_epoch = schedules.after_epoch(progress, options)
        found.append(progress.drops)
    return found


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 5))
def test_plateau_drops_when_that_of_torch_does(accuracies: list[int], patience: int) -> None:
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer(1.0), "max", factor=0.5, patience=patience - 1, threshold=0.0, min_lr=0.0, eps=0.0
    )
    expected = []
    for accuracy in accuracies:
        theirs.step(float(accuracy))
        expected.append(-torch.tensor(theirs.optimizer.param_groups[0]["lr"]).log2().round().int().item())
    assert plateau_drops([float(one) for one in accuracies], patience) == expected


def test_other_schedules_never_drop() -> None:
    options = Finetune(data="", out="", teacher="", schedule="cosine", plateau_epochs=1)
    assert schedules.after_epoch(Progress(epoch=9, best_epoch=0), options) == (0, -1)
