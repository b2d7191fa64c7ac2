"""A short form of benchmarks/fuzz_images.py, and the files that once were the worst."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import fuzz_images
import numpy as np

from edgetl.errors import EdgetlError

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("kind", sorted(fuzz_images.available()))
def test_changed_files_are_pixels_or_an_expected_error(kind: str) -> None:
    """Warnings are errors here too; crashes, hangs and memory are for the script to see."""
    outcomes = set()
    for number in range(40):
        try:
            fuzz_images.decoded(*fuzz_images.changed(kind, 7, number))
            outcomes.add("result")
        except EdgetlError as problem:
            outcomes.add("error")
            assert "\n" not in problem.message
    assert outcomes == {"result", "error"}


def test_every_seed_is_a_picture_before_it_is_changed() -> None:
    for kind in sorted(fuzz_images.available()):
        seen = 0
        for data in fuzz_images.seeds(kind):
            try:
                fuzz_images.decoded(data, fuzz_images.WANTS[0], "exact")
                seen += 1
            except EdgetlError as problem:
                assert "floating-point" in problem.message or "16 bits" in problem.message, (kind, problem.message)
        assert seen >= 4


def test_the_same_seed_gives_the_same_cases() -> None:
    assert fuzz_images.changed("PNG", 3, 11) == fuzz_images.changed("PNG", 3, 11)
    assert fuzz_images.changed("PNG", 3, 11)[0] != fuzz_images.changed("PNG", 4, 11)[0]


@pytest.mark.parametrize("slow_s", [60, pytest.param(2, marks=pytest.mark.slow)])
def test_the_worst_files_neither_crash_nor_hang_nor_burst(slow_s: int) -> None:
    """Each within 2 s of processor time, which a very slow machine may exceed, and 1 GB, in a process that may die."""
    assert sum(path.stat().st_size for path in CORPUS.iterdir()) < 100_000
    script = [sys.executable, fuzz_images.__file__, "--files", CORPUS, "--slow-s", str(slow_s)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{2 * len(list(CORPUS.iterdir()))} cases" in done.stdout


def test_out_of_memory_and_wrong_pixels_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise EdgetlError("no memory") from MemoryError()

    monkeypatch.setattr(fuzz_images, "prepare_pixels", no_memory)
    with pytest.raises(AssertionError, match="out of memory"):
        fuzz_images.decoded(b"", fuzz_images.WANTS[0], "exact")
    monkeypatch.setattr(fuzz_images, "prepare_pixels", lambda *_, **__: np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(AssertionError):
        fuzz_images.decoded(b"", fuzz_images.WANTS[0], "exact")
