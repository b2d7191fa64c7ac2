"""A few hundred cases of the bundle fuzzer, and a proof that its harness sees what it looks for."""

from __future__ import annotations

import functools
import os
import select
import signal
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import fuzz_bundles
import fuzz_changes
import fuzz_harness
import numpy as np

from edgetl.errors import BundleError, EdgetlError

IN_PROCESS = [family for family in fuzz_bundles.FAMILIES if family != "graphs"]


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("fuzz")
    return scratch, *fuzz_bundles.base_files(scratch)


def outcomes(family: str, kitchen, count: int) -> list[str]:
    case = fuzz_bundles.prepare(family, 7, *kitchen)
    found = []
    for number in range(count):
        try:
            case(number)
            found.append("result")
        except EdgetlError as problem:
            assert "\n" not in problem.message and len(problem.message) < 4000
            found.append(type(problem).__name__)
    return found


@pytest.mark.parametrize("family", IN_PROCESS)
def test_some_cases_of_every_family(family, kitchen):
    """Warnings are errors here too; crashes, hangs and memory are for benchmarks/fuzz_bundles.py to see."""
    found = outcomes(family, kitchen, 120 if family == "manifest" else 50)
    assert "BundleError" in found or family == "golden"


@pytest.mark.slow
def test_thousands_of_cases_under_the_harness(tmp_path):
    files, key = fuzz_bundles.base_files(tmp_path)
    found = fuzz_bundles.run({**dict.fromkeys(IN_PROCESS, 600), "graphs": 100}, 11, tmp_path, files, key)
    assert sum(tally.failures for family, tally in found.items() if family != "graphs") == 0


def test_the_same_seed_gives_the_same_cases(kitchen, tmp_path):
    _, files, _ = kitchen
    for family, build in fuzz_bundles.FAMILIES.items():
        made = []
        for turn in ("a", "b"):
            place = tmp_path / f"{family}-{turn}"
            place.mkdir()
            path = build(np.random.default_rng([3, 5]), files, place / "bundle")
            made.append({one.relative_to(place): one.read_bytes() for one in sorted([path, *path.rglob("*")])
                         if one.is_file() and not one.is_symlink()})
        assert made[0] == made[1], family


def test_changed_json_is_still_mostly_json():
    text = '{"a": [1, 2, {"b": null}], "c": "x"}'
    made = {fuzz_changes.change_json(np.random.default_rng(seed), text) for seed in range(200)}
    assert len(made) > 100


def misbehave(hang: Callable[[], None], number: int) -> None:
    """A case of every kind that the harness must see."""
    kinds = {1: lambda: os.kill(os.getpid(), signal.SIGSEGV), 2: hang, 3: lambda: {}["bug"],
             4: lambda: bytearray(3 << 30), 5: lambda: warnings.warn("odd", stacklevel=1), 6: refuse, 7: spin,
             8: lambda: os.abort(), 9: refuse_at_length}
    kinds.get(number, lambda: None)()


def refuse() -> None:
    raise BundleError("It is refused.")


def refuse_at_length() -> None:
    raise BundleError("two\nlines")


def spin() -> None:
    until = time.process_time() + 0.4
    while time.process_time() < until:
        pass


@pytest.mark.parametrize("forked", [False, True])
def test_the_harness_sees_crashes_hangs_bugs_memory_and_warnings(monkeypatch, forked, capfd):
    """Who has to give a case up does so when the case says that it hangs: a busy machine is no reason to."""
    hanging, hangs = os.pipe()
    here, really = os.getpid(), select.select

    def hang() -> None:
        os.write(hangs, b".")
        time.sleep(3600)

    def until_something_hangs(pipes: list[Any], _: object, __: object, patience_s: float) -> tuple[list[Any], ...]:
        if (os.getpid() == here) == forked:  # the worker gives up its children, where it has such, else its parent does
            return really(pipes, [], [])
        ready = really([*pipes, hanging], [], [])[0]
        told = [one for one in ready if one != hanging]
        if not told:
            os.read(hanging, 1)
        return told, [], []

    monkeypatch.setattr(fuzz_harness, "select", types.SimpleNamespace(select=until_something_hangs))
    monkeypatch.setattr(fuzz_harness, "SLOW_S", 0.3)
    tally = fuzz_harness.run(lambda: functools.partial(misbehave, hang), 12, forked=forked)
    os.close(hanging)
    os.close(hangs)
    assert tally.cases == 12
    assert tally.outcomes == {"result": 3, "BundleError": 1}  # 0, 10, 11
    assert [(one["case"], one["signal"]) for one in tally.crashes] == [(1, "SIGSEGV"), (8, "SIGABRT")]
    assert [one["case"] for one in tally.hangs] == [2, 7]
    assert [one["case"] for one in tally.bugs] == [3, 4, 5, 9]
    assert "KeyError" in tally.bugs[0]["bug"] and "MemoryError" in tally.bugs[1]["bug"]
    assert "no sentence" in tally.bugs[3]["bug"]
    assert tally.to_json()["examples"]["bugs"] == tally.bugs
