"""Tuning a tiny bundle on backends of known speed: what is measured, chosen, kept, and found again by the runtime."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from bench.test_bench_runner import LABELS, fakes_on_the_path, make_photos  # noqa: F401

import edgetl
from edgetl.bench import cases, tune
from edgetl.bench.trial import Trial
from edgetl.bench.worker import FromPixels, Worker
from edgetl.errors import BundleError, DataError, EdgetlError, MissingDependency, OutputError, RecipeError, UnknownName
from edgetl.events import ignore
from edgetl.recipe_tune import Tune
from edgetl.runtime import choice, tuned
from edgetl.runtime.bundle import open_bundle
from edgetl.runtime.preprocess import Preprocess, normalize, to_dict
from edgetl.runtime.session import GraphSpec, TensorSpec
from tests.tiny_bundle import edit_manifest, make_bundle

PACED, ABSENT = "benchfakes.paced", "benchfakes.absent"
FP32_VAL = {"backend": "cpu", "split": "val", "n": 9, "accuracy": 0.9}


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    """The fakes are the user's own modules."""
    monkeypatch.setenv("EDGETL_TRUST", f"{PACED},{ABSENT}")


def make_pair(folder: Path, *, int8_accuracy: float | None = 0.9, backends: tuple[str, ...] = (PACED,)) -> Path:
    """A bundle of INT8 first and fp32, the accuracies as an export records them."""
    bundle = make_bundle(folder, labels=LABELS, second={"precision": "int8", "backends": backends})
    manifest = json.loads((bundle / "manifest.json").read_text())
    fp32, int8 = manifest["variants"]
    fp32 |= {"backends": list(backends), "evaluations": [{**FP32_VAL, "split": "test", "accuracy": 0.1}, FP32_VAL]}
    # The test split says the opposite; nothing may be chosen by it.
    test = {**FP32_VAL, "split": "test", "accuracy": 0.99 if int8_accuracy != 0.9 else 0.0}
    int8["evaluations"] = [test, *([] if int8_accuracy is None else [{**FP32_VAL, "accuracy": int8_accuracy}])]
    manifest["variants"] = [int8, fp32]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def options(bundle: Path, **changes) -> Tune:
    return Tune(**{"bundle": str(bundle), "threads": ("1",), "budget": "1ms", "timeout_s": 600.0, **changes})


def test_the_best_is_measured_kept_and_run(tmp_path, own_home):
    bundle = make_pair(tmp_path / "bundle", backends=(PACED, ABSENT))
    heard = []
    made = tune.tune(options(bundle, threads=("2", "1"), budget="1ms"), listener=heard.append)
    assert (made.chosen.variant, made.chosen.backend, made.chosen.threads) == ("other", PACED, 2)
    rows = {(one.variant, one.threads): one for one in made.candidates if one.backend == PACED}
    assert list(rows) == [("other", 1), ("other", 2), ("fp32", 1), ("fp32", 2)]
    assert [(one.median_s, len(one.rounds_s)) for one in rows.values()] == [
        (pytest.approx(seconds), 5) for seconds in (1e-3, 0.6e-3, 2e-3, 1.2e-3)]
    absent = [one for one in made.candidates if one.backend == ABSENT]
    assert len(absent) == 2 and all("there is no such chip" in one.reason for one in absent)
    assert [text for event in heard if event.kind == "warning" and (text := event.values["text"]) and "budget" in text]

    path = tuned.path_of(open_bundle(bundle).digest, tuned.machine())
    assert path == made.path and path.is_relative_to(own_home / "cache" / "edgetl")
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    stored = json.loads(path.read_text())
    assert stored["versions"] == {PACED: "1 on nowhere"} and len(stored["cases"]) == 6
    assert made.to_json()["chosen"]["variant"] == "other" and json.dumps(made.to_json())
    assert tuned.read(path) == made.entry

    found = choice.choose(open_bundle(bundle).manifest, tuned=tuned.find(open_bundle(bundle).digest))
    assert (found.variant.name, found.backend, found.threads, found.rule) == ("other", PACED, 2, "tuned")
    by_name = choice.choose(open_bundle(bundle).manifest, variant="fp32", tuned=tuned.find(made.entry.manifest_sha256))
    assert (by_name.variant.name, by_name.threads, by_name.rule) == ("fp32", 2, "tuned")

    assert tune.forget(str(bundle)) == (path,) and not path.exists()
    assert tune.forget(None) == ()


@pytest.mark.parametrize(("accuracy", "drop"), [(0.89, pytest.approx(1.0)), (0.9, 0.0), (None, None)])
def test_recorded_accuracies_count_by_the_validation_split(tmp_path, accuracy, drop):
    manifest = open_bundle(make_pair(tmp_path / "bundle", int8_accuracy=accuracy)).manifest
    fp32, int8 = Clocked("fp32", PACED, 2.0), Clocked("other", PACED, 1.0)
    (found,) = tune.candidates(manifest, [int8], {}, None)
    assert (found.drop_points, found.accuracy_from) == (drop, None if drop is None else "recorded by the export")
    assert tune.candidates(manifest, [fp32], {}, None)[0].drop_points == 0.0


