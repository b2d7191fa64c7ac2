"""What runs the teacher: torch, or on a CPU an engine that is quicker, where only its logits count."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgetl import plugins, timing
from edgetl.errors import BackendUnavailable, EdgetlError
from edgetl.models import Network
from edgetl.runtime.session import GraphSpec, Session, open_session
from edgetl.train import blackbox
from edgetl.train.blackbox import BlackBox
from edgetl.train.softlabels import Ask
from edgetl.train.task import Normalized

if TYPE_CHECKING:
    from edgetl.train.loop import Precision

TORCH = "torch"
SESSIONS = {"cpu": {"spin": "off"}, "openvino": dict[str, str]()}  # torch computes on the same processors in between
CUDA = "cuda"  # runs a teacher in ONNX beside a training on the same card
WORTH = 20_000  # images for the teacher from which on a graph and a trial are worth their ten seconds
CLEARLY = 0.95  # of torch's time, which another engine must stay below
TRIAL_BATCHES = 4  # the first of which is not counted

GraphOf = Callable[[Network, Sequence[str]], tuple[bytes, GraphSpec]]  # what the export makes of a network


@dataclass(frozen=True)
class Engine:
    """What runs the teacher."""

    name: str
    version: str
    ask: Ask
    trial: Mapping[str, float]  # seconds a batch, by engine; empty where none was tried


def torch_ask(teacher: Normalized, precision: Precision) -> Ask:
    """The teacher in torch, in evaluation mode."""

    def ask(images: torch.Tensor) -> torch.Tensor:
        teacher.eval()
        with torch.no_grad(), precision.autocast():
            return teacher(images).float()  # type: ignore[no-any-return]

    return ask


def session_ask(teacher: Normalized, session: Session, spec: GraphSpec) -> Ask:
    """The teacher in a session; its own size and normalisation are still made by torch, so that they are the same."""
    image, logits = spec.inputs[0].name, spec.outputs[0].name

    def ask(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            ready = teacher.prepared(images).contiguous(memory_format=torch.contiguous_format).numpy()
        return torch.from_numpy(np.asarray(session.run({image: ready})[logits], np.float32))

    return ask


def choose(
    wish: str,
    teacher: Network,
    labels: Sequence[str],
    precision: Precision,
    *,
    asked: int,
    batch: int,
    size_hw: tuple[int, int],
    threads: int,
    graph_of: GraphOf | None,
    channels: int = 3,
) -> Engine:
    """What runs the teacher: as wished, or with "auto" what a trial on this machine finds quickest.

    Args:
        wish: "auto", "torch", "cpu" or "openvino".
        teacher: on the training's device.
        labels: of its classes.
        precision: of torch.
        asked: how many images the teacher will be shown.
        batch: images at once.
        size_hw: of the views, in pixels.
        channels: of the views.
        threads: of an engine.
        graph_of: makes the teacher's ONNX graph; None where nothing can.

    Raises:
        BackendUnavailable: the engine that was wished for cannot run here.
        GateFailed, EdgetlError: no graph can be made of the teacher, and one was wished for.
    """
    normalized = Normalized(teacher.module, teacher.preprocess)
    normalized.to(precision.device)
    in_torch = Engine(TORCH, torch.__version__, torch_ask(normalized, precision), {})
    elsewhere = precision.device.type != "cpu" or graph_of is None
    if wish == TORCH or (wish == "auto" and (elsewhere or asked < WORTH)):
        return in_torch
    if graph_of is None or precision.device.type != "cpu":
        raise BackendUnavailable(
            f"--teacher-engine {wish} runs on a CPU, and this training runs on {precision.device}.",
            hint="Leave --teacher-engine out.",
        )
    graph, spec = graph_of(teacher, labels)
    found = [
        opened(name, graph, spec, threads, lambda session: session_ask(normalized, session, spec))
        for name in (usable(SESSIONS) if wish == "auto" else (wish,))
    ]
    return found[0] if wish != "auto" else quickest([in_torch, *found], batch, size_hw, channels)


def of_black_box(
    wish: str, box: BlackBox, device: torch.device, *, asked: int, batch: int, size_hw: tuple[int, int], threads: int,
    channels: int = 3,
) -> Engine:  # fmt: skip
    """What runs a teacher in ONNX, which torch cannot; the arguments are those of `choose`.

    Raises:
        EdgetlError: torch was wished for.
        BackendUnavailable: the engine that was wished for, or any, cannot run here.
    """
    if wish == TORCH:
        raise EdgetlError(
            f"--teacher-engine torch: the teacher {box.name} is an ONNX graph, which torch does not run.",
            hint=f"Expected auto or one of {', '.join(SESSIONS)}.",
        )
    names = usable((*SESSIONS, *((CUDA,) if device.type == CUDA else ()))) if wish == "auto" else (wish,)
    if not names:
        raise BackendUnavailable(
            f"Nothing here can run the teacher {box.name}.", hint="Install onnxruntime or openvino."
        )
    if asked < WORTH and device.type != CUDA:
        names = names[:1]
    found = [
        opened(name, box.graph, box.spec, threads, lambda session: blackbox.ask(box, session)) for name in names
    ]
    return quickest(found, batch, size_hw, channels) if len(found) > 1 else found[0]


def usable(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the backends that can run here."""
    return tuple(name for name in names if plugins.load("backends", name).probe().usable)


def opened(name: str, graph: bytes, spec: GraphSpec, threads: int, ask_of: Callable[[Session], Ask]) -> Engine:
    """A backend with a graph opened in it."""
    session = open_session(name, graph, spec, threads=threads, options=SESSIONS.get(name, {}))
    version = " ".join(f"{package} {one}" for package, one in session.info()["versions"].items())
    return Engine(name, version, ask_of(session), {})


def quickest(engines: Sequence[Engine], batch: int, size_hw: tuple[int, int], channels: int = 3) -> Engine:
    """The engine with the least median time a batch, interleaved; the first unless another is clearly quicker."""
    images = torch.rand((batch, channels, *size_hw), generator=torch.Generator().manual_seed(0)) * 255
    seconds: dict[str, list[float]] = {one.name: [] for one in engines}
    for _ in range(TRIAL_BATCHES):
        for one in engines:
            begin_s = timing.now_s()
            one.ask(images)
            seconds[one.name].append(timing.now_s() - begin_s)
    trial = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    best = min(engines, key=lambda one: trial[one.name])
    chosen = best if trial[best.name] < CLEARLY * trial[engines[0].name] else engines[0]
    return Engine(chosen.name, chosen.version, chosen.ask, trial)


def recorded(choices: Mapping[str, Any], wish: str, key: str = "teacher_engine") -> str:
    """What an interrupted run chose under a key, which --resume takes again; else the wish."""
    name = str(choices.get(key, {}).get("name", wish))
    if name not in ("auto", TORCH, CUDA, *SESSIONS):
        raise EdgetlError(f"The interrupted run had its teacher run by '{name}', which this version does not know.")
    return name
