"""Cross-validation: training and validation images dealt out into folds, the same for all that are compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgetl import heads, rundir, stratify
from edgetl.datasets import Item
from edgetl.errors import DataError
from edgetl.heads import Head
from edgetl.splits import Splits

Folds = tuple[tuple[Item, ...], ...]


def deal(
    parts: Splits, digests: Mapping[str, str], folds: int, seed: int, asked: Sequence[Head] = ()
) -> Folds:
    """The images of train and val in so many folds, sorted by key, with about as many of each class in each.

    Within a class, images are ranked by SHA-256 of seed and key and dealt out in turn; each class goes on where the one
    before stopped, so that the folds differ by few images. Exact copies stay together: they follow the first of them.

    Args:
        parts: the splits of the data; the test split is left as it is.
        digests: of the contents, by key.
        folds: how many.
        seed: of the order.
        asked: what an image has in place of one class; then `edgetl.stratify` deals out labels and quarters of values.

    Raises:
        DataError: a class has fewer than two images that differ, so that a fold would leave none to learn from.
    """
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in sorted((*parts.train, *parts.val), key=lambda item: _rank(seed, item)):
        groups[digests[item.key]].append(item)
    if asked:
        return _dealt_by_strata(list(groups.values()), folds, asked)
    by_class: dict[int, list[list[Item]]] = defaultdict(list)
    for group in groups.values():
        by_class[group[0].label].append(group)
    _require_two(by_class, folds)
    dealt: list[list[Item]] = [[] for _ in range(folds)]
    turn = 0
    for label in sorted(by_class):
        for group in by_class[label]:
            dealt[turn % folds] += group
            turn += 1
    return tuple(tuple(sorted(one, key=lambda item: item.key)) for one in dealt)


def _dealt_by_strata(groups: Sequence[Sequence[Item]], folds: int, asked: Sequence[Head]) -> Folds:
    _require_enough(len(groups), folds)
    sizes = {str(fold): len(groups) // folds + (fold < len(groups) % folds) for fold in range(folds)}
    found = stratify.dealt(heads.strata(asked, [group[0].answers for group in groups]), sizes)
    dealt: dict[str, list[Item]] = {fold: [] for fold in sizes}
    for group, fold in zip(groups, found, strict=True):
        dealt[fold] += group
    return tuple(tuple(sorted(one, key=lambda item: item.key)) for one in dealt.values())


def _require_enough(images: int, folds: int) -> None:
    if images < folds:
        raise DataError(f"{folds} folds need as many images that differ; training and validation have {images}.",
                        hint="Give fewer --folds, or --seeds in their place.")


def _require_two(by_class: Mapping[int, Sequence[Sequence[Item]]], folds: int) -> None:
    _require_enough(sum(map(len, by_class.values())), folds)
    for groups in by_class.values():
        if len(groups) < 2:
            raise DataError(f"The class of {groups[0][0].key} has one image only; in the fold that holds it, nothing "
                            "would be left to learn the class from.",
                            hint="Add images of that class, or give --seeds in place of --folds.")


def arranged(parts: Splits, folds: Folds, number: int, digests: Mapping[str, str], seed: int,
             val_fraction: float, asked: Sequence[Head] = ()) -> Splits:
    """The splits of one training of a cross-validation, which never see the data's own test split.

    Its "test" is the fold, which nothing is chosen on; its "val", on which the training chooses its epoch, is held out
    of the other folds, stratified. Were the epoch chosen on the fold itself, the fold would flatter.

    Args:
        parts: the splits of the data; an image that is not in them, since it is damaged, is left out.
        folds: of `deal`.
        number: which of them is held out, from 0.
        digests: of the contents, by key.
        seed: of the choice of validation images.
        val_fraction: share of the other folds that is held out for validation; one image of each class at least, while
            one is left.
        asked: see `deal`.
    """
    usable = {item.key for item in (*parts.train, *parts.val)}
    kept = [[item for item in fold if item.key in usable] for fold in folds]
    others = [item for place, fold in enumerate(kept) if place != number for item in fold]
    chosen = _validation(others, digests, seed, val_fraction, asked)
    return replace(
        parts,
        train=_sorted("train", [item for item in others if item.key not in chosen]),
        val=_sorted("val", [item for item in others if item.key in chosen]),
        test=_sorted("test", kept[number]),
        rule={**parts.rule, "folds": len(folds), "fold": number},
    )


def _sorted(split: str, items: Sequence[Item]) -> tuple[Item, ...]:
    return tuple(replace(item, split=split) for item in sorted(items, key=lambda item: item.key))


def _validation(
    items: Sequence[Item], digests: Mapping[str, str], seed: int, fraction: float, asked: Sequence[Head]
) -> set[str]:
    """Keys that are held out; of images with exact copies none is."""
    copies: dict[str, int] = defaultdict(int)
    of_class: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        copies[digests[item.key]] += 1
        of_class[item.label].append(item)
    chosen: set[str] = set()
    for same in of_class.values():
        wanted = min(max(1, round(fraction * len(same))), len(same) - 1)
        single = sorted((item for item in same if copies[digests[item.key]] == 1),
                        key=lambda item: _rank(seed, item, "val"))
        if asked:  # there is no class, and so one of these loops
            sizes = {"val": min(wanted, len(single)), "train": max(0, len(single) - wanted)}
            found = stratify.dealt(heads.strata(asked, [item.answers for item in single]), sizes) if single else []
            single = [item for item, split in zip(single, found, strict=True) if split == "val"]
        chosen |= {item.key for item in single[:wanted]}
    return chosen


def _rank(seed: int, item: Item, use: str = "fold") -> str:
    return rundir.sha256(f"{seed}\0{use}\0{item.key}".encode("utf-8", "surrogateescape"))