def test_accuracy_is_measured_on_the_validation_split_of_the_data(tmp_path):
    """INT8 of the fake errs on green: 4 of the 11 images of val; test has 12."""
    bundle = make_pair(tmp_path / "bundle")
    photos = make_photos(tmp_path / "photos")
    next((photos / "val" / LABELS[0]).iterdir()).unlink()
    made = tune.tune(options(bundle, data=str(photos), max_drop=36.0))
    assert made.chosen.variant == "fp32"
    assert made.candidates[0].drop_points == pytest.approx(100 * 4 / 11)
    assert made.candidates[0].accuracy_from == "measured here on 11 images"
    assert "it loses 36.36 points" in made.refusals[0]


def test_fp32_comes_along_as_the_reference(tmp_path):
    manifest = open_bundle(make_pair(tmp_path / "bundle")).manifest
    asked = options(tmp_path, variant=("other",))
    assert [variant.name for variant, _, _ in tune._pairs(manifest, asked)] == ["other", "fp32"]
    assert list(tune._pairs(manifest, options(tmp_path, backend=("cpu",)))) == []


class Clocked:
    """A trial of which every block takes as long as it is told."""

    def __init__(self, variant: str, backend: str, ms: float, alive: bool = True) -> None:
        subject = cases.Subject(variant, Path(), "bundle", backend, Path(), GraphSpec((), ()), variant, "fp32")
        self.case = cases.Case(f"{variant} {backend}", subject, 1, 1)
        self.ms, self.alive, self.blocks, self.answers, self.closed = ms, alive, [], None, False
        self.reason = self.no_answers = None if alive else "gone"

    def start(self, *, keep):
        pass

    def block(self):
        if self.alive and not self.closed:
            self.blocks.append({"seconds": [1e-3 * self.ms] * 3})

    def close(self, *, at_once=False):
        self.closed = True


def test_what_is_hopeless_is_left_after_the_first_round(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(tune.timing, "now_s", lambda: float(next(clock)))
    trials = [Clocked("a", "x", 1.0), Clocked("a", "y", 2.1), Clocked("a", "z", 1.9), Clocked("b", "x", 9.0),
              Clocked("b", "y", 1.0, alive=False)]
    aside = tune._measure(trials, options(Path()), 40.0, None, ignore)
    assert aside == {"a y": "it was left after the first round, 2.1 times as slow as its variant's best"}
    counts = [len(one.blocks) for one in trials]
    assert counts[1] == 1 and counts[4] == 0
    assert counts[0] == counts[2] == counts[3] and 10 < counts[0] <= 20  # 2 ticks a round and 1 to look, until 40


def test_a_verdict_has_its_rounds_whatever_the_budget_and_no_end_of_them(monkeypatch):
    for deadline_s, expected in ((0.0, tune.LEAST_ROUNDS), (1e12, tune.MOST_ROUNDS)):
        trial = Clocked("a", "x", 1.0)
        tune._measure([trial], options(Path()), deadline_s, None, ignore)
        assert len(trial.blocks) == expected


def test_thread_counts(monkeypatch):
    for usable, expected in ((1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (64, (1, 2, 4, 8, 16, 32, 64))):
        monkeypatch.setattr(tune, "usable_threads", lambda usable=usable: usable)
        assert tune.thread_counts(()) == expected
    assert tune.thread_counts(("3", "0", "3")) == (3, 64)


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60.0), ("1.5 m", 90.0), ("250ms", 0.25)])
def test_budgets_have_units(text, seconds):
    assert tune.budget_s(text) == pytest.approx(seconds)


def test_refusals_before_anything_is_measured(tmp_path, monkeypatch):
    bundle = make_pair(tmp_path / "bundle")
    photos = make_photos(tmp_path / "photos", own_test=False)
    monkeypatch.setattr(Trial, "start", lambda *_, **__: pytest.fail("something was started"))
    for changes, error, told in (
        ({"bundle": None}, RecipeError, "'bundle' is missing"),
        ({"bundle": str(tmp_path / "gone")}, BundleError, "does not exist"),
        ({"variant": ("int9",)}, UnknownName, "variant named 'int9'"),
        ({"backend": ("cpuu",)}, UnknownName, "backend named 'cpuu'"),
        ({"backend": ("openvino",)}, EdgetlError, "Nothing of 'tiny' that was asked for can run here"),
        ({"data": str(photos)}, DataError, "its val split is an automatic one"),
    ):
        with pytest.raises(error, match=told):
            tune.tune(dataclasses.replace(options(bundle), **changes))
    edit_manifest(bundle, "variants", 0, "requires", value=["amx_int8"])
    monkeypatch.setattr(choice.processor, "flags", lambda cpuinfo=None: frozenset())
    _, impossible = tune.find(open_bundle(bundle), options(bundle), tmp_path)
    assert [(one.variant, one.backend) for one in impossible] == [("other", PACED)]
    assert "requires amx_int8" in impossible[0].reason
    occupied = tmp_path / "file"
    occupied.write_text("")
    monkeypatch.setenv("EDGETL_CACHE", str(occupied))
    with pytest.raises(OutputError, match="cannot be written") as caught:
        tune.tune(options(bundle))
    assert "EDGETL_CACHE" in caught.value.hint


