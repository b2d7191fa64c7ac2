"""Layers of a call: traces and counters of engines, the row they become, and how tables and the page show them."""

from __future__ import annotations

import dataclasses
import json
import types
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from bench import hand_made

from edgetl import recipe
from edgetl.backends import _onnxruntime_profile, _openvino_profile
from edgetl.bench import cases, html, instruments, layers, layers_plot, overview, profiling, report, runner, stats
from edgetl.bench.energy import Clock
from edgetl.bench.process import WorkerFailed
from edgetl.bench.sensors import Found, Sensor
from edgetl.bench.trial import Trial
from edgetl.errors import EdgetlError
from edgetl.runtime.layers import Layer, Node, gather, onnxruntime_kind, open_profiled
from tests.tiny_bundle import graph_spec, make_graph


def event(name: str, op: str, microseconds: int, *, dtype: str = "float", index: int = 0) -> dict:
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds,
            "args": {"op_name": op, "provider": "CPUExecutionProvider", "node_index": str(index),
                     "input_type_shape": [{dtype: [1, 3]}]}}


END = {"cat": "Session", "name": "model_run", "dur": 99, "args": {}}
SETUP = {"cat": "Session", "name": "session_initialization", "dur": 1, "args": {}}


def test_a_trace_of_onnx_runtime_is_cut_into_calls():
    trace = [SETUP, event("quantize", "QuantizeLinear", 5), event("a_nchwc", "Conv", 10, index=3), END,
             event("quantize", "QuantizeLinear", 6), event("a_nchwc", "Conv", 12, index=3),
             event("a_nchwc", "Conv", 100, index=4), END]
    first, second = _onnxruntime_profile.calls(trace)
    assert [node.seconds for node in first] == [5e-6, 10e-6]
    found = gather([first, second], 0)
    # Two nodes of one name are two layers; one that did not run in a call took no time in it.
    assert [(one.name, one.op, one.seconds) for one in found] == [
        ("quantize", "QuantizeLinear", (5e-6, 6e-6)), ("a_nchwc", "Conv", (10e-6, 12e-6)),
        ("a_nchwc", "Conv", (0.0, 100e-6))]
    assert [one.kind for one in found] == ["converting", "float", "float"]
    assert found[1].executed_as == "Conv nchwc float"


@pytest.mark.parametrize(("op", "from_integers", "kind"), [
    ("QLinearConv", True, "integer"), ("QGemm", True, "integer"), ("Conv", False, "float"), ("Conv", True, "moving"),
    ("DequantizeLinear", True, "converting"), ("Transpose", False, "moving"), ("HardSwish", False, "float")])
def test_the_arithmetic_of_onnx_runtime_s_kernels(op, from_integers, kind):
    assert onnxruntime_kind(op, from_integers=from_integers) == kind


def test_counters_of_openvino_leave_out_what_was_fused_away():
    def counter(op: str, kernel: str, microseconds: int, status: str = "EXECUTED"):
        return types.SimpleNamespace(node_name="n", node_type=op, exec_type=kernel,
                                     status=types.SimpleNamespace(name=status),
                                     real_time=timedelta(microseconds=microseconds))

    found = _openvino_profile.nodes([counter("Convolution", "brgconv_avx512_I8", 25),
                                     counter("Relu", "undef", 0, "NOT_RUN"),
                                     counter("Convolution", "brgconv_avx512_bf16", 3)])
    assert [(one.executed_as, one.kind, one.seconds) for one in found] == [
        ("brgconv_avx512_I8", "integer", 25e-6), ("brgconv_avx512_bf16", "float", 3e-6)]


def test_several_runs_of_a_node_in_one_call_add_up_and_dropped_calls_are_gone():
    node = Node("k", "loop body", "Add", "Add", "float", 1.0)
    assert gather([[node] * 9, [node, node], [node]], 1) == (Layer("loop body", "Add", "Add", "float", (2.0, 1.0)),)
    assert gather([[node]], 1) == () and gather([], 0) == ()


