"""Which image is in which split, decided once and recorded, and the fingerprint of the data."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from edgetl import heads, stratify
from edgetl.datasets import SPLITS, DataSet, Item
from edgetl.errors import DataError
from edgetl.events import Event, Listener, ignore
from edgetl.recipe_fields import DataFields

SCHEMA = 1
METHOD = "stratified-sha256"  # the name of the rule that `_automatic` carries out
ITERATIVE = "iterative-sha256"  # and that of `_iterative`, where an image has not one class
LEFT_OUT = "left_out"  # of a rule: keys of images that cannot be decoded, by split
SLICE = 256  # images that are read before the next are queued
MANY = 5000  # images whose reading may take seconds, so that it is told
HELD_OUT = ("test", "val")  # in the order in which an automatic split takes them from the training images


@dataclass(frozen=True)
class Duplicates:
    """Images whose files are the same byte for byte."""

    groups: int = 0  # contents that occur more than once
    images: int = 0  # images in those groups
    moved_to_train: int = 0  # taken out of an automatic split, since a copy is in another
    leaks: int = 0  # groups that still lie in more than one split: the data's own splits say so
    conflicts: int = 0  # groups whose copies carry different labels
    examples: tuple[tuple[str, ...], ...] = ()  # keys of up to five groups, those that leak first


@dataclass(frozen=True)
class Splits:
    """The images of each split, sorted by key, with the rule that made them."""

    train: tuple[Item, ...]
    val: tuple[Item, ...]
    test: tuple[Item, ...]
    fingerprint: str  # SHA-256 of the data set, see `fingerprint_of`
    rule: Mapping[str, Any]  # plain JSON: method, seed, fractions, which splits are automatic
    duplicates: Duplicates

    def of(self, split: str) -> tuple[Item, ...]:
        """Images of a split by its name."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


def resolve(data: DataSet, options: DataFields, *, recorded: Mapping[str, Any] | None = None,
            listener: Listener = ignore) -> Splits:
    """The three splits of a data set.

    Splits that the data has stay as they are. Missing ones are held out of the training images, stratified by class:
    first `test_fraction` of all images of a class, then `val_fraction` of the training images that remain. Within a
    class, images are ranked by SHA-256 of seed and key, so that this depends on keys, labels, seed and fractions only.
    Where an image has no class, or several, labels and quarters of values take the place of the classes, and
    `edgetl.stratify` deals the images out in the order of that SHA-256.
    At last every image that has an exact copy in another split goes from its automatic split to train. Images that an
    earlier stage could not decode are in none of them, see `without`.

    Args:
        data: the opened data set.
        options: fractions, seed and strictness.
        recorded: the rule of an earlier stage, used in place of the fractions and the seed in `options`.
        listener: hears of duplicates, of classes missing from a split, and of a recorded rule that differs.

    Raises:
        DataError: an image cannot be read, a split would be empty, the recorded rule does not fit the data, or with
            `strict_splits` an image lies in two of the data's own splits.
    """
    own = {item.split for item in data.items} - {None}
    asked = _rule(own, options, ITERATIVE if data.heads else METHOD)
    rule = asked if recorded is None else _recorded_rule(own, recorded, asked, listener)
    digests = content_digests(data, listener)
    ordered = sorted(data.items, key=lambda item: item.key)
    placed = _iterative(data, ordered, rule) if data.heads else _automatic(ordered, rule)
    placed, duplicates = _separate_copies(placed, digests, rule["automatic"])
    parts = {split: tuple(item for item in placed if item.split == split) for split in SPLITS}
    _require_images(parts, rule)
    _tell(data, parts, duplicates, options.strict_splits, listener)
    whole = Splits(**parts, fingerprint=fingerprint_of(data, digests), rule=rule, duplicates=duplicates)
    return without(whole, (recorded or {}).get(LEFT_OUT, {}))


def without(splits: Splits, left_out: Mapping[str, Sequence[str]]) -> Splits:
    """The splits without images that cannot be decoded; the rule says which.

    Args:
        splits: with or without some of them.
        left_out: keys of images, by split; keys that are in none are passed by.

    Raises:
        DataError: that leaves no image in a split that had some.
    """
    known: Mapping[str, Sequence[str]] = splits.rule.get(LEFT_OUT, {})
    gone = {split: sorted({*known.get(split, ()), *left_out.get(split, ())}) for split in SPLITS}
    keys = {key for of_split in gone.values() for key in of_split}
    if not keys:
        return splits
    train, val, test = (tuple(item for item in splits.of(split) if item.key not in keys) for split in SPLITS)
    for split, kept in zip(SPLITS, (train, val, test), strict=True):
        if splits.of(split) and not kept:
            raise DataError(f"None of the {len(splits.of(split))} {split} images can be decoded.",
                            hint="Repair those files.")
    return replace(splits, train=train, val=val, test=test, rule={**splits.rule, LEFT_OUT: gone})


