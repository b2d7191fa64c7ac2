"""Where the time of a call goes: `--profile-layers`, and the tables that show it.

The profiled session runs in a process of its own, after all rounds; the timed sessions never had a profiler.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from edgetl.bench import stats
from edgetl.bench.report import LayerTime, Report, Row
from edgetl.bench.tables import Table, milliseconds, numbered, percent, significant

MOST = 10  # layers that a table shows; the json has all
KIND_WORDS = {"integer": "compute with integers", "float": "compute in floating point",
              "converting": "convert between the two", "moving": "only move values",
              "unknown": "do not tell how they compute"}


def fields(told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row from the answer of `edgetl.bench.profiling.profile`."""
    total = sum(one["median_s"] for one in told["layers"])
    layers = tuple(LayerTime(**one, share=one["median_s"] / total if total else 0.0) for one in told["layers"])
    return {"layers": layers, "layers_s": told["layers_s"], "profiled_s": told["profiled_s"]}


def tables(made: Report) -> tuple[Table, ...]:
    """Two tables a profiled case: its slowest layers, and all of them by operation."""
    profiled = [(number, row) for number, row in numbered(made) if row.layers]
    return tuple(table for number, row in profiled for table in (slowest(number, row), by_operation(number, row)))


def slowest(number: int, row: Row) -> Table:
    """The layers that take most of a call, with the kernels that computed them."""
    first = sorted(row.layers, key=lambda one: -one.median_s)[:MOST]
    rows = [(f"{one.median_s * 1e6:.0f}", percent(one.share), one.name, one.op, one.executed_as) for one in first]
    rest = f"the slowest {len(first)} of {len(row.layers)} layers" if len(first) < len(row.layers) else "all layers"
    return Table(f"{number} {row.case}, {rest}: {sentence(row)}",
                 ("median µs", "share %", "layer", "operation", "executed as"), tuple(rows))


def by_operation(number: int, row: Row) -> Table:
    """Time and arithmetic of the layers, added up by operation."""
    rows = [(f"{sum(one.median_s for one in found) * 1e6:.0f}", percent(sum(one.share for one in found)), op,
             str(len(found)), ", ".join(dict.fromkeys(one.kind for one in found)))
            for op, found in operations(row.layers)]
    return Table(f"{number} {row.case}, by operation: {arithmetic(row.layers)}",
                 ("sum of medians µs", "share %", "operation", "layers", "arithmetic"), tuple(rows))


def operations(layers: Sequence[LayerTime]) -> list[tuple[str, list[LayerTime]]]:
    """The layers of each operation, those that take most of a call first."""
    found: dict[str, list[LayerTime]] = defaultdict(list)
    for one in layers:
        found[one.op].append(one)
    return sorted(found.items(), key=lambda pair: -sum(one.median_s for one in pair[1]))


def arithmetic(layers: Sequence[LayerTime]) -> str:
    """How many nodes run as integer kernels, and what the others do, in one line."""
    parts = []
    for kind, words in KIND_WORDS.items():
        found = [one for one in layers if one.kind == kind]
        if found or kind == "integer":
            parts.append(f"{len(found)} {words} ({percent(sum(one.share for one in found))} % of the time)")
    return f"of {len(layers)} nodes " + ", ".join(parts)


def sentence(row: Row) -> str:
    """What the layers add up to beside the call, and what the profiler costs."""
    plain_s = stats.median_interval(row.measurement.seconds).value
    # Far apart where something disturbed the calls: each in another layer, so that the medians know nothing of it.
    medians = milliseconds(sum(one.median_s for one in row.layers))
    together = (f"together {milliseconds(row.layers_s)} ms (their medians: {medians} ms) of a call of "
                f"{milliseconds(row.profiled_s)} ms")
    cost = 100 * ((row.profiled_s or 0.0) / plain_s - 1)
    paced = "" if row.measurement.arrival == "back-to-back" else f", {row.measurement.arrival}"
    return (f"{together} with the profiler on; without it the median is {milliseconds(plain_s)} ms{paced}, so the "
            f"profiler changes it by {'+' if cost >= 0 else '-'}{significant(abs(cost), 2)} %")


def reasons(made: Report) -> list[str]:
    """A sentence for each case that was to be profiled and could not."""
    return [f"{row.case}: no layers, {row.layers_reason}" for row in made.rows if row.layers_reason]
