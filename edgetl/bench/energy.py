"""Joules of a window of calls, from the machine's own sensors, with the power at rest told beside them.

The window is of its own, after the timed rounds, and as long as the sensors need: RAPL's counters move once a
millisecond, NVML's every tenth of a second. The power at rest is measured just before and never subtracted: what a
device takes while it waits depends on what it waits in, and whoever wants the difference has both numbers.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgetl.bench.sensors import Sensor, SensorFailed
from edgetl.timing import now_s, sleep_until

WINDOW_S = 3.0  # at least so long are the calls of a window
REST_S = 2.0  # and so long is the machine left alone before it
SAMPLE_S = 0.05  # from one reading of a power meter to the next; the INA3221 averages over some milliseconds


@dataclass(frozen=True)
class Energy:
    """What one sensor measured over a window of calls; `joules_per_image` holds all that the sensor sees."""

    sensor: str
    scope: str
    joules_per_image: float
    joules: float
    images: int
    window_s: float
    watts: float
    idle_watts: float  # measured before; not subtracted
    samples: int | None  # readings of a power meter; None for a counter


@dataclass
class Clock:
    """Time, so that tests need none."""

    now_s: Callable[[], float] = now_s
    sleep_until: Callable[[float], None] = sleep_until


@dataclass
class Spent:
    """What a sensor saw while some work was done."""

    joules: float
    window_s: float
    samples: int | None = None

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / self.window_s


def measure(sensors: Sequence[Sensor], calls: Callable[[], int], *, batch: int,
            clock: Clock | None = None) -> tuple[list[Energy], list[str]]:
    """What each sensor says of the calls, and a sentence for each sensor that failed.

    Args:
        sensors: of the device that the calls run on.
        calls: makes the calls of the window and returns how many they were; 0 where they failed.
        batch: images a call.
        clock: see there.
    """
    clock = clock or Clock()
    made = 0

    def work() -> None:
        nonlocal made
        made = calls()

    rest, failed = watched(sensors, lambda: clock.sleep_until(clock.now_s() + REST_S), clock)
    busy, failed_later = watched([one for one in sensors if one.name in rest], work, clock)
    if made == 0:
        return [], [*failed, *failed_later, "the calls of the window failed"]
    found = [Energy(one.name, one.scope, busy[one.name].joules / (made * batch), busy[one.name].joules, made * batch,
                    busy[one.name].window_s, busy[one.name].watts, rest[one.name].watts, busy[one.name].samples)
             for one in sensors if one.name in busy]
    return found, [*failed, *failed_later]


def watched(sensors: Sequence[Sensor], work: Callable[[], None],
            clock: Clock) -> tuple[dict[str, Spent], list[str]]:
    """What each sensor saw while `work` ran, by its name, and why others saw nothing."""
    meters = Meters([one for one in sensors if not one.counter], clock)
    before, failed = _readings([one for one in sensors if one.counter])
    begin = clock.now_s()
    with meters:
        work()
    window_s = clock.now_s() - begin
    after, failed_later = _readings([one for one in sensors if one.name in before])
    found = {one.name: Spent(one.spent_j(before[one.name], after[one.name]), window_s)
             for one in sensors if one.name in after}
    # Virtual machines show counters that never move: zero joules is a broken sensor and not a frugal machine.
    still = [name for name, spent in found.items() if spent.joules <= 0]
    found = {name: spent for name, spent in found.items() if name not in still}
    found |= {name: Spent(watts * window_s, window_s, samples) for name, (watts, samples) in meters.means().items()}
    return found, [*failed, *failed_later, *meters.failed.values(),
                   *(f"{name}: the counter did not move in {window_s:.3g} s" for name in still)]


def _readings(sensors: Sequence[Sensor]) -> tuple[dict[str, float], list[str]]:
    found, failed = {}, []
    for one in sensors:
        try:
            found[one.name] = one.read()
        except SensorFailed as problem:
            failed.append(problem.message)
    return found, failed


@dataclass
class Meters:
    """Reads power meters again and again in a thread of its own while the `with` block runs."""

    sensors: Sequence[Sensor]
    clock: Clock
    watts: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, name="edgetl-power", daemon=True)
        if self.sensors:
            self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        if self.sensors:
            self._thread.join()

    def _read(self) -> None:
        while True:
            for one in self.sensors:
                try:
                    self.watts.setdefault(one.name, []).append(one.read())
                except SensorFailed as problem:
                    self.failed[one.name] = problem.message
            if self._over.wait(SAMPLE_S):
                return

    def means(self) -> dict[str, tuple[float, int]]:
        """Mean watts of each meter that never failed, and of how many readings."""
        return {name: (float(np.mean(values)), len(values)) for name, values in self.watts.items()
                if name not in self.failed}


def calls_for(median_s: float, window_s: float = WINDOW_S) -> int:
    """How many calls fill the window."""
    return max(1, math.ceil(window_s / median_s))


def to_json(found: Sequence[Energy]) -> list[dict[str, Any]]:
    """Plain values for a row's `sensors`."""
    return [dataclasses.asdict(one) for one in found]
