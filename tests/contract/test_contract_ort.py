"""ONNX Runtime's providers by name: the contract on the one that is everywhere, and what becomes of the others."""

import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from test_contract_backends import OnnxContract
from tiny_bundle import graph_spec, make_bundle, make_graph, make_photo, reference_logits

from edgetl import plugins, runtime
from edgetl.backends import _onnxruntime
from edgetl.errors import BackendUnavailable, BundleError, EdgetlError, UnknownName
from edgetl.runtime.session import open_session


class TestOrtCpu(OnnxContract):
    backend = "ort:CPUExecutionProvider"

    def installed(self):
        from importlib import metadata

        return "onnxruntime", metadata.version("onnxruntime")

    def test_info_tells_the_provider(self, session):
        assert session.info()["provider"] == "CPUExecutionProvider"
        assert session.info()["provider_options"] == {}

    def test_a_provider_has_several_spellings(self, graph, spec):
        for name in ("ort:cpu", "ort:CPU", "ort:cpuexecutionprovider"):
            session = open_session(name, graph, spec, threads=1)
            assert (session.info()["backend"], session.info()["provider"]) == (name, "CPUExecutionProvider")
            images = self.images(1)
            assert np.abs(session.run({"image": images})["logits"] - self.expected(images)).max() < self.tolerance


def available(name):
    return plugins.load("backends", name).probe()


def test_an_unknown_provider_is_one_sentence_with_the_nearest_and_the_choices():
    found = available("ort:xnpack")
    assert not found.usable
    assert found.reason == "ONNX Runtime has no execution provider named 'xnpack'. Did you mean 'ort:xnnpack'?"
    assert found.fix is not None and "cpu" in found.fix
    with pytest.raises(BackendUnavailable, match="'ort:nonsense' cannot run here: ONNX Runtime has no"):
        open_session("ort:nonsense", make_graph(), graph_spec())


@pytest.mark.parametrize(("name", "says"), [("OpenVINO", "onnxruntime-openvino"), ("xnnpack", "a build of one's own")])
def test_a_provider_that_this_build_lacks_says_where_it_is(name, says):
    found = available(f"ort:{name}")
    if found.usable:
        pytest.skip(f"this onnxruntime has {found.device}")
    assert "was built without" in found.reason
    assert says in found.fix


def test_without_a_name_it_asks_for_one():
    assert available("ort").usable
    assert "cpu" in available("ort").device
    assert not available("ort:").usable
    for name in ("ort", "ort:"):
        with pytest.raises(EdgetlError, match="names no execution provider"):
            open_session(name, make_graph(), graph_spec())


def test_only_a_file_that_stands_for_many_takes_a_colon():
    for name in ("cpu:0", "nonsense:cpu", "edgetl.backends.cpu:0"):
        with pytest.raises(UnknownName, match="no backend named"):
            plugins.load("backends", name)
    with pytest.raises(UnknownName):
        plugins.require("backends", "cpu:0")
    plugins.require("backends", "ort:whatever")  # its probe knows
    assert plugins.public("my_backend:some_thing") == "my-backend:some_thing"
    assert isinstance(plugins.load("backends", "ort:cpu"), ModuleType)


def test_a_provider_that_takes_no_node_is_an_error():
    if "AzureExecutionProvider" not in _providers():
        pytest.skip("this onnxruntime has no provider that takes nothing of a network")
    with pytest.raises(BackendUnavailable, match="takes none of the graph's 5 nodes: 5 CPUExecutionProvider"):
        open_session("ort:azure", make_graph(), graph_spec())


def _providers():
    from edgetl.runtime import telemetry

    telemetry.off()
    import onnxruntime

    return onnxruntime.get_available_providers()


class Placed:
    """A session of a provider that ONNX Runtime does not have here."""

    def __init__(self, nodes, options=None):
        self.nodes, self.options = nodes, options or {}

    def get_provider_graph_assignment_info(self):
        return [SimpleNamespace(ep_name=name, get_nodes=lambda ops=ops: [SimpleNamespace(op_type=op) for op in ops])
                for name, ops in self.nodes]

    def get_provider_options(self):
        return {"MadeUp": self.options}


def test_where_the_heavy_nodes_are_decides():
    provider = _onnxruntime.Provider("ort:madeup", "MadeUp")
    light = Placed([("MadeUp", ["Conv", "Relu"]), ("CPUExecutionProvider", ["Shape", "Gather"])])
    assert _onnxruntime._insist_on_nodes(light, provider) == {"MadeUp": 2, "CPUExecutionProvider": 2}
    heavy = Placed([("MadeUp", ["Relu"]), ("CPUExecutionProvider", ["Conv", "Conv", "Gemm"])])
    with pytest.raises(BackendUnavailable, match="leaves 2 Conv, 1 Gemm of the graph to others") as caught:
        _onnxruntime._insist_on_nodes(heavy, provider)
    assert "partial=allow" in caught.value.hint
    allowed = _onnxruntime.Provider("ort:madeup", "MadeUp", partial=True)
    assert _onnxruntime._insist_on_nodes(heavy, allowed) == {"MadeUp": 1, "CPUExecutionProvider": 3}
    with pytest.raises(BackendUnavailable, match="takes none"):
        _onnxruntime._insist_on_nodes(Placed([("CPUExecutionProvider", ["Conv"])]), allowed)
    assert _onnxruntime._insist_on_nodes(object(), provider) == {}  # before 1.24 nothing is told


