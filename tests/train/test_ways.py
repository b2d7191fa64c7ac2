"""Which way a training computes: trials on a made-up clock, records, resumes, and a network that is really compiled."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_photos
from stop_at import StopAt

from edgetl import models, rundir, weights
from edgetl.errors import BackendUnavailable, EdgetlError
from edgetl.events import ignore
from edgetl.losses import parse
from edgetl.recipe import Finetune, build
from edgetl.train import ways
from edgetl.train.task import ClassifierTask
from edgetl.train.teacher import finetune
from edgetl.train.ways import Trial, Way

Times = dict[str, float]
PLAIN, CONTIGUOUS = "channels-last fp32", "contiguous fp32"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ways"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Sets how long each way takes; gives the list of those that are timed. The first batch takes ten times as long."""

    def set_to(**others: float) -> list[str]:
        timed: list[str] = []

        def made_up(trial: Trial, way: Way, batches: int = 3) -> list[float]:
            timed.append(way.label)
            seconds = {"compiled": 90.0}.get(way.label.split()[-1], 10.0)
            return [seconds, *[others.get(way.label.replace(" ", "_").replace("-", "_"), 1.0)] * 2]

        monkeypatch.setattr(Trial, "_timed", made_up)
        return timed

    return set_to


def network_of() -> models.Network:
    return models.create("timm/test_resnet", classes=3, pretrained=False, image_size=32)


def chosen(
    batches: int = 600, compile: str = "auto", amp: str = "auto", now: str = "off", task: ClassifierTask | None = None
) -> tuple[Way, dict[str, Any], list[str]]:
    """The way that is settled, its record, and what was said."""
    network = network_of()
    said: list[str] = []
    options = types.SimpleNamespace(epochs=batches // 2, accumulate=2, compile=compile, amp=amp)
    setting: Any = types.SimpleNamespace(
        options=options, choices={"amp": now, "batch_size": 4, "threads": 1}, device=torch.device("cpu"),
        note=said.append)  # fmt: skip
    loader: Any = types.SimpleNamespace(steps=1)
    way = ways.settled(setting, task or ClassifierTask(network, parse(["labels"])), network, loader, "finetune")
    again = ways.settled(setting, None, network, loader, "finetune")  # type: ignore[arg-type]
    assert way == again
    return way, setting.choices["way"]["finetune"], said


def test_a_short_training_is_not_tried(clock: Callable[..., list[str]], cache: Path) -> None:
    timed = clock(contiguous_fp32=0.1)
    way, record, said = chosen(ways.TRIED_FROM - 2)
    assert (way, timed, said, cache.exists()) == (Way(), [], [], False)
    assert record == {"chosen": {"channels_last": True, "amp": "off", "compiled": False}, "seconds_a_batch": {},
                      "compile_s": None, "why_not_compiled": "498 batches are too few for a trial"}  # fmt: skip


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({}, Way()),
        ({"contiguous_fp32": 0.95}, Way()),
        ({"contiguous_fp32": 0.8}, Way(channels_last=False)),
        ({"channels_last_bf16": 0.95}, Way()),
        ({"channels_last_bf16": 0.5}, Way(amp="bf16")),
        ({"contiguous_fp32": 0.8, "contiguous_bf16": 0.5}, Way(channels_last=False, amp="bf16")),
        ({"contiguous_fp32": 0.8, "channels_last_bf16": 0.1}, Way(channels_last=False)),
    ],
)
def test_another_way_is_taken_where_it_is_clearly_quicker(
    clock: Callable[..., list[str]], times: Times, expected: Way
) -> None:
    clock(**times)
    way, record, (note,) = chosen(600)
    assert way == expected and note.endswith(f"trained is {expected.label}.")
    assert record["seconds_a_batch"][PLAIN] == 1.0 and len(record["seconds_a_batch"]) == 3
    planned_s = 600 * record["seconds_a_batch"][expected.label]
    told = f"{planned_s:.0f} s of training are too short to earn what compiling costs, about 120 s"
    assert record["why_not_compiled"] == told


