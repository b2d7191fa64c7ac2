"""What the backend openvino has beyond the contract, and the contract with each of its options."""

import dataclasses
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from test_contract_backends import TOLERANCES, OnnxContract
from tiny_bundle import graph_spec, make_graph, reference_logits

from edgetl.backends import openvino
from edgetl.errors import BackendUnavailable, EdgetlError
from edgetl.runtime import processor
from edgetl.runtime.session import GraphSpec, TensorSpec, open_session


class TestOpenvinoThroughput(OnnxContract):
    backend = "openvino"
    package = "openvino"
    options = {"hint": "throughput"}

    def test_info_tells_the_hint_and_the_streams(self, session):
        assert session.info()["hint"] == "throughput"
        assert session.info()["streams"] >= 1


def images(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, 16, 16)).astype(np.float32)


def test_latency_is_one_stream_and_throughput_several():
    told = {}
    for hint in ("latency", "throughput"):
        session = open_session("openvino", make_graph(), graph_spec(), threads=2, options={"hint": hint})
        told[hint] = session.info()
        session.close()
    assert (told["latency"]["hint"], told["latency"]["streams"], told["latency"]["threads"]) == ("latency", 1, 2)
    if openvino._core().get_property("CPU", "RANGE_FOR_STREAMS")[1] < 2:
        pytest.skip("this processor has one core, so there is one stream")
    assert told["throughput"]["streams"] == 2


class Gate:
    """A compiled graph whose requests end only when so many are at work at once."""

    def __init__(self, parties):
        self.barrier = threading.Barrier(parties, timeout=300)

    def create_infer_request(self):
        return self

    def infer(self, feeds, *, share_inputs, share_outputs):
        self.barrier.wait()
        return {0: feeds["image"]}


def test_calls_from_several_threads_are_at_work_together():
    pool = openvino._Pool(Gate(4))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda seed: pool.infer({"image": images(1, seed)})[0], range(4)))
    for seed, one in enumerate(found):
        assert np.array_equal(one, images(1, seed))


def in_place_graph():
    """Its first operation may be computed in the memory of the image."""
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 16, 16])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3, 16, 16])
    nodes = [helper.make_node("Relu", ["image"], ["positive"]), helper.make_node("Neg", ["positive"], ["logits"])]
    made = helper.make_model(helper.make_graph(nodes, "g", [image], [out]),
                             opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return made.SerializeToString()


def test_an_image_that_may_be_written_to_is_not():
    spec = GraphSpec((TensorSpec("image", "image", "float32", ("N", 3, 16, 16)),),
                     (TensorSpec("logits", "logits", "float32", ("N", 3, 16, 16)),))
    session = open_session("openvino", in_place_graph(), spec, threads=1)
    for count in (1, 3):
        feed = images(count)
        first = session.run({"image": feed})["logits"]
        assert np.array_equal(feed, images(count))
        assert np.array_equal(first, -np.maximum(feed, 0))
        feed[:] = 0  # the answer is no view of what the caller may write to
        assert np.array_equal(first, -np.maximum(images(count), 0))
        session.run({"image": images(count, seed=9)})
        assert np.array_equal(first, -np.maximum(images(count), 0))
    session.close()


def processor_with(monkeypatch, *flags):
    found = processor.Processor("x86", "a processor", frozenset(flags), "a test")
    monkeypatch.setattr(processor, "read", lambda *_: found)


ALL = ("FP32", "BF16", "FP16", "INT8")


def test_a_precision_is_offered_where_the_processor_has_it(monkeypatch):
    insist = openvino.insist_on_arithmetic
    processor_with(monkeypatch, "avx2", "avx512_bf16")
    insist("bf16", ALL)
    insist("fp32", ())
    with pytest.raises(BackendUnavailable, match=r"asked for fp16, in which this .* not compute .a processor: avx2, "):
        insist("fp16", ALL)
    with pytest.raises(BackendUnavailable, match="asked for bf16"):
        insist("bf16", ("FP32", "INT8"))  # an OpenVINO that cannot
    processor_with(monkeypatch)
    insist("bf16", ALL)  # nothing is known, and OpenVINO says yes
    processor_with(monkeypatch, "avx2")
    for precision, options in (("fp32", {"precision": "bf16"}), ("bf16", {}), ("fp16", {})):
        spec = dataclasses.replace(graph_spec(), precision=precision)
        with pytest.raises(BackendUnavailable, match=r"does not compute .a processor: avx2.\."):
            open_session("openvino", make_graph(), spec, options=options)
    open_session("openvino", make_graph(), dataclasses.replace(graph_spec(), precision="bf16"),
                 options={"precision": "fp32"}).close()


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_bf16_runs_and_is_told(hint):
    if processor.accelerates("bf16") is None:
        pytest.skip("this processor does not compute in bf16")
    session = open_session("openvino", make_graph(), graph_spec(), threads=1,
                           options={"precision": "bf16", "hint": hint})
    assert (session.info()["precision"], session.info()["float_precision"]) == ("fp32", "bf16")
    found, expected = session.run({"image": images(4)})["logits"], reference_logits(images(4))
    assert np.abs(found - expected).max() < TOLERANCES["bf16"] * np.abs(expected).max()
    session.close()


def test_unknown_values_are_refused():
    with pytest.raises(EdgetlError, match=r"'hint' of the backend 'openvino' is 'fast'; expected one of latency, thr"):
        open_session("openvino", make_graph(), graph_spec(), options={"hint": "fast"})


@pytest.mark.parametrize("pin", ["off", "on"])
def test_threads_are_bound_to_cores_only_where_that_is_asked_for(monkeypatch, pin):
    asked = []
    config = openvino._config
    monkeypatch.setattr(openvino, "_config", lambda *given: asked.append(config(*given)) or asked[-1])
    session = open_session("openvino", make_graph(), graph_spec(), threads=1, options={"pin": pin})
    assert session.info()["pin"] is (pin == "on")
    assert asked[0]["ENABLE_CPU_PINNING"] == {"off": "NO", "on": "YES"}[pin]
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    assert np.abs(session.run({"image": images(2)})["logits"] - reference_logits(images(2))).max() < 1e-4
    assert before is None or pin == "on" or os.sched_getaffinity(0) == before
    session.close()


def test_threads_are_not_bound_by_default():
    session = open_session("openvino", make_graph(), graph_spec(), threads=1)
    assert session.info()["pin"] is False
    session.close()
