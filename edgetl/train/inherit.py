"""A student that begins with weights of a larger model of its family, chosen out of them.

Weight selection: Xu et al., "Initializing Models with Larger Ones", ICLR 2024, arXiv:2311.18823. Three choices:

- layers: the first ones of the larger model, so a layer is looked for under its own name (in families that are built
  in stages, that is the first N of each stage);
- where a name is not there, or what it names is smaller: the first layer that has the very same shapes and that nobody
  else has taken (not in the paper, which knows the families it uses);
- elements: of each dimension as many as the student has, evenly spaced ("uniform selection", the paper's best). Where
  one length divides the other, every n-th; else the rounded points of a line from the first to the last. Layers of the
  same widths choose the same channels, so that what belongs together stays together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgetl import heads, models, weights
from edgetl.errors import EdgetlError
from edgetl.models import Network
from edgetl.recipe import Distill
from edgetl.train.aim import Aim

TEACHER = "teacher"
LEAST = 0.5  # share of the student's tensors that must be found: else it is no model of the same family

State = Mapping[str, torch.Tensor]
Layers = Mapping[str, State]


@dataclass(frozen=True)
class Inherited:
    """What became of a larger model's weights; tensors of the student by name."""

    source: str
    whole: tuple[str, ...]  # taken as they are
    cut: tuple[str, ...]  # evenly spaced elements of a larger tensor
    by_shape: tuple[str, ...]  # of these, those found under another name
    left: tuple[str, ...]  # as they were before: nothing fits

    def to_json(self) -> dict[str, Any]:
        """For the record of a run."""
        counts = {name: len(getattr(self, name)) for name in ("whole", "cut", "by_shape", "left")}
        return {"source": self.source, **counts, "names_left": list(self.left)}

    def told(self) -> str:
        """For people."""
        found = len(self.whole) + len(self.cut)
        left = f"; {len(self.left)} stay new (e.g. {self.left[0]})" if self.left else ""
        return (
            f"{found} of {found + len(self.left)} tensors inherited from {self.source}, {len(self.cut)} of them chosen "
            f"out of larger ones{left}"
        )


def uniform(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Evenly spaced elements [shape] of a tensor that has at least as many in each dimension."""
    for dimension, (have, want) in enumerate(zip(tensor.shape, shape, strict=True)):
        if have == want:
            continue
        if have % want == 0:
            places = torch.arange(want) * (have // want)
        else:
            places = torch.linspace(0, have - 1, want).round().long()
        tensor = tensor.index_select(dimension, places)
    return tensor.clone()


def require_heir(options: Distill) -> None:
    """Returns when --inherit has a student that it can be for.

    Raises:
        EdgetlError: the student brings weights of its own, or another file of weights is given.
    """
    if options.inherit is None:
        return
    if weights.brings_weights(options.student):
        raise EdgetlError(
            f"{options.student} brings its own weights, so --inherit {options.inherit} would not be read.",
            hint="Leave --inherit out, or name a FAMILY/VARIANT as the student.",
        )
    if options.weights is not None:
        raise EdgetlError(
            f"--weights {options.weights} and --inherit {options.inherit} both say what the student begins with.",
            hint="Give one of them.",
        )


def source_state(
    said: str, teacher: Network | None, labels: tuple[str, ...], aim: Aim | None = None
) -> tuple[State, bool]:
    """The tensors to inherit from, and whether their head answers with the data's own classes.

    Args:
        said: "teacher", a RUN folder, or a file of weights.
        teacher: the first one; None where it is a black box.
        labels: the data's.
        aim: what the student says of an image; None is one class.

    Raises:
        EdgetlError: the teacher is a black box, there is no such file, or it holds more than tensors.
    """
    if said == TEACHER:
        if teacher is None:
            raise EdgetlError("--inherit teacher: the teacher is a black box, whose weights cannot be had.",
                              hint="Give a RUN folder or a file of weights.")  # fmt: skip
        return teacher.module.state_dict(), True
    if weights.is_run(Path(said)):
        run = weights.load(Path(said), any_task=True)
        asked = aim.heads if aim is not None else ()
        same = (run.labels, heads.of_record(run.record)) == (labels, asked)
        if aim is not None and same:
            aim.begin(run.network)
        return run.network.module.state_dict(), same
    return models.read_weights(Path(said)), False


def inherit(student: Network, state: State, source: str, *, with_head: bool) -> Inherited:
    """What the student has inherited of a larger model's tensors, in place.

    Args:
        student: changed in place.
        state: tensors by name.
        source: what the report calls them.
        with_head: whether the head answers with the same classes; else the student's stays as it is.

    Raises:
        EdgetlError: less than half of the student's tensors find anything: it is another family.
    """
    own = student.module.state_dict()
    ours, theirs = _layers(own), _layers(state)
    if not with_head:
        ours.pop(student.head, None)
    taken: dict[str, torch.Tensor] = {}
    cut, by_shape = [], []
    for name, other in _matched(ours, theirs).items():
        for key, tensor in ours[name].items():
            full, given = f"{name}.{key}" if name else key, theirs[other][key]
            taken[full] = uniform(given.to(tensor.device, tensor.dtype), tensor.shape)
            cut += [full] if given.shape != tensor.shape else []
            by_shape += [full] if name != other else []
    report = Inherited(
        source, tuple(one for one in taken if one not in cut), tuple(cut), tuple(by_shape),
        tuple(one for one in own if one not in taken),
    )  # fmt: skip
    if len(taken) < LEAST * len(own):
        raise EdgetlError(
            f"{student.model} cannot inherit from {source}: only {len(taken)} of its {len(own)} tensors find something "
            "of the same name or shape.", hint="Give a larger model of the student's own family.",
        )  # fmt: skip
    student.module.load_state_dict(taken, strict=False)
    return report


def _matched(ours: Layers, theirs: Layers) -> dict[str, str]:
    """The larger model's layer for each of the student's that has one: by name, then by shape."""
    found = {name: name for name, tensors in ours.items() if _holds(theirs.get(name, {}), tensors)}
    free = [name for name in theirs if name not in found]
    for name, tensors in ours.items():
        same = next((one for one in free if name not in found and _shapes(theirs[one]) == _shapes(tensors)), None)
        if same is not None:
            found[name] = same
            free.remove(same)
    return found


def _layers(state: State) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors by layer and by their name in it."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        layer, _, key = name.rpartition(".")
        found.setdefault(layer, {})[key] = tensor
    return found


def _shapes(layer: State) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in layer.items()}


def _holds(larger: State, smaller: State) -> bool:
    """Whether every tensor of a layer has one of its name to choose from: no fewer channels, the very same kernel."""
    return all(
        key in larger
        and larger[key].ndim == tensor.ndim
        and larger[key].shape[2:] == tensor.shape[2:]
        and all(have >= want for have, want in zip(larger[key].shape, tensor.shape, strict=True))
        for key, tensor in smaller.items()
    )
