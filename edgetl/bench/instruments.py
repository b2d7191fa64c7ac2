"""The machine's sensors during a benchmark: what they are asked when, and the tables of what they said."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgetl.bench import energy, sensors
from edgetl.bench.energy import Clock
from edgetl.bench.report import Report, Row
from edgetl.bench.sensors import Found
from edgetl.bench.tables import MISSING, Table, megabytes, numbered, significant
from edgetl.bench.watch import Watch

if TYPE_CHECKING:
    from edgetl.bench.trial import Trial


class Instruments:
    """Reads frequency, temperature and throttling around every block, and energy over a window after all rounds.

    Args:
        watch: reads the machine's state.
        find: finds its sensors of energy.
        clock: of the window.
        gpu_memory: what the driver says that a process holds on cards.
    """

    def __init__(self, watch: Watch | None = None, find: Callable[[], Found] = sensors.find,
                 clock: Clock | None = None,
                 gpu_memory: Callable[[int], int | None] = sensors.gpu_memory_bytes) -> None:
        self.watch, self._find, self._clock, self._gpu_memory = watch or Watch(), find, clock, gpu_memory
        self._energy: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def around(self, case: str) -> Iterator[None]:
        """Readings before and after a block of the case, outside of what is timed."""
        self.watch.before_round()
        yield
        self.watch.after_round(case)

    def weigh(self, trials: Sequence[Trial]) -> None:
        """Energy of a window of calls for each case that still runs, or why there is none; and its GPU memory."""
        found = self._find()
        for trial in trials:
            device = trial.device()
            if device is not None:
                self._energy[trial.case.name] = {**self._of(trial, device, found), **self._held(trial, device)}

    def _of(self, trial: Trial, device: str, found: Found) -> dict[str, Any]:
        chosen = found.of_device(device)
        if not chosen:
            return {"energy_reason": sensors.missing(found, device)}
        calls = energy.calls_for(trial.call_s())
        seen, failed = energy.measure(chosen, lambda: trial.spend(calls), batch=trial.case.batch, clock=self._clock)
        told: dict[str, Any] = {"energy": energy.to_json(seen)} if seen else {}
        return told | ({"energy_reason": "; ".join(failed)} if failed else {})

    def _held(self, trial: Trial, device: str) -> dict[str, Any]:
        pid = None if sensors.card_number(device) is None else trial.pid()
        held = None if pid is None else self._gpu_memory(pid)
        return {} if held is None else {"gpu_memory_bytes": held}

    def of(self, case: str) -> dict[str, Any]:
        """All that was read for a case, for `Row.sensors`."""
        return {**self.watch.of(case), **self._energy.get(case, {})}


def tables(made: Report) -> tuple[Table, ...]:
    """Energy and state of the processor of each case that has them."""
    rows = numbered(made)
    spent = Table("Energy of a window of calls; the power at rest was measured before it and is not subtracted",
                  ("#", "case", "sensor", "J/image", "power W", "at rest W", "window s", "of"),
                  tuple(line for number, row in rows for line in _energy_lines(number, row)))
    speeds = Table("Fastest core right after each block, hottest zone, and blocks in which the processor was throttled",
                   ("#", "case", "least MHz", "greatest MHz", "hottest °C", "throttled blocks", "GPU MB by NVML"),
                   tuple((str(number), row.case, *_state(row)) for number, row in rows
                         if {"frequency_khz", "celsius_after", "throttled", "gpu_memory_bytes"} & set(row.sensors)))
    return tuple(_told(table) for table in (spent, speeds) if table.rows)


def _told(table: Table) -> Table:
    """The table less the columns in which no row has anything: no machine has all these sensors."""
    kept = [place for place in range(len(table.columns)) if any(row[place] != MISSING for row in table.rows)]
    return Table(table.caption, tuple(table.columns[place] for place in kept),
                 tuple(tuple(row[place] for place in kept) for row in table.rows))


def _energy_lines(number: int, row: Row) -> list[tuple[str, ...]]:
    return [(str(number), row.case, one["sensor"], significant(one["joules_per_image"], 3),
             significant(one["watts"], 3), significant(one["idle_watts"], 3), significant(one["window_s"], 3),
             one["scope"]) for one in row.sensors.get("energy", [])]


def _state(row: Row) -> tuple[str, ...]:
    khz = [one for one in row.sensors.get("frequency_khz", []) if one is not None]
    hot = [one for one in row.sensors.get("celsius_after", []) if one is not None]
    blocks = row.sensors.get("throttled")
    return (f"{min(khz) / 1000:.0f}" if khz else MISSING, f"{max(khz) / 1000:.0f}" if khz else MISSING,
            f"{max(hot):.0f}" if hot else MISSING,
            MISSING if blocks is None else f"{sum(map(bool, blocks))} of {len(blocks)}",
            megabytes(row.sensors.get("gpu_memory_bytes")))


def remarks(made: Report) -> list[str]:
    """Why there is no energy, each reason once."""
    reasons = {row.sensors["energy_reason"]: row.case for row in made.rows if "energy_reason" in row.sensors}
    many = len([row for row in made.rows if row.measured]) > 1 and len(reasons) > 1
    return [f"{f'{case}: ' if many else ''}no energy: {reason}." for reason, case in reasons.items()]
