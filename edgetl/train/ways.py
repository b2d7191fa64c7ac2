"""How a training computes: memory layout, mixed precision, torch.compile; each only where a trial finds that it pays.

A trial times a few batches of the network itself, forward and backward, and is made where the training is long enough
(`TRIED_FROM` batches): first channels-last tensors against contiguous ones, then with `--amp auto` the other precision,
then with `--compile auto` the compiled network. What is another way must take less than `CLEARLY` of the time. To
compile takes a minute or more, once for every size of a batch: it is tried only where a saving of `WORTH` of the
planned training would earn that, and used only where the saving that was measured does.

The choice and its times are kept among the RUN's choices, so that a resumed training computes as before, bit for bit.
The times are also kept in the cache: the next training of the same kind on this machine decides by the same ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from edgetl import rundir, timing
from edgetl.errors import BackendUnavailable, EdgetlError
from edgetl.models import Network
from edgetl.runtime import tuned
from edgetl.train import distributed, seed
from edgetl.train.loader import TrainLoader
from edgetl.train.loop import Precision
from edgetl.train.store import ELSEWHERE
from edgetl.train.task import ClassifierTask, Normalized, looks_at_features

if TYPE_CHECKING:
    from edgetl.train.setting import Setting

TRIED_FROM = 500  # batches of the whole training, of which a trial costs about ten
CLEARLY = 0.9  # of the time before, which another way must stay below
COMPILE_S = 120.0  # what compiling costs before anybody has measured it: two sizes of a batch, a minute each
WORTH = 0.05  # of the planned training, which is what a compiled network may be hoped to save before it is tried
RECOMPILED = 64  # times at most, before torch would go on without compiling; each frozen part is one more
DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
VERSION = 1  # of what is timed


@dataclass(frozen=True)
class Way:
    """How the network computes in training."""

    channels_last: bool = True
    amp: str = "off"  # a key of `DTYPES`
    compiled: bool = False

    @property
    def label(self) -> str:
        """The way in words."""
        layout = "channels-last" if self.channels_last else "contiguous"
        return " ".join([layout, "fp32" if self.amp == "off" else self.amp, *(["compiled"] if self.compiled else [])])

    def precision(self, device: torch.device) -> Precision:
        """What autocast uses."""
        return Precision(device, DTYPES[self.amp])

    @contextlib.contextmanager
    def over(self, task: ClassifierTask, network: Network) -> Iterator[None]:
        """The task computes this way for the length of a block."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        network.module.to(memory_format=layout)
        with contextlib.ExitStack() as stack:
            if not self.channels_last:  # batches come channels-last, and convolutions would follow them
                stack.callback(network.module.register_forward_pre_hook(_contiguous).remove)
            if self.compiled:
                stack.enter_context(_compiled(task))
            yield


def _contiguous(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(one.contiguous() for one in inputs)


@contextlib.contextmanager
def _compiled(task: ClassifierTask) -> Iterator[None]:
    """The task's network compiled; what looks at the network itself (validation, checkpoints) sees it as it was."""
    import torch._dynamo  # here: it takes seconds

    plain = task.input
    # Each size of a batch by itself: code for all sizes would depend on which came first, and a resume begins anywhere.
    task.input = cast(Normalized, torch.compile(plain, dynamic=False))
    try:
        with torch._dynamo.config.patch(recompile_limit=RECOMPILED):
            yield
    finally:
        task.input = plain


@dataclass
class Trial:
    """Times of ways to compute one training."""

    setting: Setting
    task: ClassifierTask
    network: Network
    seconds: dict[str, float] = field(default_factory=dict)  # a batch, by label
    compile_s: float | None = None  # what the first batch of a compiled network took

    def better(self, way: Way, other: Way) -> Way:
        """The other way where it is clearly quicker."""
        before_s = self.of(way)
        return other if self.of(other) < CLEARLY * before_s else way

    def of(self, way: Way) -> float:
        """Seconds a batch."""
        if way.label not in self.seconds:
            first, *others = self._timed(way)
            self.seconds[way.label] = min(others)
            self.compile_s = first if way.compiled else self.compile_s
        return self.seconds[way.label]

    def _timed(self, way: Way, batches: int = 3) -> list[float]:
        """Seconds of each batch; leaves the network and torch's generators as they were."""
        size = math.ceil(self.setting.choices["batch_size"] / distributed.current().size)
        pixels = np.random.default_rng(0).uniform(0, 255, (size, *self.task.shown.input_shape))
        images = torch.from_numpy(pixels.astype(np.float32)).to(self.setting.device, memory_format=torch.channels_last)
        kept = {name: value.clone() for name, value in self.network.module.state_dict().items()}
        random, found = seed.random_states(), []
        self.task.train_mode()
        try:
            with way.over(self.task, self.network):
                for _ in range(batches):
                    begin_s = timing.now_s()
                    self._step(images, way)
                    found.append(timing.now_s() - begin_s)
        finally:
            self.task.zero_grad(set_to_none=True)
            self.network.module.load_state_dict(kept)
            seed.restore(random)
        return found

    def _step(self, images: torch.Tensor, way: Way) -> None:
        with way.precision(self.setting.device).autocast():
            answers = self.task.input(images)
        answers.float().square().mean().backward()
        self.task.zero_grad(set_to_none=True)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)