def _rule(own: set[str | None], options: DataFields, method: str) -> dict[str, Any]:
    fractions = {"test": options.test_fraction, "val": options.val_fraction}
    automatic = [split for split in HELD_OUT if split not in own and fractions[split] > 0]
    return {"schema": SCHEMA, "method": method, "seed": options.split_seed, "test_fraction": options.test_fraction,
            "val_fraction": options.val_fraction, "automatic": automatic}


def _recorded_rule(own: set[str | None], recorded: Mapping[str, Any], asked: Mapping[str, Any],
                   listener: Listener) -> dict[str, Any]:
    rule: dict[str, Any] = {key: recorded.get(key) for key in asked}
    if (rule["schema"], rule["method"]) != (SCHEMA, asked["method"]):
        raise DataError(f"The recorded split was made by the rule {rule['method']!r} (schema {rule['schema']!r}), "
                        f"expected {asked['method']!r} (schema {SCHEMA}).",
                        hint="Train again with this version of edgetl.")
    clash = [split for split in rule["automatic"] if split in own]
    if clash:
        raise DataError(f"The earlier stage held out '{clash[0]}' automatically, but the data now has its own.",
                        hint="Use the data as it was, or train again.")
    if rule != asked:
        text = (f"The split of the earlier stage is used: seed {rule['seed']}, test_fraction {rule['test_fraction']}, "
                f"val_fraction {rule['val_fraction']}.")
        listener(Event("data", "note", {"text": text}))
    return rule


def content_digests(data: DataSet, listener: Listener = ignore) -> dict[str, str]:
    """SHA-256 of the bytes of every image, by key; read by several threads where the data set does not know it.

    Args:
        data: the opened data set.
        listener: told how far it is where there are many images.

    Raises:
        DataError: an image cannot be read.
    """
    if data.digest is not None:
        return {item.key: data.digest(item) for item in data.items}

    def digest(item: Item) -> str:
        return hashlib.sha256(data.read(item)).hexdigest()

    found: dict[str, str] = {}
    many = len(data.items) >= MANY
    if many:
        listener(Event("data", "begin", {"what": "read", "total": len(data.items), "unit": "images"}))
    # Reading waits for the disk and hashing releases the interpreter lock, so threads help beyond the processor count.
    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        # In slices: the pool keeps 2 kB for each image that waits.
        for start in range(0, len(data.items), SLICE):
            part = data.items[start:start + SLICE]
            found.update(zip((item.key for item in part), pool.map(digest, part), strict=True))
            if many:
                listener(Event("data", "advance", {"done": len(found)}))
    if many:
        listener(Event("data", "end", {"what": "read"}))
    return found


def fingerprint_of(data: DataSet, digests: Mapping[str, str]) -> str:
    """SHA-256 over key, class name, own split, weight and content of every image, sorted by key."""
    whole = hashlib.sha256(repr(data.heads).encode() if data.heads else b"")
    for item in sorted(data.items, key=lambda one: one.key):
        said = repr(item.answers) if data.heads else data.labels[item.label]
        fields = (item.key, said, item.split or "", repr(item.weight), digests[item.key])
        whole.update("\0".join(fields).encode("utf-8", "surrogateescape") + b"\n")
    return whole.hexdigest()


def _automatic(items: Sequence[Item], rule: Mapping[str, Any]) -> list[Item]:
    """Items with their split filled in; copies are not looked at yet."""
    held_out: dict[str, str] = {}
    by_label: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        by_label[item.label].append(item)
    for of_class in by_label.values():
        keys = [item.key for item in of_class if item.split in (None, "train")]
        keys.sort(key=lambda key: _rank(rule["seed"], key))
        counts = _counts(len(of_class), len(keys), rule)
        for split in rule["automatic"]:
            taken, keys = keys[:counts[split]], keys[counts[split]:]
            held_out.update(dict.fromkeys(taken, split))
    return [replace(item, split=held_out.get(item.key, item.split or "train")) for item in items]


def _iterative(data: DataSet, items: Sequence[Item], rule: Mapping[str, Any]) -> list[Item]:
    """As `_automatic`, of images that have several classes or none."""
    free = [item for item in items if item.split in (None, "train")]
    free.sort(key=lambda item: _rank(rule["seed"], item.key))
    counts = _counts(len(items), len(free), rule) if free else {}
    sizes = {**counts, "train": len(free) - sum(counts.values())}
    found = stratify.dealt(heads.strata(data.heads, [item.answers for item in free]), sizes) if free else []
    split_of = {item.key: split for item, split in zip(free, found, strict=True)}
    return [replace(item, split=split_of.get(item.key, item.split)) for item in items]


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogateescape")).digest()


