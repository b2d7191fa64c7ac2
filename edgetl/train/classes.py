"""Which of a teacher's classes is which of the data's: by their names, in whatever order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from edgetl.errors import DataError, EdgetlError
from edgetl.models import Network

SHOWN = 8  # names in a sentence

Synonyms = Sequence[tuple[str, ...]]  # what each class is called


def columns(theirs: Synonyms, labels: Sequence[str], *, teacher: str) -> tuple[int, ...]:
    """The place among the teacher's classes of each of the data's, in the data's order.

    A name is compared as it stands; where it is not found so, without regard to case and with `_` for a space.

    Args:
        theirs: what each class of the teacher is called; one may have several names.
        labels: the data's classes.
        teacher: what messages call the teacher.

    Raises:
        DataError: a class of the data is none, or several, of the teacher's; lists them.
    """
    exact, loose = _places(theirs, str), _places(theirs, _plain)
    found = {label: exact.get(label) or loose.get(_plain(label), ()) for label in labels}
    lacking = [label for label, places in found.items() if not places]
    unclear = [label for label, places in found.items() if len(places) > 1]
    chosen = tuple(places[0] for places in found.values() if len(places) == 1)
    doubled = [label for label, places in found.items() if len(places) == 1 and chosen.count(places[0]) > 1]
    if lacking:
        extra = [names[0] for place, names in enumerate(theirs) if place not in chosen]
        has = f", the teacher has {_listed(extra)} that the data lacks" if extra else ""
        raise DataError(
            f"The classes of the teacher {teacher} are not the data's: the data has {_listed(lacking)} that the "
            f"teacher lacks{has}.",
            hint="Give the data that the teacher was trained on, or fine-tune a teacher on this data; names of classes "
            "can be given in a file: --teacher-options labels=FILE.",
        )
    if unclear or doubled:
        names = _listed(unclear or doubled)
        raise DataError(
            f"The classes of the teacher {teacher} cannot be told apart by the data's names {names}.",
            hint="Name the data's classes as the teacher does, or give the teacher other names: --teacher-options "
            "labels=FILE.",
        )
    return chosen


def _places(theirs: Synonyms, form: type[str] | object) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for place, names in enumerate(theirs):
        for name in dict.fromkeys(form(one) for one in names):  # type: ignore[operator]
            found[name] = (*found.get(name, ()), place)
    return found


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{sorted(names)[:SHOWN]}{rest}"


def selected(network: Network, places: Sequence[int]) -> Network:
    """The network with only those outputs, in that order; its head is cut, in place.

    Its softmax is then the teacher's probability of each class, given that it is one of these.

    Raises:
        EdgetlError: its head is neither a linear layer nor a convolution of single pixels.
    """
    head = network.module.get_submodule(network.head)
    if not isinstance(head, nn.Linear | nn.Conv2d):
        raise EdgetlError(
            f"The head of {network.model} is {type(head).__name__}, expected a linear layer or a convolution, to take "
            "the data's classes out of it."
        )
    if tuple(places) == tuple(range(len(head.weight))):
        return network
    index = torch.tensor(places)
    with torch.no_grad():
        head.weight = nn.Parameter(head.weight[index])
        if head.bias is not None:
            head.bias = nn.Parameter(head.bias[index])
    if isinstance(head, nn.Linear):
        head.out_features = len(places)
    else:
        head.out_channels = len(places)
    return network
