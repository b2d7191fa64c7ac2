"""Gates on tiny bundles: the verdict and its one line, what is refused, what is written, and that none is left.

Latencies and the clock are made up, in workers that are none; where a process must be real, it is.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import signal
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from bench.test_bench_runner import LABELS, fakes_on_the_path, make_photos, make_tiny  # noqa: F401

import edgetl
from edgetl import recipe_gate
from edgetl.bench import gate, gate_cases, gate_verdict, gate_words, pairs, sequential, trial
from edgetl.bench.gate_verdict import Verdict
from edgetl.bench.process import WorkerFailed
from edgetl.bench.sequential import Outcome
from edgetl.bench.stats import Interval
from edgetl.errors import EdgetlError, GateFailed, GateUndecided, OutputError, RecipeError, UnknownName
from edgetl.recipe_gate import RegressionGate
from edgetl.runtime import choice
from tests.tiny_bundle import edit_manifest, make_bundle, make_graph

FINE, PACED = "benchfakes.fine", "benchfakes.paced"


class Workers:
    """Stands in for all processes: every call takes as long as its graph is told to, plus a little noise.

    A start takes 0.5 s of a clock that nobody waits for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, noise: float = 0.01, start_s: float = 0.5) -> None:
        self.passed_s, self.start_s, self.noise = 100.0, start_s, noise
        self.call_s: dict[str, float] = {}
        self.open, self.begun, self.dies_at = 0, 0, -1
        self.draw = np.random.default_rng(0)
        monkeypatch.setattr(type(trial.HERE), "launch", lambda host, timeout_s: Worker(self))
        for module in (pairs, gate.timing):
            monkeypatch.setattr(module, "now_s", lambda: self.passed_s)


class Worker:
    def __init__(self, all_of_them: Workers) -> None:
        self.all, self.call_s, self.ended = all_of_them, 0.0, False
        self.all.open += 1
        self.all.begun += 1

    def ask(self, request, *, extra_s=0.0, progress=None):
        if self.all.begun == self.all.dies_at and request["do"] == "block":
            raise WorkerFailed("the worker was ended by SIGKILL")
        if request["do"] == "open":
            kind = self.all.draw.normal(0, self.all.noise)  # of this very process, for its whole life
            self.call_s = self.all.call_s.get(request["graph"], 1e-3) * np.exp(kind)
            self.all.passed_s += self.all.start_s
            return {"import_s": 0.1, "load_s": 0.1, "first_s": 0.1}
        self.all.passed_s += request["n"] * self.call_s
        return {"seconds": [self.call_s] * (request["n"] - request["drop"])}

    def close(self, *, at_once=False):
        self.all.open -= not self.ended
        self.ended = True


@pytest.fixture
def workers(monkeypatch):
    return Workers(monkeypatch)


@pytest.fixture
def two(tmp_path):
    """BASE and NEW."""
    return make_tiny(tmp_path / "base", FINE), make_tiny(tmp_path / "new", FINE)


def options(two, **changes) -> RegressionGate:
    return RegressionGate(**{"base": str(two[0]), "new": str(two[1]), "backend": FINE, "timeout_s": 600.0, **changes})


def slow(workers: Workers, bundle: Path, times: float) -> None:
    workers.call_s[str(bundle / "fp32.onnx")] = 1e-3 * times


# ------------------------------------------------------------------------------------------------------- the verdict


def test_equals_pass_in_one_line(two, workers):
    found = gate.gate(options(two))
    assert found.verdict == "pass"
    assert found.line.startswith("pass: NEW is ") and "limit 5 %" in found.line and "\n" not in found.line
    latency = found.latency
    assert f"{len(latency.log_ratios)} pairs in {latency.elapsed_s:.0f} s; noise floor {100 * latency.noise:.1f} %" \
        in found.line
    assert workers.open == 0 and workers.begun == 2 + 2 * (4 + len(latency.log_ratios))
    assert latency.elapsed_s < 60
    assert len(found.floor_pairs) == 4 and len(found.pairs) == len(latency.log_ratios)
    assert [pairs.Pair.from_json(one).log_ratio for one in found.pairs] == pytest.approx(latency.log_ratios, abs=1e-5)
    found.insist()


