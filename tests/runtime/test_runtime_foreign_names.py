"""What a bundle or a RUN names is never imported unless it is edgetl's own or the user vouched for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import edit_manifest, make_bundle

from edgetl import datasets, models, plugins
from edgetl.errors import BundleError, EdgetlError
from edgetl.runtime import manifest

PLANTED = """
from pathlib import Path
Path(__file__).with_name("ran").write_text("code of the bundle ran")
"""
OWN = PLANTED + """
from edgetl.backends import Availability
from edgetl.backends.cpu import open
def probe():
    return Availability(usable=True, version="1", device="own")
"""


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A bundle with a module beside its manifest, which names that module as its first backend."""
    bundle = make_bundle(tmp_path / "bundle")
    (bundle / "graphs").mkdir()
    (bundle / "graphs" / "chip.py").write_text(OWN)
    edit_manifest(bundle, "variants", 0, "backends", value=["graphs.chip", "cpu"])
    return bundle


def in_the_folder(bundle: Path, *command: str, trust: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=bundle, capture_output=True, text=True, check=False,
                          env={**os.environ, plugins.TRUST: trust})


def test_a_backend_beside_the_manifest_is_not_imported(planted: Path) -> None:
    found = in_the_folder(planted, "-m", "edgetl.runtime", "verify", ".")
    assert found.returncode == 0, found.stderr
    edit_manifest(planted, "variants", 0, "backends", value=["graphs.chip"])
    found = in_the_folder(planted, "-m", "edgetl.runtime", "verify", ".")
    assert found.returncode == 1 and "graphs.chip" in found.stderr
    assert not (planted / "graphs" / "ran").exists()


@pytest.mark.parametrize("arguments, trust", [(("--backend", "graphs.chip"), ""), ((), "other.one,graphs.chip")])
def test_a_module_that_the_user_names_is_imported(planted: Path, arguments: tuple[str, ...], trust: str) -> None:
    found = in_the_folder(planted, "-m", "edgetl.runtime", "info", ".", "--json", *arguments, trust=trust)
    assert found.returncode == 0, found.stderr
    assert "graphs.chip" in found.stdout and (planted / "graphs" / "ran").exists()


@pytest.mark.parametrize("field, value", [
    ("backends", ["../chip"]), ("backends", ["chip."]), ("backends", ["cpu", "a b"]), ("backends", [""]),
    ("target", "graphs.chip"), ("target", "../x"), ("target", "")])
def test_what_is_no_name_is_refused(planted: Path, field: str, value: object) -> None:
    edit_manifest(planted, "variants", 0, field, value=value)
    with pytest.raises(BundleError, match=f"'{field}' is "):
        manifest.from_json((planted / manifest.MANIFEST).read_text(), where="m")


def test_a_run_that_names_a_module_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "family.py").write_text(PLANTED)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "family.py").write_text(PLANTED)
    record = {"schema": 1, "kind": "run", "model": "pack.family/x", "labels": ["a", "b"],
              "preprocess": {}, "data": {"source": "pack.family:x"}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    code = ("import json, safetensors.torch, sys; from pathlib import Path; from edgetl import weights\n"
            "from edgetl.runtime.preprocess import Preprocess, to_dict\n"
            "record = json.loads(Path('run.json').read_text()) | {'preprocess': to_dict(Preprocess(size_hw=(8, 8)))}\n"
            "weights.rebuild(record, safetensors.torch.save({}))")
    found = in_the_folder(tmp_path, "-c", code)
    assert "is not imported" in found.stderr and "pack.family" in found.stderr
    assert not list(tmp_path.rglob("ran"))


def test_names_of_files_are_refused_and_names_of_users_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ownpack").mkdir()
    (tmp_path / "ownpack" / "chip.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(str(tmp_path))
    refused = [lambda: plugins.load("backends", "ownpack.chip", foreign=False),
               lambda: datasets.open_data("ownpack.chip:x", foreign=False),
               lambda: models.create("ownpack.chip/x", classes=2, foreign=False)]
    for one in refused:
        with pytest.raises(EdgetlError, match="is not imported"):
            one()
    assert not (tmp_path / "ownpack" / "ran").exists()
    monkeypatch.setenv(plugins.TRUST, "ownpack.chip")
    plugins.load("backends", "ownpack.chip", foreign=False)
    assert (tmp_path / "ownpack" / "ran").exists()