def test_nothing_that_may_be_chosen_is_an_error_and_nothing_is_kept(tmp_path, monkeypatch):
    bundle = make_pair(tmp_path / "bundle", backends=("benchfakes.killed",))
    monkeypatch.setenv("EDGETL_TRUST", "benchfakes.killed")
    with pytest.raises(EdgetlError, match=r"Nothing of what was tried may be chosen: .*SIGKILL"):
        tune.tune(options(bundle, variant=("fp32",)))
    assert tuned.files() == ()


def test_what_tune_does_is_a_function_too(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "tune", lambda options, listener: options)
    assert edgetl.tune(bundle=tmp_path, threads=[1], budget="2m") == Tune(bundle=str(tmp_path), threads=("1",),
                                                                        budget="2m")
    assert edgetl.tune(forget=True) is None
    with pytest.raises(RecipeError, match=r"edgetl.tune\(\): 'budget': found '1h', expected a duration above 0"):
        edgetl.tune(bundle="b", budget="1h")


def test_calls_from_pixels_are_normalised_unless_the_graph_does_it():
    preprocess = Preprocess(size_hw=(4, 6))
    seen = []

    class Session:
        def run(self, feeds):
            seen.append(feeds["image"])
            return {}

        def close(self):
            pass

        def info(self):
            return {}

    for dtype, shape in (("float32", ("N", 3, 4, 6)), ("uint8", ("N", 4, 6, 3))):
        spec = GraphSpec((TensorSpec("image", "image", dtype, shape),), ())
        session = FromPixels(Session(), spec, to_dict(preprocess))
        assert session.spec.inputs[0] == TensorSpec("image", "image", "uint8", ("N", 4, 6, 3))
        pixels = np.arange(2 * 72, dtype=np.uint8).reshape(2, 4, 6, 3)
        session.run({"image": pixels})
        np.testing.assert_array_equal(seen[-1], pixels if dtype == "uint8" else normalize(pixels, preprocess))


@pytest.mark.parametrize(("embeds", "wrapped", "dtype", "shape"), [
    (False, False, np.float32, (2, 3, 8, 8)), (True, False, np.uint8, (2, 8, 8, 3)),
    (False, True, np.float32, (2, 3, 8, 8)), (True, True, np.uint8, (2, 8, 8, 3)),
])
def test_a_session_is_examined_on_what_its_graph_takes(tmp_path, embeds, wrapped, dtype, shape):
    preprocess = Preprocess(size_hw=(8, 8))
    image = ("uint8", ("N", 8, 8, 3)) if embeds else ("float32", ("N", 3, 8, 8))
    spec = GraphSpec((TensorSpec("image", "image", *image),), (TensorSpec("logits", "logits", "float32", ("N", 3)),))
    seen = []

    class Session:
        close = info = None

        def run(self, feeds):
            seen.append((feeds["image"].dtype, feeds["image"].shape))
            return {"logits": np.zeros((len(feeds["image"]), 3), np.float32)}

    opened = Worker(lambda reply: None)
    opened.session = FromPixels(Session(), spec, to_dict(preprocess)) if wrapped else Session()
    photos = make_photos(tmp_path / "photos", count=1)
    (tmp_path / "keys.json").write_text(json.dumps([f"val/{name}/0.png" for name in LABELS]))
    found = opened.evaluate(str(photos), str(tmp_path / "keys.json"), to_dict(preprocess), cases.spec_to_json(spec), 2,
                            str(tmp_path / "out.npz"))
    assert found == {"n": 3}
    assert seen == [(dtype, shape)] * 2


def test_the_order_of_preference_is_the_manifests(tmp_path):
    bundle = make_bundle(tmp_path / "bundle", second={"backends": ("openvino", "cpu")})
    found, _ = tune.find(open_bundle(bundle), options(bundle, threads=("1", "2")), tmp_path)
    assert [case.name for case in found] == [
        f"{pair} {count}" for pair in ("fp32 cpu", "fp32 openvino", "other openvino", "other cpu")
        for count in ("1 thread", "2 threads")]
    assert all(case.subject.graph.parent == tmp_path for case in found)


def test_without_scipy_nothing_is_begun(monkeypatch):
    def missing(package, **told):
        raise MissingDependency(package, **told)

    monkeypatch.setattr(tune.extras, "require", missing)
    with pytest.raises(MissingDependency, match="Choosing by a rank test needs the package 'scipy'"):
        tune.tune(Tune(bundle="nowhere"))
