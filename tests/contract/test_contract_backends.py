"""What every backend must do, written once; each backend is a subclass with its own way to make a graph.

A backend that needs an NVIDIA GPU is tested by a subclass marked `gpu`, in a file of its own beside this one. Where its
probe says no, its tests are skipped with the probe's words, with `-m gpu` and without (tests/conftest.py).
"""

import dataclasses
import importlib
import json
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import CHANNELS, graph_spec, make_graph, reference_features, reference_logits

from edgetl import plugins
from edgetl.errors import BackendUnavailable, BundleError, EdgetlError, InputError
from edgetl.runtime import processor
from edgetl.runtime.layers import KINDS, open_profiled
from edgetl.runtime.session import GraphSpec, TensorSpec, open_session, usable_threads

# How far logits may be from those that fp32 gives on the processor, as a share of the greatest, by what the graph is
# computed in. A mantissa of 24, 11 (fp16, TF32) and 8 bits (bf16), or 8 bits in all, times what few layers add up.
TOLERANCES = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 5e-3, "bf16": 4e-2, "int8": 0.15}


class BackendContract:
    """The contract; subclasses say `backend` and may override what stands before the first test.

    A class whose backend cannot run here is skipped, in the words of `missing`.
    """

    backend = ""  # as for `open_session`
    package = ""  # the distribution whose version `info` tells
    options = {}  # of every session that a test opens
    precisions = ("fp32",)  # of the graphs that the backend runs
    fp32_runs_as = "fp32"  # "tf32" where the device rounds the factors of an fp32 graph
    profiler_changes = ()  # what `info` of a profiled session tells otherwise, or not
    greatest_batch = None  # where a session takes no more images a call; None: any number
    size = 16

    @property
    def tolerance(self):
        """Greatest difference of fp32 logits to the reference; the tiny graph's are about 1."""
        return TOLERANCES[self.fp32_runs_as]

    @classmethod
    def missing(cls):
        """Why the backend cannot run here, in words; None where it can."""
        available = plugins.load("backends", cls.backend).probe()
        return None if available.usable else available.reason

    def pytest_generate_tests(self, metafunc):
        if "precision" in metafunc.fixturenames:
            metafunc.parametrize("precision", self.precisions)

    def open(self, graph, spec, **more):
        """A session on one thread with the options of the class."""
        return open_session(self.backend, graph, spec, **{"threads": 1, "options": self.options, **more})

    def profiled(self, graph, spec):
        return open_profiled(self.backend, graph, spec, threads=1, options=self.options)

    @pytest.fixture
    def graph(self):
        return make_graph()

    @pytest.fixture
    def spec(self):
        return graph_spec()

    @pytest.fixture
    def session(self, graph, spec):
        session = self.open(graph, spec)
        yield session
        session.close()

    def images(self, count, seed=0):
        return np.random.default_rng(seed).normal(size=(count, 3, self.size, self.size)).astype(np.float32)

    def expected(self, images):
        return reference_logits(images)

    def test_probe_tells_what_would_run(self):
        available = plugins.load("backends", self.backend).probe()
        assert available.usable, available.reason
        assert available.version
        assert available.device
        assert available.reason is None

    def test_names_dtype_and_shape_of_the_outputs(self, session, spec):
        outputs = session.run({spec.inputs[0].name: self.images(1)})
        assert list(outputs) == [one.name for one in spec.outputs]
        logits = outputs[spec.outputs[0].name]
        assert isinstance(logits, np.ndarray)
        assert logits.dtype == np.float32
        assert logits.shape == (1, spec.outputs[0].shape[1])

    @pytest.mark.parametrize("count", [1, 5, 32, 2])
    def test_any_batch_agrees_with_the_reference(self, session, spec, count):
        images = self.images(count, seed=count)
        logits = session.run({spec.inputs[0].name: images})[spec.outputs[0].name]
        assert logits.shape[0] == count
        assert np.abs(logits - self.expected(images)).max() < self.tolerance

    def test_the_batch_may_change_from_call_to_call(self, session, spec):
        name, out, images = spec.inputs[0].name, spec.outputs[0].name, self.images(4)
        whole = session.run({name: images})[out]
        single = np.concatenate([session.run({name: images[i : i + 1]})[out] for i in range(4)])
        again = session.run({name: images})[out]
        assert np.abs(whole - single).max() < self.tolerance
        assert np.array_equal(whole, again)

    def test_a_batch_of_any_size_runs_or_is_refused_in_words(self, session, spec):
        name, out, many = spec.inputs[0].name, spec.outputs[0].name, (self.greatest_batch or 66) + 1
        if self.greatest_batch is None:
            images = self.images(many)
            assert np.abs(session.run({name: images})[out] - self.expected(images)).max() < self.tolerance
        else:
            with pytest.raises(InputError, match=rf"{many}.*{self.greatest_batch}"):
                session.run({name: self.images(many)})
        assert session.run({name: self.images(1)})[out].shape[0] == 1

    def test_results_are_not_overwritten_by_the_next_call(self, session, spec):
        name, out = spec.inputs[0].name, spec.outputs[0].name
        first = session.run({name: self.images(2, seed=1)})[out]
        kept = first.copy()
        session.run({name: self.images(2, seed=2)})
        assert np.array_equal(first, kept)

    def test_the_feed_is_left_as_it_was_and_may_be_read_only_or_not_contiguous(self, session, spec):
        name, out, images = spec.inputs[0].name, spec.outputs[0].name, self.images(2)
        before = images.copy()
        images.flags.writeable = False
        logits = session.run({name: images})[out]
        assert np.array_equal(images, before)
        strided = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        assert not strided.flags.c_contiguous
        assert np.array_equal(session.run({name: strided})[out], logits)

    def test_wrong_feeds_are_refused(self, session, spec):
        name, good = spec.inputs[0].name, self.images(2)
        for feeds, says in [
            ({"nonsense": good}, "nonsense"),
            ({}, name),
            ({name: good, "more": good}, "more"),
            ({name: good.tolist()}, "is a list; expected a numpy array"),
            ({name: good.astype(np.float64)}, "float64; expected float32"),
            ({name: good.astype(">f4")}, "expected float32"),
            ({name: np.zeros(good.shape, np.uint8)}, "uint8; expected float32"),
            ({name: good[None]}, "expected .N, 3"),
            ({name: good[0]}, "expected .N, 3"),
            ({name: good[:, :2]}, "expected .N, 3"),
            ({name: good[:0]}, "at least 1"),
        ]:
            with pytest.raises(InputError, match=says) as caught:
                session.run(feeds)
            assert "\n" not in caught.value.message
        assert session.run({name: good})

    def test_closed_is_closed_and_can_be_opened_again(self, graph, spec):
        feeds = {spec.inputs[0].name: self.images(1)}
        first = self.open(graph, spec)
        logits = first.run(feeds)[spec.outputs[0].name]
        first.close()
        first.close()
        with pytest.raises(BackendUnavailable, match="closed"):
            first.run(feeds)
        second = self.open(graph, spec)
        assert np.array_equal(second.run(feeds)[spec.outputs[0].name], logits)
        second.close()

    def test_two_sessions_are_two(self, graph, spec, session):
        feeds, out = {spec.inputs[0].name: self.images(2)}, spec.outputs[0].name
        other = self.open(graph, spec)
        logits = other.run(feeds)[out]
        other.close()
        assert np.array_equal(session.run(feeds)[out], logits)

    def test_with_a_folder_for_caches_it_is_the_same(self, graph, spec, session, tmp_path):
        feeds, out = {spec.inputs[0].name: self.images(2)}, spec.outputs[0].name
        for _ in range(2):  # what the second finds there is the first's
            cached = self.open(graph, spec, cache_dir=tmp_path)
            assert np.allclose(cached.run(feeds)[out], session.run(feeds)[out], atol=self.tolerance)
            cached.close()

    def test_eight_threads_give_what_one_gives(self, session, spec):
        name, out = spec.inputs[0].name, spec.outputs[0].name
        batches = [self.images(1 + seed % 3, seed=seed) for seed in range(32)]
        serial = [session.run({name: batch})[out] for batch in batches]
        with ThreadPoolExecutor(8) as pool:
            threaded = list(pool.map(lambda batch: session.run({name: batch})[out], batches))
        for one, other in zip(serial, threaded, strict=True):
            assert np.array_equal(one, other)

    def test_closed_by_one_thread_while_others_are_inside(self, graph, spec):
        name, out, batches = spec.inputs[0].name, spec.outputs[0].name, [self.images(2, seed=one) for one in range(4)]
        session = self.open(graph, spec)
        expected = [session.run({name: batch})[out] for batch in batches]
        inside, told = threading.Barrier(5), []

        def call(index):
            inside.wait()
            try:
                for _ in range(1000):
                    assert np.array_equal(session.run({name: batches[index]})[out], expected[index])
            except BackendUnavailable as problem:
                told.append(problem.message)

        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(call, index) for index in range(4)]
            inside.wait()
            session.close()
            for future in futures:
                future.result()
        assert all("closed" in message for message in told)
        with pytest.raises(BackendUnavailable, match="closed"):
            session.run({name: batches[0]})

    def test_the_same_feed_gives_the_same_bits(self, session, spec):
        name, out = spec.inputs[0].name, spec.outputs[0].name
        first = session.run({name: self.images(3)})[out]
        for count in (1, 3, 8, 3):  # whatever stands between
            again = session.run({name: self.images(count)})[out]
            assert count != 3 or np.array_equal(again, first)

    def test_info_is_true(self, session, spec):
        told = session.info()
        assert told["backend"] == self.backend
        assert told["threads"] == 1
        assert told["precision"] == "fp32"
        assert told["provider"] and told["device"]
        package, version = self.installed()
        assert list(told["versions"]) == [package]
        assert told["versions"][package].split("+")[0] == version
        before = json.dumps(told)  # it is sent between processes and written to reports
        session.run({spec.inputs[0].name: self.images(2)})
        assert json.dumps(session.info()) == before

    def test_the_threads_told_are_those_asked_for(self, graph, spec):
        for asked, told in ((2, 2), (0, usable_threads())):
            session = self.open(graph, spec, threads=asked)
            assert session.info()["threads"] == told
            session.close()

    def installed(self):
        from importlib import metadata

        return self.package, metadata.version(self.package)

    def test_a_damaged_graph_is_one_sentence(self, graph, spec, capfd):
        name = spec.outputs[0].name.encode()
        no_text = [graph.replace(name, b"\xff" * len(name))] if name in graph else []
        for damaged in (b"", b"this is no graph", graph[: len(graph) // 2], *no_text):
            with pytest.raises(EdgetlError) as caught:
                self.open(damaged, spec)
            assert "\n" not in caught.value.message
        assert capfd.readouterr().out == ""  # it is for results

    def test_an_unknown_option_is_refused(self, graph, spec):
        with pytest.raises(EdgetlError, match="no option 'turbo'"):
            self.open(graph, spec, options={**self.options, "turbo": "on"})

    def test_the_profiled_session_answers_the_same_and_knows_its_layers(self, graph, spec, session):
        feeds, out = {spec.inputs[0].name: self.images(2)}, spec.outputs[0].name
        profiled = self.profiled(graph, spec)
        for _ in range(5):
            logits = profiled.run(feeds)[out]
        assert np.allclose(logits, session.run(feeds)[out], atol=self.tolerance)
        told, plain = ({name: value for name, value in one.info().items() if name not in self.profiler_changes}
                       for one in (profiled, session))
        assert told == plain
        layers = profiled.layers(2)
        profiled.close()
        profiled.close()
        with pytest.raises(BackendUnavailable, match="closed"):
            profiled.run(feeds)
        assert len(layers) >= 3 and len({one.name for one in layers}) == len(layers)
        assert any("conv" in one.op.lower() for one in layers)
        for one in layers:
            assert one.op and one.executed_as and one.kind in KINDS and one.kind != "integer"
            assert len(one.seconds) == 3 and all(0 <= second < 1 for second in one.seconds)
        assert sum(sum(one.seconds) for one in layers) > 0

    def test_a_profiler_leaves_nothing_behind(self, graph, spec, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        profiled = self.profiled(graph, spec)
        profiled.run({spec.inputs[0].name: self.images(1)})
        profiled.close()  # nobody asked for the layers
        with pytest.raises(EdgetlError):
            open_profiled(self.backend, graph, spec, options={**self.options, "turbo": "on"})
        assert list(tmp_path.iterdir()) == []


class OnnxContract(BackendContract):
    """Backends that open ONNX graphs know the names in them, and take what edgetl exports: halves, Q/DQ, pixels."""

    precisions = ("fp32", "int8")

    def computes(self, precision):
        """Whether this machine computes in the precision; where it does not, the graph must be refused."""
        return True

    def graph_in(self, graph, precision):
        """The graph as a variant of that precision has it."""
        if precision == "fp32":
            return graph
        if precision == "int8":
            return quantized(graph)
        from edgetl.export.half import to_half

        return to_half(graph, precision).graph

    def test_logits_agree_with_those_of_fp32_on_the_processor(self, graph, spec, precision):
        images = self.images(8, seed=4)
        reference = open_session("cpu", graph, spec, threads=1)
        expected = reference.run({"image": images})["logits"]
        reference.close()
        rounded, spec = self.graph_in(graph, precision), dataclasses.replace(spec, precision=precision)
        if not self.computes(precision):
            with pytest.raises(BackendUnavailable, match=f"{precision}.*does not"):
                self.open(rounded, spec)
            return
        session = self.open(rounded, spec)
        logits = session.run({"image": images})["logits"]
        assert session.info()["precision"] == precision
        session.close()
        allowed = TOLERANCES[self.fp32_runs_as if precision == "fp32" else precision]
        assert logits.dtype == np.float32
        assert np.abs(logits - expected).max() < allowed * np.abs(expected).max()

    def test_several_outputs_come_by_name(self, graph, spec):
        features = TensorSpec("flat", "features", "float32", ("N", CHANNELS), "NC")
        images = self.images(3)
        expected = {"flat": reference_features(images), "logits": self.expected(images)}
        for outputs in ((features, *spec.outputs), (*spec.outputs, features)):
            session = self.open(with_features(graph), dataclasses.replace(spec, outputs=outputs))
            found = session.run({"image": images})
            session.close()
            assert set(found) == set(expected)
            for name, values in found.items():
                assert values.shape == expected[name].shape
                assert np.abs(values - expected[name]).max() < self.tolerance * max(1, np.abs(expected[name]).max())

    def test_a_graph_may_take_pixels(self, graph, spec):
        pixels = np.random.default_rng(6).integers(0, 256, (2, self.size, self.size, 3), dtype=np.uint8)
        image = TensorSpec("pixels", "image", "uint8", ("N", self.size, self.size, 3), "NHWC")
        session = self.open(from_pixels(graph), dataclasses.replace(spec, inputs=(image,)))
        expected = self.expected(pixels.transpose(0, 3, 1, 2).astype(np.float32))
        logits = session.run({"pixels": pixels})["logits"]
        with pytest.raises(InputError, match="float32; expected uint8"):
            session.run({"pixels": pixels.astype(np.float32)})
        session.close()
        assert np.abs(logits - expected).max() < self.tolerance * np.abs(expected).max()

    def test_a_spec_of_another_graph_is_refused(self, graph, spec):
        other = GraphSpec(inputs=(TensorSpec("pixels", "image", "float32", ("N", 3, 16, 16)),), outputs=spec.outputs)
        with pytest.raises(BundleError, match=r"inputs \['image'\]; expected \['pixels'\]"):
            self.open(graph, other)

    def test_what_computes_with_integers_is_told(self, graph, spec):
        profiled = self.profiled(self.graph_in(graph, "int8"), spec)
        for _ in range(3):
            profiled.run({"image": self.images(1)})
        kinds = {one.op: one.kind for one in profiled.layers(1)}
        profiled.close()
        assert [kind for op, kind in kinds.items() if "conv" in op.lower()][-1] == "integer"
        assert {"converting", "unknown"} & set(kinds.values())  # OpenVINO fuses the conversion into something nameless


def quantized(graph):
    """The tiny graph with 8-bit weights and activations."""
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        left = [np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)]

        def get_next(self):
            return {"image": self.left.pop()} if self.left else None

    with tempfile.TemporaryDirectory() as folder:
        quantization.quantize_static(onnx.load_from_string(graph), f"{folder}/int8.onnx", Reader(),
                                     activation_type=quantization.QuantType.QUInt8)
        return Path(f"{folder}/int8.onnx").read_bytes()


def with_features(graph):
    """The tiny graph with a second output: what goes into its last layer."""
    import onnx

    model = onnx.load_from_string(graph)
    model.graph.output.append(onnx.helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, ["N", CHANNELS]))
    return model.SerializeToString()


def from_pixels(graph):
    """The tiny graph for pixels, uint8 [N, H, W, C], which it takes as they are."""
    import onnx

    model = onnx.load_from_string(graph)
    size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["pixels"], ["floats"], to=onnx.TensorProto.FLOAT))
    model.graph.node.insert(1, onnx.helper.make_node("Transpose", ["floats"], ["image"], perm=[0, 3, 1, 2]))
    pixels = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["N", size, size, 3])
    model.graph.input[0].CopyFrom(pixels)
    return model.SerializeToString()


