"""Both doors to the CUDA runtime, cuda-python and PyTorch, over one made-up card: the same answers and sentences."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest
from made_up_cuda import Card, Error, Op, Runtime
from made_up_torch import made_up

from edgetl.backends import _cuda, _cuda_python
from edgetl.backends._cuda_python import CudaPython
from edgetl.backends._cuda_torch import CudaTorch
from edgetl.errors import BackendUnavailable

DOORS = {"cuda-python": lambda runtime: CudaPython(runtime, "13.5"),
         "torch": lambda runtime: CudaTorch(made_up(runtime))}


@pytest.fixture(params=DOORS)
def door(request, monkeypatch):
    """Makes a runtime through one of the doors: door(card) -> (Cuda, the made-up card)."""
    def open_(**card):
        runtime = Runtime(Card(**card))
        monkeypatch.setattr(_cuda, "driver_cuda", lambda: runtime.card.driver)
        return DOORS[request.param](runtime), runtime
    return open_


def test_the_card(door):
    cuda, runtime = door(capacity=2**20)
    kept = cuda.device_memory(2**18, "a test")
    assert cuda.card() == _cuda.Card("Made-up 4090", "8.9", _cuda.driver_version(13000), 2**20, 2**20 - 2**18)
    kept.free()
    kept.free()
    gc.collect()
    assert runtime.card.left() == []


@pytest.mark.parametrize(("card", "says"), [
    ({"driver": 0}, "There is no NVIDIA driver"), ({"cards": 0}, "no card that it can use"),
    ({"driver": 12040}, r"supports CUDA 12.4, which is too old for the CUDA 13\.2 runtime")])
def test_no_driver_one_too_old_and_no_card(door, card, says):
    with pytest.raises(BackendUnavailable, match=says):
        door(**card)


def test_nothing_is_copied_before_the_stream_is_waited_for(door):
    cuda, runtime = door()
    stream, size = cuda.stream(), 1000
    host, device, back = cuda.host_memory(size, "in"), cuda.device_memory(size, "card"), cuda.host_memory(size, "out")
    back.array[:] = 0
    host.array[:] = np.arange(size) % 251
    stream.upload(device, host, size)
    stream.download(back, device, 900)
    assert not back.array.any()
    stream.finish()
    assert np.array_equal(back.array[:900], host.array[:900]) and not back.array[900:].any()
    for one in (host, device, back, stream):
        one.free()
        one.free()
    assert host.array is None
    del one, host, device, back, stream
    gc.collect()
    assert runtime.card.left() == [] and runtime.card.violations == []


def test_marks_tell_the_time_between_them(door):
    cuda, runtime = door()
    stream = cuda.stream()
    before = stream.mark()
    runtime.card.push(stream.handle, Op(lambda: None, 1.5, ()))
    after = stream.mark()
    with pytest.raises(BackendUnavailable, match=r"reading the time between two events: .*NotReady"):
        after.seconds_since(before)
    stream.finish()
    assert after.seconds_since(before) == pytest.approx(1.5)
    before.free()
    after.free()
    del before, after
    gc.collect()
    assert [one for one in runtime.card.left() if "event" in one] == []


def test_what_is_recorded_is_done_when_it_is_launched_and_as_often(door):
    cuda, runtime = door()
    stream, done = cuda.stream(), []
    replay = stream.capture(lambda: runtime.card.push(stream.handle, Op(lambda: done.append(1), 0.0, ())))
    stream.finish()
    assert done == []
    for _ in range(3):
        replay.launch()
    stream.finish()
    assert done == [1, 1, 1]
    replay.free()
    replay.free()
    assert "a graph" not in runtime.card.left()


def test_a_recording_whose_work_fails_ends_and_the_stream_goes_on(door):
    cuda, runtime = door()
    stream = cuda.stream()

    def fail():
        raise BackendUnavailable("the work fails")

    with pytest.raises(BackendUnavailable, match="the work fails"):
        stream.capture(fail)
    memory = cuda.device_memory(64, "what may not be taken while it records")
    stream.finish()
    memory.free()
    assert runtime.card.violations == []


def test_out_of_memory(door):
    cuda, runtime = door(capacity=2**21)
    with pytest.raises(BackendUnavailable, match=r"4\.0 MiB is needed for a test, 2\.0 MiB of 2\.0 MiB is free"):
        cuda.device_memory(2**22, "a test")
    runtime.fail["cudaHostAlloc"] = Error.cudaErrorMemoryAllocation
    with pytest.raises(BackendUnavailable, match=r"no 4\.0 MiB of page-locked memory for a test"):
        cuda.host_memory(2**22, "a test")


def test_the_card_is_current_while_it_is_used_and_what_was_before_after(door):
    cuda, runtime = door()
    runtime.current.card = 2
    with cuda.on_card():
        assert runtime.current.card == _cuda.CARD
    assert runtime.current.card == 2


@pytest.mark.parametrize(("function", "doing", "call"), [
    ("cudaStreamSynchronize", "waiting for the card", lambda cuda, stream: stream.finish()),
    ("cudaEventRecord", "recording an event", lambda cuda, stream: stream.mark()),
    ("cudaStreamBeginCapture", "a CUDA graph", lambda cuda, stream: stream.capture(lambda: None))])
def test_a_failure_names_the_error_and_what_was_being_done(door, function, doing, call):
    cuda, runtime = door()
    stream = cuda.stream()
    runtime.fail[function] = Error.cudaErrorIllegalAddress
    with pytest.raises(BackendUnavailable, match=rf"^CUDA failed while \w*.*{doing}: .*IllegalAddress[^\n]*\.$"):
        call(cuda, stream)


def test_which_door_is_taken(monkeypatch):
    runtime = Runtime()
    monkeypatch.setattr(_cuda, "driver_cuda", lambda: 13000)
    monkeypatch.setattr(_cuda_python, "_module", lambda: runtime)
    monkeypatch.setitem(sys.modules, "torch", made_up(runtime))
    assert _cuda.find().name == "cuda-python"
    monkeypatch.setattr(_cuda_python, "_module", lambda: None)
    found = _cuda.find()
    assert (found.name, found.versions) == ("torch", {"torch": "2.15.0+cu132"})
    monkeypatch.setitem(sys.modules, "torch", made_up(runtime, cuda=None))
    with pytest.raises(BackendUnavailable, match="neither cuda-python nor PyTorch with CUDA"):
        _cuda.find()


def test_before_version_12_6_cuda_python_has_another_name(monkeypatch):
    for name in ("cuda.bindings", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    old = Runtime()
    package = type(sys)("cuda")
    package.cudart = old
    monkeypatch.setitem(sys.modules, "cuda", package)
    assert _cuda_python._module() is old
    monkeypatch.delattr(package, "cudart")
    assert _cuda_python._module() is None
