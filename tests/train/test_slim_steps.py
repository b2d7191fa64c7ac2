"""Students that are cut in steps: what each step leaves behind, and that a resume changes no bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest
import tiny_run
import torch

from edgetl import rundir, weights
from edgetl.compress import cost, prune
from edgetl.errors import EdgetlError, TrainingError
from edgetl.events import Event
from edgetl.models import Network
from edgetl.recipe import Distill, build
from edgetl.recipe_fields import DataFields
from edgetl.train import checkpoint, distributed, setting, slimming, softlabels
from edgetl.train.slimming import Cutter
from edgetl.train.student import distill

SMALL = {
    "student": "slim:0.25", "slim_steps": 2, "slim_epochs": 1, "epochs": 2, "importance": "bn-scale", "round_to": 1,
    "batch_size": "16", "workers": 0, "threads": 1, "lr": 3e-3, "control": False, "checkpoint_minutes": 0.0,
}  # fmt: skip


@pytest.fixture
def photos(photo_folder: Callable[..., Path]) -> Path:
    return photo_folder(classes=3, images=12)


@pytest.fixture
def teacher(tmp_path: Path, photos: Path) -> Path:
    folder = tiny_run.write_run(tmp_path / "teacher", photos, DataFields(data=str(photos)), steps=4)
    record = weights.read_record(folder)
    rundir.write_json(folder / rundir.RUN, {**record, "metrics": {"val": {"accuracy": 0.5}}})
    return folder


def options(photos: Path, teacher: Path, out: Path, **values: Any) -> Distill:
    said = {**SMALL, "data": str(photos), "teacher": str(teacher), "out": str(out), **values}
    return build(Distill, said, where="test")


class StopIn:
    """Breaks off at a step of the n-th training that begins."""

    def __init__(self, training: int, step: int) -> None:
        self.training, self.step, self.begun = training, step, 0

    def __call__(self, event: Event) -> None:
        self.begun += event.kind == "begin" and event.values["what"] == "train"
        stepped = event.kind == "advance" and event.values.get("loss") is not None
        if stepped and (self.begun, event.values["done"]) == (self.training, self.step):
            raise ZeroDivisionError


def test_each_step_leaves_its_row_and_its_epochs(photos: Path, teacher: Path, tmp_path: Path) -> None:
    run = distill(options(photos, teacher, tmp_path / "run", control=True))
    record = weights.read_record(run)
    first, last = record["steps"]
    assert (first["step"], last["step"]) == (1, 2)
    assert (first["share"], last["share"]) == (pytest.approx(0.5), 0.25)  # geometrically
    assert 0.475 <= first["kept"] <= 0.5 and 0.2375 <= last["kept"] <= 0.25
    assert [one["reached"] for one in record["steps"]] == [one["kept"] for one in record["steps"]]
    assert record["kept"] == last["kept"] and record["parameters"] == last["parameters"]
    assert 1 > first["macs_kept"] > last["macs_kept"]
    assert all(0 <= one[f"val_accuracy_{when}"] <= 1 for one in record["steps"] for when in ("before", "after"))
    rows = [json.loads(line) for line in (run / rundir.METRICS).read_text().splitlines()]
    assert [(row["step"], row["epoch"]) for row in rows] == [(1, 1), (2, 1), (2, 2)]
    assert last["val_accuracy_after"] == max(row["val_accuracy"] for row in rows if row["step"] == 2)
    assert {one.name for one in (run / "tensorboard").iterdir()} == {"step-1", "step-2"}
    # The control goes the same way on labels alone, from the same first cut on.
    untaught = weights.read_record(run / "control")
    assert untaught["steps"][0]["parameters"] == first["parameters"]
    assert untaught["steps"][0]["val_accuracy_before"] == first["val_accuracy_before"]
    assert untaught["steps"][1]["share"] == last["share"]
    labels_only = [json.loads(line) for line in (run / "control" / rundir.METRICS).read_text().splitlines()]
    assert [row["step"] for row in labels_only] == [1, 2, 2] and "kd" not in labels_only[0]
    assert not list(run.rglob("steps")) and not list(run.rglob("cut.safetensors"))
    assert weights.load(run).network.preprocess.size_hw == (32, 32)


def test_a_resume_in_any_step_changes_no_bit(photos: Path, teacher: Path, tmp_path: Path) -> None:
    values = {"importance": "taylor"}
    whole = distill(options(photos, teacher, tmp_path / "whole", **values))
    for number, stop in enumerate((StopIn(1, 2), StopIn(2, 1))):
        with pytest.raises(ZeroDivisionError):
            distill(options(photos, teacher, tmp_path / "broken", resume=number > 0, **values), listener=stop)
        assert not (tmp_path / "broken").exists()
    resumed = distill(options(photos, teacher, tmp_path / "broken", resume=True, **values))
    assert (resumed / rundir.MODEL).read_bytes() == (whole / rundir.MODEL).read_bytes()
    assert weights.read_record(resumed)["steps"] == weights.read_record(whole)["steps"]
    losses = [
        [json.loads(line)["loss"] for line in (run / rundir.METRICS).read_text().splitlines()]
        for run in (whole, resumed)
    ]
    assert losses[0] == losses[1]


def test_a_resume_with_another_share_is_refused(photos: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        distill(options(photos, teacher, tmp_path / "run"), listener=StopIn(2, 1))
    with pytest.raises(TrainingError, match=r"student was 'slim:0\.25' and is 'slim:0\.3'"):
        distill(options(photos, teacher, tmp_path / "run", student="slim:0.3", resume=True))


def test_the_steps_share_one_store(
    photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    answers = softlabels.SoftLabels.answers

    def counted(store: Any, batch: Any) -> Any:
        ask = store.ask

        def heard(images: Any) -> Any:
            asked.append(len(images))
            return ask(images)

        store.ask = heard
        try:
            return answers(store, batch)
        finally:
            store.ask = ask

    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(softlabels.SoftLabels, "answers", counted)
    run = distill(options(photos, teacher, tmp_path / "run", views=1))
    images = len(json.loads((run / rundir.SPLIT).read_text())["train"])
    assert sum(asked) == images  # three epochs in two steps, and the teacher looked once


def test_a_cut_in_one_go_is_kept_for_a_resume(
    photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts: list[Network] = []
    cut = Cutter.cut

    def counted(cutter: Cutter, network: Network, step: int) -> prune.Slimmed:
        cuts.append(network)
        return cut(cutter, network, step)

    monkeypatch.setattr(Cutter, "cut", counted)
    with pytest.raises(ZeroDivisionError):
        distill(options(photos, teacher, tmp_path / "run", slim_steps=1), listener=StopIn(1, 2))
    distill(options(photos, teacher, tmp_path / "run", slim_steps=1, resume=True))
    assert len(cuts) == 1


def measured_by_width(cut: Network, whole: Network, backend: str, labels: tuple[str, ...]) -> float:
    """A made-up stopwatch: time goes with the width of the second layer."""
    assert (backend, len(labels)) == ("cpu", 3)
    first, second = (one.module.get_submodule("layer1.0.conv1").weight.shape[0] for one in (cut, whole))
    return float(first) / float(second)


def test_slim_by_latency_cuts_to_what_is_measured(photos: Path, teacher: Path, tmp_path: Path) -> None:
    said = options(photos, teacher, tmp_path / "run", student="slim:0.5", slim_steps=1, slim_by="latency",
                   importance="magnitude", epochs=1)  # fmt: skip
    run = distill(said, latency_share=measured_by_width)
    width = weights.load(run).network.module.get_submodule("layer1.0.conv1").weight.shape[0]
    assert width / weights.load(teacher).network.module.get_submodule("layer1.0.conv1").weight.shape[0] == 0.5
    cut = weights.read_record(run)["cut"]
    assert (cut["share"], cut["of"], cut["reached"]) == (0.5, "latency", 0.5)
    with pytest.raises(ValueError, match="slim_by 'latency' needs something that tells it"):
        distill(options(photos, teacher, tmp_path / "other", slim_by="latency"))


def test_slim_by_macs_counts_the_graph(photos: Path, teacher: Path, tmp_path: Path) -> None:
    whole = weights.load(teacher).network
    all_macs = cost.image_macs(whole.module, whole.preprocess.size_hw)

    def graph_of(network: Network, labels: Sequence[str]) -> tuple[bytes, Any]:
        """A product of as many multiplications as torch counts, and some that no cut removes, as attention has."""
        counted = cost.image_macs(network.module, network.preprocess.size_hw) + all_macs // 5
        text = f"(float[N, {counted}] x, float[{counted}, 1] w) => (float y) {{ y = MatMul (x, w) }}"
        model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> agraph ' + text)
        return model.SerializeToString(), None

    said = options(photos, teacher, tmp_path / "run", student="slim:0.5", slim_steps=1, slim_by="macs", epochs=1)
    small = weights.load(distill(said, graph_of=graph_of)).network
    ours = cost.image_macs(small.module, small.preprocess.size_hw)
    # torch alone would have stopped at half of its own count, which is 58 % of the graph's
    assert 0.47 <= (ours + all_macs // 5) / (all_macs + all_macs // 5) <= 0.5
    with pytest.raises(ValueError, match="slim_by 'macs' needs something that tells it"):
        distill(options(photos, teacher, tmp_path / "other", slim_by="macs"))


def test_a_graph_that_keeps_more_than_was_asked_for_is_told(
    photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slimming.Cutter, "graph_share", lambda self, network: 0.55)
    told: list[Event] = []
    said = options(photos, teacher, tmp_path / "run", student="slim:0.5", slim_steps=1, slim_by="macs", epochs=1)
    run = distill(said, listener=told.append, graph_of=lambda network, labels: (b"", None))
    texts = [event.values["text"] for event in told if event.kind == "note"]
    assert "slim: 50.0% of the graph's multiplications were asked for, 55.0% are kept." in texts
    assert weights.read_record(run)["cut"]["reached"] == 0.55


def test_a_first_step_that_cannot_be_cut_leaves_nothing(photos: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgetlError, match="cannot be cut to"):
        distill(options(photos, teacher, tmp_path / "run", student="slim:0.0001"))
    assert not (tmp_path / "run").exists() and not rundir.partial(tmp_path / "run").exists()


def test_another_process_reads_what_the_first_one_has_cut(
    photos: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Second:
        """A process that is told where the first one's work lies."""

        def decided(self, work: Callable[[], str]) -> str:
            return str(tmp_path / "first" / setting.CUT)

    network = weights.load(teacher).network
    cutter = Cutter(options(photos, teacher, tmp_path / "run"), network, None)  # type: ignore[arg-type]
    cut = prune.slim(network, 0.5, round_to=1).network
    state = checkpoint.State()
    state.put("model", cut.module.state_dict())
    (tmp_path / "first").mkdir()
    checkpoint.write(tmp_path / "first" / setting.CUT, state)
    monkeypatch.setattr(distributed, "current", Second)
    read = cutter.kept_cut(network, 1, tmp_path / "second").module.state_dict()
    assert all(torch.equal(tensor, read[name]) for name, tensor in cut.module.state_dict().items())
    assert not (tmp_path / "second").exists()


