"""What is measured besides blocks: warm-up, cores, spinning, arrivals, throughput, the way from a file to a label."""

from __future__ import annotations

import base64
import dataclasses
import os
import threading

import numpy as np
import pytest
from bench.test_bench_runner import LABELS, fakes_on_the_path, make_photos, make_tiny, options  # noqa: F401

from edgetl import runtime, timing
from edgetl.bench import affinity, assemble, cases, exam, photos, process, report, runner, walk, worker
from edgetl.bench.trial import Trial
from edgetl.errors import EdgetlError
from edgetl.events import ignore
from edgetl.runtime.preprocess import to_dict
from edgetl.runtime.session import open_session
from tests.tiny_bundle import PREPROCESS, encode, graph_spec, make_bundle, make_graph, make_photo

FINE, SPINNING = "benchfakes.fine", "benchfakes.spinning"


def test_cores_are_read_from_words_and_told_in_words():
    assert cases.cores("0-2,5") == (0, 1, 2, 5) and cases.cores("3,1,1-2") == (1, 2, 3) and cases.cores(None) is None
    assert affinity.in_words((7, 0, 1, 2, 5)) == "0-2, 5, 7"
    with pytest.raises(EdgetlError, match="may not run on core 9999; it has the cores"):
        affinity.require((0, 9999))


