"""The whole benchmark on tiny graphs: cases, failing workers, accuracy, and what is refused before anything starts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from edgetl import recipe, splits
from edgetl.bench import cases, exam, phases, report, runner
from edgetl.bench.trial import Trial
from edgetl.datasets import open_data
from edgetl.errors import BundleError, DataError, EdgetlError, OutputError, UnknownName
from edgetl.events import ignore
from tests.bench import sshd
from tests.tiny_bundle import edit_manifest, encode, make_bundle, make_graph

HERE = str(Path(__file__).parent)
LABELS = ("cat", "dog", "fox")  # drawn as red, green and blue squares


@pytest.fixture(autouse=True)
def fakes_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (HERE, os.environ.get("PYTHONPATH")))))


def make_photos(folder: Path, *, own_test: bool = True, count: int = 4) -> Path:
    """Squares with a little noise; the class is the strongest colour."""
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test") if own_test else (".",):
        for label, name in enumerate(LABELS):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 60, (20, 20, 3), dtype=np.uint8)
                pixels[:, :, label] += 150
                (place / f"{number}.png").write_bytes(encode(pixels))
    return folder


def make_tiny(folder: Path, *backends: str, data: dict | None = None) -> Path:
    """A bundle whose one variant runs on these backends."""
    bundle = make_bundle(folder, labels=LABELS)
    edit_manifest(bundle, "variants", 0, "backends", value=list(backends))
    edit_manifest(bundle, "provenance", value={"run": {"data": data or {}, "parameters": 127}})
    return bundle


def options(tmp_path: Path, *paths: Path, **changes) -> recipe.Bench:
    plain = {"cases": tuple(map(str, paths)), "out": str(tmp_path / "report"), "backend": ("benchfakes.fine",),
             "rounds": 2, "block": 20, "starts": 1, "timeout_s": 600.0}
    return recipe.Bench(**{**plain, **changes})


def test_failing_workers_are_failed_rows_and_the_others_go_on(tmp_path):
    broken = ("killed", "raises", "starved", "absent")
    backends = ("cpu", *(f"benchfakes.{name}" for name in ("fine", *broken)))
    bundle = make_tiny(tmp_path / "tiny", *backends)
    found = runner.bench(options(tmp_path, bundle, backend=backends, reference="tiny fp32 benchfakes.fine"))
    reasons = {row.backend.rpartition(".")[2]: row.measurement.reason for row in found.rows}
    assert reasons.pop("cpu") is None and reasons.pop("fine") is None
    assert "SIGKILL" in reasons["killed"] and "memory" in reasons["killed"]
    assert "exit code 1" in reasons["raises"] and "a bug in the backend" in reasons["raises"]
    assert reasons["starved"] == "out of memory"
    assert "no such chip" in reasons["absent"] and "Buy one." in reasons["absent"]
    for row in found.rows:
        if row.measured:
            assert len(row.measurement.seconds) == 2 * (20 - 10) and min(row.measurement.seconds) > 0
            assert row.measurement.by_round().shape == (2, 10)
            assert len(row.load_s) == len(row.import_s) == len(row.first_s) == 1
            assert row.memory_peak_bytes >= row.memory_loaded_bytes > 1_000_000
        else:
            assert row.measurement.seconds == () and row.memory_peak_bytes is None and row.speedup is None
    cpu, fine = found.rows[:2]
    assert fine.speedup is None and cpu.speedup.low <= cpu.speedup.value <= cpu.speedup.high
    assert cpu.session["provider"] == "CPUExecutionProvider" and cpu.session["threads"] == 1
    assert cpu.parameters == 127 and cpu.size_bytes == (bundle / "fp32.onnx").stat().st_size
    assert found.environment["allocator"]["allocator"]
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert written >= {"report.json", "report.md", "report.html", "recipe.toml"}
    assert report.read(tmp_path / "report") == report.from_json(json.loads(report.dumps(found)), where="memory")


def test_a_worker_that_hangs_is_ended_and_told(tmp_path):
    bundle = make_tiny(tmp_path / "tiny", "benchfakes.hangs")
    chosen = options(tmp_path, bundle, backend=("benchfakes.hangs",), timeout_s=2.0)
    trial = Trial(cases.find(chosen)[0], chosen)
    trial.start(keep=True)
    assert trial.process is None and not trial.alive
    assert trial.reason.startswith("no answer within 2 s")
    assert trial.row().measurement.status == report.FAILED


def test_a_report_is_written_even_when_every_case_failed(tmp_path):
    bundle = make_tiny(tmp_path / "tiny", "benchfakes.absent")
    with pytest.raises(EdgetlError, match="None of the 1 cases") as caught:
        runner.bench(options(tmp_path, bundle, backend=("benchfakes.absent",)))
    assert "report" in caught.value.hint
    kept = report.read(tmp_path / "report")
    assert not kept.rows[0].measured and kept.reference is None


def test_accuracy_agreement_and_mistakes_are_those_of_the_timed_sessions(tmp_path):
    backends = ("benchfakes.fine", "benchfakes.colourblind")
    bundle = make_tiny(tmp_path / "tiny", *backends)
    (tmp_path / "plain.onnx").write_bytes(make_graph())
    heard = []
    found = runner.bench(options(tmp_path, bundle, tmp_path / "plain.onnx", backend=(*backends, "cpu"), batch=("5",),
                                 data=str(make_photos(tmp_path / "photos"))), listener=heard.append)
    rows = {row.case: row for row in found.rows}
    right, wrong = rows["tiny fp32 benchfakes.fine"].accuracy, rows["tiny fp32 benchfakes.colourblind"].accuracy
    assert (right.n, right.correct, right.accuracy, right.agreement) == (12, 12, 1.0, None)
    assert right.accuracy_low < 1 and right.mistakes == ()
    assert wrong.correct == 8 and wrong.agreement == pytest.approx(8 / 12)
    assert (wrong.only_reference_right, wrong.only_case_right) == (4, 0)
    assert wrong.difference == pytest.approx(-4 / 12)
    assert wrong.difference_low < wrong.difference < wrong.difference_high
    assert wrong.confusion[0] == (4, 0, 0) and wrong.confusion[1][1] == 0
    assert {mistake.label for mistake in wrong.mistakes} == {"dog"}
    plain = rows["plain cpu"]
    assert plain.measured and plain.accuracy is None and "no preprocessing" in plain.accuracy_reason
    assert found.focus == "tiny fp32 benchfakes.fine" and found.data.n == 12
    begun = [event.values["what"] for event in heard if event.kind == "begin"]
    assert begun[:3] == ["starting", "warming up", "measuring"] and len(begun) == 5  # the ONNX file has no accuracy
    assert any("own test split is used" in note for note in found.notes)


class Recorder:
    """A trial that only remembers when it was measured."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.case = cases.Case(name, None, 1, 1)
        self.log = log

    def block(self) -> None:
        self.log.append(self.case.name)


