"""What a network is fine-tuned on: losses that need labels and no teacher, with the classes balanced or not."""

from __future__ import annotations

from edgetl import losses
from edgetl.errors import EdgetlError
from edgetl.losses import Term
from edgetl.recipe_fields import TrainFields
from edgetl.recipe_finetune import FinetuneFields
from edgetl.train import balance
from edgetl.train.setting import Setting


def terms(place: Setting) -> tuple[Term, ...]:
    """The losses that the recipe asks for.

    Raises:
        EdgetlError, UnknownName: see `require`.
    """
    options = asked(place.options)
    counts = balance.counts_of(place.parts.train, len(place.data.labels))
    return balance.balanced(losses.parse(options.loss), options.balance, counts)


def asked(options: TrainFields) -> FinetuneFields:
    """The options of a fine-tuning as what they are.

    Raises:
        TypeError: they are those of something else.
    """
    if not isinstance(options, FinetuneFields):
        raise TypeError(f"options are {type(options).__name__}, expected those of a fine-tuning")
    return options


def require(options: FinetuneFields) -> None:
    """Returns when the losses need no teacher.

    Raises:
        EdgetlError: one does, or the grammar, a weight or an option is wrong.
        UnknownName: no such loss.
    """
    asking = [term.name for term in losses.parse(options.loss) if term.loss.needs_teacher]
    if asking:
        raise EdgetlError(
            f"--loss names '{asking[0]}', which needs a teacher's answers, and `edgetl finetune` has labels alone.",
            hint='Give --loss labels or "focal;gamma=2" here, or use `edgetl distill`.',
        )