class TestCpu(OnnxContract):
    backend = "cpu"
    package = "onnxruntime"
    precisions = ("fp32", "fp16", "int8")

    def test_another_provider_is_an_error(self):
        from edgetl.backends.cpu import insist

        insist(["CPUExecutionProvider"])
        for providers in (["AzureExecutionProvider", "CPUExecutionProvider"], []):
            with pytest.raises(BackendUnavailable, match="would run"):
                insist(providers)

    def test_the_provider_is_told(self, session):
        assert session.info()["provider"] == "CPUExecutionProvider"

    @pytest.mark.parametrize("level", ["all", "extended", "basic", "off"])
    def test_every_level_of_optimization_agrees(self, graph, spec, level):
        session = open_session("cpu", graph, spec, options={"graph_optimization": level})
        images = self.images(2)
        assert np.abs(session.run({"image": images})["logits"] - self.expected(images)).max() < self.tolerance

    @pytest.mark.parametrize("spin", ["on", "off"])
    def test_threads_may_be_told_to_rest(self, graph, spec, spin):
        session = open_session("cpu", graph, spec, threads=2, options={"spin": spin})
        assert session.info()["spin"] is (spin == "on")
        images = self.images(2)
        assert np.abs(session.run({"image": images})["logits"] - self.expected(images)).max() < self.tolerance
        session.close()

    def test_external_data_is_refused(self, graph, spec, tmp_path):
        import onnx

        model = onnx.load_from_string(graph)
        onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin")
        with pytest.raises(BundleError, match=r"keeps the tensor .* in another file"):
            open_session("cpu", (tmp_path / "m.onnx").read_bytes(), spec)


