"""Pairs of reports with known differences, for the tests of comparisons."""

from __future__ import annotations

import dataclasses

import hand_made
import numpy as np

from edgetl.bench import kernel, report

MACHINE = {"machine": "x86_64", "cpu": "AMD EPYC", "cpus": 4, "usable_threads": 4, "memory_bytes": 8_000_000_000,
           "kernel": "6.8", "versions": {"onnxruntime": "1.30.0"}}
OTHER = {**MACHINE, "cpu": "Cortex-A76", "machine": "aarch64"}


def seconds(median_ms, seed, *, rounds=10, calls=20, between=0.004, within=0.01):
    """Latencies of rounds that differ by `between` and calls that differ by `within`."""
    generator = np.random.default_rng(seed)
    levels = generator.lognormal(0, between, (rounds, 1))
    drawn = median_ms / 1000 * levels * generator.lognormal(0, within, (rounds, calls))
    return tuple(drawn.ravel().tolist())


def row(case, median_ms, seed, *, rounds=10, arrival="back-to-back", reason=None, between=0.004, within=0.01,
        **changes):
    """A row that was measured, or that failed for a reason."""
    kept = () if reason else seconds(median_ms, seed, rounds=rounds, between=between, within=within)
    measured = report.Measurement(case, kept, 0 if reason else rounds, 10, arrival,
                                  report.FAILED if reason else report.MEASURED, reason)
    plain = report.Row(measurement=measured, source="bundle", kind="bundle", backend="cpu", threads=1, batch=1,
                       size_bytes=3_400_000, session={"threads": 1})
    return dataclasses.replace(plain, **changes)


def calibration(seed, *, arithmetic=1.0, memory=1.0, scalar=1.0, rounds=10):
    """Kernel times, the parts so many times as long as usual."""
    drawn = 1e-3 * np.random.default_rng(seed).lognormal(0, 0.002, (rounds, 3)) * (arithmetic, memory, scalar)
    return kernel.Calibration(kernel.VERSION, tuple(kernel.Block(*map(float, one)) for one in drawn))


def make(*rows, machine=MACHINE, **changes):
    """A report of these rows."""
    return report.Report(report.SCHEMA, dict(machine), {}, rows, rows[0].case, None, **changes)


def graded(errors, seed):
    """An accuracy with so many errors of 60."""
    return hand_made.exam.grade(hand_made.evaluation(errors, seed), None, hand_made.LABELS)
