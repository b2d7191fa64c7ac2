"""The runtime loads nothing heavy, and runs where only numpy, onnxruntime and Pillow are installed."""

import json
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
from tiny_bundle import encode, make_bundle, make_photo

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "typer",
    "rich",
    "PIL",
    "onnx",
    "onnxruntime",
    "openvino",
    "matplotlib",
    "safetensors",
    "cryptography",
)
DEVICE = ("numpy", "onnxruntime", "pillow")

HOOK = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {heavy!r}:
            raise AssertionError("imported " + name)
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, {root!r})
import {module}
loaded = {{name.split(".")[0] for name in sys.modules}} & set({heavy!r})
assert not loaded, loaded
"""


@pytest.mark.parametrize(
    "module",
    [
        "edgetl.runtime",
        "edgetl.runtime.__main__",
        "edgetl.backends.cpu",
        "edgetl.backends.openvino",
        "edgetl.backends.torch",
    ],
)
def test_importing_loads_nothing_heavy(module):
    script = HOOK.format(heavy=HEAVY, root=str(ROOT), module=module)
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_the_hook_can_fail():
    script = HOOK.format(heavy=("json",), root=str(ROOT), module="edgetl.runtime")
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode != 0


DEVICE_SCRIPT = """
import importlib.util, json, sys
sys.path.append({site!r})
for absent in {absent!r}:
    assert importlib.util.find_spec(absent) is None, absent
import edgetl.runtime
with edgetl.runtime.load({bundle!r}, threads=1) as classifier:
    found = classifier.predict({photo!r})
report = edgetl.runtime.verify({bundle!r}, threads=1)
outside = [name for name, module in sys.modules.items() if "site-packages" in (getattr(module, "__file__", None) or "")]
print(json.dumps([found.label, found.score, [check.status for check in report.checks], outside]))
"""


@pytest.fixture
def device(tmp_path):
    """A folder of packages as the extra "cpu" fills it: links to what these three wheels installed."""
    site = tmp_path / "device"
    site.mkdir()
    installed = Path(sysconfig.get_paths()["purelib"])
    for package in DEVICE:
        tops = {Path(file).parts[0] for file in metadata.files(package) or () if not str(file).startswith("..")}
        for top in tops:
            (site / top).symlink_to(installed / top)
    (site / "edgetl").symlink_to(ROOT / "edgetl")
    return site


def test_a_device_with_only_numpy_onnxruntime_and_pillow(device, tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode(make_photo(1)))
    absent = tuple(set(HEAVY) - {"PIL", "onnxruntime"})
    script = DEVICE_SCRIPT.format(site=str(device), absent=absent, bundle=str(bundle), photo=str(photo))
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    label, score, statuses, outside = json.loads(done.stdout)
    assert outside == []
    assert set(statuses) == {"passed"}
    from edgetl.runtime import load

    with load(bundle, threads=1) as classifier:
        here = classifier.predict(photo)
    assert (label, score) == (here.label, pytest.approx(here.score, abs=1e-6))


def test_without_onnxruntime_the_hint_says_what_to_install(device, tmp_path):
    (device / "onnxruntime").unlink()
    script = f"""
import sys
sys.path.append({str(device)!r})
from edgetl.runtime.__main__ import main
sys.exit(main(["info", {str(make_bundle(tmp_path / "bundle"))!r}, "--backend", "cpu"]))
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "pip install onnxruntime pillow" in done.stderr


def test_without_pillow_the_hint_says_what_to_install(device):
    (device / "PIL").unlink()
    script = f"""
import sys
sys.path.append({str(device)!r})
from edgetl.errors import MissingDependency
from edgetl.runtime.preprocess import Preprocess, decode
try:
    decode(b"an image", Preprocess(size_hw=(8, 8)))
except MissingDependency as problem:
    print(problem.message, problem.hint)
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=600)
    assert "'pillow'" in done.stdout, done.stderr
    assert "pip install onnxruntime pillow" in done.stdout
