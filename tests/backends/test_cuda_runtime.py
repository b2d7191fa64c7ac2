"""The CUDA runtime: what it says where there is no card, for real; and each refusal as a sentence."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from edgetl.backends import _cuda, _cuda_python, _cuda_torch
from edgetl.errors import BackendUnavailable
from edgetl.runtime import nvidia

# Which raise and give no error; docs in `_cuda.lacking`.
BEFORE_13 = r"There is no NVIDIA driver: cuda-python finds none \(Function \"cuInit\" not found\)"


def driver_is_here():
    try:
        ctypes.CDLL(_cuda.DRIVER)
    except OSError:
        return False
    return True


without_driver = pytest.mark.skipif(driver_is_here(), reason="an NVIDIA driver is installed here")


@without_driver
@pytest.mark.parametrize("find", [_cuda.find, _cuda_torch.open])
def test_no_driver_is_one_sentence_with_the_fix(find):
    if find is _cuda_torch.open and pytest.importorskip("torch").version.cuda is None:
        pytest.skip("this PyTorch is built without CUDA")
    with pytest.raises(BackendUnavailable, match=r"^There is no NVIDIA driver: libcuda.so.1[^\n]*\.$") as caught:
        find()
    assert "nvidia-smi" in caught.value.hint


@without_driver
def test_no_driver_in_the_words_of_cuda_python():
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    with pytest.raises(BackendUnavailable, match=r"no NVIDIA driver: (the CUDA .* runtime|cuda-python) finds none"):
        _cuda_python.open()


@without_driver
@pytest.mark.parametrize(("doing", "what"), [
    ("asking which card is current", lambda cuda: cuda.card()),
    ("making a stream", lambda cuda: cuda.stream()),
    ("taking memory for the input", lambda cuda: cuda.device_memory(64, "the input")),
    ("taking page-locked memory for the input", lambda cuda: cuda.host_memory(64, "the input"))])
def test_every_call_that_the_real_runtime_refuses_says_at_what(monkeypatch, doing, what):
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    monkeypatch.setattr(_cuda_python.CudaPython, "_expect_card", lambda self: None)
    says = rf"^(CUDA failed while {doing}: cudaErrorInsufficientDriver|{BEFORE_13})"
    with pytest.raises(BackendUnavailable, match=says):
        what(_cuda_python.CudaPython(runtime, "13"))


def test_finding_nothing_imports_nothing_heavy():
    code = ("import sys\nfrom edgetl.backends import _cuda\n_cuda.DRIVER = 'libnosuchdriver.so.1'\n"
            "try:\n    _cuda.find()\nexcept Exception as problem:\n    print(type(problem).__name__)\n"
            "print([name for name in ('torch', 'cuda', 'onnxruntime') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout == "BackendUnavailable\n[]\n", done.stderr


def test_neither_cuda_python_nor_torch(monkeypatch):
    monkeypatch.setattr(_cuda, "driver_cuda", lambda: 13000)
    for module in (_cuda_python, _cuda_torch):
        monkeypatch.setattr(module, "open", lambda: None)
    with pytest.raises(BackendUnavailable, match="neither cuda-python nor PyTorch") as caught:
        _cuda.find()
    assert "pip install cuda-python" in caught.value.hint


def test_a_driver_that_is_too_old_is_told_with_both_versions():
    problem = _cuda.driver_too_old(12040, 13020)
    assert "supports CUDA 12.4, which is too old for the CUDA 13.2 runtime" in problem.message
    assert "packages of CUDA 12" in problem.hint
    assert "no NVIDIA driver" in _cuda.driver_too_old(0, 13020).message


def test_a_function_that_an_old_driver_lacks():
    for says in ('Function "cuInit" not found', "Failed to dlopen libcuda.so.1"):
        assert f"no NVIDIA driver: cuda-python finds none ({says})." in _cuda.lacking(says, "copying").message
    problem = _cuda.lacking('Function "cuGraphInstantiateWithFlags" not found', "copying")
    assert problem.message == 'CUDA failed while copying: Function "cuGraphInstantiateWithFlags" not found.'
    assert "Update the NVIDIA driver" in problem.hint


@pytest.mark.parametrize(("needed", "said"), [(100 * 2**20, "100.0 MiB is needed"), (1, "0.1 MiB is needed"),
                                              (None, "more is needed")])
def test_out_of_memory_says_how_much_was_needed_and_is_free(needed, said):
    problem = _cuda.out_of_memory("the logits", needed, 3 * 2**20, 2048 * 2**20)
    assert said in problem.message and "3.0 MiB of 2,048.0 MiB is free" in problem.message


@pytest.mark.parametrize("error", sorted(_cuda.FIXES))
def test_every_error_that_has_a_fix_is_one_that_cuda_has(error):
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    assert hasattr(runtime.cudaError_t, error)
    assert _cuda.refusal(error, "its words", "copying").hint == _cuda.FIXES[error]


@pytest.mark.parametrize(("told", "version"), [
    ("580.95.05\n", "580.95.05"),
    ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12.3.0",
     "550.54.15"),
    ("nothing of the kind", "CUDA 13.0"), (None, "CUDA 13.0")])
def test_the_version_of_the_driver(tmp_path, monkeypatch, told, version):
    if told is not None:
        (tmp_path / "version").write_text(told)
    monkeypatch.setattr(nvidia, "VERSIONS", (str(tmp_path / "version"),))
    assert _cuda.driver_version(13000) == version


@without_driver
def test_the_real_runtime_takes_every_argument_that_a_stream_hands_it(monkeypatch):
    """Without a driver each call is refused, but as an error of CUDA and not for the type of an argument."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    monkeypatch.setattr(_cuda_python.CudaPython, "_expect_card", lambda self: None)
    cuda = _cuda_python.CudaPython(runtime, "13")
    answers = {"cudaStreamCreateWithFlags": runtime.cudaStream_t(0), "cudaEventCreate": runtime.cudaEvent_t(0)}
    call = _cuda_python.CudaPython.call
    monkeypatch.setattr(_cuda_python.CudaPython, "call", lambda self, doing, function, *arguments:
                        answers[function] if function in answers else call(self, doing, function, *arguments))
    stream, mark = cuda.stream(), _cuda_python.PythonMark(cuda)
    replay = _cuda_python.PythonReplay(cuda, runtime.cudaGraphExec_t(0), runtime.cudaStream_t(0))
    freed = []
    here, there = (_cuda.Memory(address, 64, lambda: freed.append(1)) for address in (4096, 8192))
    says = rf"^(CUDA failed while .*: cudaErrorInsufficientDriver|{BEFORE_13})"
    for what in (lambda: stream.upload(there, here, 64), lambda: stream.download(here, there, 64), stream.finish,
                 stream.mark, lambda: stream.capture(list), stream.free, lambda: mark.seconds_since(mark), mark.free,
                 replay.launch, replay.free):
        with pytest.raises(BackendUnavailable, match=says):
            what()
    assert stream.handle == 0 and freed == []
