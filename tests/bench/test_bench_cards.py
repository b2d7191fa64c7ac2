"""Benchmarks and tunings on a made-up card: threads, engines that are built first, and cards that are exchanged."""

import json

import pytest
from bench.test_bench_runner import LABELS, fakes_on_the_path, options  # noqa: F401
from tiny_bundle import make_bundle

from edgetl.backends import Availability
from edgetl.bench import gate_cases, runner, tune
from edgetl.recipe_gate import RegressionGate
from edgetl.recipe_tune import Tune
from edgetl.runtime import choice, tuned
from edgetl.runtime.bundle import open_bundle

CARD = "benchfakes.engined"
BUILT = "its engine had to be built first, which took 31.5 s; load times are those of the kept one."


@pytest.fixture(autouse=True)
def engines(monkeypatch, tmp_path):
    """Where the made-up card keeps its engines."""
    monkeypatch.setenv("EDGETL_TRUST", CARD)
    folder = tmp_path / "engines"
    folder.mkdir()
    monkeypatch.setenv("BENCHFAKES_ENGINES", str(folder))
    return folder


@pytest.fixture
def bundle(tmp_path):
    """fp32 for the processor and the card, fp16 for the card alone."""
    bundle = make_bundle(tmp_path / "bundle", labels=LABELS, second={"precision": "fp16", "backends": [CARD]})
    manifest = json.loads((bundle / "manifest.json").read_text())
    for variant, backends in zip(manifest["variants"], (["cpu", CARD], [CARD]), strict=True):
        variant |= {"backends": backends, "evaluations": [{"backend": "cpu", "split": "val", "n": 9, "accuracy": 0.9}]}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def test_an_engine_that_is_built_first_is_no_load_time(bundle, tmp_path, engines):
    asked = options(tmp_path, bundle, backend=(CARD,), starts=2)
    found = runner.bench(asked)
    assert [len(row.load_s) for row in found.rows] == [2, 2]
    assert all(row.session["engine"]["built"] is False for row in found.rows)
    assert [note for note in found.notes if BUILT in note] == [f"{row.case}: {BUILT}" for row in found.rows]
    again = runner.bench(options(tmp_path, bundle, backend=(CARD,), out=str(tmp_path / "again")))
    assert not [note for note in again.notes if BUILT in note]


def test_an_engine_that_cannot_be_kept_is_built_by_every_start_and_its_row_says_so(bundle, tmp_path, monkeypatch):
    monkeypatch.delenv("BENCHFAKES_ENGINES")
    found = runner.bench(options(tmp_path, bundle, backend=(CARD,), variant=("fp32",), starts=2))
    (row,) = found.rows
    assert row.session["engine"] == {"built": True, "kept": False, "build_s": 31.5} and len(row.load_s) == 2


def test_threads_are_no_axis_where_a_card_computes(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "usable_threads", lambda: 4)
    cases, _ = tune.find(open_bundle(bundle), Tune(bundle=str(bundle)), tmp_path)
    assert [(case.subject.variant, case.subject.backend, case.threads) for case in cases] == [
        ("fp32", "cpu", 1), ("fp32", "cpu", 2), ("fp32", "cpu", 4), ("fp32", CARD, 1), ("other", CARD, 1)]
    cases, _ = tune.find(open_bundle(bundle), Tune(bundle=str(bundle), threads=("2", "0"), backend=(CARD,)), tmp_path)
    assert [(case.subject.variant, case.threads) for case in cases] == [("fp32", 2), ("other", 2)]


def test_what_was_tuned_on_a_card_holds_for_that_card(bundle, monkeypatch):
    made = tune.tune(Tune(bundle=str(bundle), backend=(CARD,), budget="1ms", timeout_s=600.0))
    assert (made.chosen.variant, made.chosen.backend, made.chosen.precision) == ("other", CARD, "fp16")
    opened = open_bundle(bundle)

    def chosen():
        return choice.choose(opened.manifest, CARD, tuned=tuned.find(opened.digest))

    assert (chosen().variant.name, chosen().rule) == ("other", "tuned")
    monkeypatch.setenv("BENCHFAKES_CARD", "Another card")
    assert chosen().rule != "tuned"
    assert f"{CARD} was 11.4 on Made-up card when it was measured, and is 11.4 on Another card" in chosen().why


def test_the_processor_is_told_by_the_machine_and_not_by_the_backend():
    assert choice.identity(Availability(usable=True, version="1.31.1", device="CPU")) == "1.31.1"
    assert choice.identity(Availability(usable=True)) == ""


def test_int8_is_chosen_only_where_it_is_faster_than_fp16(tmp_path):
    bundle = make_bundle(tmp_path / "bundle", labels=LABELS, second={"precision": "int8", "backends": [CARD]})
    manifest = json.loads((bundle / "manifest.json").read_text())
    fp32, int8 = manifest["variants"]
    fp16 = {**fp32, "name": "half", "precision": "fp16"}
    manifest["variants"] = [int8, fp16, fp32]
    for variant in manifest["variants"]:
        variant |= {"backends": [CARD], "evaluations": [{"backend": "cpu", "split": "val", "n": 9, "accuracy": 0.9}]}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    made = tune.tune(Tune(bundle=str(bundle), budget="1ms", timeout_s=600.0))
    seconds = {one.precision: one.median_s for one in made.candidates}
    assert seconds["fp16"] < seconds["int8"] < seconds["fp32"]
    assert made.chosen.precision == "fp16"
    assert made.refusals[0].startswith(f"it is not faster than half on {CARD} with 1 thread (")


def test_a_gate_takes_what_the_runtime_would_run_on_the_card(bundle):
    tune.tune(Tune(bundle=str(bundle), backend=(CARD,), budget="1ms", timeout_s=600.0))
    sides = gate_cases.find(RegressionGate(base=str(bundle), new=str(bundle), backend=CARD))
    assert [(one.subject.variant, one.subject.backend) for one in sides.both] == [("other", CARD)] * 2
