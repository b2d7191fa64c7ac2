"""The two wheels: the whole of edgetl, and the part of it that devices need, which must stay small."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_string
from importlib import metadata
from pathlib import Path

import pytest
from tiny_bundle import encode, make_bundle, make_photo

import edgetl
from edgetl import plugins

ROOT = Path(__file__).parents[1]
MOST_BYTES = 200_000
FOREIGN = ("tests", "benchmarks", "deploy", "docs")


def built(project: Path, out: Path) -> zipfile.ZipFile:
    """The wheel that `python -m build --wheel` makes, without an environment of its own to make it in."""
    done = subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=project,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """edgetl's wheel."""
    with built(ROOT, tmp_path_factory.mktemp("whole")) as wheel:
        yield wheel


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """The wheel edgetl-runtime."""
    with built(ROOT / "deploy" / "device-wheel", tmp_path_factory.mktemp("device")) as wheel:
        yield wheel


@pytest.fixture(scope="module")
def tensorrt(tmp_path_factory):
    """The wheel edgetl-runtime-tensorrt."""
    with built(ROOT / "deploy" / "device-wheel-tensorrt", tmp_path_factory.mktemp("tensorrt")) as wheel:
        yield wheel


def described(wheel: zipfile.ZipFile):
    (name,) = (one for one in wheel.namelist() if one.endswith(".dist-info/METADATA"))
    return message_from_string(wheel.read(name).decode())


def test_the_wheels_for_devices_are_small(device, tensorrt):
    for wheel in (device, tensorrt):
        assert Path(wheel.filename).stat().st_size < MOST_BYTES


def test_the_wheels_hold_the_package_and_nothing_else(whole, device, tensorrt):
    for wheel in (whole, device, tensorrt):
        names = wheel.namelist()
        assert len(names) == len(set(names))
        assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"edgetl"}
        assert not [name for name in names if set(name.split("/")) & set(FOREIGN) or name.endswith((".pyc", ".so"))]
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
        for name in names:
            if name.startswith("edgetl/"):
                assert wheel.read(name) == (ROOT / name).read_bytes(), name
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "edgetl").rglob("*.py")}
    assert sources <= set(whole.namelist())
    assert {"edgetl/demo.toml", "edgetl/py.typed"} <= set(whole.namelist())


def test_a_device_has_the_whole_runtime_and_every_backend_in_two_wheels_that_share_no_file(device, tensorrt):
    rooms = {path.relative_to(ROOT).as_posix() for room in ("runtime", "backends")
             for path in (ROOT / "edgetl" / room).rglob("*.py")}
    inside, beside = ({name for name in wheel.namelist() if name.startswith("edgetl/")} for wheel in (device, tensorrt))
    assert not inside & beside
    assert {"edgetl/backends/tensorrt.py"} <= beside and all(name.startswith("edgetl/backends/") for name in beside)
    inside |= beside
    assert rooms - inside == {"edgetl/backends/torch.py", "edgetl/backends/_torch_profile.py"}
    assert inside - rooms == {f"edgetl/{name}" for name in ("__init__.py", "errors.py", "plugins.py", "py.typed")}


def test_they_need_numpy_only_and_are_one_version(whole, device, tensorrt):
    for wheel, name in ((whole, "edgetl"), (device, "edgetl-runtime")):
        told = described(wheel)
        needs = [one for one in told.get_all("Requires-Dist") if "extra ==" not in one]
        assert needs == ["numpy>=1.26"]
        assert (told["Name"], told["Version"], told["Requires-Python"]) == (name, edgetl.__version__, ">=3.11")
    told = described(tensorrt)
    needs = [one for one in told.get_all("Requires-Dist") if "extra ==" not in one]
    assert (told["Version"], needs) == (edgetl.__version__, [f"edgetl-runtime=={edgetl.__version__}"])
    for wheel in (device, tensorrt):
        require_the_same_extras(whole, wheel)


def require_the_same_extras(whole, device):
    extras = {extra: {one for one in described(whole).get_all("Requires-Dist") if f"extra == '{extra}'" in one}
              for extra in described(device).get_all("Provides-Extra")}
    assert extras == {extra: {one for one in described(device).get_all("Requires-Dist") if f"extra == '{extra}'" in one}
                      for extra in extras}


SCRIPT = """
import json, sys
sys.path[:0] = [{wheel!r}, {site!r}]
import edgetl
assert edgetl.__file__.startswith({wheel!r}), edgetl.__file__
try:
    edgetl.finetune
except AttributeError as problem:
    missing = str(problem)
with edgetl.load({bundle!r}, threads=1) as classifier:
    label = classifier.predict({photo!r}).label
from edgetl import plugins
print(json.dumps([label, missing, plugins.names("backends"), len(edgetl.verify({bundle!r}, threads=1).checks)]))
"""


def test_a_bundle_runs_from_the_device_s_wheel(device, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    for package in ("numpy", "onnxruntime", "pillow"):
        for top in {Path(file).parts[0] for file in metadata.files(package) or () if not str(file).startswith("..")}:
            (site / top).symlink_to(Path(sysconfig.get_paths()["purelib"]) / top)
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode(make_photo(1)))
    bundle = make_bundle(tmp_path / "bundle")
    script = SCRIPT.format(wheel=device.filename, site=str(site), bundle=str(bundle), photo=str(photo))
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    label, missing, backends, checks = json.loads(done.stdout)
    with edgetl.load(bundle, threads=1) as classifier:
        assert label == classifier.predict(photo).label
    assert missing.startswith("edgetl.finetune is not part of edgetl-runtime")
    assert set(backends) == set(plugins.names("backends")) - {"torch", "tensorrt"}
    assert checks >= 4
