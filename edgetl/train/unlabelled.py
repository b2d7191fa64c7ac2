"""Images without a label, which join the training with the teacher's answers alone.

`--unlabeled DIR` takes every image below DIR, whatever its folders are called. One whose file is, byte for byte, also a
validation or test image is left out with a warning: the student would learn the teacher's answer to what it is measured
on. (A copy that was scaled or saved again is another file, which nobody notices: keep such images out.) Also left out
are copies of labelled training images, which are there with their labels, and second copies among themselves.

An epoch shows all images of both kinds once. The losses that need labels are means over the labelled images of a batch;
the control, which has no teacher, is trained on the labelled images for as many steps.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetl import loose, splits
from edgetl.datasets import SPLITS, DataSet, Item, read_file
from edgetl.errors import DataError, EdgetlError
from edgetl.events import Event, Listener
from edgetl.losses import Term
from edgetl.splits import Splits
from edgetl.train.task import needs_labels

HELD_OUT, LABELLED, COPIES = "held_out", "labelled", "copies"  # why images are left out


@dataclass(frozen=True)
class Unlabelled:
    """The images that join the training, and what the record says of them."""

    items: tuple[Item, ...] = ()  # sorted by folder and key
    paths: Mapping[str, Path] = field(default_factory=dict)  # of the files, by key
    fingerprint: str | None = None  # SHA-256 over keys and contents; empty where there are none, None: not asked for
    left_out: Mapping[str, int] = field(default_factory=dict)

    def beside(self, data: DataSet) -> DataSet:
        """A data set that reads these images, too; its own are as they were."""
        own = data.read

        def read(item: Item) -> bytes:
            path = self.paths.get(item.key)
            return own(item) if path is None else read_file(path)

        return dataclasses.replace(data, read=read, digest=None) if self.items else data

    @property
    def identity(self) -> dict[str, str]:
        """What decides the result of a training, besides its options and the labelled data."""
        return {} if self.fingerprint is None else {"unlabeled fingerprint": self.fingerprint}

    def to_json(self) -> dict[str, Any]:
        """What the record says."""
        return {"images": len(self.items), "fingerprint": self.fingerprint, "left_out": dict(self.left_out)}


NONE = Unlabelled()


def gather(
    folders: Sequence[str] | None, data: DataSet, parts: Splits, stage: str, listener: Listener
) -> Unlabelled:
    """The images below folders that may join the training.

    Args:
        folders: where they lie; empty gives none, None is for a stage that knows no such images.
        data: the labelled images.
        parts: how those are split.
        stage: name of the stage in events.
        listener: told of what is left out.

    Raises:
        DataError: a folder that is not there or cannot be read, an unreadable image, or no image that may join.
    """
    if not folders:
        return NONE if folders is None else Unlabelled(fingerprint="")
    paths = loose.paths(folders)
    items = tuple(Item(key=key, label=loose.NO_LABEL, split="train") for key in paths)
    digests = loose.digests(paths)
    known = splits.content_digests(data)
    reasons = _reasons(digests, {split: {known[one.key] for one in parts.of(split)} for split in SPLITS})
    kept = tuple(item for item in items if item.key not in reasons)
    counts = Counter(reasons.values())
    _tell(paths, reasons, counts, stage, listener)
    if not kept:
        raise DataError(
            f"--unlabeled {' '.join(folders)}: all of its {len(items)} images are copies of labelled ones.",
            hint="Give images that the data does not have.",
        )
    counted = {why: counts[why] for why in (HELD_OUT, LABELLED, COPIES)}
    return Unlabelled(kept, paths, loose.fingerprint({item.key: digests[item.key] for item in kept}), counted)


def _reasons(digests: Mapping[str, str], known: Mapping[str, set[str]]) -> dict[str, str]:
    """Why images are left out, by key."""
    reasons: dict[str, str] = {}
    seen: set[str] = set()
    for key, digest in digests.items():
        if any(digest in known[split] for split in splits.HELD_OUT):
            reasons[key] = HELD_OUT
        elif digest in known["train"]:
            reasons[key] = LABELLED
        elif digest in seen:
            reasons[key] = COPIES
        seen.add(digest)
    return reasons


def _tell(
    paths: Mapping[str, Path], reasons: Mapping[str, str], counts: Mapping[str, int], stage: str, listener: Listener
) -> None:
    joining = len(paths) - len(reasons)
    listener(Event(stage, "note", {"text": f"{joining} images without a label join the training."}))
    if counts.get(HELD_OUT):
        example = next(paths[key] for key, why in reasons.items() if why == HELD_OUT)
        text = f"{counts[HELD_OUT]} of the --unlabeled images are also in val or test, such as {example}; left out."
        listener(Event(stage, "warning", {"text": text}))
    twice = counts.get(LABELLED, 0) + counts.get(COPIES, 0)
    if twice:
        text = f"{twice} of the --unlabeled images are copies of training images or of one another; left out."
        listener(Event(stage, "note", {"text": text}))


def require_use(folders: Sequence[str], terms: Sequence[Term]) -> None:
    """Returns when images without a label have a loss that looks at them, or there are none.

    Raises:
        EdgetlError: all losses need labels.
    """
    if folders and all(needs_labels(term) for term in terms if term.weight):
        names = ", ".join(term.name for term in terms if term.weight)
        raise EdgetlError(
            f"--unlabeled: nothing would be learned from those images, since all losses need labels ({names}).",
            hint='Add one that asks the teacher alone, e.g. --loss "labels:0.1,kd:0.9;temperature=auto".',
        )