def order_of_blocks(seed: int) -> list[list[str]]:
    log: list[str] = []
    trials = [Recorder(name, log) for name in "abcdef"]
    phases.measure(trials, 6, np.random.default_rng(seed), ignore)
    return [log[start:start + 6] for start in range(0, 36, 6)]


def test_every_round_measures_every_case_once_in_another_order():
    rounds = order_of_blocks(0)
    assert all(sorted(one) == list("abcdef") for one in rounds)
    assert len({tuple(one) for one in rounds}) > 3
    assert order_of_blocks(0) == rounds != order_of_blocks(1)


def test_cases_are_every_variant_backend_thread_count_and_batch(tmp_path):
    bundle = make_bundle(tmp_path / "a" / "bundle", second={"backends": ("openvino",)})
    other = make_bundle(tmp_path / "b" / "bundle")
    chosen = options(tmp_path, bundle, other, backend=("cpu", "openvino"), threads=("1", "2"), batch=("1", "8"))
    names = [case.name for case in cases.find(chosen)]
    assert len(names) == len(set(names)) == (3 + 2) * 2 * 2
    assert "a/bundle fp32 cpu 1 thread batch 1" in names and "a/bundle other openvino 2 threads batch 8" in names
    assert "a/bundle other cpu 1 thread batch 1" not in names
    paced = cases.find(options(tmp_path, bundle, backend=("cpu",), batch=("1", "8"), interval=("none", "10ms", ".01s")))
    assert [(case.name, case.interval_s, case.arrival) for case in paced[:2]] == [
        ("bundle fp32 cpu batch 1 back-to-back", None, "back-to-back"),
        ("bundle fp32 cpu batch 1 paced 10ms", 0.01, "paced 10ms")]
    assert len(paced) == 4
    only = options(tmp_path, bundle, backend=("openvino", "cpu"), variant=("other",))
    assert [case.name for case in cases.find(only)] == ["bundle other openvino"]


