"""The bookkeeping of benchmarks/runtime_overhead.py's part start and of benchmarks/import_time.py's sizes."""

import sys
from importlib import metadata
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import import_time
import runtime_overhead
from runtime_overhead import START, Start


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory in use is read from Linux")
def test_a_fresh_process_tells_its_own_seconds_memory_and_answer():
    large = bytearray(b"x") * (1 << 27)  # the process that asks is larger than those that it asks
    code = "kept = bytearray(b'x') * (1 << 26)\nanswer = 3"
    found = runtime_overhead.started({"small": START.format("pass"), "64 MiB": START.format(code)}, rounds=2)
    assert {name: [one.answer for one in told] for name, told in found.items()} == {"small": [None] * 2,
                                                                                    "64 MiB": [3] * 2}
    assert all(one.seconds > 0 for told in found.values() for one in told)
    for small, big in zip(found["small"], found["64 MiB"], strict=True):
        assert (1 << 26) - (1 << 22) < big.peak_bytes - small.peak_bytes < (1 << 26) + (1 << 22)
        assert big.peak_bytes < len(large)


def test_a_file_for_litert_of_another_model_is_refused():
    same = {"onnxruntime": [Start(0.1, 1, 3), Start(0.2, 1, 3)], "ai-edge-litert": [Start(0.1, 1, 3)]}
    runtime_overhead.require_one_model(same, Path("student.tflite"))
    with pytest.raises(SystemExit, match=r"other\.tflite is not the bundle's model"):
        runtime_overhead.require_one_model(same | {"ai-edge-litert": [Start(0.1, 1, 4)]}, Path("other.tflite"))


def test_required_distributions_are_followed_without_numpy_and_without_extras(monkeypatch):
    needs = {"a": ["b>=2", "numpy", "c; extra == 'more'", "d; python_version < '3'"], "b": ["Not_There.yet", "a"]}
    monkeypatch.setattr(metadata, "requires", needs.get)
    assert import_time.required(["a"]) == {"a", "b", "not-there-yet"}
