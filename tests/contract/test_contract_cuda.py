"""ONNX Runtime on an NVIDIA card: the contract where there is one, and elsewhere what is said of it."""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from test_contract_backends import OnnxContract
from tiny_bundle import graph_spec, make_graph, reference_logits

from edgetl.backends import Availability, _onnxruntime, _onnxruntime_bound, _onnxruntime_nvidia, cuda
from edgetl.errors import BackendUnavailable, BundleError, EdgetlError
from edgetl.runtime import nvidia
from edgetl.runtime.session import GraphSpec, open_session


@pytest.mark.gpu
class TestCuda(OnnxContract):
    backend = "cuda"
    package = "onnxruntime-gpu"
    precisions = ("fp32", "fp16", "int8")

    def test_convolutions_are_on_the_card(self, session):
        assert session.info()["provider"] == "CUDAExecutionProvider"
        assert session.info()["nodes"].get("CUDAExecutionProvider")
        assert session.info()["tf32"] is False

    @pytest.mark.parametrize("options", [
        {"io": "bound"}, {"cuda_graph": "on"}, {"cudnn_conv_algo_search": "exhaustive"}, {"memory_limit_mib": "512"}])
    def test_every_option_agrees(self, graph, spec, options):
        session = open_session("cuda", graph, spec, threads=1, options=options)
        for count in (1, 3, 1):
            images = self.images(count, seed=count)
            assert np.abs(session.run({"image": images})["logits"] - self.expected(images)).max() < self.tolerance
        session.close()

    def test_a_card_that_is_not_there(self, graph, spec):
        with pytest.raises(BackendUnavailable):
            open_session("cuda", graph, spec, options={"device_id": "63"})


@pytest.mark.gpu
class TestCudaGraph(TestCuda):
    options = {"cuda_graph": "on"}


# ------------------------------------------------------------------------------- a card that is made up for the test


class Card:
    """libcuda of a machine with one card."""

    def __init__(self, cuda=13000, error=0, cards=1):
        self.cuda, self.error, self.cards = cuda, error, cards

    def cuDriverGetVersion(self, pointer):
        pointer._obj.value = self.cuda
        return 0

    def cuInit(self, flags):
        return self.error

    def cuDeviceGetCount(self, pointer):
        pointer._obj.value = self.cards
        return 0

    def cuDeviceGet(self, pointer, place):
        pointer._obj.value = place

    def cuDeviceGetName(self, buffer, size, device):
        buffer.value = f"Made-up {device.value}".encode()

    def cuDeviceTotalMem_v2(self, pointer, device):
        pointer._obj.value = 16 * 2**30

    def cuDeviceGetAttribute(self, pointer, attribute, device):
        pointer._obj.value = {75: 8, 76: 9}[attribute]


def no_library(name):
    raise OSError(f"{name}: cannot open shared object file: No such file or directory")


def test_a_card_is_described():
    found = nvidia.look(lambda name: Card(12080, cards=2))
    assert found.driver is not None and found.driver.cuda == (12, 8)
    assert found.cards == (nvidia.Gpu("Made-up 0", "8.9", 16 * 2**30), nvidia.Gpu("Made-up 1", "8.9", 16 * 2**30))
    assert (found.reason, found.fix) == (None, None)


@pytest.mark.parametrize(("load", "reason", "fix"), [
    (no_library, "there is no NVIDIA driver", "Install the NVIDIA driver"),
    (lambda name: Card(error=100), "no card that it can use", "CUDA_VISIBLE_DEVICES"),
    (lambda name: Card(cards=0), "no card that it can use", "CUDA_VISIBLE_DEVICES"),
    (lambda name: Card(error=803), "updated while it was loaded", "Restart"),
    (lambda name: Card(error=12345), "CUDA error 12345", "nvidia-smi")])
def test_what_is_the_matter_with_the_driver(load, reason, fix):
    found = nvidia.look(load)
    assert reason in found.reason and fix in found.fix
    assert found.cards == ()


