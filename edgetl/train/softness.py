"""How far the teacher's answers are softened where a loss says `temperature=auto`: as far as it is too sure of them.

T = 4 is a habit from teachers that are sure of everything, whose soft labels at T = 1 are the labels. A teacher that
was trained with smoothed labels says 0.85 where such a one says 0.999, and T = 4 leaves of that hardly more than a
draw among ten classes (Mueller, Kornblith and Hinton, NeurIPS 2019, arXiv:1906.02629, found that smoothed teachers
teach badly at a given T). What counts is how sure the softened answers are. So T is the least of at least 1 at which
the teacher is sure to 0.9 in the mean over images: as sure as labels are that were smoothed by 0.1. Who is less sure
already is taken as he is. `benchmarks/distill_accuracy.py` and `cifar_anchor.py` compare that with T = 4.

The temperature is fitted once, to what the teacher says to training images as they are, and recorded; a resumed
training and its other seeds take the recorded one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from edgetl.losses import Term
from edgetl.recipe import Distill
from edgetl.train import asking, distributed
from edgetl.train.aim import PerHead
from edgetl.train.setting import Setting
from edgetl.train.teachers import Teacher

IMAGES = 256  # of the training images, evenly over all of them; the mean of their confidences is known to about 0.01
CHOICE = "temperature"
SURE = 0.9  # mean probability of the likeliest class, down to which answers are softened
MOST = 64.0  # beyond it answers are uniform for any logits that a network gives
STEPS = 40  # halvings of the range from 1 to MOST, far below the two digits that are kept


def settle(terms: Sequence[Term], options: Distill, place: Setting, school: Sequence[Teacher]) -> None:
    """Gives each loss that waits for one its temperature.

    Raises:
        DataError: an image cannot be read; names it.
    """
    waiting = [term.loss for term in terms if waits(term)]
    if not waiting:
        return
    with distributed.current().agreeing(place.choices):
        if CHOICE not in place.choices:
            step = max(1, len(place.parts.train) // IMAGES)
            said = asking.logits(options, school, place, place.parts.train[::step][:IMAGES])
            place.choices[CHOICE] = _noted(place, _questions(waiting[0], said))
    for loss in waiting:
        _inner(loss).temperature = place.choices[CHOICE]


def waits(term: Term) -> bool:
    """Whether a loss has a temperature that nobody has said and nothing has fitted yet."""
    return getattr(_inner(term.loss), CHOICE, 1.0) is None


def confidence(answers: Sequence[torch.Tensor], temperature: float) -> float:
    """Mean probability of the likeliest class at a temperature, over images and questions.

    Args:
        answers: logits [N, K] of each question that an image has.
        temperature: T > 0.
    """
    return float(torch.stack([(one.double() / temperature).softmax(1).amax(1).mean() for one in answers]).mean())


def fitted(answers: Sequence[torch.Tensor]) -> float:
    """The least temperature of at least 1 at which the answers are no surer than `SURE`, to two digits.

    Args:
        answers: logits [N, K] of each question that an image has.
    """
    low, high = 1.0, MOST
    if confidence(answers, low) <= SURE:
        return low
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if confidence(answers, middle) > SURE else (low, middle)
    return round(high, 2)


def _inner(loss: nn.Module) -> nn.Module:
    return loss.loss if isinstance(loss, PerHead) else loss


def _questions(loss: nn.Module, said: torch.Tensor) -> list[torch.Tensor]:
    """The logits of each question that an image has."""
    return [said[:, part] for part in loss.parts] if isinstance(loss, PerHead) else [said]


def _noted(place: Setting, answers: Sequence[torch.Tensor]) -> float:
    """The temperature that fits, told with the reason."""
    found = fitted(answers)
    after = (f"they are softened with T = {found:g}, to {100 * confidence(answers, found):.0f} %." if found > 1
             else "they are taken as they are, T = 1.")
    place.note(f"The teacher is sure of its answers to {100 * confidence(answers, 1.0):.1f} % in the mean; {after}")
    return found
