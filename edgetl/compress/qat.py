"""Quantization-aware distillation: an INT8 graph learns to answer as the float graph does, its own rounding included.

The INT8 graph itself is trained, with the Q/DQ that its writer placed: float weights are rounded in every forward pass,
see `compress.fakequant`, and what is written in the end is what was trained. The teacher is the float32 graph, asked
for each view; labels are not looked at. A. Polino, R. Pascanu, D. Alistarh, Model Compression via Distillation and
Quantization, ICLR 2018, arXiv:1802.05668; the steps are learned as S. K. Esser et al., ICLR 2020, arXiv:1902.08153.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgetl.compress.course import Course, Untrainable
from edgetl.compress.onnx_torch import Program
from edgetl.compress.qat_graph import Trainable
from edgetl.compress.quantize import Quantized
from edgetl.compress.rounding import GREATEST, GREATEST_REDUCED

RATE = 0.01  # of Adam: steps of a weight that it moves in an update, at most
STEP_RATE = 0.005  # the same for steps: the share of its size that one changes
WARM = 0.1  # share of the updates in which the rates rise
MOST_GRADIENT = 1.0  # norm of all gradients together; `gain_of` keeps the steps' from being most of it
TEMPERATURE = 4.0  # softens what both graphs answer: a float graph is almost sure of most images it was trained on
LEAST_PROBABILITY = 1e-7  # whose logarithm stands for a score, where a graph ends in a Softmax


def distilled(made: Quantized, floats: Any, scheme: Mapping[str, Any], course: Course, *,
              fixed: frozenset[str] = frozenset()) -> Quantized:
    """The INT8 graph after its training; inputs, outputs, Q/DQ and metadata as before.

    Args:
        made: the INT8 graph, float32 where it is not rounded.
        floats: ModelProto of the float graph it was made of.
        scheme: `Target.quantize`.
        course: what to learn from.
        fixed: activations whose step does not move.

    Raises:
        Untrainable: the graph has an operator that training cannot run, or nothing to train, or its loss is no number.
    """
    import onnx

    graph = Trainable(onnx.load_from_string(made.graph), weights_of(floats), fixed=fixed,
                      greatest=GREATEST_REDUCED if scheme["reduce_range"] else GREATEST,
                      kind=scheme.get("scales", "float32"))
    with _threads(course.threads):
        losses = fit(graph, course)
    rounding = {"method": "trained", "start": dict(made.rounding), "layers": len(graph.weights), "layers_left": 0,
                "epochs": course.epochs, "updates": course.updates * course.epochs, "losses": losses}
    written = graph.graph()
    onnx.checker.check_model(written)
    return Quantized(written.SerializeToString(deterministic=True), rounding)


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """The float constants of a graph, by name."""
    return {name: value for name, value in Program(model).constants.items() if value.dtype == torch.float32}


def fit(graph: Trainable, course: Course) -> list[float]:
    """Trains the graph in place; the mean loss of each epoch.

    Raises:
        Untrainable: a loss is no number.
    """
    optimizer = torch.optim.Adam([{"params": graph.parameters(), "lr": RATE},
                                  {"params": graph.step_parameters(), "lr": STEP_RATE}])
    total = course.epochs * course.updates
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: rate_at(update, total))
    losses = []
    for epoch in range(course.epochs):
        seen = [_update(graph, images, course, optimizer, schedule) for images in course.images(epoch)]
        losses.append(float(np.mean(seen)))
        if not math.isfinite(losses[-1]):
            raise Untrainable(f"The loss of quantization-aware distillation is {losses[-1]} in epoch {epoch + 1}.",
                              hint="Do without it: --qat-epochs 0.")
        course.note(f"quantization-aware distillation, epoch {epoch + 1} of {course.epochs}: loss {losses[-1]:.4g}")
    return losses


def rate_at(update: int, total: int) -> float:
    """Share of the rates in an update, from 0: a straight line up, then half a cosine down to 0."""
    warm = max(1, round(WARM * total))
    if update < warm:
        return (update + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (update - warm) / max(total - warm, 1)))


def _update(graph: Trainable, images: NDArray[np.float32], course: Course, optimizer: torch.optim.Optimizer,
            schedule: torch.optim.lr_scheduler.LRScheduler) -> float:
    """One step of the optimizer; the loss before it."""
    taught = torch.from_numpy(np.asarray(course.teacher(images), np.float32))
    answered = graph.run(torch.from_numpy(images))[course.output]
    ends_in_softmax = graph.program.makers[course.output].kind == "Softmax"
    loss = soft_loss(_scores(answered, ends_in_softmax), _scores(taught, ends_in_softmax))
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_([*graph.parameters(), *graph.step_parameters()], MOST_GRADIENT)
    optimizer.step()
    schedule.step()
    return float(loss.detach())


def _scores(answered: torch.Tensor, are_probabilities: bool) -> torch.Tensor:
    return answered.clamp(min=LEAST_PROBABILITY).log() if are_probabilities else answered


def soft_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over images.

    T^2 keeps the size of the gradients, which fall with it (G. Hinton, O. Vinyals, J. Dean, Distilling the Knowledge in
    a Neural Network, 2015, arXiv:1503.02531, section 2.1).

    Args:
        student: scores [N, K].
        teacher: scores [N, K].
    """
    soft, wanted = (functional.log_softmax(one / TEMPERATURE, dim=1) for one in (student, teacher))
    return TEMPERATURE**2 * functional.kl_div(soft, wanted, log_target=True, reduction="batchmean")


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch computes with so many threads meanwhile; 0 leaves its own choice."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
