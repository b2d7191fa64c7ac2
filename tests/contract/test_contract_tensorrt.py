"""The backends' contract over TensorRT: on a card where there is one, and on a made-up card anywhere.

The made-up card and engine (`made_up_cuda.py`, `made_up_engine.py`) do nothing before the stream is waited for, and
note whatever a card would punish: the contract passes only where nothing was noted.
"""

from __future__ import annotations

import gc

import made_up_engine
import made_up_torch
import pytest
from made_up_cuda import Runtime
from test_contract_backends import OnnxContract

from edgetl.backends import _cuda, _tensorrt_flavor, tensorrt
from edgetl.backends._cuda_python import CudaPython
from edgetl.backends._cuda_torch import CudaTorch
from edgetl.backends._tensorrt_build import Engine
from edgetl.bench.cases import spec_to_json
from edgetl.bench.worker import Worker
from edgetl.errors import BundleError
from edgetl.runtime.session import check_graph


@pytest.fixture
def runtime():
    """A made-up CUDA runtime; at the end everything must have been given back, and nothing noted."""
    runtime = Runtime()
    tensorrt._probed.cache_clear()
    yield runtime
    tensorrt._probed.cache_clear()
    gc.collect()
    assert runtime.card.violations == runtime.card.left() == []


def build_made_up(graph, spec, flavor, how, *, timing_cache=None, progress=None):
    """A made-up plan, in the place of `_tensorrt_build.build`."""
    import onnx

    try:
        onnx.checker.check_model(onnx.load_from_string(graph))
    except Exception as problem:
        raise BundleError("The graph cannot be parsed.") from problem
    model = onnx.load_from_string(graph)
    check_graph("tensorrt", [one.name for one in model.graph.input], [one.name for one in model.graph.output], spec)
    plan = made_up_engine.make_plan(graph, (how.batches,), flavor.version)
    return Engine(plan, {spec.precision: 1.0}, 0.25, None)


class TensorrtContract(OnnxContract):
    """What all of them share."""

    backend = "tensorrt"
    # Layers are told one by one without CUDA graphs, and nobody asks a profiled session where its engine comes from.
    profiler_changes = ("cuda_graph", "engine", "proofs", "unproven")


class MadeUp(TensorrtContract):
    """TensorRT over a made-up card."""

    package = "tensorrt-cu13-bindings"
    precisions = ("fp32", "fp16", "int8")
    flavor = "tensorrt"

    @classmethod
    def missing(cls):
        return None

    @pytest.fixture(autouse=True)
    def _made_up(self, runtime, monkeypatch):
        self.runtime = runtime
        flavor = made_up_engine.flavor(runtime.card, self.flavor, package=self.package)
        monkeypatch.setattr(_cuda, "find", lambda: self.door(runtime))
        monkeypatch.setattr(_tensorrt_flavor, "find", lambda wanted="auto": flavor)
        monkeypatch.setattr(tensorrt, "build", build_made_up)

    def door(self, runtime):
        """The way to the CUDA runtime."""
        return CudaPython(runtime, "13.5")

    def installed(self):
        return self.package, "11.4"


class TestMadeUp(MadeUp):
    options = {"cuda_graph": "off"}


class TestMadeUpGraphs(MadeUp):
    options = {"cuda_graph": "on"}

    def test_the_benchmark_gets_the_device_s_own_time_and_the_layers(self, graph, spec, tmp_path):
        (tmp_path / "tiny.onnx").write_bytes(graph)
        about = {"backend": "tensorrt", "graph": str(tmp_path / "tiny.onnx"), "spec": spec_to_json(spec), "threads": 1,
                 "batch": 4}
        worker = Worker(lambda told: None)
        opened = worker.answer({"do": "open", **about})
        assert opened["tells_device"] and opened["session"]["cuda_graph"] == "on"
        timed = worker.answer({"do": "block", "n": 12, "interval_s": None, "drop": 2})
        alone = worker.answer({"do": "device", "n": 12, "interval_s": None, "drop": 2})
        assert len(timed["seconds"]) == 10 and alone == {"device_s": pytest.approx([4 * made_up_engine.IMAGE_S] * 10)}
        assert worker.answer({"do": "close"}) == {}
        profiled = worker.answer({"do": "profile", **about, "calls": 15})
        assert profiled["layers"][0]["op"] == "CaskConvolution" and profiled["profiled_s"] > 0
        assert profiled["layers_s"] == pytest.approx(sum(one["median_s"] for one in profiled["layers"]))


class TestMadeUpTorch(MadeUp):
    """Without cuda-python."""

    def door(self, runtime):
        return CudaTorch(made_up_torch.made_up(runtime))

    @pytest.fixture(autouse=True)
    def _driver(self, monkeypatch):
        monkeypatch.setattr(_cuda, "driver_cuda", lambda: 13000)


class TestMadeUpRtx(MadeUp):
    flavor = "rtx"
    package = "tensorrt-rtx-cu13-bindings"


@pytest.mark.gpu
class TestTensorrt(TensorrtContract):
    """The real thing."""

    precisions = ("fp32", "fp16", "bf16", "int8")

    @property
    def package(self):
        return _tensorrt_flavor.find().package