def test_a_slower_one_fails_and_a_faster_one_passes(two, workers):
    slow(workers, two[1], 1.10)
    found = gate.gate(options(two))
    assert found.verdict == "fail" and "% slower than BASE (+" in found.line
    assert found.latency.ratio.low > 1.025
    with pytest.raises(GateFailed, match=r"The gate said no: NEW is .* slower") as caught:
        found.insist()
    assert caught.value.exit_code == 3
    slow(workers, two[1], 0.5)
    found = gate.gate(options(two))
    assert found.verdict == "pass" and "% faster than BASE" in found.line
    slow(workers, two[1], 1.10)
    assert gate.gate(options(two, max_regression="25%")).verdict == "pass"


def test_noise_beyond_the_margin_is_no_verdict(two, monkeypatch):
    workers = Workers(monkeypatch, noise=1.2)
    found = gate.gate(options(two))
    assert found.verdict == "inconclusive" and found.latency.hopeless == "noise"
    assert found.line.startswith("inconclusive: two processes of BASE differ by ")
    assert found.latency.elapsed_s < 20 and workers.open == 0
    with pytest.raises(GateUndecided, match="could not decide") as caught:
        found.insist()
    assert caught.value.exit_code == 4
    assert caught.value.hint == "Allow a wider margin, or measure on a quieter machine."


def test_a_budget_that_is_too_short_is_said_at_once(two, monkeypatch):
    Workers(monkeypatch, start_s=6.0)
    found = gate.gate(options(two, budget="1m"))
    assert found.latency.hopeless == "time" and not found.latency.log_ratios
    assert "too few fit into 60 s: at least 7 are needed" in found.line
    with pytest.raises(GateUndecided) as caught:
        found.insist()
    assert caught.value.hint == "Give a budget of about 180 s."


@pytest.mark.parametrize("budget", ["45s", "1.5m"])
def test_the_budget_is_kept(two, monkeypatch, budget):
    workers = Workers(monkeypatch, noise=0.1)
    slow(workers, two[1], 1.0375)
    found = gate.gate(options(two, budget=budget, max_regression="5%"))
    assert found.verdict == "inconclusive" and found.latency.ratio is not None
    limit = recipe_gate.seconds(budget)
    assert limit - 3 < found.latency.elapsed_s <= limit + 0.5  # a pair takes about two seconds


def test_a_death_is_no_verdict(two, workers):
    workers.dies_at = 14
    with pytest.raises(EdgetlError, match="cannot be measured, so nothing can be compared") as caught:
        gate.gate(options(two))
    assert caught.value.exit_code == 1 and "SIGKILL" in caught.value.message and workers.open == 0


def test_interrupted_nobody_is_left(two, workers, monkeypatch):
    def pressed(self, request, **_):
        if self.all.begun == 9:
            raise KeyboardInterrupt
        return ask(self, request)

    ask = Worker.ask
    monkeypatch.setattr(Worker, "ask", pressed)
    with pytest.raises(KeyboardInterrupt):
        gate.gate(options(two))
    assert workers.open == 0


def test_it_tells_what_it_does(two, workers):
    heard = []
    slow(workers, two[1], 1.0375)
    gate.gate(options(two), listener=heard.append)
    assert [one.kind for one in heard if one.kind in ("begin", "end")] == ["begin", "end"]
    notes = [one.values["text"] for one in heard if one.kind == "note"]
    assert all("not clear after" in text for text in notes)
    assert sum(one.kind == "advance" for one in heard) * 2 + 2 == workers.begun


# ----------------------------------------------------------------------------------------------- cheaper conditions


def test_size_is_asked_first_and_a_no_ends_it(tmp_path, two, workers):
    grown = edit_size(make_tiny(tmp_path / "grown", FINE), 4000)
    base, new = ((one / "fp32.onnx").stat().st_size for one in (two[0], grown))
    found = gate.gate(options((two[0], grown), max_size="+10%"))
    assert (found.verdict, found.latency, workers.begun) == ("fail", None, 0)
    assert found.line == f"fail: NEW's graph has {new / 1e3:.1f} kB (BASE's {base / 1e3:.1f} kB), limit +10%"
    assert gate_verdict.from_json(json.loads(json.dumps(gate_verdict.to_json(found))), where="x") == found
    found = gate.gate(options((two[0], grown), max_size=f"{new}B"))
    assert [(one.name, one.verdict) for one in found.conditions] == [("size", "pass"), ("latency", "pass")]
    assert found.line.startswith("pass: NEW is ") and found.line.endswith(f"limit {new}B")


