"""The learning rate of a step, as a pure function of what is behind.

    cosine     peak * (1 + cos(pi s)) / 2 down to the floor, after a linear warm-up
               (Loshchilov and Hutter, ICLR 2017, arXiv:1608.03983)
    one-cycle  from peak / 25 along a cosine up to the peak in the first 30 % of the steps, then along another one down
               to the floor (Smith and Topin 2017, arXiv:1708.07120, with the shape of torch's OneCycleLR); momentum
               stays as it is, and the rise takes the place of a warm-up
    plateau    the peak after a warm-up, and a tenth of it, never below the floor, each time that validation has not
               become better for some epochs
    constant   the peak after a warm-up
"""

from __future__ import annotations

import math

from edgetl.errors import EdgetlError
from edgetl.recipe_fields import TrainFields
from edgetl.train.progress import Progress

RISE = 0.3  # share of the steps of one-cycle in which the rate rises
LOW = 25.0  # one-cycle begins with the peak divided by this
FIND = "find"  # in place of a rate: one that a trial finds
DROP = 0.1  # what plateau multiplies with


def rate_at(
    step: int, *, kind: str, total: int, warmup: int, peak: float, floor: float = 0.0, drops: int = 0
) -> float:
    """Learning rate of a step counted from 0.

    Args:
        step: steps taken so far.
        kind: one of the schedules above.
        total: steps of the whole training.
        warmup: steps of the linear warm-up; one-cycle has none.
        peak: the greatest rate.
        floor: the rate at the end of cosine and one-cycle, and the least one of plateau.
        drops: how often plateau has become slower so far.
    """
    floor = min(floor, peak)
    if kind == "one-cycle":
        return _one_cycle(step, total, peak, floor)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if kind == "constant":
        return peak
    if kind == "plateau":
        return max(floor, peak * DROP**drops)
    return _cosine(peak, floor, (step - warmup) / max(1, total - warmup))


def rate_of(step: int, steps: int, progress: Progress, options: TrainFields) -> float:
    """Learning rate of a step of the running epoch.

    Args:
        step: of the epoch, counted from 0.
        steps: of each epoch.
        progress: where training is.
        options: the recipe, with a number as `lr`.
    """
    return rate_at(
        progress.epoch * steps + step,
        kind=options.schedule,
        total=options.epochs * steps,
        warmup=round(options.warmup_epochs * steps),
        peak=float(options.lr),
        floor=options.min_lr,
        drops=progress.drops,
    )


def _cosine(begin: float, end: float, share: float) -> float:
    """From `begin` to `end` along half a cosine, of which `share` is behind."""
    return end + (begin - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _one_cycle(step: int, total: int, peak: float, floor: float) -> float:
    top = max(1.0, RISE * total - 1)  # as in OneCycleLR, whose last step has the least rate
    if step <= top:
        return _cosine(peak / LOW, peak, step / top)
    return _cosine(peak, floor, (step - top) / max(1.0, total - 1 - top))


def after_epoch(progress: Progress, options: TrainFields) -> tuple[int, int]:
    """How often plateau has become slower, and the epoch after which it did so last, once an epoch was validated.

    The epochs without a better validation are counted from the best epoch or from the last drop, whichever is later.
    """
    since = progress.epoch - max(progress.best_epoch, progress.dropped_epoch)
    if options.schedule == "plateau" and since >= options.plateau_epochs:
        return progress.drops + 1, progress.epoch
    return progress.drops, progress.dropped_epoch


def require_rates(options: TrainFields) -> None:
    """Returns when the least rate is not above the greatest.

    Raises:
        EdgetlError: it is.
    """
    if options.lr != FIND and options.min_lr > float(options.lr):
        raise EdgetlError(
            f"--min-lr {options.min_lr:g} is above --lr {options.lr:g}, the greatest rate.",
            hint="Give a lower --min-lr or a higher --lr.",
        )
