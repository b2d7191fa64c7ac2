"""What apps write type-checks: a small user script against the installed package, and the examples."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed")

ROOT = Path(__file__).parents[2]
SCRIPT = """
from pathlib import Path

import numpy as np

import edgetl
from edgetl.errors import EdgetlError
from edgetl.runtime import Classifier, Prediction, VerifyReport, load, verify


def label(bundle: Path, photo: bytes) -> tuple[str, float]:
    with load(bundle, threads=1) as classifier:
        found: Prediction = classifier.predict(photo, top=3)
        many: list[Prediction] = classifier.predict_batch([photo, Path("x.jpg"), np.zeros((4, 4, 3), np.uint8)])
        rows, columns = classifier.logits([photo]).shape
        return many[0].label, found.score + rows + columns


def checked(bundle: str) -> Classifier | None:
    try:
        report: VerifyReport = verify(bundle)
        print(report.images, edgetl.__version__)
        return edgetl.load(bundle)
    except EdgetlError as problem:
        print(problem.message, problem.hint, problem.exit_code)
        return None
"""
WRONG = """
from edgetl.runtime import load

index: str = load("BUNDLE").predict("photo.jpg").index  # a number
load(path="BUNDLE", colour="blue")
"""


def check(*paths: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    # The cache is kept between runs: the first of a checkout takes 20 s for numpy's and FastAPI's types.
    places = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache" / "apps")]
    command = [sys.executable, "-m", "mypy", "--strict", *places, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_user_code_and_the_examples_pass_mypy_strict(tmp_path):
    (tmp_path / "app.py").write_text(SCRIPT)
    done = check(tmp_path / "app.py", *sorted((ROOT / "deploy" / "examples").glob("*.py")), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wrong_user_code_does_not(tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    done = check(tmp_path / "wrong.py", cwd=tmp_path)
    assert done.returncode == 1
    assert 'variable has type "str"' in done.stdout
    assert 'Unexpected keyword argument "colour"' in done.stdout
    assert done.stdout.endswith("Found 2 errors in 1 file (checked 1 source file)\n")
