"""The session of a TensorRT engine on a made-up card, which notes whatever a real one would punish."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import made_up_engine
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_cuda import COPY_S, Card, Error, Runtime
from made_up_engine import IMAGE_S, WEIGHTS, WORKSPACE, GraphStrategy, Specialization
from tiny_bundle import SIZE, graph_spec, make_graph, reference_logits

from edgetl.backends import _cuda_python, _tensorrt_flavor, _tensorrt_lane, _tensorrt_log
from edgetl.backends._cuda_python import CudaPython
from edgetl.backends._tensorrt_opened import Opened, Port, Profile
from edgetl.backends._tensorrt_session import Pool, TensorrtSession
from edgetl.errors import BackendUnavailable, BundleError, GateFailed, InputError
from edgetl.runtime.session import GraphSpec, TensorSpec

GRAPH = make_graph()
IMAGE_BYTES = 3 * SIZE * SIZE * 4


def feeds_of(count, seed=0):
    return {"image": np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)}


def right(session, count, seed=0):
    feeds = feeds_of(count, seed)
    return np.abs(session.run(feeds)["logits"] - reference_logits(feeds["image"])).max() < 1e-4


class Machine:
    """A made-up card, and sessions on it."""

    def __init__(self, *, flavor="tensorrt", **card):
        self.runtime = Runtime(Card(**card))
        self.card = self.runtime.card
        self.cuda = CudaPython(self.runtime, "13.5")
        self.flavor = made_up_engine.flavor(self.card, flavor)

    def open(self, spec=None, *, graph=GRAPH, plan=None, cuda_graph=False, **about):
        plan = made_up_engine.make_plan(graph, **about) if plan is None else plan
        return TensorrtSession(plan, self.flavor, self.cuda, spec or graph_spec(), threads=1, cuda_graph=cuda_graph,
                               facts={"from": "a test"})

    def calls(self, name):
        return self.runtime.calls.count(name)


@pytest.fixture
def machine():
    machine = Machine()
    yield machine
    assert machine.card.violations == []


def test_info_tells_the_card_the_engine_and_the_facts(machine):
    session = machine.open()
    told = session.info()
    assert told["provider"] == "TensorRT 11.4" and told["device"] == "cuda:0"
    assert told["card"] == "Made-up 4090"
    assert told["compute_capability"] == "8.9" and told["cuda_through"] == "cuda-python 13.5"
    assert told["batches"] == [1, 1, 32] and told["precisions"] == {"fp32": 1.0} and told["from"] == "a test"
    session.close()


# ------------------------------------------------------------------------------------------------------------ buffers


def test_buffers_grow_to_powers_of_two_and_at_most_to_the_greatest_batch(machine):
    session = machine.open(batches=((1, 1, 20),))
    sizes = []
    for count in (1, 2, 3, 2, 9, 20, 45):
        assert right(session, count)
        sizes.append(max(len(block.array) for block in machine.card.device.values() if block.alive) // IMAGE_BYTES)
    assert sizes == [1, 2, 4, 4, 16, 20, 20]
    session.close()
    assert machine.card.left() == []


def test_calls_copy_no_more_than_they_need(machine):
    session = machine.open()
    session.run(feeds_of(8))
    before = machine.runtime.calls.copy()
    session.run(feeds_of(8))
    made = machine.runtime.calls[len(before):]
    assert [one for one in made if "Malloc" in one or "HostAlloc" in one or "StreamCreate" in one] == []
    assert made.count("cudaMemcpyAsync") == 2 and made.count("cudaStreamSynchronize") == 1


def test_the_card_that_was_current_in_the_thread_is_so_again(machine):
    session = machine.open()
    machine.runtime.current.card = 3
    assert right(session, 2)
    assert machine.runtime.current.card == 3
    session.close()
    assert machine.runtime.current.card == 3


# -------------------------------------------------------------------------------------------------------- CUDA graphs


def test_a_batch_is_replayed_from_its_second_call_on(machine):
    session = machine.open(cuda_graph=True)
    assert session.info()["cuda_graph"] == "on" and machine.card.launches == 1  # of the best batch, when it opened
    launches = []
    for count in (1, 3, 3, 3, 1):  # 3 needs larger buffers, so that 1 has to be recorded again
        before = machine.card.launches
        assert right(session, count, seed=count)
        launches.append(machine.card.launches - before)
    assert launches == [1, 0, 1, 1, 1]
    assert machine.calls("cudaGraphInstantiate") == 3
    session.close()
    assert machine.card.left() == []


def test_only_so_many_batches_are_recorded(machine):
    session = machine.open(cuda_graph=True, batches=((1, 16, 16),))
    for count in range(1, 17):
        for seed in range(3):
            assert right(session, count, seed)
    assert machine.calls("cudaGraphInstantiate") == _tensorrt_lane.GRAPHS
    session.close()
    assert machine.card.left() == []


def test_an_engine_that_cannot_be_recorded_runs_and_says_so(machine):
    session = machine.open(cuda_graph=True, capturable=False)
    assert session.info()["cuda_graph"].startswith("off: No CUDA graph could be recorded of a batch of 1: TensorRT")
    assert "not permitted when stream is capturing" in session.info()["cuda_graph"]
    assert all(right(session, 2, seed) for seed in range(3)) and machine.card.launches == 0
    session.close()
    assert machine.card.left() == []


@pytest.mark.parametrize("function", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_recording_that_fails_later_is_told_and_not_passed_over(machine, function):
    session = machine.open(cuda_graph=True)
    assert right(session, 2)
    machine.runtime.fail[function] = Error.cudaErrorStreamCaptureInvalidated
    with pytest.raises(BackendUnavailable, match=r"batch of 2: CUDA failed while .*StreamCaptureInvalidated") as caught:
        session.run(feeds_of(2))
    assert "cuda_graph=off" in caught.value.hint
    assert right(session, 2) and right(session, 2)
    session.close()
    # What the failing call itself would have given back on a card is not there to be given back.
    assert [one for one in machine.card.left() if one != "a graph"] == []


def test_rtx_records_by_itself_compiles_at_once_and_shares_what_it_compiled():
    for asked, strategy in ((True, GraphStrategy.WHOLE_GRAPH_CAPTURE), (False, GraphStrategy.DISABLED)):
        machine = Machine(flavor="rtx")
        session = machine.open(cuda_graph=asked)
        inside = threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            def call(seed):
                inside.wait()  # noqa: B023
                return right(session, 2, seed)  # noqa: B023
            assert all(pool.map(call, range(2)))
        native = session._handle.native.opened.native
        made = [context.how for context in native.contexts]
        assert made and {one.cuda_graph_strategy for one in made} == {strategy}
        assert {one.dynamic_shapes_kernel_specialization_strategy for one in made} == {Specialization.EAGER}
        assert len({id(one.cache) for one in made}) == 1
        assert session.info()["cuda_graph"] == ("on: recorded by TensorRT for RTX" if asked else "off")
        assert machine.calls("cudaStreamBeginCapture") == 0
        del native, made
        session.close()
        assert machine.card.left() == [] and machine.card.violations == []


# ------------------------------------------------------------------------------------------------- the device's time


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_the_device_s_time_is_the_engine_s_alone(machine, cuda_graph):
    session = machine.open(cuda_graph=cuda_graph)
    for _ in range(3):  # also in the call that records
        assert session.device_s(feeds_of(4)) == pytest.approx(4 * IMAGE_S)
    assert session.device_s(feeds_of(67)) == pytest.approx(67 * IMAGE_S)  # in parts
    session.run(feeds_of(4))  # the buffers have grown, so that it is recorded again
    before = machine.card.clock_s
    session.run(feeds_of(4))
    assert machine.card.clock_s - before == pytest.approx(4 * IMAGE_S + 2 * COPY_S)
    session.close()
    assert machine.card.left() == []


# ------------------------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize(("batches", "found", "parts"), [
    (((1, 1, 32),), 67, [23, 22, 22]), (((4, 8, 16),), 17, [9, 8]), (((4, 4, 4),), 8, [4, 4]),
    (((1, 1, 4), (5, 8, 16)), 3, [3]), (((1, 1, 4), (5, 8, 16)), 12, [12]),
    (((1, 1, 4), (1, 8, 16)), 40, [14, 13, 13])])
def test_a_batch_runs_in_parts_that_the_engine_takes(machine, monkeypatch, batches, found, parts):
    session = machine.open(batches=batches)
    run = []
    monkeypatch.setattr(made_up_engine.Context, "execute_async_v3", seen(made_up_engine.Context, run))
    assert right(session, found)
    assert run == parts
    session.close()


def seen(context, run):
    original = context.execute_async_v3

    def execute(self, stream):
        run.append(next(iter(self.shapes.values()))[0])
        return original(self, stream)
    return execute


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=3), st.integers(1, 90))
@settings(deadline=None, max_examples=60)
def test_the_parts_of_any_batch_are_its_images_and_fit_or_it_is_refused(ranges, batch):
    opened = object.__new__(Opened)
    opened.profiles = tuple(Profile(index, least, least, least + more) for index, (least, more) in enumerate(ranges))
    opened.inputs = opened.outputs = (Port("x", np.dtype("float32"), ("N", 3)),)
    opened._parts = {}
    fits = {size for least, more in ranges for size in range(least, least + more + 1)}
    try:
        parts = opened.parts(batch)
    except InputError as problem:
        assert batch not in fits and str(batch) in problem.message
        # Never where any split into nearly equal parts of the fewest would do.
        count = -(-batch // max(fits))
        assert count == 1 or not {batch // count, -(-batch // count)} <= fits
    else:
        assert sum(parts) == batch and set(parts) <= fits and max(parts) - min(parts) <= 1
        assert (len(parts) == 1) == (batch in fits)


def test_profiles_are_changed_with_the_batch(machine):
    session = machine.open(batches=((1, 1, 4), (5, 8, 16)), cuda_graph=True)
    assert all(right(session, count, seed) for seed in range(3) for count in (2, 7, 2, 16))
    session.close()


@pytest.mark.parametrize(("batches", "found", "says"), [
    (((4, 8, 16),), 3, "batches of 4 to 16; found 3"), (((4, 4, 4),), 6, "batches of 4; found 6"),
    (((1, 1, 2), (6, 8, 8)), 4, "batches of 1 to 2 or 6 to 8; found 4")])
def test_a_batch_that_no_profile_takes_is_refused_and_harms_nothing(machine, batches, found, says):
    session = machine.open(batches=batches)
    streams = machine.calls("cudaStreamCreateWithFlags")
    with pytest.raises(InputError, match=says):
        session.run(feeds_of(found))
    assert machine.calls("cudaStreamCreateWithFlags") == streams
    session.close()


# ------------------------------------------------------------------------------------------- threads, closing, forks


def test_calls_that_overlap_have_a_stream_and_a_context_each(machine, monkeypatch):
    session = machine.open(cuda_graph=True)
    inside = threading.Barrier(3, timeout=600)
    original = _cuda_python.PythonStream.finish

    def meet(self):
        if threading.current_thread() is not threading.main_thread():
            inside.wait()  # all three have queued their work
        original(self)

    monkeypatch.setattr(_cuda_python.PythonStream, "finish", meet)
    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(lambda seed: right(session, 2, seed), range(3)))
    assert machine.calls("cudaStreamCreateWithFlags") == 3
    monkeypatch.setattr(_cuda_python.PythonStream, "finish", original)
    assert all(right(session, 2, seed) for seed in range(9)) and machine.calls("cudaStreamCreateWithFlags") == 3
    session.close()
    assert machine.card.left() == []


def test_closed_meanwhile_the_last_call_gives_the_card_back(machine, monkeypatch):
    session = machine.open()
    assert right(session, 1)
    inside, closed = threading.Event(), threading.Event()
    original = _cuda_python.PythonStream.finish

    def wait(self):
        inside.set()
        assert closed.wait(600)
        original(self)

    monkeypatch.setattr(_cuda_python.PythonStream, "finish", wait)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(right, session, 5)
        assert inside.wait(600)
        session.close()
        assert machine.card.left() != []
        closed.set()
        assert answer.result()
    assert machine.card.left() == []
    with pytest.raises(BackendUnavailable, match="is closed"):
        session.device_s(feeds_of(1))


def test_a_session_that_nobody_closes_gives_the_card_back(machine):
    session = machine.open(cuda_graph=True)
    assert right(session, 2)
    del session
    gc.collect()
    assert machine.card.left() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot fork here")
def test_a_forked_child_is_told_and_never_touches_the_card(machine):
    session = machine.open()
    assert right(session, 1)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(300)
        calls = len(machine.runtime.calls)
        try:
            session.run(feeds_of(1))
        except BackendUnavailable as problem:
            said = problem.message
        session.close()
        del session
        gc.collect()
        os.write(write, f"{len(machine.runtime.calls) - calls} {said}".encode())
        os._exit(0)
    os.close(write)
    told = os.read(read, 1000).decode()
    os.waitpid(child, 0)
    os.close(read)
    assert told.startswith("0 The session of the backend 'tensorrt' was opened in process")
    assert right(session, 1)
    session.close()


# ----------------------------------------------------------------------------------------------- refusals and memory


def test_an_engine_for_which_the_card_has_no_memory():
    machine = Machine(capacity=WEIGHTS // 2)
    with pytest.raises(BackendUnavailable, match=r"out of memory: 0\.1 MiB is needed for the engine, .* is free"):
        machine.open()
    assert machine.card.left() == [] and machine.card.violations == []


def test_no_memory_for_a_large_batch_leaves_the_small_ones():
    machine = Machine(capacity=WEIGHTS + WORKSPACE + 8 * (IMAGE_BYTES + 12))
    session = machine.open()
    assert right(session, 4)
    needed = -(-16 * IMAGE_BYTES * 10 // 2**20) / 10
    with pytest.raises(BackendUnavailable, match=rf"{needed} MiB is needed for 'image' of a batch of 16, .*is free"):
        session.run(feeds_of(16))
    assert right(session, 4)
    session.close()
    assert machine.card.left() == [] and machine.card.violations == []


def test_no_memory_for_one_more_thread_s_workspace():
    for flavor, what in (("tensorrt", "the workspace of one call"), ("rtx", "an execution context")):
        machine = Machine(flavor=flavor, capacity=WEIGHTS)
        session = machine.open()
        others = machine.cuda.device_memory(WEIGHTS - WORKSPACE // 2, "what another process holds")
        with pytest.raises(BackendUnavailable, match=f"is needed for {what}"):
            session.run(feeds_of(1))
        session.close()
        others.free()
        assert machine.card.left() == []


def test_no_page_locked_memory(machine):
    session = machine.open()
    machine.runtime.fail["cudaHostAlloc"] = Error.cudaErrorMemoryAllocation
    with pytest.raises(BackendUnavailable, match=r"no 0\.1 MiB of page-locked memory for 'image' of a batch of 2"):
        session.run(feeds_of(2))
    assert right(session, 2)
    session.close()
    assert machine.card.left() == []


@pytest.mark.parametrize(("function", "says"), [
    ("cudaMemcpyAsync", "copying to the card: cudaErrorIllegalAddress"),
    ("cudaStreamSynchronize", "waiting for the card: cudaErrorIllegalAddress")])
def test_a_call_that_fails_says_at_what_and_the_next_has_a_lane_of_its_own(machine, function, says):
    session = machine.open()
    assert right(session, 2)
    machine.runtime.fail[function] = Error.cudaErrorIllegalAddress
    with pytest.raises(BackendUnavailable, match=says) as caught:
        session.run(feeds_of(2))
    assert "start it again" in caught.value.hint
    assert right(session, 2)
    session.close()
    assert machine.card.left() == []


def test_what_tensorrt_says_of_a_call_that_it_refuses(machine, monkeypatch):
    session = machine.open()

    def refuse(self, stream):
        self.engine.error("IExecutionContext::enqueueV3: Error Code 1: Myelin (the kernel is missing)")
        return False

    monkeypatch.setattr(made_up_engine.Context, "execute_async_v3", refuse)
    with pytest.raises(BackendUnavailable, match=r"failed while it ran the engine: the kernel is missing"):
        session.run(feeds_of(1))
    session.close()
    assert machine.card.left() == []


@pytest.mark.parametrize(("plan", "says"), [
    (b"", "it is no engine"), (b"this is no plan", "Magic tag does not match"),
    (made_up_engine.make_plan(GRAPH, version="10.3"), "Version tag does not match")])
def test_a_plan_that_tensorrt_refuses_is_one_sentence_with_its_reason(machine, plan, says):
    with pytest.raises(BundleError, match=rf"^TensorRT 11.4 cannot open the engine: [^\n]*{says}[^\n]*\.$") as caught:
        machine.open(plan=plan)
    assert "Build the engine again" in caught.value.hint


def test_the_real_tensorrt_without_a_driver_says_that_there_is_none(machine):
    """Deserialising is where a machine without a card ends: the engine itself is built here."""
    flavors = [one for one in _tensorrt_flavor.installed() if one.name == "rtx"]
    if not flavors:
        pytest.skip("TensorRT for RTX is not installed, which builds engines without a card")
    from edgetl.backends import _cuda, _tensorrt_build

    try:
        _cuda.driver_cuda()
    except BackendUnavailable:
        pass
    else:
        pytest.skip("an NVIDIA driver is installed here")
    how = _tensorrt_build.How(compute_capabilities=("8.9",))
    plan = _tensorrt_build.build(GRAPH, graph_spec(), flavors[0], how).plan
    with pytest.raises(BackendUnavailable, match=r"There is no NVIDIA driver: TensorRT for RTX 1.* finds none"):
        TensorrtSession(plan, flavors[0], machine.cuda, graph_spec(), threads=1, cuda_graph=False, facts={})


def test_an_engine_of_another_spec_is_refused_and_given_back(machine):
    image, logits = graph_spec().inputs[0], graph_spec().outputs[0]
    for inputs, outputs, says in [
        (dataclasses.replace(image, dtype="uint8"), logits, "Input 'image' of the engine is float32 .*expected uint8"),
        (dataclasses.replace(image, shape=("N", 3, 9, SIZE)), logits, r"\[N, 3, 16, 16\]; expected .* \[N, 3, 9, 16\]"),
        (image, dataclasses.replace(logits, shape=("N", 7)), r"Output 'logits' .* \[N, 3\]; expected .* \[N, 7\]"),
        (image, dataclasses.replace(logits, shape=(1, 3)), "Output 'logits' of the engine"),
        (image, TensorSpec("scores", "logits", "float32", ("N", 3)), r"outputs \['logits'\]; expected \['scores'\]"),
    ]:
        with pytest.raises(BundleError, match=says):
            machine.open(GraphSpec((inputs,), (outputs,)))
    for about in ({"location": "HOST"}, {"form": "CHW32"}):
        with pytest.raises(BundleError, match="is not a plain array on the card"):
            machine.open(**about)
    assert machine.card.left() == [] and _tensorrt_log.logger(machine.flavor.module).ears == []


def test_an_engine_that_computes_in_another_precision_is_refused_and_given_back(machine):
    with pytest.raises(GateFailed, match=r"fp16 was asked for, but the engine of .* computes in 100 % fp32"):
        machine.open(dataclasses.replace(graph_spec(), precision="fp16"), cuda_graph=True)
    assert machine.card.left() == [] and _tensorrt_log.logger(machine.flavor.module).ears == []


# -------------------------------------------------------------------------------------- the made-up card sees mistakes


def test_the_made_up_runtime_offers_nothing_that_the_real_one_lacks():
    found = [one.module for one in _tensorrt_flavor.installed()]
    if not found:
        pytest.skip("no TensorRT is installed")
    for real in found:
        for made, name in ((made_up_engine.Engine, "ICudaEngine"), (made_up_engine.Context, "IExecutionContext"),
                           (made_up_engine.Runtime, "Runtime"), (made_up_engine.RuntimeConfig, "IRuntimeConfig")):
            offered = {one for one in vars(made) if not one.startswith("_")} - {"error"}
            if made is made_up_engine.RuntimeConfig and not hasattr(real, "CudaGraphStrategy"):
                continue  # TensorRT itself is never asked for one
            assert [one for one in offered if not hasattr(getattr(real, name), one)] == []
        for name, made in (("TensorIOMode", made_up_engine.Mode), ("TensorLocation", made_up_engine.Location),
                           ("TensorFormat", made_up_engine.Format), ("DataType", made_up_engine.DataType),
                           ("ExecutionContextAllocationStrategy", made_up_engine.Strategy)):
            assert set(made.__members__) <= set(getattr(real, name).__members__)
    rtx = next((one for one in found if hasattr(one, "CudaGraphStrategy")), None)
    if rtx is not None:
        assert set(GraphStrategy.__members__) <= set(rtx.CudaGraphStrategy.__members__)
        real = rtx.DynamicShapesKernelSpecializationStrategy
        assert set(Specialization.__members__) <= set(real.__members__)


def test_the_made_up_cuda_offers_nothing_that_the_real_one_lacks():
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    names = [name for name in vars(Runtime) if name.startswith("cuda")]
    assert len(names) > 20 and [name for name in names if not hasattr(real, name)] == []
    for made in (Error, Runtime.cudaDeviceAttr, Runtime.cudaMemcpyKind):
        assert all(getattr(getattr(real, real_name(made)), one.name).value == one.value for one in made)
    assert hasattr(real.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")


def real_name(made):
    return next(name for name in ("cudaError_t", "cudaDeviceAttr", "cudaMemcpyKind") if getattr(Runtime, name) is made)


def one_lane_for_all(monkeypatch):
    """All threads share one lane, as if there were no pool."""
    take, shared, one_at_a_time = Pool.take, [], threading.Lock()

    def first(pool):
        with one_at_a_time:
            if not shared:
                shared.append(take(pool))
        return shared[0]

    finish = _cuda_python.PythonStream.finish
    monkeypatch.setattr(Pool, "take", first)
    monkeypatch.setattr(Pool, "give_back", lambda pool, lane, broken=False: None)
    # Others come in meanwhile.
    monkeypatch.setattr(_cuda_python.PythonStream, "finish", lambda self: time.sleep(0.005) or finish(self))


MUTANTS = {
    "it does not wait for the card": lambda patch: patch.setattr(
        _cuda_python.PythonStream, "finish", lambda self: None),
    "buffers are given back and used on": lambda patch: patch.setattr(
        _tensorrt_lane.Buffers, "__init__", given_back(_tensorrt_lane.Buffers.__init__)),
    "all threads share a lane": one_lane_for_all,
    "recordings are kept when the buffers grow": lambda patch: patch.setattr(
        _tensorrt_lane.Recorded, "free", lambda self: None) or patch.setattr(
        _tensorrt_lane.Lane, "_free_buffers", forgetful),
}


def given_back(original):
    def made(self, cuda, port, batch):
        original(self, cuda, port, batch)
        self.device.free()
    return made


def forgetful(lane):
    for buffers in lane._buffers.values():
        buffers.free()
    lane._buffers, lane._prepared, lane._room, lane._bound = {}, {}, 0, 0  # and not the recordings


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_made_up_card_sees_mistakes(monkeypatch, mutant):
    machine = Machine()
    session = machine.open(cuda_graph=True)
    MUTANTS[mutant](monkeypatch)
    seen = []

    def call(seed):
        try:
            seen.append(right(session, 1 + seed % 3, seed))
        except (BackendUnavailable, KeyError, ValueError) as problem:
            seen.append(problem)

    for seed in range(4):
        call(seed)
    inside = threading.Barrier(4, timeout=600)

    def together(seed):
        inside.wait()
        for step in range(10):
            call(seed + step)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(together, range(4)))
    assert machine.card.violations or not all(isinstance(one, np.bool_) and one for one in seen)
