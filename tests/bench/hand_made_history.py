"""Folders of reports as many commits and two machines leave them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import hand_made

from edgetl.bench import report

MACHINES = ({"cpu": "AMD EPYC", "usable_threads": 2, "cpus": 2}, {"cpu": "Cortex-A76", "usable_threads": 4, "cpus": 4})


def commit(number: int) -> str:
    """A commit's name."""
    return f"{number:02x}" * 20


def dated(number: int, machine: int = 0, *, factor: float = 1.0, **changes) -> report.Report:
    """The report of the n-th day; its latencies are so many times those of `hand_made`."""
    made = hand_made.make_report()
    environment = {**made.environment, **MACHINES[machine], "measured_at": f"2026-07-{number + 1:02d}T12:30:00+00:00",
                   "commit": commit(number)}
    rows = []
    for row in made.rows:
        seconds = tuple(second * factor * (1 + 0.004 * number) for second in row.measurement.seconds)
        size = None if row.backend == "torch" else row.size_bytes // (4 if row.precision == "int8" else 1)
        rows.append(dataclasses.replace(row, size_bytes=size,
                                        measurement=dataclasses.replace(row.measurement, seconds=seconds)))
    return dataclasses.replace(made, environment=environment, rows=tuple(rows), **changes)


def write(folder: Path, made: report.Report) -> Path:
    """`report.json` in a folder."""
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(report.dumps(made))
    return folder


def write_history(root: Path, days: int = 3) -> Path:
    """Days of machine 0, one of machine 1 which is slower, a damaged report, and files that are none."""
    for number in range(days):
        write(root / f"day-{number}", dated(number))
    write(root / "board", dated(0, 1, factor=4))
    write(root / ".day-9.partial", dated(9))
    (root / "damaged").mkdir()
    (root / "damaged/report.json").write_text(report.dumps(dated(1))[:500])
    (root / "day-0/junit.json").write_text("{")
    (root / "day-0/manifest.json").write_text(json.dumps({"schema": 1}))
    return root