def edit_size(bundle: Path, more: int) -> Path:
    """A graph with a long comment."""
    import hashlib

    import onnx

    model = onnx.load(bundle / "fp32.onnx")
    model.doc_string = "x" * more
    data = model.SerializeToString()
    (bundle / "fp32.onnx").write_bytes(data)
    edit_manifest(bundle, "variants", 0, "sha256", value=hashlib.sha256(data).hexdigest())
    edit_manifest(bundle, "variants", 0, "size_bytes", value=len(data))
    return bundle


@pytest.mark.parametrize(("text", "expected"), [("5MB", 5e6), (" 1.5 KiB ", 1536), ("+10%", 1100), ("+0 %", 1000),
                                                ("800kB", 8e5), ("7B", 7), ("2GiB", 2**31)])
def test_size_limits(text, expected):
    assert recipe_gate.size_limit(text, 1000) == pytest.approx(expected)


def canned(monkeypatch):
    """Latencies of equals, so that only the answers are measured."""
    ratio = sequential.Look(7, 0.5, Interval(1.0, None, 1.02, 0.94), "pass")
    outcome = Outcome("pass", (0.01, -0.01), (0.0,) * 7, (ratio,), 20.0, 2.0)
    monkeypatch.setattr(gate.sequential, "conduct", lambda *_, **__: outcome)
    monkeypatch.setattr(gate.pairs, "probe", lambda *_, **__: pairs.Pattern(3, 1, 2))


@pytest.mark.parametrize(("limits", "verdict", "told"), [
    ({"min_accuracy": 66.7}, "fail", "NEW is right on 66.7 % of 12 images (39.1 to 86.2), at least 66.7 % wanted"),
    ({"min_accuracy": 60.0, "max_drop": 10.0}, "fail",
     "NEW is 33.33 points below BASE (-60.94 to -1.00; 4 answers lost, 0 gained, McNemar p = 0.12), 10 points allowed"),
    ({"max_drop": 34.0}, "pass", "34 points allowed"),
])
def test_answers_are_held_against_their_limits(tmp_path, monkeypatch, limits, verdict, told):
    """The paced fake errs on every green image in INT8, 4 of the 12 of val."""
    canned(monkeypatch)
    photos = make_photos(tmp_path / "photos")
    base, new = make_tiny(tmp_path / "base", PACED), make_tiny(tmp_path / "new", PACED)
    edit_manifest(new, "variants", 0, "precision", value="int8")
    found = gate.gate(options((base, new), backend=PACED, data=str(photos), **limits))
    assert found.verdict == verdict
    assert told in found.line
    assert (found.latency is None) == (verdict == "fail")
    assert any("BASE runs as fp32 (fp32), NEW as fp32 (int8)" in text for text in found.notes)


def test_limits_of_answers_need_images(two):
    for limits in ({"min_accuracy": 50.0}, {"max_drop": 1.0}):
        with pytest.raises(EdgetlError, match="needs images to measure accuracy on"):
            gate.gate(options(two, **limits))


def test_what_carries_no_preprocessing_has_no_accuracy(tmp_path, monkeypatch):
    canned(monkeypatch)
    file = tmp_path / "graph.onnx"
    file.write_bytes(make_graph())
    with pytest.raises(EdgetlError, match=r"accuracy of .* cannot be measured: an ONNX file carries no preprocessing"):
        gate.gate(options((file, file), data=str(make_photos(tmp_path / "photos"))))


# --------------------------------------------------------------------------------------------------------- the sides