def test_a_driver_is_too_old_for_the_next_major_version_of_cuda():
    driver = nvidia.Driver((12, 8), "570.86.15")
    assert nvidia.too_old(driver, (12, 9)) is None  # minor version compatibility
    assert nvidia.too_old(driver, (13, 0)) == ("the NVIDIA driver 570.86.15 runs CUDA 12.8 at most, and CUDA 13.0 is "
                                               "installed")
    assert "the NVIDIA driver runs" in nvidia.too_old(nvidia.Driver((12, 8), None), (13, 0))
    assert nvidia.parse("13.0") == (13, 0) and nvidia.parse("12") == (12, 0) and nvidia.parse("") is None


def test_the_version_of_the_driver_and_the_release_of_a_jetson_are_read(tmp_path):
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release\n")
    assert nvidia.version([str(tmp_path / "absent"), str(tmp_path / "version")]) == "580.95.05"
    assert nvidia.version([]) is None
    (tmp_path / "tegra").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    assert nvidia.jetson(str(tmp_path / "tegra")) == "36.4"
    assert nvidia.jetson(str(tmp_path / "absent")) is None
    (tmp_path / "tegra").write_text("nonsense")
    assert nvidia.jetson(str(tmp_path / "tegra")) == "of an unknown release"


ORT_SAYS = ("[ONNXRuntimeError] : 1 : FAIL : Failed to load library /x/libonnxruntime_providers_cuda.so with error: "
            "libcublasLt.so.13: cannot open shared object file: No such file or directory")


@pytest.mark.parametrize(("text", "cuda_major", "reason", "fix"), [
    (ORT_SAYS, 13, "libcublasLt.so.13 cannot be found", "nvidia-cublas"),
    (ORT_SAYS.replace("cublasLt.so.13", "cublasLt.so.12"), 12, "libcublasLt.so.12", "nvidia-cublas-cu12"),
    ("libcudnn.so.9: cannot open shared object file", 13, "libcudnn.so.9", "nvidia-cudnn-cu13"),
    ("libnvinfer.so.10: cannot open shared object file", 13, "libnvinfer.so.10", "tensorrt-cu13"),
    ("libtensorrt_rtx.so.1: cannot open shared object file", 13, "libtensorrt_rtx", "tensorrt-rtx-cu13"),
    ("libcuda.so.1: cannot open shared object file", 13, "no NVIDIA driver", "Install the NVIDIA driver"),
    ('Error loading "x.dll" which depends on "cublasLt64_12.dll" which is missing.', 12, "cublasLt64_12", "-cu12"),
    ("libmystery.so.3: cannot open shared object file", 13, "libmystery.so.3", "LD_LIBRARY_PATH"),
    ("CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=x", 13, "no card", "nvidia-smi"),
    ("CUDA driver version is insufficient for CUDA runtime version", 13, "too old", "Update the NVIDIA driver"),
    ("cudaErrorNoKernelImageForDevice: no kernel image is available for execution", 13, "generation", "a build for")])
def test_what_libraries_say_becomes_a_reason_and_a_fix(text, cuda_major, reason, fix):
    found = nvidia.explain(text, cuda_major)
    assert found is not None
    assert reason in found[0] and fix in found[1]


def test_what_says_nothing_of_cuda_is_left_alone():
    assert nvidia.explain("the graph has a cycle", 13) is None
    assert nvidia.explain("CUDA failure 98765: strange", 13) is None


def test_libraries_are_taken_from_wheels_before_the_system(tmp_path):
    inside = tmp_path / "nvidia" / "cu13" / "lib"
    inside.mkdir(parents=True)
    (inside / "libcublas.so.13").touch()
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    places = nvidia.folders([str(tmp_path)])
    assert places[0] == str(inside) and str(tmp_path / "torch" / "lib") in places
    opened = []

    def load(name):
        opened.append(name)
        if "cudnn" in name:
            no_library(name)

    missing = nvidia.load_all(["libcublas.so.13", "libcurand.so.10", "libcudnn.so.9"], load, places)
    assert opened == [str(inside / "libcublas.so.13"), "libcurand.so.10", "libcudnn.so.9"]
    assert list(missing) == ["libcudnn.so.9"]
    assert nvidia.advise(["libcudnn.so.9", "libcublasLt.so.13", "libcublas.so.13"], 13) == (
        "libcudnn.so.9, libcublasLt.so.13, libcublas.so.13 cannot be found",
        "Install what is missing with: pip install nvidia-cudnn-cu13 nvidia-cublas")