def settled(setting: Setting, task: ClassifierTask, network: Network, loader: TrainLoader, stage: str) -> Way:
    """How this stage computes: as recorded among the choices, else as a trial finds, and records it there.

    Raises:
        BackendUnavailable: --compile on, and torch cannot compile the network here.
        EdgetlError: --compile on, and this training cannot be compiled.
    """
    with distributed.current().agreeing(setting.choices):
        known = setting.choices.setdefault("way", {})
        if stage not in known:
            known[stage] = _found(setting, task, network, loader)
    return Way(**known[stage]["chosen"])


def _found(setting: Setting, task: ClassifierTask, network: Network, loader: TrainLoader) -> dict[str, Any]:
    """The record of a choice: "chosen", "seconds_a_batch" by way, "compile_s", and in words "why_not_compiled"."""
    batches = loader.steps * setting.options.epochs * setting.options.accumulate
    way, wish = Way(amp=setting.choices["amp"]), setting.options.compile
    obstacle = _obstacle(task)
    if wish == "on" and obstacle:
        raise EdgetlError(f"--compile on: {obstacle}.", hint="Leave --compile out.")
    trial = Trial(setting, task, network)
    if batches < TRIED_FROM and wish != "on":
        why = f"{batches} batches are too few for a trial"
        return _record(way, trial, why)
    path = _remembered(trial)
    if batches >= TRIED_FROM:
        way = trial.better(way, dataclasses.replace(way, channels_last=False))
        if setting.options.amp == "auto":
            way = trial.better(way, dataclasses.replace(way, amp=_other_amp(way.amp)))
    planned_s = batches * trial.of(way)
    why = {"off": "--compile off", "on": ""}.get(wish, obstacle or _too_short(planned_s, trial))
    if not why:
        why = _compiling(trial, way, batches, wish == "on")
    way = way if why else dataclasses.replace(way, compiled=True)
    with rundir.explained(path, elsewhere=ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        rundir.write_json(path, {"seconds": trial.seconds, "compile_s": trial.compile_s})
    tried = ", ".join(f"{label} {1e3 * seconds:.0f} ms" for label, seconds in trial.seconds.items())
    setting.note(f"A batch takes {tried}; trained is {way.label}.")
    return _record(way, trial, why)


def _record(way: Way, trial: Trial, why: str) -> dict[str, Any]:
    return {"chosen": dataclasses.asdict(way), "seconds_a_batch": trial.seconds, "compile_s": trial.compile_s,
            "why_not_compiled": why or None}  # fmt: skip


def _other_amp(amp: str) -> str:
    return "bf16" if amp == "off" else "off"


def _obstacle(task: ClassifierTask) -> str:
    """Why this training cannot be compiled; empty where it can."""
    if distributed.current().size > 1:
        return "several processes train, and their gradients meet inside the network"
    if looks_at_features(task.terms):
        return "a loss looks at features inside the network"
    return ""


def _too_short(planned_s: float, trial: Trial) -> str:
    cost_s = trial.compile_s or COMPILE_S
    if WORTH * planned_s >= cost_s:
        return ""
    return f"{planned_s:.0f} s of training are too short to earn what compiling costs, about {cost_s:.0f} s"


def _compiling(trial: Trial, way: Way, batches: int, wanted: bool) -> str:
    """Why the network is not compiled after a look at it compiled; empty where it is.

    Raises:
        BackendUnavailable: it was wanted, and torch cannot.
    """
    compiled = dataclasses.replace(way, compiled=True)
    try:
        after_s = trial.of(compiled)
    except RuntimeError as problem:  # no C++ compiler, or what torch cannot translate
        reason = f"torch.compile cannot: {type(problem).__name__}: {_first_line(problem)}"
        if wanted:
            raise BackendUnavailable(f"--compile on: {reason}", hint="Leave --compile out.") from problem
        return reason
    saved_s, cost_s = batches * (trial.of(way) - after_s), trial.compile_s or 0.0
    if wanted or (after_s < CLEARLY * trial.of(way) and saved_s > cost_s):
        return ""
    return f"it would save {saved_s:.0f} s of {batches * trial.of(way):.0f} s, and cost {cost_s:.0f} s"


def _first_line(problem: Exception) -> str:
    return next((line.strip() for line in str(problem).splitlines() if line.strip()), "no reason was given")


def _remembered(trial: Trial) -> Path:
    """Fills a trial with the times that an earlier one of the same kind found; returns where they are kept.

    Raises:
        EdgetlError: the file is damaged.
    """
    setting, module = trial.setting, trial.network.module
    device = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else "cpu"
    moving = sum(one.numel() for _, one in trial.task.trained())
    kind = [VERSION, torch.__version__, tuned.machine().digest(), device, trial.network.model, moving,
            sum(one.numel() for one in module.parameters()), trial.network.preprocess.size_hw,
            setting.choices["batch_size"], distributed.current().size, setting.choices["threads"]]  # fmt: skip
    path = tuned.cache_root() / "ways" / f"{rundir.sha256(json.dumps(kind).encode())[:24]}.json"
    if path.is_file():
        known: Mapping[str, Any] = rundir.read_json(path, EdgetlError)
        trial.seconds, trial.compile_s = dict(known["seconds"]), known["compile_s"]
    return path