CLOSE_ELSEWHERE = """
import signal, sys, threading
from edgetl.runtime.session import GraphSpec, TensorSpec, open_session, usable_threads
spec = GraphSpec((TensorSpec("image", "image", "float32", ("N", 3, 16, 16)),),
                 (TensorSpec("logits", "logits", "float32", ("N", 3)),))
session = [open_session("openvino", open(sys.argv[1], "rb").read(), spec, threads=1)]
def close():
    session.pop().close()
thread = threading.Thread(target=close)
thread.start()
thread.join()
signal.signal(signal.SIGTERM, lambda number, frame: print("heard"))
signal.raise_signal(signal.SIGTERM)
"""


class TestOpenvino(OnnxContract):
    backend = "openvino"
    package = "openvino"
    precisions = ("fp32", "fp16", "bf16", "int8")

    def computes(self, precision):
        return precision in ("fp32", "int8") or processor.accelerates(precision)

    def test_floating_point_is_fp32_unless_asked_otherwise(self, session):
        assert session.info()["float_precision"] == "fp32"

    def test_a_precision_that_would_not_run_is_an_error(self):
        import openvino

        from edgetl.backends.openvino import insist

        core = openvino.Core()
        compiled = core.compile_model(core.read_model(make_graph()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        insist(compiled, "fp32")
        with pytest.raises(BackendUnavailable, match="asked for bf16, but f32"):
            insist(compiled, "bf16")

    def test_a_signal_is_heard_after_the_last_session_was_closed_in_another_thread(self, graph, tmp_path):
        (tmp_path / "graph.onnx").write_bytes(graph)
        done = subprocess.run([sys.executable, "-c", CLOSE_ELSEWHERE, str(tmp_path / "graph.onnx")],
                              capture_output=True, text=True, timeout=600)
        assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr

    def test_compiled_graphs_are_kept(self, graph, spec, tmp_path):
        images = self.images(2)
        for _ in range(2):
            session = open_session("openvino", graph, spec, cache_dir=tmp_path)
            assert np.abs(session.run({"image": images})["logits"] - self.expected(images)).max() < self.tolerance
        assert any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny trained model, opened again from its folder."""
    from edgetl import models, weights

    folder = tmp_path_factory.mktemp("run")
    network = models.create("timm/mobilenetv3_small_050", classes=3, pretrained=False, image_size=TestTorch.size)
    weights.save(folder, network, {"labels": ["cat", "dog", "fox"]})
    return weights.load(folder)


class TestTorch(BackendContract):
    """The graph is a run: the bytes of its tensors, and its record in the spec."""

    backend = "torch"
    package = "torch"
    size = 32

    @pytest.fixture
    def graph(self, run):
        return (run.folder / "model.safetensors").read_bytes()

    @pytest.fixture
    def spec(self, run):
        image = TensorSpec("image", "image", "float32", ("N", 3, self.size, self.size), "NCHW")
        logits = TensorSpec("logits", "logits", "float32", ("N", 3), "NC")
        return GraphSpec(inputs=(image,), outputs=(logits,), extra={"run": run.record})

    @pytest.fixture(autouse=True)
    def _remember(self, run):
        self.network = run.network

    def expected(self, images):
        import torch

        with torch.no_grad():
            return self.network.module(torch.from_numpy(images)).numpy()

    def test_an_onnx_graph_is_refused(self):
        with pytest.raises(BundleError, match="opens a RUN"):
            open_session("torch", make_graph(), graph_spec())

    def test_a_device_that_is_not_there(self, graph, spec):
        with pytest.raises(BackendUnavailable, match="cuda:99"):
            open_session("torch", graph, spec, options={"device": "cuda:99"})
        with pytest.raises(EdgetlError, match="expected cpu, cuda"):
            open_session("torch", graph, spec, options={"device": "gpu"})

    def test_what_is_a_layer_of_a_module(self):
        from torch import nn

        from edgetl.backends._torch_profile import innermost

        norm = nn.BatchNorm2d(4)
        norm.act = nn.ReLU()  # as timm's norms hold their activation
        whole = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Dropout(), nn.Sequential(nn.Identity(), nn.Flatten()))
        whole.token = nn.Parameter(nn.Linear(1, 1).weight)  # weights of its own beside those of its parts
        assert [name for name, _ in innermost("", whole)] == ["0", "1", "3.1"]
        assert [name for name, _ in innermost("", nn.ReLU())] == [""]

    def test_the_kernel_of_a_convolution_is_told(self, graph, spec):
        profiled = open_profiled(self.backend, graph, spec, threads=1)
        profiled.run({spec.inputs[0].name: self.images(1)})
        kernels = {one.executed_as for one in profiled.layers(0) if one.op.startswith("Conv2d")}
        profiled.close()
        assert any("conv" in kernel for kernel in kernels)

    def test_fp32_only(self, graph, spec):
        half = GraphSpec(inputs=spec.inputs, outputs=spec.outputs, precision="fp16", extra=spec.extra)
        with pytest.raises(BundleError, match="fp16"):
            open_session("torch", graph, half)


def contracts():
    """The test classes of all files of this folder, by the name of the backend."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(path.stem)
    found, left = {}, [BackendContract]
    while left:
        one = left.pop()
        left += one.__subclasses__()
        if one.__name__.startswith("Test"):
            found.setdefault(one.backend, []).append(one)
    return found


def test_every_backend_has_a_contract_test():
    assert {name.split(":")[0] for name in contracts()} == set(plugins.names("backends"))