def test_both_sides_are_what_the_runtime_would_choose(tmp_path, monkeypatch):
    base = make_bundle(tmp_path / "base", labels=LABELS, second={"precision": "int8", "backends": (FINE,)})
    new = make_bundle(tmp_path / "new", labels=LABELS)
    edit_manifest(base, "variants", 0, "requires", value=["amx_int8"])
    monkeypatch.setattr(choice.processor, "flags", lambda cpuinfo=None: frozenset())
    edit_manifest(new, "variants", 0, "backends", value=["openvino", FINE])
    sides = gate_cases.find(options((base, new)))
    assert [one.subject.variant for one in sides.both] == ["other", "fp32"]
    assert {one.subject.backend for one in sides.both} == {FINE}
    assert [one.name for one in sides.both] == [f"BASE (base other {FINE})", f"NEW (new fp32 {FINE})"]
    alike = gate_cases.find(options((base, base), threads=2, batch=3, interval="10ms"))
    assert {(one.threads, one.batch, one.interval) for one in alike.both} == {(2, 3, "10ms")}
    with pytest.raises(UnknownName, match="variant"):
        gate_cases.find(options((base, new), variant="other"))
    with pytest.raises(UnknownName, match="backend"):
        gate_cases.find(options((base, new), backend="cpuu"))


def test_graphs_and_bundles_run_on_the_same_backend(tmp_path):
    bundle = make_bundle(tmp_path / "bundle", labels=LABELS)
    file = tmp_path / "graph.onnx"
    file.write_bytes(make_graph())
    for base, new in itertools.product((bundle, file), repeat=2):
        sides = gate_cases.find(options((base, new), backend="auto"))
        assert [one.subject.backend for one in sides.both] == ["cpu", "cpu"] and not sides.from_pixels
    with pytest.raises(EdgetlError, match="has nothing for the backends torch"):
        gate_cases.find(options((file, file), backend="torch"))
    with pytest.raises(EdgetlError, match="does not exist"):
        gate_cases.find(options((tmp_path / "gone", file), backend="auto"))


def test_a_graph_that_embeds_the_normalisation_is_held_against_the_whole_work(tmp_path, monkeypatch):
    plain, embeds = make_tiny(tmp_path / "plain", FINE), make_tiny(tmp_path / "embeds", FINE)
    edit_manifest(embeds, "variants", 0, "embeds_preprocess", value=True)
    edit_manifest(embeds, "variants", 0, "inputs", 0, "dtype", value="uint8")
    edit_manifest(embeds, "variants", 0, "inputs", 0, "shape", value=["N", 16, 16, 3])
    edit_manifest(embeds, "variants", 0, "inputs", 0, "layout", value="NHWC")
    found = [gate_cases.find(options(two)).from_pixels for two in itertools.product((plain, embeds), repeat=2)]
    assert found == [False, True, True, False]
    file = tmp_path / "graph.onnx"
    file.write_bytes(make_graph())
    with pytest.raises(EdgetlError, match="their calls are not the same work"):
        gate_cases.find(options((embeds, file)))


# ------------------------------------------------------------------------------------------------- what is written


def test_the_verdict_is_written_with_all_latencies(tmp_path, two, workers):
    out = tmp_path / "verdict"
    found = gate.gate(options(two, out=str(out)))
    assert {one.name for one in out.iterdir()} == {"gate.json", "gate.md", "junit.xml"}
    values = json.loads((out / "gate.json").read_text())
    assert (values["schema"], values["verdict"], values["line"]) == (1, "pass", found.line)
    assert values["latency"]["ratio"]["value"] == found.latency.ratio.value
    assert values["latency"]["noise"] == found.latency.noise and values["environment"]["cpu"]
    assert np.shape(values["pairs"][0]["seconds"]) == (2, found.pattern.blocks, found.pattern.kept)
    assert gate_verdict.from_json(values, where="here") == dataclasses.replace(found, options=values["options"],
                                                                              environment=values["environment"])
    (test,) = ElementTree.fromstring((out / "junit.xml").read_text()).iter("testcase")
    assert test.get("name") == "latency" and test.find("failure") is None and test.find("error") is None
    assert "# Gate: pass" in (out / "gate.md").read_text()
    with pytest.raises(OutputError, match="exists already"):
        gate.gate(options(two, out=str(out)))
    slow(workers, two[1], 1.3)
    gate.gate(options(two, out=str(out), overwrite=True))
    assert "<failure" in (out / "junit.xml").read_text()


