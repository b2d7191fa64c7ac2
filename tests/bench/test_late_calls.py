"""What is said of paced cases that do not keep up with the clock."""

from __future__ import annotations

import dataclasses

from edgetl.bench import runner
from tests.bench.hand_made import row


def paced(seconds, waited, late):
    plain = row("tiny cpu", 1.0, backend="cpu")
    measured = dataclasses.replace(plain.measurement, seconds=seconds, rounds=1, arrival="paced 10ms")
    return dataclasses.replace(plain, measurement=measured, waited_s=waited, late_calls=late)


def test_waits_that_no_latency_holds_are_told():
    (said,) = runner.late_calls([paced((0.002, 0.035, 0.002, 0.002, 0.002), (0.0, 0.0, 0.025, 0.017, 0.009), 3)])
    assert said.startswith("tiny cpu: 3 of 5 calls began late")
    assert "due for up to 25.0 ms" in said and "the median is 19.0 ms and the greatest 35.0 ms" in said


def test_a_report_of_an_older_worker_has_no_waits_and_is_still_told_of():
    (said,) = runner.late_calls([paced((0.02, 0.02), (), 2)])
    assert said.endswith("it does not keep up with paced 10ms.")


def test_nothing_is_said_of_a_case_that_keeps_up():
    assert runner.late_calls([paced((0.002, 0.002), (0.0, 0.0), 0)]) == []