@pytest.fixture
def machine(monkeypatch):
    """An ONNX Runtime that was built for CUDA, on a machine with a card; each part can be taken away."""
    import onnxruntime

    parts = SimpleNamespace(load=lambda name: Card(), missing={})
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    look = nvidia.look
    monkeypatch.setattr(nvidia, "look", lambda: look(parts.load))
    monkeypatch.setattr(nvidia, "load_all", lambda files: parts.missing)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    return parts


def test_a_whole_machine_is_usable(machine):
    assert cuda.probe() == Availability(True, _version(), device="Made-up 0 (8.9)")


def _version():
    import onnxruntime

    return onnxruntime.__version__


def test_the_probe_says_which_part_is_missing(machine):
    machine.missing = {"libcudnn.so.9": "..."}
    assert cuda.probe().reason == "libcudnn.so.9 cannot be found."
    assert "nvidia-cudnn-cu13" in cuda.probe().fix
    machine.missing = {}
    machine.load = lambda name: Card(12080)
    assert "runs CUDA 12.8 at most, and CUDA 13.0 is installed." in cuda.probe().reason
    machine.load = lambda name: Card(cards=0)
    assert "no card" in cuda.probe().reason
    machine.load = no_library
    assert "there is no NVIDIA driver" in cuda.probe().reason
    with pytest.raises(BackendUnavailable, match="'cuda' cannot run here: there is no NVIDIA driver"):
        open_session("cuda", make_graph(), graph_spec())


def test_an_onnxruntime_for_the_processor_says_what_to_install():
    found = cuda.probe()
    if found.usable or "no CUDAExecutionProvider" not in found.reason:
        pytest.skip("this onnxruntime was built for CUDA")
    assert "onnxruntime-gpu" in found.fix and "uninstall" in found.fix