LOOP = """
import json, sys
from edgetl.recipe import Distill, build
from edgetl.train.student import distill
distill(build(Distill, json.loads(sys.argv[1]), where="test"))
"""


@pytest.mark.slow
def test_kills_at_any_moment_change_no_bit(photos: Path, teacher: Path, tmp_path: Path) -> None:
    values = {**SMALL, "data": str(photos), "teacher": str(teacher), "slim_steps": 4, "slim_epochs": 8, "epochs": 12,
              "control": True}  # fmt: skip
    whole = distill(build(Distill, {**values, "out": str(tmp_path / "whole")}, where="test"))
    dice = random.Random(0)
    for number in range(8):
        said = json.dumps({**values, "out": str(tmp_path / "killed"), "resume": number > 0})
        process = subprocess.Popen([sys.executable, "-c", LOOP, said], stderr=subprocess.DEVNULL)
        time.sleep(dice.uniform(4.0, 9.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = distill(build(Distill, {**values, "out": str(tmp_path / "killed"), "resume": True}, where="test"))
    for inner in ("", "control"):
        assert (killed / inner / rundir.MODEL).read_bytes() == (whole / inner / rundir.MODEL).read_bytes()
        assert weights.read_record(killed / inner)["steps"] == weights.read_record(whole / inner)["steps"]
