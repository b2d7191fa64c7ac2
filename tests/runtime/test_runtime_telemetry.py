"""Nothing that edgetl does makes ONNX Runtime report to its maker or leave an identifier of the device behind."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_bundle import encode, make_bundle, make_photo

from edgetl.runtime import telemetry

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from edgetl.runtime import load
with load(sys.argv[1], threads=1, backend="cpu") as classifier:
    print(classifier.predict(sys.argv[2]).label)
"""


def leftovers(tmp_path, **variables):
    """Files that a prediction in a fresh process leaves in an empty home."""
    bundle = make_bundle(tmp_path / "bundle")
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode(make_photo(2)))
    home = tmp_path / "home"
    home.mkdir()
    # ONNX Runtime is silent under continuous integration, where this test shall see something all the same.
    silent = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME", telemetry.VARIABLE)
    environment = {name: value for name, value in os.environ.items() if name not in silent}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), **variables}
    words = [sys.executable, "-c", SCRIPT, str(bundle), str(photo)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]


def test_a_prediction_leaves_nothing_in_the_home(tmp_path):
    assert leftovers(tmp_path) == []


def test_what_the_user_sets_is_left_so(tmp_path):
    """Also shows that the test above can fail."""
    version = pytest.importorskip("onnxruntime").__version__
    if tuple(map(int, version.split(".")[:2])) < (1, 29):
        pytest.skip(f"onnxruntime {version} reports nothing on Linux")
    assert any("onnxruntime" in name for name in leftovers(tmp_path, **{telemetry.VARIABLE: "0"}))


@pytest.mark.parametrize(("given", "left", "calls"), [(None, "1", 1), ("0", "0", 0), ("1", "1", 0)])
def test_an_app_that_imported_it_first_is_silenced(monkeypatch, given, left, calls):
    called = []
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(disable_telemetry_events=lambda: called.append(1)))
    monkeypatch.delenv(telemetry.VARIABLE, raising=False)
    if given is not None:
        monkeypatch.setenv(telemetry.VARIABLE, given)
    telemetry.off()
    telemetry.off()
    assert os.environ[telemetry.VARIABLE] == left
    assert len(called) == calls


def unguarded(source: str) -> list[int]:
    """Lines of functions that import onnxruntime without calling telemetry.off() first."""
    found = []
    for function in (one for one in ast.walk(ast.parse(source)) if isinstance(one, ast.FunctionDef)):
        calls = [node.lineno for node in ast.walk(function)
                 if isinstance(node, ast.Call) and ast.unparse(node.func) == "telemetry.off"]
        for node in ast.walk(function):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            here = any(name.split(".")[0] == "onnxruntime" for name in names)
            if here and not any(line < node.lineno for line in calls):
                found.append(node.lineno)
    return found


def test_every_import_of_onnxruntime_is_preceded_by_off():
    found = [f"{path}:{line}" for path in (ROOT / "edgetl").rglob("*.py") for line in unguarded(path.read_text())]
    assert found == []
    assert unguarded("def f():\n    import onnxruntime\n    telemetry.off()") == [2]
    assert unguarded("def f():\n    from onnxruntime.quantization import a") == [2]
