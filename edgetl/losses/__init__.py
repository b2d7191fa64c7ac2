"""Catalogue of losses. A file here has a pure function of tensors and a thin class `Loss`.

`Loss(**options)` is an `nn.Module` whose `forward(student, teacher, given)` is the mean over the batch, a scalar;
`student` and `teacher` are `Answer`s, `given` is `Given`. `needs_teacher` says whether `teacher` may be None. The scale
of a loss never depends on which other terms are active, and it computes in float32 whatever the networks compute in.

`needs_labels` says whether it must know the classes of the images: such a loss is shown the labelled images of a batch
only, and where there are none it is 0. The others see those without a label, too, whose `targets` are all 0. A loss
that does not say is taken to need labels.

`compares_images` says that the value depends on which images are in a batch together, and is not the mean of what each
image gives alone. Of several processes that share a batch, each shows such a loss the images of all; in micro-batches
(--accumulate) it compares those of one micro-batch. A loss that does not say is taken to be such a mean.

`tasks` names the tasks (see `edgetl.heads`) whose outputs a loss can read as they are. A loss on logits that does not
say knows one class an image; where an image has several, it is taken of each head by itself. Losses on features serve
every task, unless they need labels.

A loss on features has `features`, one of `KINDS`: what it looks at where its options `student` and `teacher` name no
layers (by their paths, several joined with `+`). Before the training, `build(student, teacher, corpus)` is called with
the shapes of those features; there the loss makes its projections. They are trained and checkpointed with the loss, and
never enter the student.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from edgetl import plugins
from edgetl.errors import EdgetlError

if TYPE_CHECKING:
    from torch import Size, Tensor, nn


EMBEDDING = "embedding"  # what goes into the last layer, [N, D]
LAST = "last"  # the last feature map, [N, C, H, W]
STAGES = "stages"  # the last feature map of each resolution, from fine to coarse
KINDS = (EMBEDDING, LAST, STAGES)

EXAMPLE = 'For example --loss "labels:0.1,kd:0.9;temperature=auto".'


@dataclass(frozen=True)
class Answer:
    """What a network says to a batch."""

    logits: Tensor  # [N, K]
    features: Sequence[Tensor] = ()  # those that the loss asked for: maps [N, C, H, W], or embeddings [N, D]


@dataclass(frozen=True)
class Given:
    """What is known of a batch."""

    # Probabilities [N, K]: one-hot, smoothed or mixed labels; 0 where an image has none. Of other tasks than one class
    # also standardised values, and NaN where nothing is known of a head, a label or a value.
    targets: Tensor
    index: Tensor | None = None  # int64 [N], rows of the training images, those with a label before the others


@dataclass(frozen=True)
class Corpus:
    """What a loss may know of all training images before it sees one."""

    labels: Sequence[int] = field(default=())  # by row, of the images that have one


class OnFeatures(Protocol):
    """What a loss on features has besides."""

    features: str  # one of `KINDS`

    def build(self, student: Sequence[Size], teacher: Sequence[Size], corpus: Corpus) -> None:
        """Makes its projections for features of these shapes, without the batch, pair by pair.

        Raises:
            EdgetlError: it cannot use such features.
        """
        ...


@dataclass(frozen=True)
class Term:
    """One weighted loss."""

    name: str
    weight: float
    loss: nn.Module


def parse(texts: Sequence[str]) -> tuple[Term, ...]:
    """Terms of `name[:weight][,name[:weight]...][;key=value...]`, one text a `--loss`.

    An option goes to the losses of its text that know it; at least one must.

    Raises:
        EdgetlError: the grammar, a weight or an option is wrong, two terms have one name, or all weights are 0.
        UnknownName: no such loss.
    """
    terms = [term for text in texts for term in _parse_one(text)]
    twice = [term.name for place, term in enumerate(terms) if term.name in [other.name for other in terms[:place]]]
    if twice:
        raise EdgetlError(f"--loss names '{twice[0]}' twice.", hint="Give each loss once, with its weight.")
    if not terms:
        raise EdgetlError("--loss is empty.", hint=EXAMPLE)
    if not any(term.weight for term in terms):
        raise EdgetlError("--loss gives every term the weight 0, so nothing would be learned.", hint=EXAMPLE)
    return tuple(terms)


def _parse_one(text: str) -> list[Term]:
    named, *pairs = text.split(";")
    options = dict(_pair(pair, text) for pair in pairs if pair.strip())
    loaded = []
    for one in named.split(","):
        name, colon, weight = one.strip().partition(":")
        loaded.append((name, _number(weight, text) if colon else 1.0, plugins.load("losses", name).Loss))
    known = {key for _, _, loss in loaded for key in options_of(loss)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise EdgetlError(
            f"--loss '{text}': no loss in it has an option '{unknown[0]}'; known: {', '.join(sorted(known)) or 'none'}."
        )
    return [
        Term(name.replace("_", "-"), weight, loss(**_own_options(loss, options, text))) for name, weight, loss in loaded
    ]


def _pair(pair: str, text: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not equals:
        raise EdgetlError(f"--loss '{text}': found '{pair}', expected key=value.")
    return key.strip(), value.strip()


def _number(word: str, text: str) -> float:
    try:
        value = float(word)
    except ValueError as problem:
        raise EdgetlError(f"--loss '{text}': found '{word}', expected a number.") from problem
    if not 0 <= value < float("inf"):
        raise EdgetlError(f"--loss '{text}': found {word}, expected a finite number of at least 0.")
    return value


def _own_options(loss: Any, options: dict[str, str], text: str) -> dict[str, Any]:
    """The options that one loss knows, as numbers where its default is a number."""
    known = options_of(loss)
    return {
        key: value if isinstance(known[key], str) else _number(value, text)
        for key, value in options.items()
        if key in known
    }


def options_of(loss: Any) -> dict[str, Any]:
    """Names and defaults of the options of a loss."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: one.default for name, one in inspect.signature(loss).parameters.items() if one.kind not in variable}
