"""The project around the package: README, Makefile and the CI script say what is so."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import conftest
import pytest

import edgetl
from edgetl import errors, plugins, recipe
from edgetl.recipe_compare import Compare
from edgetl.recipe_compare_strategies import CompareStrategies
from edgetl.recipe_gate import RegressionGate
from edgetl.recipe_quantize import Quantize
from edgetl.recipe_tune import Tune

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def packages(extra: str) -> list[str]:
    """Names of the packages of an extra; those of `edgetl[a,b]` by the names of the extras."""
    found = []
    for requirement in EXTRAS[extra]:
        own = re.fullmatch(r"edgetl\[(.*)\]", requirement)
        found += own[1].split(",") if own else [re.split(r"[<>=!~\[]", requirement)[0]]
    return found


def readme_table(first_column: str) -> dict[str, str]:
    """Second cell by first cell of the README's table whose head begins with `first_column`."""
    rows = README.split(f"| {first_column} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0].strip("`"): row[1] for row in cells}


def test_the_readme_lists_every_extra_with_its_packages() -> None:
    table = readme_table("extra")
    assert list(table) == list(EXTRAS)
    for extra, cell in table.items():
        assert cell.replace("`", "").split(", ") == packages(extra), extra


def test_the_readme_names_every_data_set() -> None:
    data = README.split("## Data", 1)[1].split("## ", 1)[0]
    for name in set(plugins.names("datasets")) - {"folder"}:
        assert f"`{name}`" in data or f"`{name}:" in data, name


def test_the_readme_uses_flags_that_exist() -> None:
    known = {name.replace("_", "-") for stage in (*recipe.STAGES.values(), Tune, RegressionGate, Compare, Quantize,
                                                              CompareStrategies)
             for name in recipe.fields_of(stage)}
    known |= {"out"}
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", README, re.S | re.M))
    lines = [shlex.split(line, comments=True) for line in blocks.splitlines() if line.startswith("edgetl ")]
    assert len(lines) >= 6
    used = {word[2:] for line in lines for word in line if word.startswith("--")}
    used |= set(re.findall(r"`--([a-z0-9-]+)", README))
    assert used - {"data", "help"} <= known | {"json", "csv"}


def test_the_readme_names_every_command() -> None:
    typer = pytest.importorskip("typer")
    from edgetl.cli.app import app

    table = "\n".join(readme_table("command"))
    assert set(re.findall(r"[a-z-]+", table)) == set(typer.main.get_command(app).commands)


def test_hints_name_the_packages_of_the_extras() -> None:
    assert {extra: " ".join(packages(extra)) for extra in errors.PACKAGES} == errors.PACKAGES


def test_no_hint_installs_edgetl_from_a_registry() -> None:
    """It is on none; what is copied from a hint must work."""
    said = [line.split("pip install", 1)[1] for path in (ROOT / "edgetl").rglob("*.py")
            for line in path.read_text().splitlines() if "pip install" in line]
    assert len(said) > 2
    assert [line for line in said if re.search("edgetl(?![-_])", line)] == []


def test_the_base_package_needs_numpy_only() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [re.split(r"[<>=]", one)[0] for one in project["dependencies"]] == ["numpy"]


def test_ci_resolves_every_extra_that_dev_does_not_install() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    loop = re.search(r"for extra in (.*); do", script)
    assert loop is not None
    contained = {"dev", "demo", *packages("demo")}
    assert set(loop[1].split()) >= set(EXTRAS) - contained - {"tensorrt"}
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
class TestMakefile:
    """`make -n` in a copy: what would be done."""

    @pytest.fixture
    def copy(self, tmp_path: Path) -> Path:
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path / name)
        return tmp_path

    def planned(self, folder: Path, target: str) -> str:
        # `make test` runs this test: the outer make's variables would make the inner one name its folder.
        outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
        environment = {name: value for name, value in os.environ.items() if name not in outer}
        command = ["make", "--no-print-directory", "-n", target]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        return result.stdout

    def test_a_fresh_clone_is_installed(self, copy: Path) -> None:
        assert '--editable ".[demo]"' in self.planned(copy, "demo")
        plan = self.planned(copy, "test")
        assert '--editable ".[dev]"' in plan
        assert plan.index("pip install") < plan.index("ruff check") < plan.index("mypy") < plan.index("pytest")

    @pytest.mark.parametrize(("stamp", "target"), [("dev", "test"), ("dev", "demo"), ("demo", "demo")])
    def test_a_second_run_installs_nothing(self, copy: Path, stamp: str, target: str) -> None:
        (copy / ".venv").mkdir()
        (copy / ".venv" / f".installed-{stamp}").touch()
        assert "pip install" not in self.planned(copy, target)

    def test_a_changed_pyproject_is_installed_again(self, copy: Path) -> None:
        (copy / ".venv").mkdir()
        stamp = copy / ".venv" / ".installed-dev"
        stamp.touch()
        os.utime(stamp, (1, 1))
        assert "pip install" in self.planned(copy, "demo")
        assert "pip install" in self.planned(copy, "test")


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 2), (64, conftest.MOST_WORKERS)])
def test_the_tests_run_in_a_process_for_each_core(monkeypatch: pytest.MonkeyPatch, cores: int, workers: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert conftest.pytest_xdist_auto_num_workers() == workers


def test_the_python_version_is_checked(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ncase "$2" in *print*) echo 3.9;; *) exit 1;; esac\n')
    old.chmod(0o755)
    script = [shutil.which("sh") or "sh", str(ROOT / "deploy" / "make-venv.sh")]
    cases = {str(old): "is Python 3.9, expected 3.11 or newer", "no-python": "There is no 'no-python'"}
    for python, expected in cases.items():
        result = subprocess.run(script, env={**os.environ, "PYTHON": python, "VENV": str(tmp_path / "venv")},
                                capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert expected in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "venv").exists()


def test_the_version_is_one() -> None:
    assert f"## {edgetl.__version__}" in (ROOT / "CHANGELOG.md").read_text()
