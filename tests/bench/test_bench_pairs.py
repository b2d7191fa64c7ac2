"""Pairs of fresh processes: how many calls a block has, in which order the blocks come, and what becomes of a death."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from bench.test_bench_runner import fakes_on_the_path, make_tiny  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl import recipe
from edgetl.bench import affinity, cases, pairs, trial
from edgetl.bench.pairs import Pair, Pattern
from edgetl.errors import EdgetlError

NO_OPTIONS = recipe.Bench(cases=(), out="", timeout_s=600.0)


def case_of(folder: Path, backend: str) -> cases.Case:
    path = str(make_tiny(folder, backend))
    (found,) = cases.find(recipe.Bench(cases=(path,), out="", backend=(backend,)))
    return found


def test_a_pair_of_a_case_with_itself(tmp_path):
    case = case_of(tmp_path / "tiny", "benchfakes.fine")
    plan = Pattern(kept=4, dropped=2, blocks=4)
    pair = pairs.measure((case, case), NO_OPTIONS, plan, np.random.default_rng(0))
    assert pair.seconds.shape == (2, 4, 4) and pair.seconds.min() > 0
    assert sorted(pair.turns) == [0] * 4 + [1] * 4
    assert np.isfinite(pair.log_ratio)
    again = Pair.from_json(pair.to_json())
    np.testing.assert_allclose(again.seconds, pair.seconds, atol=1e-9)
    assert dataclasses.replace(again, seconds=pair.seconds).to_json() == pair.to_json()


def sides_of(folder: Path, threads: int) -> list[cases.Case]:
    case = dataclasses.replace(case_of(folder, "benchfakes.fine"), threads=threads)
    return [case, case]


@pytest.mark.parametrize(("threads", "own", "pin", "expected"), [
    (1, range(4), None, 1), (3, range(4), None, 3), (4, range(4), None, 0), (8, range(4), None, 0),
    (0, range(4), None, 0), (1, range(4), "2", 0), (1, (), None, 0), (1, (5,), None, 0)])
def test_both_sides_share_cores_where_some_are_left_over(tmp_path, monkeypatch, threads, own, pin, expected):
    monkeypatch.setattr(affinity, "allowed", lambda: tuple(own))
    options = dataclasses.replace(NO_OPTIONS, pin=pin)
    found = pairs._cores(sides_of(tmp_path / "tiny", threads), options, np.random.default_rng(0))
    assert len(found) == expected and set(found) <= set(own)


def test_no_core_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(affinity, "allowed", lambda: (0, 3, 4))
    sides, order = sides_of(tmp_path / "tiny", 2), np.random.default_rng(0)
    drawn = [pairs._cores(sides, NO_OPTIONS, order) for _ in range(60)]
    assert {(0, 3), (0, 4), (3, 4)} == set(drawn)


@pytest.mark.skipif(len(affinity.allowed()) < 2, reason="one core: there is nothing to choose")
def test_the_workers_really_run_on_the_cores(tmp_path, monkeypatch):
    ran, close = [], trial.Trial.close
    monkeypatch.setattr(trial.Trial, "close", lambda self, **how: (ran.append(os.sched_getaffinity(self.pid())),
                                                                   close(self, **how))[1])
    pair = pairs.measure(sides_of(tmp_path / "tiny", 1), NO_OPTIONS, Pattern(2, 1, 2), np.random.default_rng(0))
    assert len(pair.cores) == 1 and ran == [set(pair.cores)] * 2
    assert Pair.from_json(pair.to_json()).cores == pair.cores


def test_no_side_is_always_first_nor_ever_far_ahead():
    order = np.random.default_rng(0)
    drawn = [pairs._turns(12, order) for _ in range(200)]
    for turns in drawn:
        assert turns.count(0) == turns.count(1) == 12
        assert np.abs(np.cumsum(2 * np.array(turns) - 1)).max() <= 1 + 1  # 0110 1001: at most two in a row
        assert all(turns[at:at + 4] in ((0, 1, 1, 0), (1, 0, 0, 1)) for at in range(0, 24, 4))
    assert 250 < sum(turns[0] + turns[4] + turns[8] for turns in drawn) < 350  # of 600 draws


@pytest.mark.parametrize(("call_s", "expected"), [
    (0.0, Pattern(30, 5, 12)), (20e-6, Pattern(30, 5, 12)), (0.7e-3, Pattern(29, 5, 12)), (5e-3, Pattern(4, 1, 12)),
    (20e-3, Pattern(3, 1, 10)), (100e-3, Pattern(3, 1, 2)), (10.0, Pattern(3, 1, 2))])
def test_blocks_of_slow_graphs_have_few_calls(call_s, expected):
    assert pairs.pattern(call_s) == expected


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 100))
def test_every_pattern_can_be_measured(call_s):
    found = pairs.pattern(call_s)
    assert found.blocks % 2 == 0 and found.blocks >= 2 and found.kept >= 3 and found.dropped >= 1


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 100), st.integers(0, 1000))
def test_the_ratio_knows_no_unit_and_mirrors(factor, seed):
    seconds = np.random.default_rng(seed).lognormal(size=(2, 4, 7))
    found = pairs.log_ratio(seconds)
    assert pairs.log_ratio(factor * seconds) == pytest.approx(found, abs=1e-9)
    assert pairs.log_ratio(seconds[::-1]) == pytest.approx(-found, abs=1e-12)
    slower = seconds * np.array([1.0, 1.1])[:, None, None]
    assert pairs.log_ratio(slower) == pytest.approx(found + np.log(1.1), abs=1e-9)


def test_a_neighbour_in_half_of_the_calls_does_not_move_the_ratio():
    draw = np.random.default_rng(0)
    seconds = 1e-3 * draw.normal(1.0, 0.01, (2, 12, 30))
    calm = pairs.log_ratio(seconds)
    disturbed = seconds.copy()
    disturbed[1] *= np.where(draw.random((12, 30)) < 0.5, 2.5, 1.0)
    assert abs(pairs.log_ratio(disturbed) - calm) < 0.01
    assert abs(np.log(np.median(disturbed[1]) / np.median(disturbed[0]))) > 0.01  # as it would move the median


@pytest.mark.parametrize(("backend", "told"), [("killed", "SIGKILL"), ("absent", "no such chip"),
                                               ("raises", "a bug in the backend")])
def test_a_death_ends_the_pair_in_one_sentence_and_leaves_nobody(tmp_path, monkeypatch, backend, told):
    launched = []
    launch = trial.HERE.launch
    monkeypatch.setattr(type(trial.HERE), "launch",
                        lambda self, timeout_s: launched.append(launch(timeout_s)) or launched[-1])
    fine = case_of(tmp_path / "fine", "benchfakes.fine")
    broken = case_of(tmp_path / "broken", f"benchfakes.{backend}")
    with pytest.raises(EdgetlError, match="nothing can be compared") as caught:
        pairs.measure((fine, broken), NO_OPTIONS, Pattern(2, 1, 2), np.random.default_rng(1))
    assert told in caught.value.message and broken.name in caught.value.message
    assert launched
    # Waited for, so none is left, not even as a zombie. By its number it must not be asked for: others may have it now.
    assert all(process._child.returncode is not None for process in launched)


def test_what_the_clock_cannot_see_has_no_ratio(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "_start", lambda trial: None)
    monkeypatch.setattr(pairs, "_block", lambda trial, calls, dropped: [0.0] * (calls - dropped))
    case = case_of(tmp_path / "tiny", "benchfakes.fine")
    with pytest.raises(EdgetlError, match="less than the clock can tell"):
        pairs.measure((case, case), NO_OPTIONS, Pattern(2, 1, 2), np.random.default_rng(1))


def test_the_probe_finds_the_length_of_the_calls(tmp_path, monkeypatch):
    case = case_of(tmp_path / "tiny", "benchfakes.fine")
    monkeypatch.setattr(pairs, "_start", lambda trial: None)
    monkeypatch.setattr(pairs, "_block", lambda trial, calls, dropped: [0.2, trial.case.threads / 10, 0.3])
    assert pairs.probe([case], NO_OPTIONS) == pairs.pattern(0.1)
    assert pairs.probe([case, dataclasses.replace(case, threads=2)], NO_OPTIONS) == pairs.pattern(0.2)
    paced = dataclasses.replace(case, interval="500ms")
    assert pairs.probe([paced], NO_OPTIONS) == pairs.pattern(0.5)
