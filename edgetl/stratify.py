"""Splits in which every label is as frequent as in the whole, where an image has several or none.

Iterative stratification: K. Sechidis, G. Tsoumakas, I. Vlahavas, On the Stratification of Multi-Label Data, ECML PKDD
2011, LNCS 6913, 145-158, algorithm 1. The rarest label that is left is dealt out first, an image at a time, to the
split that lacks most images of it; of such splits to the one that lacks most images, then to the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

Strata = Sequence[tuple[int, ...]]


def dealt(strata: Strata, sizes: Mapping[str, int]) -> list[str]:
    """The split of each image.

    Args:
        strata: the labels of each image, in the order in which images are dealt out: another order, other splits.
        sizes: how many images each split shall have; they add up to the images.
    """
    n = len(strata)
    if sum(sizes.values()) != n:
        raise ValueError(f"{dict(sizes)} does not add up to {n} images")
    whole = Counter(one for labels in strata for one in labels)
    room = {split: float(size) for split, size in sizes.items()}
    lacks = {split: {one: count * size / n for one, count in whole.items()} for split, size in sizes.items()}
    found: list[str] = [""] * n
    left = Counter(whole)
    of_label: dict[int, list[int]] = {one: [] for one in whole}
    for place, labels in enumerate(strata):
        for one in labels:
            of_label[one].append(place)
    while left:
        rarest = min(left, key=lambda one: (left[one], one))
        for place in of_label[rarest]:
            if not found[place]:
                found[place] = _taker(room, lacks, rarest)
                _take(strata[place], found[place], room, lacks, left)
        del left[rarest]
    for place in range(n):
        if not found[place]:  # without any label
            found[place] = max(room, key=lambda split: room[split])
            room[found[place]] -= 1
    return found


def _taker(room: Mapping[str, float], lacks: Mapping[str, Mapping[int, float]], label: int) -> str:
    """Among the splits that are not full, the one that lacks most of a label."""
    open_ = [split for split in room if room[split] > 0]
    return max(open_, key=lambda split: (lacks[split][label], room[split]))


def _take(labels: tuple[int, ...], split: str, room: dict[str, float], lacks: Mapping[str, dict[int, float]],
          left: Counter[int]) -> None:
    room[split] -= 1
    for one in labels:
        lacks[split][one] -= 1
        if one in left:
            left[one] -= 1
