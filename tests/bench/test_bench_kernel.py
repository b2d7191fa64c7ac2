"""The calibration kernel: what it does is fixed, and its times travel in the report."""

from __future__ import annotations

import dataclasses

import hand_made
import pytest

from edgetl import timing
from edgetl.bench import kernel, report


def test_the_scalar_part_is_the_published_generator():
    # Two steps by hand, modulo 2**64.
    first = (6364136223846793005 + 1442695040888963407) % 2**64
    assert kernel.scalar(1) == first
    assert kernel.scalar(2) == (6364136223846793005 * first + 1442695040888963407) % 2**64


def test_a_block_is_the_median_of_each_part_without_the_first_passes(monkeypatch):
    # The clock says 1 s for the first call, 2 s for the second, ...: three parts taking turns in every pass.
    took = iter(range(1, 1 + 3 * kernel.PASSES))
    monkeypatch.setattr(kernel, "timed", lambda work: (work(), float(next(took))))
    middle = (kernel.DROPPED + kernel.PASSES - 1) / 2
    assert kernel.block() == kernel.Block(*(3 * middle + part for part in (1, 2, 3)))


def test_a_block_on_the_real_clock_is_positive():
    assert all(second > 0 for second in dataclasses.astuple(kernel.block()))
    assert kernel.timed is timing.timed


def test_every_pass_writes_memory_of_its_own():
    _, memory, _ = kernel._parts()
    written = [memory(turn) for turn in range(kernel.PASSES)]
    assert len({one.ctypes.data for one in written}) == kernel.PASSES


def test_the_report_keeps_the_blocks():
    blocks = (kernel.Block(1e-3, 2e-3, 3e-3), kernel.Block(1.5e-3, 2.5e-3, 3.5e-3))
    made = dataclasses.replace(hand_made.make_report(), calibration=kernel.Calibration(kernel.VERSION, blocks))
    assert report.from_json(report.to_json(made), where="x").calibration == made.calibration
    plain = report.to_json(made)
    del plain["calibration"]  # a report of an older edgetl
    assert report.from_json(plain, where="x").calibration is None


def test_a_cut_calibration_is_named():
    plain = report.to_json(hand_made.make_report())
    plain["calibration"] = {"kernel": 1, "blocks": [{"arithmetic_s": 1.0, "memory_s": 2.0}]}
    with pytest.raises(Exception, match=r"calibration.blocks\[0\].scalar_s' is missing"):
        report.from_json(plain, where="x")