def test_a_session_that_fell_back_to_the_processor_is_refused(machine, monkeypatch):
    """As ONNX Runtime does it: a warning on stderr, and the processor."""
    monkeypatch.setattr(_onnxruntime, "_insist_on_nodes", lambda *_: pytest.fail("the providers come first"))
    native = only_cpu(monkeypatch)
    machine.missing = {"libcublasLt.so.13": "..."}
    with pytest.raises(BackendUnavailable, match="but CPUExecutionProvider would run: libcublasLt") as caught:
        cuda.open(make_graph(), graph_spec(), threads=1, cache_dir=None, options={})
    assert "nvidia-cublas" in caught.value.hint
    assert native[0]["providers"] == [("CUDAExecutionProvider", {
        "device_id": "0", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0", "enable_cuda_graph": "0"})]


def only_cpu(monkeypatch, told=None):
    """Sessions are of the processor whatever was asked for; `told` is what they say they are."""
    import onnxruntime

    real, asked = onnxruntime.InferenceSession, []

    def session(graph, *, providers, **more):
        asked.append({"providers": providers})
        made = real(graph, providers=["CPUExecutionProvider"], **more)
        if told is not None:
            made.get_providers = lambda: told
        return made

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return asked


@pytest.mark.parametrize("options", [{}, {"io": "bound"}, {"cuda_graph": "on"}])
def test_a_session_of_a_made_up_card_answers_and_tells_what_it_is(machine, monkeypatch, options):
    only_cpu(monkeypatch, ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(_onnxruntime, "_insist_on_nodes", lambda *_: {"CUDAExecutionProvider": 5})
    place = _onnxruntime_bound.Place
    monkeypatch.setattr(_onnxruntime_bound, "Place", lambda device, number, graphs: place("cpu", number, graphs))
    session = cuda.open(make_graph(), graph_spec(), threads=1, cache_dir=None, options={"tf32": "on", **options})
    images = np.random.default_rng(1).normal(size=(2, 3, 16, 16)).astype(np.float32)
    assert np.abs(session.run({"image": images})["logits"] - reference_logits(images)).max() < 1e-4
    told = session.info()
    assert (told["backend"], told["nodes"], told["tf32"]) == ("cuda", {"CUDAExecutionProvider": 5}, True)
    assert told["io"] == ("bound" if options else "plain")
    assert told["cuda_graph"] is ("cuda_graph" in options)
    session.close()


def test_options_become_those_of_the_provider():
    assert cuda.provider_options({"memory_limit_mib": "256", "device_id": "1", "cuda_graph": "on", "tf32": "on",
                                  "cudnn_conv_algo_search": "exhaustive"}) == {
        "device_id": "1", "cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "1", "enable_cuda_graph": "1",
        "gpu_mem_limit": "268435456"}
    for options, says in (({"device_id": "-1"}, "'device_id' of the backend 'cuda' is '-1'"),
                          ({"memory_limit_mib": "0"}, "at least 1"), ({"memory_limit_mib": "1GiB"}, "whole number")):
        with pytest.raises(EdgetlError, match=says):
            cuda.provider_options(options)
    with pytest.raises(EdgetlError, match="no option 'turbo'"):
        cuda.open(make_graph(), graph_spec(), threads=1, cache_dir=None, options={"turbo": "on"})


def test_what_a_provider_needs():
    if sys.platform != "linux":
        pytest.skip("files are .so on Linux alone")
    libraries = _onnxruntime_nvidia.libraries
    assert "libcufft.so.11" in libraries("CUDAExecutionProvider", (12, 8))
    assert "libcublasLt.so.13" in libraries("CUDAExecutionProvider", (13, 0))
    assert not any("cufft" in one for one in libraries("CUDAExecutionProvider", (13, 0)))
    assert libraries("TensorrtExecutionProvider", (13, 0), 10)[-2:] == ("libnvinfer.so.10", "libnvonnxparser.so.10")


# ------------------------------------------------------------------------------------------- bound inputs and outputs


@pytest.fixture
def bound():
    """Sessions with bound tensors, on the processor, where ONNX Runtime binds the same way."""
    made = []

    def make(graphs=0, spec=None):
        native = _onnxruntime.open_native(make_graph(), graph_spec(), _onnxruntime.Provider("cpu", _onnxruntime.CPU),
                                          threads=1, options={})
        made.append(_onnxruntime_bound.BoundSession(native.session, spec or graph_spec(),
                                                    {"backend": "cuda", "device": "CPU"},
                                                    _onnxruntime_bound.Place("cpu", graphs=graphs)))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("graphs", [0, 2])
def test_bound_calls_agree_whatever_the_batch_and_are_not_overwritten(bound, graphs):
    session = bound(graphs)
    kept = []
    for count in (1, 3, 1, 2, 4, 3):  # more batch sizes than recordings
        images = np.random.default_rng(len(kept)).normal(size=(count, 3, 16, 16)).astype(np.float32)
        kept.append((session.run({"image": images})["logits"], reference_logits(images)))
    for found, expected in kept:
        assert np.abs(found - expected).max() < 1e-4
    session.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        session.run({"image": images})


def test_bound_calls_take_turns(bound):
    from concurrent.futures import ThreadPoolExecutor

    session = bound(2)
    batches = [np.random.default_rng(seed).normal(size=(1 + seed % 3, 3, 16, 16)).astype(np.float32)
               for seed in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: session.run({"image": batch})["logits"], batches))
    for logits, batch in zip(found, batches, strict=True):
        assert np.abs(logits - reference_logits(batch)).max() < 1e-4


def test_an_output_of_a_free_size_cannot_be_bound(bound):
    spec = graph_spec()
    free = GraphSpec(spec.inputs, (dataclasses.replace(spec.outputs[0], shape=("N", "K")),))
    with pytest.raises(BundleError, match="'logits' has a free dimension besides the batch"):
        bound(spec=free)
