"""Some cases of the fuzzer of engines on made-up plans, and a proof that it sees what it looks for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import fuzz_engines

from edgetl.backends import _tensorrt_flavor, _tensorrt_sidecar, _tensorrt_store
from edgetl.errors import EdgetlError

COUNTS = {"kills": 4}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """The fuzzer itself works in memory where it can."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


def outcomes(family: str, scratch: Path, count: int) -> list[str]:
    case = fuzz_engines.prepare(family, 5, scratch, fuzz_engines.made_up_engines())
    found = []
    for number in range(count):
        try:
            case(number)
            found.append("result")
        except EdgetlError as problem:
            found.append(type(problem).__name__)
    return found


@pytest.mark.parametrize("family", fuzz_engines.FAMILIES)
def test_some_cases_of_every_family(family, tmp_path):
    found = outcomes(family, tmp_path, COUNTS.get(family, 25))
    assert set(found) <= {"result", "BuiltAgain"}
    assert "BuiltAgain" in found


def test_a_store_that_believes_any_plan_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(_tensorrt_store, "read_plan", lambda path, sidecar: path.read_bytes())
    with pytest.raises(AssertionError, match="another plan came out"):
        outcomes("plans", tmp_path, 25)


def test_a_store_that_believes_any_sidecar_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(_tensorrt_store, "difference", lambda found, wanted: "")
    with pytest.raises(AssertionError):
        outcomes("fields", tmp_path, 25)


def test_a_store_that_writes_without_care_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(_tensorrt_sidecar, "_text", lambda value: "")
    with pytest.raises((AssertionError, ValueError)):
        outcomes("swaps", tmp_path, 25)


@pytest.mark.slow
def test_thousands_of_cases_with_real_plans_under_the_harness(tmp_path):
    if isinstance(_tensorrt_flavor.look("rtx"), _tensorrt_flavor.Absent):
        pytest.skip("TensorRT for RTX builds the plans, and cannot be imported")
    cases = {family: 30 if family == "kills" else 400 for family in fuzz_engines.FAMILIES}
    found = fuzz_engines.run(cases, 11, tmp_path, fuzz_engines.base_engines())
    assert sum(tally.failures for tally in found.values()) == 0
