"""What cannot be verified on a machine is skipped in words, named at the end of the run, and listed in the README."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_contract_backends import contracts

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- unverified backends -->", "<!-- end of unverified backends -->"

MADE_UP = '''
import pytest

class Contract:
    why = None

    @classmethod
    def missing(cls):
        return cls.why

    def test_it(self):
        assert self.why is None

class TestHere(Contract):
    pass

@pytest.mark.gpu
class TestCard(Contract):
    pass

@pytest.mark.gpu
class TestNoCard(Contract):
    why = "there is no NVIDIA driver here."

class TestNoLibrary(Contract):
    why = "the library is not installed."

@pytest.mark.gpu
def test_of_something_else():
    raise AssertionError("left out of an ordinary run")
'''


@pytest.fixture
def folder(tmp_path):
    """A project with the settings and the conftest of this one."""
    settings = re.search(r"\[tool\.pytest\.ini_options\]\n.*?(?=\n\[|\Z)", (ROOT / "pyproject.toml").read_text(), re.S)
    (tmp_path / "pyproject.toml").write_text(settings[0])
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    (tmp_path / "tests" / "test_made_up.py").write_text(MADE_UP)
    return tmp_path


def outcome(folder, *more):
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *more], cwd=folder,
                          capture_output=True, text=True, timeout=600)
    return done.stdout


@pytest.mark.parametrize(("flags", "counts", "ran"), [
    ((), "1 passed, 2 skipped, 2 deselected", "TestHere"),
    (("-m", "gpu", "--deselect", "tests/test_made_up.py::test_of_something_else"),
     "1 passed, 1 skipped, 3 deselected", "TestCard"),
])
def test_a_contract_class_that_cannot_run_is_skipped_in_words_in_every_run(folder, flags, counts, ran):
    told = outcome(folder, *flags)
    assert counts in told.splitlines()[-1], told
    assert f"{ran}::test_it PASSED" in told
    assert "TestNoCard: there is no NVIDIA driver here." in told.split("short test summary")[0]


def test_the_classes_that_did_not_run_are_named_at_the_end(folder):
    told = outcome(folder).split("backends whose contract was not verified here", 1)[1]
    assert "\nTestNoCard: there is no NVIDIA driver here.\nTestNoLibrary: the library is not installed.\n" in told
    assert "not verified here" not in outcome(folder, "-k", "TestHere")


def test_with_workers_the_run_ends_in_the_same_words(folder):
    pytest.importorskip("xdist")
    told = outcome(folder, "-n", "2", "--dist", "loadfile")
    assert "1 passed, 2 skipped" in told.splitlines()[-1], told
    ending = "backends whose contract was not verified here"
    assert told.count(ending) == 1
    assert told.split(ending)[1].splitlines()[1:3] == outcome(folder).split(ending)[1].splitlines()[1:3]


def listed():
    """The backends that the README calls unverified, from the lines of its list; none where it has no such list."""
    text = (ROOT / "README.md").read_text()
    part = text.split(BEGIN, 1)[1].split(END, 1)[0]
    return {name for line in part.splitlines() if line.startswith("- ")
            for name in re.findall(r"`([^`]+)`", line.split(":")[0])}


def unverified():
    """The backends of which a contract class cannot run here; what runs on a made-up card stands for no real one."""
    return {name for name, classes in contracts().items() if any(one.missing() is not None for one in classes)}


def has_a_card():
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def test_the_readme_lists_what_is_not_verified():
    """CI has no card, so there the two sets are the same; a machine with one verifies more than the README says."""
    here, names = unverified(), ", ".join(f"`{name}`" for name in sorted(unverified()))
    wanted = f"README.md must hold:\n{BEGIN}\n- {names}: what was done without them\n{END}"
    assert here <= listed(), wanted
    if not has_a_card():
        assert here == listed(), wanted


def test_continuous_integration_shows_the_end_of_the_run():
    script, makefile = (ROOT / ".ci" / "run").read_text(), (ROOT / "Makefile").read_text()
    assert script.rstrip().splitlines()[-1] == "make test"
    command = "\tpython -m pytest -n $(WORKERS) --dist loadfile\n"
    assert command in makefile.replace("$(BIN)/", "")  # no flag that hides the summary