def test_a_fixed_recipe_of_refusals(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    (tmp_path / "broken.onnx").write_text("no graph")
    (tmp_path / "empty").mkdir()
    for changes, error, told in [
        ({"cases": (str(tmp_path / "nowhere"),)}, EdgetlError, "does not exist: expected a bundle"),
        ({"cases": (str(tmp_path / "empty"),)}, EdgetlError, "is none of them"),
        ({"cases": (str(tmp_path / "broken.onnx"),), "backend": ("cpu",)}, EdgetlError, "cannot be opened as an ONNX"),
        ({"cases": (str(bundle), str(bundle))}, EdgetlError, "named twice"),
        ({"backend": ("cpuu",)}, UnknownName, "Did you mean 'cpu'"),
        ({"backend": ("torch",)}, EdgetlError, "nothing for the backends torch"),
        ({"variant": ("fp16",)}, UnknownName, "variant of"),
        ({"threads": ("two",)}, EdgetlError, "--threads two: expected a whole number of at least 0"),
        ({"batch": ("0",)}, EdgetlError, "--batch 0: expected a whole number of at least 1"),
        ({"interval": ("10",)}, EdgetlError, "--interval 10: expected a duration"),
        ({"pin": "4095"}, EdgetlError, "--pin: this process may not run on core 4095; it has the cores 0"),
        ({"pin": "3-1"}, EdgetlError, "--pin 3-1: the range 3-1 runs backwards"),
        ({"concurrency": ("2",), "interval": ("5ms",)}, EdgetlError, "--concurrency measures calls back to back"),
        ({"reference": "tiny"}, UnknownName, "case to refer to"),
        ({"data": str(tmp_path / "nowhere")}, DataError, "does not exist"),
    ]:
        with pytest.raises(error, match=told):
            runner.bench(options(tmp_path, bundle, **{"backend": ("cpu",), **changes}))
    assert not (tmp_path / "report").exists()


def test_a_flipped_byte_and_an_existing_report_are_refused(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    graph = bytearray((bundle / "fp32.onnx").read_bytes())
    graph[100] ^= 1
    (bundle / "fp32.onnx").write_bytes(graph)
    with pytest.raises(BundleError, match="SHA-256"):
        runner.bench(options(tmp_path, bundle, backend=("cpu",)))
    (tmp_path / "report").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        runner.bench(options(tmp_path, bundle, backend=("cpu",)))


@pytest.mark.parametrize(("text", "seconds"), [("10ms", 0.01), ("1 s", 1.0), ("250us", 0.00025), (".5s", 0.5)])
def test_intervals_have_units(text, seconds):
    assert cases.interval_s(text) == pytest.approx(seconds)
    assert cases.interval_s(None) is None


def test_an_onnx_file_with_a_free_height_is_refused_with_the_fix(tmp_path):
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, "height", 8]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "free", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "free.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EdgetlError, match="free dimension 'height'") as caught:
        cases.spec_of_onnx(tmp_path / "free.onnx")
    assert "make_dynamic_shape_fixed" in caught.value.hint


def recorded_split(photos: Path, tmp_path: Path, **changes) -> dict:
    """What a run on these photos would have recorded."""
    chosen = recipe.Bench(cases=("x",), out="x", data=str(photos))
    parts = splits.resolve(open_data(str(photos)), chosen)
    return {"fingerprint": parts.fingerprint, "rule": dict(parts.rule), **changes}


def prepared(tmp_path: Path, photos: Path, *bundles: Path) -> exam.Exam:
    chosen = options(tmp_path, *bundles, data=str(photos))
    return exam.prepare(chosen, cases.find(chosen), ignore)


def test_the_recorded_rule_decides_the_test_images_not_the_options(tmp_path):
    photos = make_photos(tmp_path / "photos", own_test=False, count=20)
    recorded = recorded_split(photos, tmp_path)
    recorded["rule"] = {**recorded["rule"], "seed": 5, "test_fraction": 0.4}
    bundle = make_tiny(tmp_path / "tiny", "benchfakes.fine", data=recorded)
    found = prepared(tmp_path, photos, bundle)
    assert len(found.items) == 24 and found.record.rule["seed"] == 5


def test_training_images_cannot_leak_into_an_automatic_test_split(tmp_path):
    photos = make_photos(tmp_path / "photos", own_test=False, count=8)
    recorded = recorded_split(photos, tmp_path)
    same = make_tiny(tmp_path / "same", "benchfakes.fine", data=recorded)
    assert prepared(tmp_path, photos, same).items
    other = make_tiny(tmp_path / "other", "benchfakes.fine", data={**recorded, "fingerprint": "0" * 64})
    with pytest.raises(DataError, match="training images might be among the test images"):
        prepared(tmp_path, photos, other)
    nothing = make_tiny(tmp_path / "nothing", "benchfakes.fine")
    with pytest.raises(DataError, match="nothing recorded"):
        prepared(tmp_path, photos, nothing)
    rule = {**recorded["rule"], "seed": 9}
    elsewhere = make_tiny(tmp_path / "elsewhere", "benchfakes.fine", data={**recorded, "rule": rule})
    with pytest.raises(DataError, match="different splits of the data"):
        prepared(tmp_path, photos, same, elsewhere)


def test_labels_of_another_order_are_refused(tmp_path):
    bundle = make_bundle(tmp_path / "tiny", labels=("cat", "fox", "dog"))
    chosen = options(tmp_path, bundle, data=str(make_photos(tmp_path / "photos")), backend=("cpu",))
    with pytest.raises(DataError, match="cat, fox, dog, but those of the data are cat, dog, fox"):
        exam.prepare(chosen, cases.find(chosen), ignore)


def test_a_run_is_measured_in_torch_beside_its_plain_onnx_file(tmp_path):
    from edgetl import weights
    from edgetl.models import create

    network = create("torchvision/squeezenet1_1", classes=3, pretrained=False, image_size=32)
    photos = make_photos(tmp_path / "photos")
    (tmp_path / "teacher").mkdir()
    weights.save(tmp_path / "teacher", network, {"labels": list(LABELS), "data": recorded_split(photos, tmp_path)})
    (tmp_path / "tiny.onnx").write_bytes(make_graph())
    found = runner.bench(options(tmp_path, tmp_path / "teacher", tmp_path / "tiny.onnx", backend=("cpu", "torch"),
                                 data=str(photos), interval=("1ms",)))
    assert [row.case for row in found.rows] == ["teacher torch", "tiny cpu"]
    run, graph = found.rows
    assert run.measured and run.accuracy.n == 12 and run.session["threads"] == 1
    assert run.parameters == sum(one.numel() for one in network.module.parameters())
    assert min(run.import_s + graph.import_s) > 0
    middles = [float(np.median(row.measurement.seconds)) for row in found.rows]
    assert graph.measured and graph.speedup.value == pytest.approx(middles[0] / middles[1])
    assert graph.measurement.arrival == "paced 1ms" and graph.late_calls is not None
    told_of_load = ("busy", "began late", "become stable", "throttled")
    assert all(any(words in note for words in told_of_load) for note in found.notes)


def test_what_a_start_takes_is_told_apart(tmp_path):
    """The fake's own clock goes on by 100 s in its import, 1,000 s as it is opened, and 10,000 s in its first call."""
    bundle = make_tiny(tmp_path / "tiny", "benchfakes.heavy")
    (row,) = runner.bench(options(tmp_path, bundle, backend=("benchfakes.heavy",), photos=0, warmup_s=0.0)).rows
    assert row.import_s[0] >= 100  # the real clock runs until the fake stops it
    assert (row.load_s, row.first_s) == ((1_000.0,), (10_000.0,))
    assert row.measurement.seconds == (1.0,) * len(row.measurement.seconds)


def test_ctrl_c_leaves_no_worker_and_no_folder_behind(tmp_path):
    import psutil

    def interrupt(event):
        if event.kind == "begin" and event.values["what"] == "measuring":
            assert psutil.Process().children()
            raise KeyboardInterrupt

    bundle = make_tiny(tmp_path / "tiny", "benchfakes.fine")
    with pytest.raises(KeyboardInterrupt):
        runner.bench(options(tmp_path, bundle), listener=interrupt)
    assert not sshd.descendants("edgetl.bench.worker")
    assert {path.name for path in tmp_path.iterdir()} == {"tiny"}


ODD = os.fsdecode(b"caf\xe9 a$\\x$b")  # no UTF-8, and no TeX either


def test_odd_names_of_folders_and_files_reach_the_page(tmp_path):
    photos = make_photos(tmp_path / ODD / "photos")
    for image in sorted((photos / "test").rglob("*.png")):
        image.rename(image.with_name(os.fsdecode(b"\xff") + image.name))
    bundle = make_tiny(tmp_path / ODD / ODD, "benchfakes.colourblind")
    found = runner.bench(options(tmp_path, bundle, backend=("benchfakes.colourblind",), data=str(photos)))
    assert found.rows[0].case.startswith("caf\\udce9 a$\\x$b ")
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "a$\\x$b" in page and "\\udcff" in page
    assert report.read(tmp_path / "report").rows == found.rows


def test_a_page_that_cannot_be_drawn_does_not_cost_the_measurements(tmp_path, monkeypatch):
    def fail(*anything):
        raise ZeroDivisionError("no ink")

    monkeypatch.setattr(runner.html, "page", fail)
    bundle = make_tiny(tmp_path / "tiny", "benchfakes.fine")
    with pytest.raises(ZeroDivisionError, match="no ink") as told:
        runner.bench(options(tmp_path, bundle))
    assert "report.json" in told.value.__notes__[0]
    assert len(report.read(tmp_path / "report").rows[0].measurement.seconds) == 2 * (20 - 10)


def test_a_case_goes_by_the_name_of_its_link(tmp_path):
    (tmp_path / "student").symlink_to(make_bundle(tmp_path / "elsewhere" / "x17"))
    found = cases.find(options(tmp_path, tmp_path / "student", tmp_path / "elsewhere" / ".." / "elsewhere" / "x17",
                               backend=("cpu",)))
    assert [case.name for case in found] == ["student fp32 cpu", "x17 fp32 cpu"]


def test_a_paced_case_that_cannot_keep_up_is_told(tmp_path):
    bundle = make_tiny(tmp_path / "tiny", "benchfakes.fine")
    told = []
    runner.bench(options(tmp_path, bundle, interval=("1us",)),
                 listener=lambda event: told.append(event.values.get("text")))
    late = "tiny fp32 benchfakes.fine: 20 of 20 calls began late"
    assert any(text and late in text for text in told)
    assert late in (tmp_path / "report" / "report.md").read_text()
    assert late in (tmp_path / "report" / "report.html").read_text()
