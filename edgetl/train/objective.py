"""What a network is fine-tuned on: losses that need labels and no teacher, with the classes balanced or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from edgetl import heads, losses
from edgetl.datasets import Item
from edgetl.errors import EdgetlError
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS
from edgetl.losses import Term
from edgetl.recipe_fields import TrainFields
from edgetl.recipe_finetune import Finetune, FinetuneFields
from edgetl.train import balance
from edgetl.train.aim import PerHead
from edgetl.train.progress import Score

if TYPE_CHECKING:
    from edgetl.train.setting import Setting

LABELS = "labels"  # the loss that every task has
OWN = {MULTILABEL: "bce", REGRESS: "smooth-l1"}  # what that is, where it is not cross-entropy over classes
ALLOWED = {MULTILABEL: ("bce",), REGRESS: ("smooth-l1", "mse")}


def terms(place: Setting) -> tuple[Term, ...]:
    """The losses that the recipe asks for.

    Raises:
        EdgetlError, UnknownName: see `require`.
    """
    options = asked(place.options)
    if place.aim is not None:
        return of_task(options.loss, place.aim.heads)
    counts = balance.counts_of(place.parts.train, len(place.data.labels))
    return balance.balanced(losses.parse(options.loss), options.balance, counts)


def of_task(texts: Sequence[str], asked_heads: Sequence[heads.Head]) -> tuple[Term, ...]:
    """The losses of a task; what is called labels is the task's own."""
    kind = asked_heads[0].kind
    found = losses.parse(texts)
    if kind == CLASSIFY:
        return tuple(dataclasses.replace(term, loss=PerHead(term.loss, asked_heads)) for term in found)
    own = losses.parse((OWN[kind],))[0].loss
    return tuple(dataclasses.replace(term, loss=own) if term.name == LABELS else term for term in found)


def judge(place: Setting, items: Sequence[Item]) -> Callable[[torch.Tensor], Score] | None:
    """What scores the logits [N, K] of labelled images; None where they have one class."""
    if place.aim is None:
        return None
    return place.aim.score(terms(place), place.aim.targets(items), place.aim.truth(items))


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
    named = f"--task {options.task}" + (" with --label-columns" if options.task == CLASSIFY else "")
    off = {"balance": "none", "tta": "none", "head_width": 0, **({"cutmix": 0} if options.task == REGRESS else {})}
    given = [name for name, value in off.items() if getattr(options, name) != value]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        why = "a part of a picture has no part of its value" if given[0] == "cutmix" else "it is for one class an image"
        raise EdgetlError(f"{flag} cannot be combined with {named}: {why}.", hint=f"Leave {flag} out.")
    allowed = (LABELS, *ALLOWED.get(options.task, ("focal",)))
    other = [term.name for term in losses.parse(options.loss) if term.name not in allowed]
    if other and not any(term.loss.needs_teacher for term in losses.parse(options.loss)):
        raise EdgetlError(f"--loss names '{other[0]}', which is no loss for {named}.",
                          hint=f"Give one or several of {', '.join(allowed)}.")