def _counts(images: int, trainable: int, rule: Mapping[str, Any]) -> dict[str, int]:
    """How many images of one class each automatic split takes: one at least, while one each is left for the others."""
    counts: dict[str, int] = {}
    left = trainable
    for position, split in enumerate(rule["automatic"]):
        base = images if split == "test" else left
        wanted = max(1, int(rule[f"{split}_fraction"] * base + 0.5))
        others = len(rule["automatic"]) - position  # the splits that follow, and train
        most = max(left - others, min(1, left - 1), 0)
        counts[split] = min(wanted, most)
        left -= counts[split]
    return counts


def _separate_copies(items: Sequence[Item], digests: Mapping[str, str],
                     automatic: Sequence[str]) -> tuple[list[Item], Duplicates]:
    """Items after exact copies were brought together in train, as far as the splits are automatic."""
    times = Counter(digests[item.key] for item in items)
    by_digest: dict[str, list[Item]] = defaultdict(list)  # of copies only: a list for every image takes memory
    for item in items:
        if times[digests[item.key]] > 1:
            by_digest[digests[item.key]].append(item)
    groups = list(by_digest.values())
    moved = {item.key for group in groups if _spreads(group) for item in group if item.split in automatic}

    def settle(item: Item) -> Item:
        return replace(item, split="train") if item.key in moved else item

    settled = [[settle(item) for item in group] for group in groups]
    leaks = [group for group in settled if _spreads(group)]
    shown = leaks + [group for group in settled if not _spreads(group)]
    conflicts = sum(len({(item.label, repr(item.answers)) for item in group}) > 1 for group in groups)
    examples = tuple(tuple(item.key for item in group) for group in shown[:5])
    images = sum(len(group) for group in groups)
    placed = [settle(item) for item in items]
    return placed, Duplicates(len(groups), images, len(moved), len(leaks), conflicts, examples)


def _spreads(group: Iterable[Item]) -> bool:
    return len({item.split for item in group}) > 1


def _require_images(parts: Mapping[str, Sequence[Item]], rule: Mapping[str, Any]) -> None:
    """Every split that the data or the rule promises must have images."""
    if not parts["train"]:
        raise DataError("The data has no training images.", hint="Give images with the split train.")
    empty = [split for split in rule["automatic"] if not parts[split]]
    if empty:
        raise DataError(f"There are too few images to hold out a {empty[0]} split from {len(parts['train'])} in train.",
                        hint=f"Add images, or give a folder '{empty[0]}' beside train; exact copies stay in train.")


def _tell(data: DataSet, parts: Mapping[str, Sequence[Item]], duplicates: Duplicates, strict: bool,
          listener: Listener) -> None:
    """Warnings about leaks, contradicting copies and classes that a split lacks."""
    if duplicates.leaks:
        found = (f"{duplicates.leaks} image(s) occur in more than one of the data's own splits, such as "
                 f"{' and '.join(duplicates.examples[0][:3])}.")
        if strict:
            raise DataError(found, hint="Remove the copies, or leave out --strict-splits to go on with a warning.")
        _warn(listener, f"{found} Accuracies on those splits are flattered; --strict-splits makes this an error.")
    if duplicates.conflicts:
        _warn(listener, f"{duplicates.conflicts} image(s) occur with different labels.")
    for split in SPLITS:
        present = _present(data, parts[split])
        absent = [name for index, name in enumerate(data.labels) if index not in present]
        if absent and parts[split]:
            _warn(listener, f"No image of {', '.join(absent[:5])} is in the {split} split.")


def _present(data: DataSet, items: Sequence[Item]) -> set[int]:
    """Numbers of the outputs that an image of a split has: its classes and labels, or any value."""
    if not data.heads or not items:
        return {item.label for item in items}
    known = heads.truth(data.heads, [item.answers for item in items])
    seen = np.isfinite(known) if data.heads[0].kind == heads.REGRESS else known > 0
    return set(np.flatnonzero(seen.any(axis=0)).tolist())


def _warn(listener: Listener, text: str) -> None:
    listener(Event("data", "warning", {"text": text}))


def require_same_data(splits: Splits, fingerprint: str, *, recorded_by: str) -> None:
    """Checks that the data is what an earlier stage used.

    Args:
        splits: of the data at hand.
        fingerprint: what the earlier stage recorded.
        recorded_by: the folder of that stage, for the message.

    Raises:
        DataError: an image, label or own split was added, removed or changed since.
    """
    if splits.fingerprint != fingerprint:
        raise DataError(f"The data is not what {recorded_by} was made with (fingerprint {splits.fingerprint[:12]}, "
                        f"recorded {fingerprint[:12]}).",
                        hint="Give the same --data, unchanged, or train again on the new data.")


def to_json(splits: Splits) -> dict[str, Any]:
    """Content of split.json: the keys of each split, the rule, the fingerprint and what is known of duplicates."""
    return {"schema": SCHEMA, "fingerprint": splits.fingerprint, "rule": dict(splits.rule),
            "duplicates": asdict(splits.duplicates),
            **{split: [item.key for item in splits.of(split)] for split in SPLITS}}
