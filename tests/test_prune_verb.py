"""`edgetl prune`: the distillation that it is, its exit codes, and how a latency is measured beside another one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from edgetl import latency, rundir, timing, weights
from edgetl.cli import app
from edgetl.errors import BackendUnavailable, RecipeError
from edgetl.models import Network
from edgetl.recipe import Distill, build, fields_of
from edgetl.recipe_fields import DataFields
from edgetl.recipe_prune import Prune
from edgetl.runtime.session import GraphSpec, TensorSpec

SPEC = GraphSpec(
    (TensorSpec("image", "image", "float32", ("N", 3, 8, 8), "NCHW"),),
    (TensorSpec("logits", "logits", "float32", ("N", 3), "NC"),),
)


def options(**values: Any) -> Prune:
    return build(Prune, {"run": "r", "data": "d", "out": "o", **values}, where="test")


def test_it_is_a_distillation_from_the_run_itself() -> None:
    found = options(latency=0.25, backend="openvino", steps=3, step_epochs=4, epochs=7, views=2).as_distill()
    assert (found.teacher, found.student) == ("r", "slim:0.25")
    assert (found.slim_by, found.slim_backend) == ("latency", "openvino")
    assert (found.slim_steps, found.slim_epochs, found.epochs, found.views, found.out) == (3, 4, 7, 2, "o")
    assert options(params=0.4).as_distill() == build(
        Distill, {"data": "d", "out": "o", "teacher": "r", "student": "slim:0.4"}, where="test")
    others = {"teacher", "teacher_options", "teacher_mix", "teacher_weight", "student", "pretrained", "weights",
              "inherit", "slim_by", "slim_backend", "slim_steps", "slim_epochs"}
    assert set(fields_of(Distill)) - set(fields_of(Prune)) == others
    for name in set(fields_of(Distill)) & set(fields_of(Prune)):
        assert (fields_of(Prune)[name].default, fields_of(Prune)[name].metadata) == (
            fields_of(Distill)[name].default, fields_of(Distill)[name].metadata)


@pytest.mark.parametrize(("values", "found"), [({}, "none"), ({"params": 0.5, "macs": 0.5}, "--params and --macs")])
def test_exactly_one_share_is_given(values: dict[str, float], found: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = f"expected one of --params, --macs and --latency, or --sparsity alone, found {found}"
    with pytest.raises(RecipeError, match=expected):
        options(**values).as_distill()
    words = [f"--{name}={value}" for name, value in values.items()]
    assert app.main(["prune", "r", "--data", "d", "--out", "o", *words]) == 2
    said = capsys.readouterr().err
    assert said == (f"error: Expected one of --params, --macs and --latency, or --sparsity alone, found {found}.\n"
                    "hint: Give one of them, e.g. --params 0.4.\n")


@pytest.mark.parametrize("share", ["0", "1", "1.5"])
def test_a_share_is_between_nothing_and_everything(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["prune", "r", "--data", "d", "--out", "o", "--params", share]) == 2
    assert "--params: found" in capsys.readouterr().err


def test_what_is_no_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prune", str(tmp_path), "--data", "d", "--out", str(tmp_path / "o"), "--params", "0.5"]
    assert app.main(words) == 1
    assert "is not a RUN folder" in capsys.readouterr().err


def test_a_run_is_pruned_from_the_command_line(
    photo_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = photo_folder(classes=3, images=8)
    run = tiny_run.write_run(tmp_path / "run", photos, DataFields(data=str(photos)), steps=2)
    rundir.write_json(run / rundir.RUN, {**weights.read_record(run), "metrics": {"val": {"accuracy": 0.5}}})
    words = ["prune", str(run), "--data", str(photos), "--out", str(tmp_path / "pruned"), "--params", "0.5"]
    quick = ["--round-to", "2", "--epochs", "1", "--batch-size", "8", "--workers", "0", "--threads", "1",
             "--importance", "bn-scale", "--no-control", "--json"]
    assert app.main([*words, *quick]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["run"] == str(tmp_path / "pruned") and 0.475 <= told["kept"] <= 0.5
    assert weights.load(tmp_path / "pruned").labels == weights.load(run).labels
    assert app.main([*words, *quick]) == 1  # --out exists
    again = ["prune", str(tmp_path / "pruned"), "--data", str(photos), "--out", str(tmp_path / "more")]
    assert app.main([*again, "--params", "0.6", *quick]) == 0  # what was pruned can be pruned again
    assert json.loads(capsys.readouterr().out)["kept"] <= 0.6


class Slept:
    """A session that takes as many units of a made-up clock as its graph says."""

    clock = 0.0

    def __init__(self, graph: bytes) -> None:
        self.cost, self.closed, self.calls = float(graph), False, 0

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        assert feeds["image"].shape == (1, 3, 8, 8) and feeds["image"].dtype.name == "float32"
        self.calls += 1
        Slept.clock += self.cost
        return {}

    def close(self) -> None:
        self.closed = True


def test_the_share_is_of_calls_that_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Slept] = []

    def open_session(backend: str, graph: bytes, spec: GraphSpec, *, threads: int) -> Slept:
        assert (backend, threads) == ("cpu", 1)
        opened.append(Slept(graph))
        return opened[-1]

    monkeypatch.setattr(latency, "open_session", open_session)
    monkeypatch.setattr(latency, "ROUNDS", 3)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: Slept.clock)
    assert latency.share((b"3", SPEC), (b"4", SPEC), "cpu") == pytest.approx(0.75)
    assert all(one.closed and one.calls == latency.ROUNDS * latency.BLOCK for one in opened)


def test_the_whole_network_s_graph_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Network] = []

    def graph_of(network: Network, labels: Sequence[str]) -> tuple[bytes, GraphSpec]:
        made.append(network)
        return b"", SPEC

    monkeypatch.setattr(latency, "share", lambda ours, theirs, backend: 0.5)
    whole, *cuts = (Network("test/none", object(), "fc", None) for _ in range(3))  # type: ignore[arg-type]
    shares = latency.Shares(graph_of)
    assert [shares(cut, whole, "cpu", ("a",)) for cut in cuts] == [0.5, 0.5]
    assert made == [whole, *cuts]


def test_a_backend_that_cannot_run_here_says_so() -> None:
    from edgetl import plugins

    absent = next((one for one in ("cuda", "tensorrt") if not plugins.load("backends", one).probe().usable), None)
    if absent is None:
        pytest.skip("every backend runs here")
    with pytest.raises(BackendUnavailable, match=f"The backend '{absent}' cannot run here"):
        latency.share((b"", SPEC), (b"", SPEC), absent)


@pytest.mark.slow
def test_half_the_latency_is_measured_for_real(photo_folder: Callable[..., Path], tmp_path: Path) -> None:
    photos = photo_folder(classes=3, images=8)
    run = tiny_run.write_run(tmp_path / "run", photos, DataFields(data=str(photos)), steps=2)
    rundir.write_json(run / rundir.RUN, {**weights.read_record(run), "metrics": {"val": {"accuracy": 0.5}}})
    words = ["prune", str(run), "--data", str(photos), "--out", str(tmp_path / "quick"), "--latency", "0.6"]
    quick = ["--round-to", "1", "--epochs", "1", "--batch-size", "8", "--workers", "0", "--threads", "1",
             "--importance", "magnitude", "--no-control"]
    assert app.main([*words, *quick]) == 0
    assert weights.read_record(tmp_path / "quick")["kept"] < 0.9  # how much smaller it is depends on the machine
