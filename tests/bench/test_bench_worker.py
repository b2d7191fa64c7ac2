"""The worker and the fingerprint of the machine, without a child where none is needed."""

from __future__ import annotations

import gc
import subprocess
import sys

import numpy as np
import pytest

from edgetl import timing
from edgetl.bench import process, worker
from edgetl.errors import EdgetlError
from edgetl.runtime import preprocess
from edgetl.runtime.session import GraphSpec, TensorSpec


def spec_of(dtype: str = "float32", role: str = "logits") -> GraphSpec:
    return GraphSpec((TensorSpec("x", "image", dtype, ("N", 3, 4, 4)),), (TensorSpec("y", role, "float32", ("N", 2)),))


def test_paced_calls_keep_the_clock_and_tell_when_they_cannot():
    starts, origin = [], timing.now_s()
    found = timing.block(lambda call: starts.append(timing.now_s()), 6, dropped=0, interval_s=0.02)
    # A busy machine may wake a sleeper late, but no call begins before its moment.
    assert len(found.seconds) == 6 and (np.subtract(starts, origin) >= np.arange(6) * 0.02 - 0.001).all()

    def slow(call):
        timing.sleep_until(timing.now_s() + 0.01)

    found = timing.block(slow, 4, dropped=0, interval_s=0.001)
    assert min(found.seconds) >= 0.01 and found.late_calls == 3
    assert timing.block(slow, 4, dropped=2, interval_s=0.001).late_calls == 2


def test_back_to_back_calls_take_the_inputs_in_turn():
    seen = []

    class Session:
        def run(self, feed):
            seen.append(feed)

    opened = worker.Worker(lambda reply: None)
    opened.session, opened.feeds = Session(), ("a", "b")
    found = opened.block(n=5, interval_s=None, drop=2)
    assert seen == ["a", "b", "a", "b", "a"] and found["late_calls"] is None
    assert len(found["seconds"]) == 3 and all(one > 0 for one in found["seconds"])


def test_the_garbage_collector_rests_while_a_block_is_timed():
    states = []

    def fail(call):
        raise ZeroDivisionError

    timing.block(lambda call: states.append(gc.isenabled()), 3, dropped=1)
    assert states == [False] * 3 and gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        timing.block(fail, 3)
    assert gc.isenabled()


def test_feeds_have_the_shape_and_dtype_of_the_spec():
    feeds = worker.make_feeds(spec_of(), 5)
    assert len(feeds) == worker.POOL
    assert all(feed["x"].shape == (5, 3, 4, 4) and feed["x"].dtype == np.float32 for feed in feeds)
    assert not np.array_equal(feeds[0]["x"], feeds[1]["x"])
    assert worker.make_feeds(spec_of("uint8"), 1)[0]["x"].dtype == np.uint8
    with pytest.raises(EdgetlError, match="dtype int64"):
        worker.make_feeds(spec_of("int64"), 1)


class Wants4:
    """A session that insists on its batch, as fixed graphs do."""

    def run(self, feeds):
        assert feeds["x"].shape[0] == 4
        rows = feeds["x"][:, 0, 0, 0]
        return {"y": np.stack([rows, 1 - rows], axis=1)}


class Echo:
    """A session on the processor."""

    def run(self, feeds):
        return {"y": feeds["x"]}

    def info(self):
        return {}

    def close(self):
        pass


class OnACard(Echo):
    """One that tells how long its card takes: the number of the call."""

    def __init__(self):
        self.calls, self.fed = 0, []

    def device_s(self, feeds):
        self.calls += 1
        self.fed.append(feeds)
        return float(self.calls)


def test_the_device_alone_is_asked_for_each_call_and_the_first_are_dropped():
    asked = worker.Worker(lambda told: None)
    asked.session, asked.feeds = OnACard(), ["a", "b"]
    assert asked.answer({"do": "device", "n": 6, "interval_s": None, "drop": 2}) == {"device_s": [3.0, 4.0, 5.0, 6.0]}
    assert asked.session.fed == ["a", "b"] * 3


def test_a_session_that_takes_pixels_tells_the_device_alone_too(monkeypatch):
    pixels = preprocess.to_dict(preprocess.Preprocess(size_hw=(4, 4)))
    inner = OnACard()
    images = np.zeros((2, 4, 4, 3), np.uint8)
    assert worker.FromPixels(inner, spec_of(), pixels).device_s({"x": images}) == 1.0
    assert inner.fed[0]["x"].shape == (2, 3, 4, 4) and inner.fed[0]["x"].dtype == np.float32
    assert not hasattr(worker.FromPixels(Echo(), spec_of(), pixels), "device_s")


def test_the_last_images_are_padded_to_the_batch_that_was_timed():
    told = []
    predict = worker.fixed_batch(Wants4(), spec_of(), 4, told.append)
    images = np.full((3, 3, 4, 4), 0.25, np.float32)
    assert predict(images).tolist() == [[0.25, 0.75]] * 3
    assert told == [{"progress": 3}]


def test_probabilities_become_logits():
    predict = worker.fixed_batch(Wants4(), spec_of(role="probabilities"), 4, lambda told: None)
    found = predict(np.ones((4, 3, 4, 4), np.float32))
    assert np.isfinite(found).all() and np.allclose(np.exp(found), [[1, 0]] * 4)


def test_peak_memory_is_of_this_process_and_grows():
    before = worker.peak_memory_bytes()
    block = np.ones(before // 8 + 4_000_000)
    assert worker.peak_memory_bytes() >= before + 16_000_000
    assert block.size


def test_gpu_memory_is_what_torch_says_and_none_where_it_holds_none(monkeypatch):
    class Cuda:
        is_initialized = staticmethod(lambda: initialized)
        device_count = staticmethod(lambda: 2)
        max_memory_reserved = staticmethod(lambda device: 1000 * (device + 1))

    class Torch:
        cuda = Cuda

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert worker.gpu_memory_bytes() is None
    monkeypatch.setitem(sys.modules, "torch", Torch)
    initialized = False
    assert worker.gpu_memory_bytes() is None
    initialized = True
    assert worker.gpu_memory_bytes() == 3000


def test_a_fresh_worker_does_not_inherit_the_memory_of_its_parent():
    ballast = np.ones(60_000_000)  # 480 MB, which ru_maxrss would hand down
    code = "from edgetl.bench.worker import peak_memory_bytes; print(peak_memory_bytes())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env=process._environment())
    assert int(found.stdout) < 200_000_000 < ballast.nbytes


def test_only_the_standard_library_is_imported_before_open():
    code = "import sys, edgetl.bench.worker; print([m for m in ('numpy', 'torch', 'PIL') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env=process._environment())
    assert found.stdout.strip() == "[]"


def test_the_end_of_stdin_ends_the_worker():
    child = subprocess.run([sys.executable, "-m", "edgetl.bench.worker"], input="", capture_output=True, text=True,
                           env=process._environment(), timeout=600)
    assert (child.returncode, child.stdout) == (0, "")


def test_requests_before_open_are_answered_with_a_sentence():
    own = process.Process(60)
    try:
        with pytest.raises(process.WorkerFailed, match="the session is not open"):
            own.ask({"do": "block", "n": 20, "interval_s": None, "drop": 10})
    finally:
        own.close()
    own.close()  # a second call does nothing