def test_what_was_asked_for_is_not_tried(clock: Callable[..., list[str]]) -> None:
    timed = clock(channels_last_bf16=0.1)
    way, _, _ = chosen(600, amp="off", compile="off")
    assert way == Way() and timed == [PLAIN, CONTIGUOUS]


def test_the_precision_of_a_gpu_is_taken_back_where_it_does_not_pay(clock: Callable[..., list[str]]) -> None:
    clock(channels_last_bf16=1.0, channels_last_fp32=0.7)
    assert chosen(600, now="bf16")[0] == Way(amp="off")
    assert Way(amp="bf16").precision(torch.device("cpu")).dtype == torch.bfloat16


COMPILED = "channels_last_fp32_compiled"


@pytest.mark.parametrize(
    ("batches", "seconds", "why"),
    [
        (2398, 0.1, "2398 s of training are too short"),
        (2400, 0.8, None),
        (2400, 0.95, "it would save 120 s of 2400 s, and cost 90 s"),
        (2400, 1.5, "it would save -1200 s"),
    ],
)
def test_compiling_counts_against_the_whole_training(
    clock: Callable[..., list[str]], batches: int, seconds: float, why: str | None
) -> None:
    timed = clock(**{COMPILED: seconds})
    way, record, _ = chosen(batches)
    assert way == Way(compiled=why is None)
    assert (why or "None") in str(record["why_not_compiled"])
    assert ("channels-last fp32 compiled" in timed) == (batches == 2400) == (record["compile_s"] == 90.0)


def test_a_known_cost_takes_the_place_of_the_guess(clock: Callable[..., list[str]]) -> None:
    timed = clock(**{COMPILED: 0.5})
    assert chosen(2400)[0].compiled
    count = len(timed)
    assert chosen(1800)[0].compiled and len(timed) == count  # 5 % of 1800 s are the 90 s that it took
    assert not chosen(1798)[0].compiled


def test_a_second_training_decides_by_the_times_of_the_first(clock: Callable[..., list[str]]) -> None:
    clock(contiguous_fp32=0.5)
    first = chosen(600)
    timed = clock(contiguous_fp32=2.0)
    assert chosen(600) == first and timed == []


def test_what_torch_cannot_compile_is_a_reason_and_an_error_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*given: Any, **more: Any) -> None:
        raise RuntimeError("\nNo working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')\nmore")

    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setattr(ways, "COMPILE_S", 0.0)
    way, record, _ = chosen(600)
    assert not way.compiled
    assert record["why_not_compiled"].startswith("torch.compile cannot: RuntimeError: No working C++ compiler found")
    with pytest.raises(BackendUnavailable, match=r"--compile on: torch\.compile cannot: RuntimeError: No working C"):
        chosen(4, compile="on")


def test_what_looks_inside_the_network_is_not_compiled(clock: Callable[..., list[str]]) -> None:
    timed = clock()
    networks = network_of(), network_of()
    task = ClassifierTask(networks[0], parse(["labels,fitnet"]), networks[1])
    why = chosen(100_000, task=task)[1]["why_not_compiled"]
    assert why == "a loss looks at features inside the network" and not any("compiled" in one for one in timed)
    with pytest.raises(EdgetlError, match="--compile on: a loss looks at features"):
        chosen(600, compile="on", task=task)


def test_a_trial_leaves_the_network_and_the_generators_as_they_were() -> None:
    network = network_of()
    task = ClassifierTask(network, parse(["labels"]))
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    setting: Any = types.SimpleNamespace(choices={"batch_size": 4}, device=torch.device("cpu"))
    random = torch.get_rng_state()
    trial = Trial(setting, task, network)
    for way in (Way(), Way(channels_last=False), Way(amp="bf16")):
        assert trial.of(way) > 0
    assert all(torch.equal(value, before[name]) for name, value in network.module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(one.grad is None for one in network.module.parameters())


@pytest.mark.parametrize("contiguous", [False, True])
def test_the_network_sees_the_layout_of_the_way(contiguous: bool) -> None:
    network, seen = network_of(), []
    task = ClassifierTask(network, parse(["labels"]))
    first = next(one for one in network.module.modules() if isinstance(one, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous()))
    images = torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with Way(channels_last=not contiguous).over(task, network):
        task.input(images)
    task.input(images)
    assert seen == [contiguous, False]


# ------------------------------------------------------------------------------------------------------ in a training


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "photos", classes=2, images=8)