def test_the_page_names_every_field():
    page = (Path(__file__).parents[2] / "docs/gate.md").read_text()
    for kind, prefix in ((Verdict, ""), (gate_verdict.Condition, ""), (gate_verdict.Side, ""), (Outcome, "latency."),
                         (sequential.Look, ""), (pairs.Pattern, "")):
        for one in dataclasses.fields(kind):
            assert any(f"`{prefix}{one.name}{end}`" in page for end in ("", "[]")), (kind, one.name)


def test_undecided_is_never_green_in_ci(two, monkeypatch):
    Workers(monkeypatch, noise=1.2)
    assert 'errors="1"' in gate_verdict.suite(gate.gate(options(two)))


@pytest.mark.parametrize(("change", "told"), [
    (lambda values: values.update(schema=2), "has schema 2; this version of edgetl reads up to 1"),
    (lambda values: values.update(schema=0), "which this version of edgetl no longer reads"),
    (lambda values: values.update(schema="1"), "is not the verdict of a gate"),
    (lambda values: values.pop("base"), "'verdict.base' is missing"),
    (lambda values: values["latency"].update(floor="x"), "'verdict.latency.floor' is 'x', expected a list"),
])
def test_a_verdict_that_was_changed_is_refused(two, workers, change, told):
    values = json.loads(json.dumps(gate_verdict.to_json(gate.gate(options(two)))))
    change(values)
    with pytest.raises(EdgetlError, match=told):
        gate_verdict.from_json(values, where="gate.json")


# ------------------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(("ratio", "told"), [
    (Interval(0.996, 0.989, 1.003, 0.94), "NEW is 0.4 % faster than BASE (-1.1 to +0.3 %)"),
    (Interval(1.098, 1.081, 1.12, 0.94), "NEW is 9.8 % slower than BASE (+8.1 to +12.0 %)"),
    (Interval(1.0001, None, 1.003, 0.94), "NEW is as fast as BASE (at most 0.3 % slower)"),
    (Interval(0.9, None, 0.95, 0.94), "NEW is 10.0 % faster than BASE (at least 5.0 % faster)"),
    (Interval(1.2, 1.1, None, 0.94), "NEW is 20.0 % slower than BASE (at least 10.0 % slower)"),
    (Interval(1.2, None, None, 0.94), "NEW is 20.0 % slower than BASE"),
])
def test_the_change_in_words(ratio, told):
    assert gate_words.change(ratio) == told


def test_what_helps_an_undecided_gate():
    wide = sequential.Look(20, 1.0, Interval(1.03, 0.99, 1.06, 0.94), None)
    found = Outcome("inconclusive", (0.01, 0.02), (0.03,) * 20, (wide,), 60.0, 2.0)
    assert gate_words.what_helps(found, 0.05, 60.0) == (
        "Give a budget of about 510 s, allow a wider margin, or measure on a quieter machine.")
    assert gate_words.what_helps(dataclasses.replace(found, looks=(), hopeless="noise", floor=(0.9, 0.9)), 0.05,
                                 60.0) == "Allow a wider margin, or measure on a quieter machine."
    assert gate_words.amount(1_400_000) == "1.40 MB"
    assert gate_words.duration(0.34) == "0.3 s" and gate_words.duration(900) == "15 min"
    with pytest.raises(ValueError, match="without latencies"):
        gate_words.what_helps(None, 0.05, 60.0)


def test_a_gate_is_a_function_too(two, workers, monkeypatch):
    found = edgetl.gate(base=two[0], new=two[1], backend=FINE, budget="2m")
    assert isinstance(found, Verdict) and found.verdict == "pass"
    with pytest.raises(RecipeError, match=r"edgetl.gate\(\): 'max_regression': found '5', expected a percentage"):
        edgetl.gate(base="a", new="b", max_regression="5")


def test_a_real_death_leaves_no_process(tmp_path, monkeypatch):
    launched = []
    launch = trial.HERE.launch
    monkeypatch.setattr(type(trial.HERE), "launch",
                        lambda self, timeout_s: launched.append(launch(timeout_s)) or launched[-1])
    killed = make_tiny(tmp_path / "killed", "benchfakes.killed")
    with pytest.raises(EdgetlError, match="SIGKILL"):
        gate.gate(options((killed, killed), backend="benchfakes.killed"))
    assert [one._child.returncode for one in launched] == [-signal.SIGKILL]  # waited for, so it is no zombie either
