"""Images that cannot be decoded: counted, listed and left out as far as `--max-bad` allows.

All splits are looked at before anything is trained, and all count against one limit: a file that is lost from
validation or test is told like one that is lost from training, and every figure of the RUN says of how many images it
is. What was left out becomes part of the rule of the split, so that distillation, export and `edgetl bench` of the same
data leave out the same.

Looking costs one more pass of decoding, whose result is kept in the cache. With `--max-bad 0` there is none: training
stops at the first stage that meets such a file, and names it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL

from edgetl import rundir, splits
from edgetl.datasets import SPLITS, DataSet, Item
from edgetl.errors import DataError, InputError
from edgetl.events import Event, Listener
from edgetl.runtime import preprocess as pre
from edgetl.runtime.decode import is_array_file, read_array
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.tuned import cache_root
from edgetl.splits import Splits
from edgetl.train.store import ELSEWHERE
from edgetl.train.unlabelled import Unlabelled

BAD = "bad.txt"  # of a RUN: split, key and what is wrong, with tabs between
BAD_OF_SOURCE = "bad_of_source.txt"  # the same of --source
UNLABELLED, SOURCE = "unlabelled", "source"
VERSION = 1  # of what is looked for
AT_ONCE = 256  # images in the pool's queue


def left_out(
    max_bad: str, data: DataSet, parts: Splits, extra: Unlabelled, folder: Path, listener: Listener, stage: str
) -> tuple[Splits, Unlabelled]:
    """The splits and the images without a label, without those that cannot be decoded.

    Args:
        max_bad: how many may be left out: "N", or "P%" of all images.
        data: the labelled images.
        parts: how they are split.
        extra: images without a label.
        folder: of the RUN; gets the list.
        listener: told of progress and of what is left out.
        stage: name of the stage in events.

    Raises:
        DataError: there are more than that; names the first.
    """
    if not max_bad.strip("0.%"):
        return parts, extra
    kinds = {**{split: parts.of(split) for split in SPLITS}, UNLABELLED: extra.items}
    every = [item for items in kinds.values() for item in items]
    flaws = found(extra.beside(data), every, parts.fingerprint + (extra.fingerprint or ""), listener, stage)
    _settle(max_bad, flaws, kinds, data.name, folder / BAD, listener, stage)
    if not flaws:
        return parts, extra
    keys = {split: [item.key for item in kinds[split] if item.key in flaws] for split in SPLITS}
    kept = tuple(item for item in extra.items if item.key not in flaws)
    bad = {"unreadable": len(extra.items) - len(kept)} if extra.items else {}
    return splits.without(parts, keys), dataclasses.replace(extra, items=kept, left_out={**extra.left_out, **bad})


def sound(
    max_bad: str, data: DataSet, items: tuple[Item, ...], fingerprint: str, folder: Path, listener: Listener, stage: str
) -> tuple[Item, ...]:
    """The images of another data set that joins the training, without those that cannot be decoded, see `left_out`.

    Raises:
        DataError: there are more than that; names the first.
    """
    if not max_bad.strip("0.%"):
        return items
    flaws = found(data, items, fingerprint, listener, stage)
    _settle(max_bad, flaws, {SOURCE: items}, data.name, folder / BAD_OF_SOURCE, listener, stage)
    return tuple(item for item in items if item.key not in flaws)


def _settle(
    max_bad: str, flaws: Mapping[str, str], kinds: Mapping[str, Sequence[Item]], name: str, file: Path,
    listener: Listener, stage: str
) -> None:
    """Lists the flaws and tells of them; raises DataError where they are too many."""
    if not flaws:
        return
    keys = {kind: [item.key for item in items if item.key in flaws] for kind, items in kinds.items()}
    counts = {kind: len(bad) for kind, bad in keys.items() if bad}
    images, first = sum(map(len, kinds.values())), "; ".join(list(flaws.values())[:3])
    if len(flaws) > allowed(max_bad, images):
        raise DataError(
            f"{len(flaws)} of {images} images in {name} cannot be decoded ({told(counts)}), and --max-bad "
            f"{max_bad} allows {allowed(max_bad, images)}: {first}",
            hint="Remove or repair those files, or allow more.",
        )
    lines = (f"{kind}\t{key}\t{flaws[key]}\n" for kind, bad in keys.items() for key in bad)
    rundir.write_bytes(file, "".join(lines).encode(errors="surrogateescape"))
    text = f"{told(counts)} cannot be decoded and are left out, see {file.name}: {first}"
    listener(Event(stage, "warning", {"text": text}))


def allowed(max_bad: str, images: int) -> int:
    """How many images "N" or "P%" are."""
    return int(float(max_bad[:-1]) / 100 * images) if max_bad.endswith("%") else int(max_bad)


def told(counts: Mapping[str, int]) -> str:
    """Counts in words."""
    return ", ".join(f"{count} {kind} image{'s' if count > 1 else ''}" for kind, count in counts.items())


def found(
    data: DataSet, items: Sequence[Item], fingerprint: str, listener: Listener, stage: str
) -> dict[str, str]:
    """What is wrong with those of the images that cannot be decoded, by key; remembered in the cache.

    Raises:
        OutputError: the cache cannot be written, or is full.
    """
    asked = [VERSION, PIL.__version__, fingerprint, [item.key for item in items]]
    digest = rundir.sha256(json.dumps(asked).encode(errors="surrogateescape"))[:24]
    path = cache_root() / "images" / f"{digest}.damaged.json"
    if path.is_file():
        known: dict[str, str] = rundir.read_json(path, DataError)
        return known
    flaws = _searched(data, items, listener, stage)
    with rundir.explained(path, elsewhere=ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        rundir.write_json(path, flaws)
    return flaws


def _searched(data: DataSet, items: Sequence[Item], listener: Listener, stage: str) -> dict[str, str]:
    plain = Preprocess(size_hw=(1, 1))

    def flaw(item: Item) -> str | None:
        try:
            file = data.read(item)
            if is_array_file(file):  # of any channels; whether the network takes so many is asked later
                read_array(file, item.key)
            else:
                pre.decode(file, plain, name=item.key)
        except (InputError, DataError) as problem:
            return str(problem)
        return None

    listener(Event(stage, "begin", {"what": "check images", "total": len(items), "unit": "images"}))
    flaws: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(items), AT_ONCE):
            some = items[start : start + AT_ONCE]
            flaws |= {item.key: why for item, why in zip(some, pool.map(flaw, some), strict=True) if why is not None}
            listener(Event(stage, "advance", {"done": min(start + AT_ONCE, len(items))}))
    listener(Event(stage, "end", {"what": "check images"}))
    return flaws