def test_options_that_a_provider_does_not_know_are_refused():
    special = plugins.load("backends", "ort:madeup")
    special._insist_on_options(Placed([], {"device_id": "0"}), "MadeUp", {"device_id": "1"})
    with pytest.raises(EdgetlError, match="'ort:madeup' has no option 'turbo'") as caught:
        special._insist_on_options(Placed([], {"device_id": "0"}), "MadeUp", {"turbo": "1"})
    assert "device_id" in caught.value.hint
    special._insist_on_options(Placed([]), "MadeUp", {"turbo": "1"})  # it tells nothing
    assert special._options("xnnpack", {}, 3) == {"intra_op_num_threads": "3"}
    assert special._options("xnnpack", {"intra_op_num_threads": "2", "spin": "off"}, 3) == {"intra_op_num_threads": "2"}
    with pytest.raises(EdgetlError, match="'partial' of the backend 'ort:madeup' is 'maybe'"):
        special._options("madeup", {"partial": "maybe"}, 1)


def test_a_provider_that_refuses_is_told_from_a_damaged_graph(monkeypatch):
    import onnxruntime

    def session(graph, *, providers, **options):
        if providers[0] != "CPUExecutionProvider":
            raise RuntimeError("Please install the libraries\n of it")
        return onnxruntime_session(graph, providers=providers, **options)

    onnxruntime_session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    provider = _onnxruntime.Provider("ort:madeup", "MadeUp", install="Install it.")
    open_native = _onnxruntime.open_native
    with pytest.raises(BackendUnavailable, match=r"which refused: Please install the libraries\.$") as caught:
        open_native(make_graph(), graph_spec(), provider, threads=1, options={})
    assert caught.value.hint == "Install it."
    with pytest.raises(BundleError, match="cannot open the graph"):
        open_native(make_graph()[:99], graph_spec(), provider, threads=1, options={})


def test_out_of_memory_says_how_much():
    told = _onnxruntime.failed(RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer "
                                            "of size 104857600"), "CUDA 0", 64)
    assert told.message.endswith("graph: out of memory on CUDA 0 with a batch of 64; 100 MiB more were asked for.")
    told = _onnxruntime.failed(RuntimeError("CUDA failure 2: out of memory"), "CUDA 0", 1)
    assert told.message.endswith("out of memory on CUDA 0 with a batch of 1 (CUDA failure 2: out of memory).")
    assert "failed while it ran" in _onnxruntime.failed(RuntimeError("nonsense"), "CPU", 1).message


# ------------------------------------------------------------------------------------- wherever a backend is named


def test_a_bundle_is_opened_by_it(tmp_path):
    bundle = make_bundle(tmp_path / "bundle", second={"backends": ("openvino",)})
    with runtime.load(bundle, backend="ort:cpu", threads=1) as classifier:
        assert classifier.info()["backend"] == "ort:cpu"
        assert classifier.info()["variant"] == "fp32"
        photo = make_photo(3)
        assert classifier.predict(photo).label in ("cat", "dog", "fox")
    with pytest.raises(BackendUnavailable, match="is made for openvino, not for ort:cpu"):
        runtime.load(bundle, backend="ort:cpu", variant="other")
    with pytest.raises(BackendUnavailable, match="cannot run on ort:nonsense"):
        runtime.load(bundle, backend="ort:nonsense")
    assert runtime.verify(bundle, backend="ort:cpu", threads=1).checks


def edgetl(*words):
    done = subprocess.run([sys.executable, "-m", "edgetl", *words], capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr


def test_bench_and_gate_find_its_cases(tmp_path):
    from edgetl import recipe
    from edgetl.bench import cases, gate_cases
    from edgetl.recipe_gate import RegressionGate

    bundle = str(make_bundle(tmp_path / "bundle", second={"backends": ("openvino",)}))
    found = cases.find(recipe.Bench(cases=(bundle,), out="x", backend=("cpu", "ort:cpu")))
    assert [(one.subject.variant, one.subject.backend) for one in found] == [("fp32", "cpu"), ("fp32", "ort:cpu")]
    other = str(make_bundle(tmp_path / "other"))
    sides = gate_cases.find(RegressionGate(base=bundle, new=other, backend="ort:cpu"))
    assert (sides.base.subject.backend, sides.new.subject.backend) == ("ort:cpu", "ort:cpu")


def test_tune_measures_it_and_load_follows(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    bundle = make_bundle(tmp_path / "bundle")
    code, out, err = edgetl("tune", str(bundle), "--backend", "ort:cpu", "--threads", "1", "--budget", "1s",
                            "--max-drop", "100", "--json")
    assert code == 0, err
    assert json.loads(out)["chosen"]["backend"] == "ort:cpu"
    with runtime.load(bundle, backend="ort:cpu") as classifier:
        assert classifier.info()["backend"] == "ort:cpu"
        assert "tuned" in str(classifier.info())
    code, out, err = edgetl("bench", str(bundle), "--backend", "cpu:0", "--out", str(tmp_path / "x"))
    assert (code, "no backend named 'cpu:0'" in err) == (1, True), err


def test_reference_is_what_the_provider_gives(tmp_path):
    images = np.random.default_rng(5).normal(size=(3, 3, 16, 16)).astype(np.float32)
    session = open_session("ort:cpu", make_graph(), graph_spec(), threads=1)
    assert np.abs(session.run({"image": images})["logits"] - reference_logits(images)).max() < 1e-4