def test_a_system_that_cannot_pin_says_so(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert affinity.allowed() == ()
    with pytest.raises(EdgetlError, match="cannot tie a process to cores"):
        affinity.require((0,))


def test_workers_run_on_the_cores_asked_for_and_spin_as_told(tmp_path):
    core = affinity.allowed()[-1]
    bundle = make_tiny(tmp_path / "tiny", SPINNING, FINE)
    found = runner.bench(options(tmp_path, bundle, backend=(SPINNING, FINE), pin=str(core), spin="off", photos=0))
    spinning, fine = found.rows
    assert spinning.affinity == fine.affinity == (core,)
    assert spinning.session["cores"] == [core]  # what the library saw when it was opened
    assert (spinning.session["spin"], spinning.session["omp"]) == ("off", "PASSIVE")
    assert any("--spin off: the backend 'benchfakes.fine' has no such option" in note for note in found.notes)
    assert not any("benchfakes.spinning" in note and "no such option" in note for note in found.notes)
    assert affinity.allowed() != (core,) or len(affinity.allowed()) == 1  # the parent is not tied
    assert report.read(tmp_path / "report").rows == found.rows


def test_nothing_is_pinned_or_set_where_nobody_asked(tmp_path):
    bundle = make_tiny(tmp_path / "tiny", SPINNING)
    trial = Trial(cases.find(options(tmp_path, bundle, backend=(SPINNING,)))[0], options(tmp_path, bundle))
    trial.start(keep=False)
    row = trial.row()
    assert row.affinity == affinity.allowed() and "spin" not in row.session
    assert row.session["omp"] == os.environ.get("OMP_WAIT_POLICY")


def test_rows_of_different_arrivals_are_never_compared(tmp_path):
    backends = (FINE, "benchfakes.colourblind")
    bundle = make_tiny(tmp_path / "tiny", *backends)
    found = runner.bench(options(tmp_path, bundle, backend=backends, interval=("none", "1ms"), photos=0))
    rows = {(row.backend, row.measurement.arrival): row for row in found.rows}
    assert set(rows) == {(one, arrival) for one in backends for arrival in ("back-to-back", "paced 1ms")}
    assert rows[FINE, "back-to-back"].speedup is None and rows[FINE, "paced 1ms"].speedup is None
    assert rows["benchfakes.colourblind", "back-to-back"].speedup is not None
    paced = rows["benchfakes.colourblind", "paced 1ms"].speedup
    base, own = (np.median(rows[one, "paced 1ms"].measurement.seconds) for one in backends)
    assert paced.value == pytest.approx(base / own)


def test_the_device_alone_is_measured_after_the_rounds_where_a_session_tells_it(tmp_path):
    backends = (FINE, "benchfakes.carded")
    bundle = make_tiny(tmp_path / "tiny", *backends)
    found = runner.bench(options(tmp_path, bundle, backend=backends, photos=0, rounds=2, block=25))
    fine, carded = found.rows
    assert fine.device_s == () and fine.measured and carded.measured
    # Both rounds without the calls at their begin, by the session's own clock.
    kept = 25 - timing.DROPPED
    assert carded.device_s == pytest.approx([0.25 + call / 1000 for start in (0, 25)
                                             for call in range(start + timing.DROPPED + 1, start + 26)])
    assert len(carded.device_s) == len(carded.measurement.seconds) == 2 * kept
    assert not [note for note in found.notes if "device" in note]


def test_a_card_that_is_lost_meanwhile_leaves_the_latencies(tmp_path):
    bundle = make_tiny(tmp_path / "tiny", "benchfakes.carded")
    found = runner.bench(options(tmp_path, bundle, backend=("benchfakes.carded",), photos=0, rounds=3, block=25))
    assert found.rows[0].measured and len(found.rows[0].device_s) == 2 * (25 - timing.DROPPED)
    assert [note for note in found.notes if "no time of the device alone: The card is lost." in note]


class Clockwork:
    """A worker whose calls take what they are told; nothing is measured."""

    def __init__(self, latency_s):
        self.latency_s, self.calls, self.asked = latency_s, 0, []

    def ask(self, request, *, extra_s=0.0, progress=None):
        self.asked.append(request)
        seconds = [self.latency_s(self.calls + number) for number in range(request["n"])]
        self.calls += request["n"]
        return {"seconds": seconds[request["drop"]:], "late_calls": None, "memory_peak_bytes": 1,
                "gpu_memory_bytes": None}

    def close(self, *, at_once=False):
        pass


def clockwork_trial(tmp_path, latency_s, **changes):
    chosen = options(tmp_path, make_tiny(tmp_path / "tiny", FINE), backend=(FINE,), **changes)
    trial = Trial(cases.find(chosen)[0], chosen)
    trial.process, trial.starts = Clockwork(latency_s), [{name: latency_s(0) for name in (
        "first_s", "load_s", "import_s")} | {"memory_loaded_bytes": 1, "session": {}, "spin_option": None}]
    return trial


def test_the_warm_up_is_counted_and_what_does_not_settle_is_told(tmp_path):
    trial = clockwork_trial(tmp_path, lambda call: 1e-3 + 1e-2 * 0.97 ** call)
    trial.warm_up()
    trial.block()
    row = trial.row()
    assert row.warmup_reason is None and 100 < row.warmup_calls == trial.process.calls - trial.options.block
    assert max(row.measurement.seconds) < 1.1e-3
    assert [one["drop"] for one in trial.process.asked[-2:]] == [0, timing.DROPPED]


def test_restless_cases_get_a_note(tmp_path):
    trial = clockwork_trial(tmp_path, lambda call: 1e-3 * (1 + call), warmup_s=1.0)
    trial.warm_up()
    trial.block()
    run = runner.Run(trial.options, [trial], trial.case.name, {}, None, [])
    assert run._remarks()[0].startswith(f"{trial.case.name}: it did not become stable within ")
    assert trial.row().warmup_reason and trial.row().measured


def test_no_warm_up_where_none_was_asked_for(tmp_path):
    trial = clockwork_trial(tmp_path, lambda call: 1e-3, warmup_s=0.0)
    trial.warm_up()
    assert trial.process.calls == 0 and trial.row().warmup_calls is None


def test_a_crowd_calls_together_and_every_call_counts():
    meeting, seen, lock = threading.Barrier(3, timeout=600), [], threading.Lock()

    def call(thread):
        with lock:
            seen.append(thread)
            number = len(seen)
        if 3 < number <= 6:  # the first of each thread that counts: passes only when all three are inside at once
            meeting.wait()

    rate = timing.crowd(call, 3, 0.01)
    assert set(seen[3:6]) == {0, 1, 2}
    assert 0 < rate * 0.01 <= len(seen) - 3  # no thread ends before the window does


def test_a_failing_call_of_a_crowd_is_told():
    def fail(thread):
        raise EdgetlError("no")

    with pytest.raises(EdgetlError, match="no"):
        timing.crowd(fail, 2, 0.01)


def test_throughput_by_concurrency_and_the_best_of_all_batches(tmp_path):
    bundle = make_tiny(tmp_path / "tiny", FINE)
    found = runner.bench(options(tmp_path, bundle, batch=("1", "8"), concurrency=("1", "2"), window_s=0.01, photos=0))
    assert [[one.concurrency for one in row.throughputs] for row in found.rows] == [[1, 2], [1, 2]]
    for row in found.rows:
        assert all(one.batch == row.batch and len(one.rounds_ips) == 2 and one.ips > 0 for one in row.throughputs)
    rates = [one.ips for row in found.rows for one in row.throughputs]
    best = found.rows[0].best_throughput
    assert best == found.rows[1].best_throughput and best.ips >= max(rates)


def test_without_concurrency_the_best_is_that_of_the_calls():
    row = report.Row(report.Measurement("a", (0.1, 0.1, 0.2, 0.2), 2, 10, "back-to-back", "measured"), "a", "onnx",
                     "cpu", 1, 4)
    paced = dataclasses.replace(row, batch=8, measurement=dataclasses.replace(row.measurement, arrival="paced 1s"))
    made = assemble._with_best([row, paced])
    assert made[0].best_throughput.rounds_ips == (pytest.approx(40), pytest.approx(20))
    assert made[0].best_throughput.ips == pytest.approx(30) and made[0].best_throughput.concurrency == 1
    assert made[1].best_throughput == made[0].best_throughput  # of the same graph; its own calls wait for the clock
    assert assemble._with_best([paced])[0].best_throughput is None


def way(tmp_path, files, **changes):
    session = open_session("cpu", make_graph(), graph_spec(), threads=1)
    arguments = {"session": session, "spec": graph_spec(), "preprocess": to_dict(PREPROCESS), "labels": LABELS,
                 "files": [base64.b64encode(one).decode() for one in files], "embeds": False}
    return walk.Way(**{**arguments, **changes})


def test_the_way_from_a_file_gives_the_labels_of_the_runtime(tmp_path):
    files = [encode(make_photo(seed)) for seed in range(5)]
    own = way(tmp_path, files)
    with runtime.load(make_bundle(tmp_path / "bundle", labels=LABELS), "cpu") as classifier:
        assert [own.label(number) for number in range(5)] == [classifier.predict(file).label for file in files]
    found = own.walk(None)
    assert {name: len(seconds) for name, seconds in found.items()} == {
        "decode_s": 5, "preprocess_s": 5, "end_to_end_s": 5}
    assert all(second > 0 for seconds in found.values() for second in seconds)


def test_files_that_are_none_are_refused_with_a_sentence(tmp_path):
    with pytest.raises(EdgetlError, match="is not an image"):
        way(tmp_path, [b"no picture"]).walk(None)
    with pytest.raises(EdgetlError, match="no image files were taken"):
        worker.Worker(lambda told: None).walk(None)


def test_bundles_are_timed_from_file_to_label_and_others_are_not(tmp_path):
    bundle = make_tiny(tmp_path / "tiny", FINE)
    (tmp_path / "plain.onnx").write_bytes(make_graph())
    found = runner.bench(options(tmp_path, bundle, tmp_path / "plain.onnx", backend=(FINE, "cpu"), batch=("1", "2"),
                                 photos=3, photo_size="40x30"))
    rows = {(row.kind, row.backend, row.batch): row for row in found.rows}
    own = rows["bundle", FINE, 1]
    assert len(own.decode_s) == len(own.preprocess_s) == len(own.end_to_end_s) == 2 * 3
    assert own.files.startswith("3 drawn JPEG files of 40 x 30 pixels, ")
    assert rows["bundle", FINE, 2].decode_s == () == rows["onnx", "cpu", 1].decode_s
    assert rows["onnx", "cpu", 1].files is None and report.figures(own).end_to_end_s > 0


class Refusing(Clockwork):
    """A worker that answers each request for image files with this."""

    problem = process.Refused("Pillow is not installed.")

    def ask(self, request, **more):
        self.asked.append(request)
        raise self.problem


def test_a_worker_that_cannot_read_files_is_asked_for_other_things(tmp_path):
    trial = clockwork_trial(tmp_path, lambda call: 1e-3)
    trial.process = refusing = Refusing(None)
    trial.take(photos.choose(trial.options, None))
    trial.walk()
    assert trial.process is refusing and len(refusing.asked) == 1 and trial.row().files is None
    assert trial.remarks == [f"{trial.case.name}: no times from the file to the label: Pillow is not installed."]
    refusing.problem = process.WorkerFailed("it is no more")
    trial.throughput(2)
    assert trial.process is None and trial.remarks[1].endswith("no throughput: it is no more")


def test_drawn_photos_are_the_same_every_time_and_within_the_limits(tmp_path):
    chosen = options(tmp_path, photos=2, photo_size="64x48")
    first, again = photos.choose(chosen, None), photos.choose(chosen, None)
    assert first == again and len(set(first.encoded)) == 2
    assert photos.choose(dataclasses.replace(chosen, photos=0), None) is None
    with pytest.raises(EdgetlError, match="--photo-size 9000x9000 is 81 megapixels; the runtime reads up to 50"):
        photos.choose(dataclasses.replace(chosen, photo_size="9000x9000"), None)


def test_test_images_are_taken_where_there_are_some(tmp_path):
    bundle = make_tiny(tmp_path / "tiny", FINE)
    chosen = options(tmp_path, bundle, photos=100, data=str(make_photos(tmp_path / "photos")))
    paper = exam.prepare(chosen, cases.find(chosen), ignore)
    found = photos.choose(chosen, paper)
    assert len(found.encoded) == len(paper.items) == 12
    assert found.described.startswith("12 test images of photos, median 1.")
