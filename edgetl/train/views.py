"""What the teacher said to one view of every image, and the file that holds it.

Of few classes all logits are kept as float16: 2 K bytes an image. Of many (`MANY` and more) the greatest `TOP` are kept
with their places, and one logit that stands for each of the others, so that together they have the probability they
had: 386 bytes an image. Of other tasks than one class an image all outputs are kept. One more byte says whether the
teacher has answered.

The file is safetensors, written whole or not at all, with the SHA-256 of its tensors in the metadata: the format has no
checksum, and a logit that a disk has changed would be learned from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from edgetl.errors import EdgetlError
from edgetl.weights import parse_safetensors

TOP = 64  # logits that are kept of an answer on many classes
MANY = 4 * TOP  # classes from which on the others share what is left of the probability
DIGEST = "sha256"  # key of the metadata


class View:
    """Answers to one view of every image: all logits, or of many classes the greatest and what the others share."""

    def __init__(self, known: torch.Tensor, values: torch.Tensor, places: torch.Tensor | None, classes: int) -> None:
        self.known, self.values, self.places, self._classes = known, values, places, classes
        self.changed = False

    @classmethod
    def empty(cls, images: int, classes: int, whole: bool = False) -> View:
        """A view of which nothing is known; `whole`: all logits are kept, however many classes there are."""
        many = classes > MANY and not whole
        values = torch.zeros((images, TOP + 1 if many else classes), dtype=torch.float16)
        places = torch.zeros((images, TOP), dtype=torch.int32) if many else None
        return cls(torch.zeros(images, dtype=torch.bool), values, places, classes)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is written."""
        found = {"known": self.known, "values": self.values}
        return found if self.places is None else {**found, "places": self.places}

    def put(self, index: torch.Tensor, logits: torch.Tensor) -> None:
        """Keeps logits [N, K] of the images `index` [N].

        Raises:
            EdgetlError: some are not finite, or too large for float16.
        """
        logits = logits.detach().float().cpu()
        if self.places is None:
            kept = logits
        else:
            top, places = logits.topk(TOP, dim=1)
            self.places[index] = places.int()
            others = logits.scatter(1, places, -torch.inf).logsumexp(dim=1, keepdim=True)
            # One logit for each of the others, so that together they have the probability they had.
            kept = torch.cat([top, others - torch.log(torch.tensor(float(self._classes - TOP)))], dim=1)
        half = kept.half()
        if not bool(torch.isfinite(half).all()):
            raise EdgetlError(
                "The teacher answered with logits that are not finite, or too large to be stored.",
                hint="Check the teacher with `edgetl bench`, or give --softlabels off.",
            )
        self.values[index], self.known[index], self.changed = half, True, True

    def get(self, index: torch.Tensor) -> torch.Tensor:
        """float32 logits [N, K]."""
        values = self.values[index].float()
        if self.places is None:
            return values
        whole = values[:, -1:].expand(-1, self._classes).clone()
        return whole.scatter_(1, self.places[index].long(), values[:, :-1])

    def learn(self, other: View) -> None:
        """Takes over the answers that are known of the same view elsewhere and not here."""
        new = other.known & ~self.known
        for name, mine in self.tensors().items():
            mine[new] = other.tensors()[name][new]


def bytes_an_image(classes: int, whole: bool = False) -> int:
    """What an answer takes in memory and on the disk."""
    return sum(one.numel() * one.element_size() for one in View.empty(1, classes, whole).tensors().values())


def encoded(view: View) -> bytes:
    """The file of a view."""
    tensors = view.tensors()
    return safetensors.torch.save(tensors, metadata={DIGEST: _digest(tensors)})


def read(path: Path, images: int, classes: int, whole: bool = False) -> View | None:
    """The view in a file; None where there is none, or it is one of other images or classes.

    Raises:
        EdgetlError: the file is damaged or cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise EdgetlError(f"{path} cannot be read: {problem.strerror}.") from problem
    tensors = parse_safetensors(data, where=str(path), hint="")
    if _recorded(data) != _digest(tensors):
        raise EdgetlError(f"{path} is damaged: its SHA-256 is not the recorded one.")
    wanted = View.empty(images, classes, whole).tensors()
    if {name: (one.shape, one.dtype) for name, one in tensors.items()} != {
        name: (one.shape, one.dtype) for name, one in wanted.items()
    }:
        return None
    return View(tensors["known"], tensors["values"], tensors.get("places"), classes)


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and values; hexadecimal."""
    whole = hashlib.sha256()
    for name, one in sorted(tensors.items()):
        whole.update(f"{name} {one.dtype} {tuple(one.shape)}\n".encode())
        whole.update(one.contiguous().view(torch.uint8).numpy().data if one.numel() else b"")
    return whole.hexdigest()


def _recorded(data: bytes) -> str | None:
    """What a file that safetensors can read says of itself."""
    size = int.from_bytes(data[:8], "little")
    found: dict[str, dict[str, str]] = json.loads(data[8 : 8 + size])
    return found.get("__metadata__", {}).get(DIGEST)