def run_of(photos: Path, out: Path, listener: Any = ignore, **values: object) -> dict[str, Any]:
    given = {"data": str(photos), "out": str(out), "teacher": "timm/test_resnet", "pretrained": False, "epochs": 2,
             "image_size": 32, "batch_size": "4", "workers": 0, "threads": 1, **values}  # fmt: skip
    return weights.read_record(finetune(build(Finetune, given, where="test"), listener=listener))


def test_a_resumed_training_computes_as_before_bit_for_bit(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Callable[..., list[str]]
) -> None:
    monkeypatch.setattr(ways, "TRIED_FROM", 1)
    clock(contiguous_fp32=0.5, contiguous_bf16=0.2)
    whole = run_of(photos, tmp_path / "whole")
    assert whole["choices"]["way"]["finetune"]["chosen"] == {"channels_last": False, "amp": "bf16", "compiled": False}
    with pytest.raises(ZeroDivisionError):
        run_of(photos, tmp_path / "broken", StopAt(4, ZeroDivisionError()), checkpoint_minutes=0)
    clock(contiguous_fp32=9.0)  # another trial would choose otherwise
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "elsewhere"))
    again = run_of(photos, tmp_path / "broken", resume=True, checkpoint_minutes=0)
    assert again["choices"]["way"] == whole["choices"]["way"]
    first, second = ((tmp_path / name / rundir.MODEL).read_bytes() for name in ("whole", "broken"))
    assert first == second


def test_compile_on_trains_the_compiled_network_and_evaluates_the_plain_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []

    class Compiled(torch.nn.Module):
        def __init__(self, plain: torch.nn.Module, *, dynamic: bool) -> None:
            super().__init__()
            assert dynamic is False
            self.plain = plain

        def forward(self, images: torch.Tensor) -> Any:
            calls.append(self.training)
            return self.plain(images)

    monkeypatch.setattr(torch, "compile", Compiled)
    record = run_of(photos, tmp_path / "run", compile="on")
    assert record["choices"]["way"]["finetune"]["chosen"]["compiled"] and calls and all(calls)
    without = run_of(photos, tmp_path / "without", compile="off")
    assert record["metrics"] == without["metrics"]
    names = [(tmp_path / one / rundir.MODEL).read_bytes() for one in ("run", "without")]
    assert names[0] == names[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here")
def test_a_trial_on_a_gpu_times_every_way(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "TRIED_FROM", 1)
    monkeypatch.setattr(ways, "WORTH", 1e9)
    told = run_of(photos, tmp_path / "run", device="cuda")["choices"]["way"]["finetune"]
    labels = set(told["seconds_a_batch"])
    assert {"channels-last bf16", "contiguous bf16"} <= labels and len(labels) == 4
    assert any("fp32" in label for label in labels) and any("compiled" in label for label in labels)
    assert told["compile_s"] > 0 and told["why_not_compiled"].startswith("it would save")


@pytest.mark.slow
def test_a_network_is_really_compiled(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    record = run_of(photos, tmp_path / "whole", compile="on")
    told = record["choices"]["way"]["finetune"]
    assert told["chosen"]["compiled"] and told["compile_s"] > 0
    with pytest.raises(ZeroDivisionError):
        run_of(photos, tmp_path / "broken", StopAt(4, ZeroDivisionError()), checkpoint_minutes=0, compile="on")
    run_of(photos, tmp_path / "broken", resume=True, checkpoint_minutes=0, compile="on")
    whole, broken = ((tmp_path / name / rundir.MODEL).read_bytes() for name in ("whole", "broken"))
    assert whole == broken
