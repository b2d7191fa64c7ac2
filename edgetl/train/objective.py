"""What a network is fine-tuned on: losses that need labels and no teacher, with the classes balanced or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from edgetl import heads, losses
from edgetl.datasets import Item
from edgetl.errors import EdgetlError
from edgetl.heads import REGRESS
from edgetl.losses import Term
from edgetl.recipe_fields import TrainFields
from edgetl.recipe_finetune import Finetune, FinetuneFields
from edgetl.train import balance, task_losses
from edgetl.train.progress import Score

if TYPE_CHECKING:
    from edgetl.train.setting import Setting


def terms(place: Setting) -> tuple[Term, ...]:
    """The losses that the recipe asks for.

    Raises:
        EdgetlError, UnknownName: see `require`.
    """
    options = asked(place.options)
    if place.aim is not None:
        return task_losses.of_task(options.loss, place.aim.heads)
    counts = balance.counts_of(place.parts.train, len(place.data.labels))
    return balance.balanced(losses.parse(options.loss), options.balance, counts)


def judge(place: Setting, items: Sequence[Item]) -> Callable[[torch.Tensor], Score] | None:
    """What scores the logits [N, K] of labelled images; None where they have one class.

    Of equal scores the lower loss is better: that of the fine-tuning, of a student that of its task on labels.
    """
    if place.aim is None:
        return None
    tuned = isinstance(place.options, FinetuneFields)
    own = terms(place) if tuned else task_losses.of_task((task_losses.LABELS,), place.aim.heads)
    return place.aim.score(own, place.aim.targets(items), place.aim.truth(items))


def asked(options: TrainFields) -> FinetuneFields:
    """The options of a fine-tuning as what they are.

    Raises:
        TypeError: they are those of something else.
    """
    if not isinstance(options, FinetuneFields):
        raise TypeError(f"options are {type(options).__name__}, expected those of a fine-tuning")
    return options


def require(options: Finetune) -> None:
    """Returns when the losses need no teacher, and the options fit the task.

    Raises:
        EdgetlError: one does, or the grammar, a weight or an option is wrong, or an option knows another task only.
        UnknownName: no such loss.
    """
    require_task(options)
    asking = [term.name for term in losses.parse(options.loss) if term.loss.needs_teacher]
    if asking:
        raise EdgetlError(
            f"--loss names '{asking[0]}', which needs a teacher's answers, and `edgetl finetune` has labels alone.",
            hint='Give --loss labels or "focal;gamma=2" here, or use `edgetl distill`.',
        )


def require_task(options: Finetune) -> None:
    """Returns when the options fit the task.

    Raises:
        EdgetlError: one of them is for one class an image only, or a loss is for another task.
    """
    if heads.asked(options).plain:
        return
    named = task_losses.called(heads.asked(options))
    off = {"balance": "none", "tta": "none", "head_width": 0, **({"cutmix": 0} if options.task == REGRESS else {})}
    given = [name for name, value in off.items() if getattr(options, name) != value]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        why = "a part of a picture has no part of its value" if given[0] == "cutmix" else "it is for one class an image"
        raise EdgetlError(f"{flag} cannot be combined with {named}: {why}.", hint=f"Leave {flag} out.")
    if not any(term.loss.needs_teacher for term in losses.parse(options.loss)):
        task_losses.require(options.loss, heads.asked(options), taught=False)
