"""Which TensorRT is found, and what is said where none can be imported; with made-up modules, and the real one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetl.backends import _tensorrt_flavor as flavors
from edgetl.errors import BackendUnavailable, UnknownName

MODULES = [module for names in flavors.MODULES.values() for module in names]


@pytest.fixture(autouse=True)
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which Python finds modules first; no TensorRT counts but those that a test writes there."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in (*MODULES, *flavors.LIBRARIES.values()):
        monkeypatch.delitem(sys.modules, name, raising=False)
    real = importlib.util.find_spec

    def find_spec(name: str) -> object:
        written = (tmp_path / f"{name}.py").exists() or (tmp_path / name).exists()
        return real(name) if written else None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    importlib.invalidate_caches()
    yield tmp_path
    for name in (*MODULES, *flavors.LIBRARIES.values()):
        sys.modules.pop(name, None)


def write(folder: Path, module: str, source: str) -> None:
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    importlib.invalidate_caches()


@pytest.mark.parametrize(("module", "version", "name", "title"), [
    ("tensorrt", "11.4.0.106", "tensorrt", "TensorRT 11.4"),
    ("tensorrt", "10.3.0.30", "tensorrt", "TensorRT 10.3"),
    ("tensorrt_bindings", "10.13.3.9", "tensorrt", "TensorRT 10.13"),
    ("tensorrt_rtx", "1.7.1.116", "rtx", "TensorRT for RTX 1.7"),
    ("tensorrt_rtx_bindings", "1.7.1.116", "rtx", "TensorRT for RTX 1.7"),
])
def test_every_name_of_the_module_is_found(made_up: Path, module: str, version: str, name: str, title: str) -> None:
    write(made_up, module, f"__version__ = '{version}'\nclass Builder: pass\n")
    found = flavors.find()
    assert (found.name, found.version, found.title, found.module.__name__) == (name, version, title, module)
    assert found.major == int(version.split(".")[0])
    assert flavors.installed() == (found,)


def test_auto_prefers_tensorrt_and_a_name_is_obeyed(made_up: Path) -> None:
    for module in ("tensorrt", "tensorrt_rtx"):
        write(made_up, module, "__version__ = '11.0'\nclass Builder: pass\n")
    assert flavors.find().name == "tensorrt"
    assert flavors.find("rtx").name == "rtx"
    assert [one.name for one in flavors.installed()] == ["tensorrt", "rtx"]


def test_nothing_installed_says_what_to_install(made_up: Path) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        flavors.find()
    assert "TensorRT is not installed" in caught.value.message
    assert "TensorRT for RTX is not installed" in caught.value.message
    assert "pip install tensorrt-rtx-cu13-bindings" in (caught.value.hint or "")
    assert flavors.installed() == ()


def test_only_the_flavor_asked_for_is_looked_at(made_up: Path) -> None:
    write(made_up, "tensorrt_rtx", "__version__ = '1.7'\nclass Builder: pass\n")
    with pytest.raises(BackendUnavailable, match="TensorRT is not installed") as caught:
        flavors.find("tensorrt")
    assert "RTX" not in caught.value.message
    with pytest.raises(UnknownName, match="flavor of TensorRT named 'rxt'"):
        flavors.find("rxt")


@pytest.mark.parametrize(("raises", "said", "fix"), [
    ("libnvinfer.so.11: cannot open shared object file: No such file or directory", "does not find libnvinfer.so.11",
     "libraries in the version of its bindings"),
    ("libcudart.so.12: cannot open shared object file: No such file or directory", "does not find libcudart.so.12",
     "nvidia-cuda-runtime"),
    ("libcuda.so.1: cannot open shared object file: No such file or directory", "does not find libcuda.so.1", "driver"),
    ("undefined symbol: _ZN8nvinfer1", "cannot be imported: undefined symbol", "Install it again"),
])
def test_an_import_that_fails_gives_the_reason_and_the_fix(made_up: Path, raises: str, said: str, fix: str) -> None:
    write(made_up, "tensorrt", f"raise ImportError({raises!r})\n")
    found = flavors.look("tensorrt")
    assert isinstance(found, flavors.Absent)
    assert said in found.reason and fix in found.fix


def test_a_module_that_fails_leaves_the_bindings_to_be_tried(made_up: Path) -> None:
    write(made_up, "tensorrt", "raise RuntimeError('the CUDA version does not match')\n")
    write(made_up, "tensorrt_bindings", "__version__ = '11.4'\nclass Builder: pass\n")
    assert flavors.find().module.__name__ == "tensorrt_bindings"


def test_a_package_without_bindings_is_said_to_be_one(made_up: Path) -> None:
    (made_up / "tensorrt").mkdir()
    found = flavors.look("tensorrt")
    assert isinstance(found, flavors.Absent) and "without its bindings" in found.reason


def test_a_library_that_a_wheel_brought_is_loaded_before_the_import_is_tried_again(
        made_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(path: str, mode: int = 0) -> None:
        if path.endswith("libnvinfer.so.11") and not any(one.endswith("libcudart.so.13") for one in loaded):
            raise OSError("libcudart.so.13: cannot open shared object file: No such file or directory")
        loaded.append(path)
        (made_up / "ready").touch()

    monkeypatch.setattr(flavors.ctypes, "CDLL", load)
    for folder, library in (("tensorrt_libs", "libnvinfer.so.11"), ("nvidia/cu13/lib", "libcudart.so.13")):
        (made_up / folder).mkdir(parents=True)
        (made_up / folder / library).touch()
    write(made_up, "tensorrt", f"""
import pathlib
if not pathlib.Path({str(made_up / "ready")!r}).exists():
    raise ImportError("libnvinfer.so.11: cannot open shared object file: No such file or directory")
__version__ = "11.4"
class Builder: pass
""")
    assert flavors.find().version == "11.4"
    assert [Path(path).name for path in loaded] == ["libcudart.so.13", "libnvinfer.so.11"]


def test_a_library_that_cannot_be_loaded_is_the_reason(made_up: Path) -> None:
    (made_up / "tensorrt_libs").mkdir()
    (made_up / "tensorrt_libs/libnvinfer.so.11").write_bytes(b"no library")
    write(made_up, "tensorrt", "raise ImportError('libnvinfer.so.11: cannot open shared object file: No such file')\n")
    found = flavors.look("tensorrt")
    assert isinstance(found, flavors.Absent) and "cannot be imported" in found.reason