def test_a_backend_without_a_profiler_is_one_sentence(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with pytest.raises(EdgetlError, match=r"'benchfakes.fine' has no profiler"):
        open_profiled("benchfakes.fine", make_graph(), graph_spec())


class Session:
    """Counts its calls, and tells two layers."""

    def __init__(self, told: tuple[Layer, ...]) -> None:
        self.calls, self.closed, self.told = 0, False, told

    def run(self, feeds):
        self.calls += 1

    def layers(self, dropped):
        assert dropped == 10
        return self.told

    def close(self):
        self.closed = True


def test_the_worker_s_answer_holds_medians(monkeypatch):
    session = Session((Layer("a", "Conv", "CPU Conv", "float", (1.0, 2.0, 9.0)),
                       Layer("b", "Relu", "CPU Relu", "float", (5.0, 4.0, 1.0))))
    monkeypatch.setattr(profiling.layers, "open_profiled", lambda *given, **named: session)
    told = profiling.profile("cpu", b"", graph_spec(), [{}, {}], threads=1, calls=30, options={})
    assert session.calls == 30 and session.closed and told.pop("profiled_s") > 0
    assert told == {"layers_s": 6.0, "layers": [
        {"name": "a", "op": "Conv", "executed_as": "CPU Conv", "kind": "float", "median_s": 2.0},
        {"name": "b", "op": "Relu", "executed_as": "CPU Relu", "kind": "float", "median_s": 4.0}]}
    found = layers.fields(told | {"profiled_s": 7.0})
    assert [round(one.share, 3) for one in found["layers"]] == [0.333, 0.667]
    assert layers.fields({"layers": [], "layers_s": 0.0, "profiled_s": 7.0})["layers"] == ()


def test_a_case_is_profiled_in_a_process_of_its_own(tmp_path):
    (tmp_path / "tiny.onnx").write_bytes(make_graph())
    options = recipe.Bench(cases=(str(tmp_path / "tiny.onnx"),), out=str(tmp_path / "report"), backend=("cpu",),
                           block=20, timeout_s=600.0, profile_layers=True)
    trial = Trial(cases.find(options)[0], options)
    trial.profile()  # nothing was timed, so there is nothing to hold the layers against
    assert trial.row().layers == () and trial.row().layers_reason is None
    trial.start(keep=True)
    trial.block()
    trial.profile()
    row = trial.row()
    assert trial.process is None and row.layers_reason is None and row.measured
    assert {"Conv", "Gemm"} <= {one.op for one in row.layers}
    assert sum(one.share for one in row.layers) == pytest.approx(1) and row.profiled_s > 0 and row.layers_s > 0


def test_a_case_that_cannot_be_profiled_keeps_its_latencies_and_says_why():
    class Worker:
        closed = False

        def ask(self, request):
            raise WorkerFailed("The backend 'x' has no profiler.")

        def close(self, *, at_once):
            self.closed = at_once

    worker = Worker()
    subject = cases.Subject("tiny", Path("tiny.onnx"), "onnx", "x", Path(__file__), graph_spec())
    trial = Trial(cases.Case("tiny x", subject, 1, 1), hand_made.OPTIONS,
                  host=types.SimpleNamespace(launch=lambda timeout_s: worker))
    trial.blocks = [{"seconds": [0.001] * 5, "late_calls": None}]
    trial.profile()
    row = trial.row()
    assert worker.closed and row.measured and row.layers_reason == "The backend 'x' has no profiler."


# ------------------------------------------------------------------------------------------------- tables and page


def layer(number: int, op: str, kind: str, median_s: float, share: float) -> report.LayerTime:
    return report.LayerTime(f"/features/{number}/{op} <&|>", op, f"{op} uint8", kind, median_s, share)


def profiled(**changes) -> report.Report:
    """The hand-made report, whose third row has twelve layers."""
    told = (*(layer(number, "QLinearConv", "integer", 1e-4, 0.08) for number in range(10)),
            layer(10, "Softmax", "float", 1.5e-4, 0.12), layer(11, "Transpose", "moving", 1e-4, 0.08))
    made = hand_made.make_report()
    rows = list(made.rows)
    rows[2] = dataclasses.replace(rows[2], layers=told, layers_s=0.0012, profiled_s=0.0015, **changes)
    return dataclasses.replace(made, rows=tuple(rows))


def test_tables_show_the_slowest_ten_and_all_by_operation():
    made = profiled()
    slowest, by_operation = layers.tables(made)
    assert len(slowest.rows) == 10 and slowest.rows[0][2].startswith("/features/10/Softmax")
    assert slowest.rows[0][:2] == ("150", "12.0") and slowest.rows[0][3] == "Softmax"
    assert slowest.caption.startswith("3 bundle x86-vnni.int8 cpu, the slowest 10 of 12 layers: "
                                      "together 1.20 ms (their medians: 1.25 ms) of a call of 1.50 ms")
    assert [line[2] for line in by_operation.rows] == ["QLinearConv", "Softmax", "Transpose"]
    assert by_operation.rows[0] == ("1000", "80.0", "QLinearConv", "10", "integer")
    assert by_operation.caption.endswith(
        "of 12 nodes 10 compute with integers (80.0 % of the time), 1 compute in floating point (12.0 % of the time), "
        "1 only move values (8.0 % of the time)")
    assert layers.tables(hand_made.make_report()) == ()


def test_no_integer_kernel_is_said_too():
    assert layers.arithmetic([layer(0, "Conv", "float", 1.0, 1.0)]) == (
        "of 1 nodes 0 compute with integers (0.0 % of the time), 1 compute in floating point (100.0 % of the time)")


def test_the_cost_of_the_profiler_is_told():
    row = profiled().rows[2]
    plain_s = stats.median_interval(row.measurement.seconds).value
    dear = dataclasses.replace(row, profiled_s=plain_s * 1.25)
    cheap = dataclasses.replace(row, profiled_s=plain_s * 0.9)
    assert layers.sentence(dear).endswith("so the profiler changes it by +25 %")
    assert layers.sentence(cheap).endswith("so the profiler changes it by -10 %")


def test_layers_survive_the_json():
    made = profiled()
    assert report.from_json(json.loads(report.dumps(made)), where="memory").rows == made.rows


class Tags(HTMLParser):
    """Every opened element and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_shows_layers_sensors_and_reasons():
    sensors = {"energy": [{"sensor": "RAPL package-0", "scope": "the processor's packages", "joules_per_image": 0.0421,
                           "joules": 60.0, "images": 1425, "window_s": 4.0, "watts": 15.0, "idle_watts": 5.0,
                           "samples": None}],
               "frequency_khz": [3_500_000, 1_200_000], "celsius_after": [61.0, None],
               "throttled": [[], ["core_throttle_count grew by 7"]], "gpu_memory_bytes": 512_000_000}
    made = profiled(sensors=sensors)
    rows = [dataclasses.replace(made.rows[0], layers_reason="no profiler.",
                                sensors={"energy_reason": "no energy sensor found (looked for: x)"}), *made.rows[1:]]
    made = dataclasses.replace(made, rows=tuple(rows))
    read = Tags()
    read.feed(html.page(made, {}))
    text = " ".join(read.words)
    assert "Where the time goes" in text and "Energy and state of the processor" in text
    assert len(read.ids) == len(set(read.ids)) and read.tags.count("svg") == 3
    assert "no energy: no energy sensor found (looked for: x)." in text and "no layers, no profiler." in text
    energy, state = instruments.tables(made)
    assert energy.rows == (("3", "bundle x86-vnni.int8 cpu", "RAPL package-0", "0.0421", "15.0", "5.00", "4.00",
                            "the processor's packages"),)
    assert state.rows == (("3", "bundle x86-vnni.int8 cpu", "1200", "3500", "61", "1 of 2", "512"),)
    cool = dataclasses.replace(made.rows[2], sensors={"frequency_khz": [3_500_000]})
    [bare] = instruments.tables(dataclasses.replace(made, rows=(cool,)))
    assert bare.columns == ("#", "case", "least MHz", "greatest MHz")  # no column of dashes
    assert {table.caption for table in (energy, state)} < {table.caption for table in overview.all_tables(made)}


def test_the_icicle_names_what_is_wide_enough_and_says_all_to_a_screen_reader():
    drawn = layers_plot.icicle(profiled().rows[2], 3)
    assert drawn.startswith("<svg") and "QLinearConv 80.0 %" in drawn
    assert "10 compute with integers" in drawn and "Softmax: 12.0 % in 1 layers" in drawn
    assert "<&|>" not in drawn
    assert layers_plot.icicle(hand_made.make_report().rows[0], 1) is None


# ------------------------------------------------------------------------------------------- sensors in a benchmark


class Weighed:
    """As much of a trial as is asked for its energy."""

    def __init__(self, name: str, device: str | None, *, made: int | None = None) -> None:
        self.case, self._device, self._made = types.SimpleNamespace(name=name, batch=2), device, made
        self.asked: list[int] = []

    def device(self) -> str | None:
        return self._device

    def call_s(self) -> float:
        return 0.01

    def pid(self) -> int:
        return 7

    def spend(self, calls: int) -> int:
        self.asked.append(calls)
        return calls if self._made is None else self._made


def test_gpu_memory_is_asked_of_what_runs_on_a_card():
    used = instruments.Instruments(find=lambda: Found((), ("NVML: none",)), gpu_memory={7: 300}.get)
    used.weigh([Weighed("gpu", "cuda:0"), Weighed("other gpu", "CUDA 0"), Weighed("cpu", "CPU")])
    assert used.of("gpu")["gpu_memory_bytes"] == used.of("other gpu")["gpu_memory_bytes"] == 300
    assert "gpu_memory_bytes" not in used.of("cpu")


def test_a_benchmark_with_profiles_reports_layers_and_why_there_are_none(tmp_path, monkeypatch):
    here = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", here)
    (tmp_path / "tiny.onnx").write_bytes(make_graph())
    found = runner.bench(recipe.Bench(
        cases=(str(tmp_path / "tiny.onnx"),), out=str(tmp_path / "report"), backend=("cpu", "benchfakes.fine"),
        rounds=1, block=20, starts=1, warmup_s=0.0, photos=0, timeout_s=600.0, profile_layers=True))
    cpu, fine = found.rows
    assert cpu.layers and cpu.layers_reason is None and cpu.measured
    assert fine.measured and fine.layers == () and "has no profiler" in fine.layers_reason
    assert "energy" in cpu.sensors or "no energy sensor found" in cpu.sensors["energy_reason"]
    told = (tmp_path / "report" / "report.md").read_text()
    assert "compute with integers" in told and "no layers" in told


def test_every_case_gets_its_energy_or_the_reason():
    moment, joules = [0.0], [0.0]

    def read() -> float:
        joules[0] += 30.0
        return joules[0]

    def now() -> float:
        moment[0] += 1.0
        return moment[0]

    counter = Sensor("RAPL package-0", "the processor's packages", True, read)
    used = instruments.Instruments(find=lambda: Found((counter,), ("NVML: none",)), clock=Clock(now, lambda _: None))
    fine, gone, failing = Weighed("fine", "CPU"), Weighed("gone", None), Weighed("failing", "CPU", made=0)
    used.weigh([fine, gone, failing])
    [told] = used.of("fine")["energy"]
    assert fine.asked == [300] and told["images"] == 600 and told["joules_per_image"] == pytest.approx(30 / 600)
    assert "energy" not in used.of("gone") and gone.asked == []
    assert used.of("failing")["energy_reason"] == "the calls of the window failed"
    bare = instruments.Instruments(find=lambda: Found((), ("RAPL: nothing",)))
    bare.weigh([fine])
    assert bare.of("fine") == {"energy_reason": "no energy sensor found (looked for: RAPL: nothing)"}
    assert fine.asked == [300]  # without a sensor nothing is run
