"""A classifier in ONNX as a teacher, of whatever origin: a black box that takes images and gives logits."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl import foreign, rundir
from edgetl.errors import EdgetlError
from edgetl.recipe_teacher import GraphTeacher, graph_file, spelled
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.session import GraphSpec, Session, open_session
from edgetl.train.softlabels import Ask
from edgetl.train.task import Normalized

LEAST = 1e-7  # probability: what float32 leaves beside one of 1; a class that is given less counts as given this
WHOLE = 1e-3  # how far from 1 the sum of probabilities may be
LOOKS = 8  # images of noise that show what a graph gives

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class BlackBox:
    """A graph that answers with scores of classes."""

    name: str  # onnx:FILE
    graph: bytes
    spec: GraphSpec
    preprocess: Preprocess
    labels: tuple[str, ...] | None  # of its classes, in its order; None where nobody says
    probabilities: bool  # what its scores are; else logits
    sha256: str  # of the file
    parameters: int  # numbers in its constants; 0 where they hide in functions or branches
    columns: tuple[int, ...] | None = None  # the scores that count, in the order of the data's classes; None: all

    @property
    def classes(self) -> int:
        """Scores an image."""
        return int(self.spec.outputs[0].shape[1])

    @property
    def key(self) -> str:
        """Digest of all that decides its logits to a prepared image."""
        said = [self.sha256, self.probabilities, self.spec.inputs[0].shape[1:], self.columns]
        return rundir.sha256(json.dumps(said).encode())


def read(name: str, said: GraphTeacher) -> BlackBox:
    """The black box `onnx:FILE`.

    Args:
        name: `onnx:FILE`.
        said: what its file does not say itself.

    Raises:
        EdgetlError: it cannot be read or is no image classifier, or something must be said that is not; names it.
    """
    found = foreign.read(graph_file(name), said, spell=spelled, answers=True)
    box = BlackBox(name, found.graph, found.spec, found.preprocess, found.labels, False,
                   rundir.sha256(graph_file(name).read_bytes()), _parameters(found.graph))  # fmt: skip
    if box.classes < 2:
        raise EdgetlError(
            f"The teacher {name} gives {box.classes} number an image, expected a score for each class.",
            hint="A sigmoid's one number p can be made the two scores 1 - p and p inside the graph.",
        )
    return dataclasses.replace(box, probabilities=_gives_probabilities(box, said.output))


def _parameters(graph: bytes) -> int:
    """Values in the constants of a graph, initializers and nodes alike, that are no counts, shapes or axes."""
    import onnx

    whole = onnx.load_from_string(graph).graph
    nodes = (attribute.t for node in whole.node if node.op_type == "Constant" for attribute in node.attribute
             if attribute.name == "value")  # fmt: skip
    real = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    return sum(math.prod(one.dims) for one in (*whole.initializer, *nodes) if one.data_type in real)


def _gives_probabilities(box: BlackBox, wish: str | None) -> bool:
    """Whether the scores of some images of noise are probabilities: no logits add up to 1 every time.

    Raises:
        EdgetlError: they are not what was said.
    """
    chance = np.random.default_rng(0)
    noise = chance.normal(size=(LOOKS, *box.preprocess.input_shape)).astype(np.float32)
    session = open_session("cpu", box.graph, box.spec, threads=1)
    try:
        scores = predict(box, session)(noise)
    finally:
        session.close()
    found = bool((scores >= 0).all() and (np.abs(scores.sum(axis=1) - 1) < WHOLE).all())
    if wish is not None and found != (wish == "probabilities"):
        seen = "scores of which every image's add up to 1" if found else (
            f"scores that are no probabilities, e.g. {np.array2string(scores[0, :4], precision=3)}")  # fmt: skip
        raise EdgetlError(
            f"{spelled('output', wish)}: the teacher {box.name} gives {seen}.", hint="Leave output=... out."
        )
    return found


def predict(box: BlackBox, session: Session) -> Predict:
    """A function from prepared images, as the graph takes them, to its scores [N, K], all classes of its own.

    A graph with a fixed batch is fed whole batches; the last is filled up and the filling's scores are dropped.
    """
    image, scores = box.spec.inputs[0], box.spec.outputs[0].name
    fixed = int(image.shape[0]) if image.shape[0] != "N" else None

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        if fixed is None:
            return np.asarray(session.run({image.name: images})[scores], np.float32)
        missing = -len(images) % fixed
        filled = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
        parts = [session.run({image.name: filled[at : at + fixed]})[scores] for at in range(0, len(filled), fixed)]
        return np.concatenate(parts).astype(np.float32)[: len(images)]

    return run


def logits(box: BlackBox, session: Session) -> Predict:
    """As `predict`, but logits [N, K] of the classes that count: a probability p becomes log p.

    Raises, when called:
        EdgetlError: some are not finite.
    """
    scores_of = predict(box, session)

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = scores_of(images)
        if not np.isfinite(scores).all():
            raise EdgetlError(
                f"The teacher {box.name} answered with numbers that are not finite.",
                hint="Check its preprocessing (scale, mean, std) and the graph with `edgetl bench`.",
            )
        found = np.log(np.maximum(scores, LEAST)) if box.probabilities else scores
        return found if box.columns is None else found[:, box.columns]

    return run


def ask(box: BlackBox, session: Session) -> Ask:
    """The black box on training views: it sees each as its preprocessing wants it, brought to its size by torch."""
    prepare, answer = preparation(box.preprocess), logits(box, session)

    def say(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            ready = prepare(images.cpu()).contiguous(memory_format=torch.contiguous_format).numpy()
        return torch.from_numpy(answer(ready)).to(images.device)

    return say


def preparation(preprocess: Preprocess) -> Ask:
    """What a graph takes, in its own colours, size, normalisation and layout, of pixels [N, C, H, W] in 0..255."""
    normal = Normalized(nn.Identity(), preprocess)

    def prepare(images: torch.Tensor) -> torch.Tensor:
        ready = normal.prepared(images)
        return ready.permute(0, 2, 3, 1) if preprocess.layout == "NHWC" else ready

    return prepare


def with_columns(box: BlackBox, columns: Sequence[int]) -> BlackBox:
    """The black box with the scores of those classes, in that order."""
    chosen = None if tuple(columns) == tuple(range(box.classes)) else tuple(columns)
    return dataclasses.replace(box, columns=chosen)


def facts(box: BlackBox) -> dict[str, Any]:
    """What the record says of it."""
    image = box.spec.inputs[0]
    return {
        "input": list(image.shape),
        "layout": image.layout,
        "gives": "probabilities" if box.probabilities else "logits",
    }
