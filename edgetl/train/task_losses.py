"""The losses of a task: what a name means there, which are none for it, and what `edgetl distill` takes by default."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from edgetl import heads, losses, plugins
from edgetl.errors import EdgetlError
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS, Asked, Head
from edgetl.losses import Term
from edgetl.recipe import Distill, fields_of
from edgetl.train.aim import PerHead
from edgetl.train.task import looks_at_features, needs_labels

LABELS = "labels"  # the loss that every task has
# What is written in place of a name, where it is not the loss of that name, which is one on a class an image.
OWN = {(LABELS, MULTILABEL): "bce", (LABELS, REGRESS): "smooth-l1", ("kd", MULTILABEL): "binary-kd"}
# The default --loss of `edgetl distill`, where that of one class an image does not fit. With binary cross-entropies the
# shares 0.1 and 0.9 at a temperature of 1 are a mixture of labels and teacher as the target. A teacher of values is
# trusted half: it may be far off without any sign of doubt, and the student would learn that.
DEFAULTS = {MULTILABEL: ("labels:0.1,kd:0.9;temperature=1",), REGRESS: ("labels:0.5,imitation:0.5",)}


def resolved(options: Distill, asked: Asked) -> Distill:
    """The options with the task's own default of --loss, where they have that of one class an image."""
    untouched = options.loss == fields_of(Distill)["loss"].default
    return dataclasses.replace(options, loss=DEFAULTS.get(asked.task, options.loss)) if untouched else options


def of_task(texts: Sequence[str], asked_heads: Sequence[Head]) -> tuple[Term, ...]:
    """The losses of a task with names that mean its own; on several heads each loss on logits is that of every head."""
    kind = asked_heads[0].kind
    found = tuple(_own(term, kind) for term in losses.parse(texts))
    if kind != CLASSIFY:
        return found
    return tuple(term if looks_at_features([term]) else dataclasses.replace(term, loss=PerHead(term.loss, asked_heads))
                 for term in found)


def _own(term: Term, kind: str) -> Term:
    """The term with what its name means for a task; its options stay, where that knows them."""
    name = OWN.get((term.name, kind))
    if name is None:
        return term
    loss = plugins.load("losses", name).Loss
    said = {key: getattr(term.loss, key, None) for key in losses.options_of(loss)}  # None: nothing, or auto
    return dataclasses.replace(term, loss=loss(**{key: value for key, value in said.items() if value is not None}))


def require(texts: Sequence[str], asked: Asked, *, taught: bool) -> None:
    """Returns when all losses are for the task, or that is one class an image.

    Args:
        texts: of --loss.
        asked: the task.
        taught: whether there is a teacher, so that losses which ask it are for the task, too.

    Raises:
        EdgetlError: one is not; or the grammar, a weight or an option is wrong.
        UnknownName: no such loss.
    """
    found = losses.parse(texts)
    other = [] if asked.plain else [term.name for term in found if not _serves(term, asked.task)]
    if not other:
        return
    known = [name for name in plugins.names("losses") if _serves_by_name(name, asked.task, taught)]
    raise EdgetlError(f"--loss names '{other[0]}', which is no loss for {called(asked)}.",
                      hint=f"Give one or several of {', '.join(known)}.")


def called(asked: Asked) -> str:
    """A task in sentences, by the flags that ask for it."""
    return f"--task {asked.task}" + (" with --label-columns" if asked.task == CLASSIFY else "")


def _serves(term: Term, kind: str) -> bool:
    if (term.name, kind) in OWN:
        return True
    if looks_at_features([term]):
        return not needs_labels(term)  # which would be classes
    return kind in getattr(term.loss, "tasks", (CLASSIFY,))


def _serves_by_name(name: str, kind: str, taught: bool) -> bool:
    loss: nn.Module = plugins.load("losses", name).Loss()
    return (taught or not loss.needs_teacher) and _serves(Term(name, 1.0, loss), kind)


def require_options(options: Distill, asked: Asked) -> None:
    """Returns when the options of a distillation fit the task.

    Raises:
        EdgetlError, UnknownName: see `require`; or an option knows other tasks only.
    """
    require(options.loss, asked, taught=True)
    if asked.task == heads.REGRESS and options.cutmix:
        raise EdgetlError("--cutmix cannot be combined with --task regress: a part of a picture has no part of its "
                          "value.", hint="Leave --cutmix out.")
    if asked.task == heads.REGRESS and options.teacher_mix == "confidence":
        raise EdgetlError("--teacher-mix confidence cannot be combined with --task regress: a value does not say how "
                          "sure its teacher is.", hint="Give --teacher-mix mean, or weighted with --teacher-weight.")
