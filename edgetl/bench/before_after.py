"""Why a precision pays or not: the nodes of a variant beside those of its float32 graph, in one engine.

Engines fuse and rename, so that few nodes stand in both profiles under one name. Their operations can be compared: what
QLinearConv does is what Conv did. What rounding costs besides, the nodes that convert, is an operation of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgetl.bench import stats
from edgetl.bench.report import LayerTime, Report, Row
from edgetl.bench.tables import MISSING, Table, numbered, percent, significant
from edgetl.runtime.layers import CONVERTING, INTEGER

FP32 = "fp32"
MOST = 10  # layers that a table shows
CONVERSION = "conversions"
# ONNX Runtime's names of kernels that do with integers, or fused with their activation, what another one does alone.
SAME = {"QGemm": "Gemm", "ConvInteger": "Conv", "MatMulInteger": "MatMul", "MatMulIntegerToFloat": "MatMul",
        "DynamicQuantizeMatMul": "MatMul", "QAttention": "Attention"}
PREFIX = re.compile("^(QLinear|NhwcFused|Nhwc|Fused)")
# Endings that ONNX Runtime and the quantizer give a node that is still the same layer.
ENDING = re.compile("(_nchwc|_quant|_nhwc)+$")
SURE = 0.97  # of fp32's time: less of a gain is what the export takes for noise


@dataclass(frozen=True)
class Pair:
    """Two profiled cases, with their numbers in tables and figures."""

    before: tuple[int, Row]  # in float32
    after: tuple[int, Row]


@dataclass(frozen=True)
class Change:
    """An operation in both."""

    operation: str
    before: tuple[LayerTime, ...]
    after: tuple[LayerTime, ...]

    @property
    def before_s(self) -> float:
        """Sum of the medians in float32."""
        return sum(one.median_s for one in self.before)

    @property
    def after_s(self) -> float:
        """Sum of the medians of the variant."""
        return sum(one.median_s for one in self.after)

    @property
    def difference_s(self) -> float:
        """What it takes more than in float32; below 0 is a gain."""
        return self.after_s - self.before_s


def pairs(made: Report) -> tuple[Pair, ...]:
    """Each profiled case that is not float32, beside the float32 graph of the same source under the same conditions."""
    rows = [(number, row) for number, row in numbered(made) if row.layers]
    found = []
    for number, row in rows:
        base = None if row.precision in (FP32, None) else next((one for one in rows if _is_base(one[1], row)), None)
        if base is not None:
            found.append(Pair(base, (number, row)))
    return tuple(found)


def _is_base(base: Row, row: Row) -> bool:
    def conditions(one: Row) -> tuple[object, ...]:
        return one.source, one.backend, one.threads, one.batch, one.measurement.arrival

    return base.precision == FP32 and conditions(base) == conditions(row)


def operation(layer: LayerTime) -> str:
    """What a node computes, by the same name in all precisions."""
    if layer.kind == CONVERTING:
        return CONVERSION
    return SAME.get(layer.op, PREFIX.sub("", layer.op))


def changes(pair: Pair) -> list[Change]:
    """Every operation of the two, those whose time changes most first."""
    sides = [list(pair.before[1].layers), list(pair.after[1].layers)]
    names = dict.fromkeys(operation(one) for side in sides for one in side)
    found = [Change(name, *(tuple(one for one in side if operation(one) == name) for side in sides)) for name in names]
    return sorted(found, key=lambda one: -abs(one.difference_s))


def tables(made: Report) -> tuple[Table, ...]:
    """Two tables a pair: by operation, and the layers that changed most."""
    return tuple(table for pair in pairs(made) for table in (by_operation(pair), by_layer(pair)))


def by_operation(pair: Pair) -> Table:
    """Time and nodes of each operation before and after, and the sum."""
    found = changes(pair)
    total = Change("all", pair.before[1].layers, pair.after[1].layers)
    rows = [(one.operation, _microseconds(one.before_s), _microseconds(one.after_s), _signed(one.difference_s),
             str(len(one.before)), str(len(one.after)), str(_integer(one.after))) for one in (*found, total)]
    return Table(f"{_title(pair)}: {sentence(pair)}",
                 ("operation", "fp32 µs", f"{pair.after[1].precision} µs", "difference µs", "fp32 nodes", "nodes",
                  "of them integer"), tuple(rows))


def by_layer(pair: Pair) -> Table:
    """The layers that stand in both under one name, or in one alone, those whose time changes most first."""
    lines = sorted(_lines(pair), key=lambda one: -abs(_seconds(one[2]) - _seconds(one[1])))
    rows = [(_microseconds(_seconds(before)), _microseconds(_seconds(after)),
             _signed(_seconds(after) - _seconds(before)), name, _kernels(before), _kernels(after))
            for name, before, after in lines[:MOST]]
    rest = f"the {MOST} of {len(lines)} layers" if len(lines) > MOST else "the layers"
    return Table(f"{_title(pair)}, {rest} that changed most; one on one side alone was fused, or is new",
                 ("fp32 µs", f"{pair.after[1].precision} µs", "difference µs", "layer", "fp32 executed as",
                  "executed as"), tuple(rows))


def _lines(pair: Pair) -> Iterator[tuple[str, list[LayerTime], list[LayerTime]]]:
    """The layers of both: in the order in which they ran, where an operation has as many nodes in both, else by name.

    What ONNX Runtime fuses gets the name of the value that comes out, which is another one in either graph.
    """
    for change in changes(pair):
        if len(change.before) == len(change.after):
            yield from ((after.name, [before], [after]) for before, after in zip(change.before, change.after,
                                                                                 strict=True))
            continue
        sides = [[(ENDING.sub("", one.name), one) for one in side] for side in (change.before, change.after)]
        for name in dict.fromkeys(name for side in sides for name, _ in side):
            before, after = ([one for own, one in side if own == name] for side in sides)
            yield name, before, after


def _seconds(layers: Sequence[LayerTime]) -> float:
    return sum(one.median_s for one in layers)


def _kernels(layers: Sequence[LayerTime]) -> str:
    return ", ".join(dict.fromkeys(one.executed_as for one in layers)) or MISSING


def _integer(layers: Sequence[LayerTime]) -> int:
    return sum(one.kind == INTEGER for one in layers)


def sentence(pair: Pair) -> str:
    """Whether it pays, and what decides that, in one line."""
    before_s, after_s = (stats.median_interval(row.measurement.seconds).value for _, row in (pair.before, pair.after))
    precision, layers = str(pair.after[1].precision).upper(), pair.after[1].layers
    times = significant(before_s / after_s, 3)
    pays = f"{precision} pays" if after_s < SURE * before_s else f"{precision} does not pay"
    count = f"{_integer(layers)} of {len(layers)} nodes compute with integers"
    return (f"{pays}: {significant(1e3 * after_s, 3)} ms a call where fp32 takes {significant(1e3 * before_s, 3)} "
            f"({times} times as fast); {count}; {_reasons(pair)}")


def _reasons(pair: Pair) -> str:
    """The operations that gain and lose most, and the share of the time that goes into converting."""
    found = changes(pair)
    gains = [one for one in found if one.difference_s < 0][:2]
    losses = [one for one in found if one.difference_s > 0][:2]
    total_s = _seconds(pair.after[1].layers)
    converting = next((one.after_s for one in found if one.operation == CONVERSION), 0.0)
    parts = [f"{word} by {' and '.join(f'{one.operation} {_signed(one.difference_s)} µs' for one in side)}"
             for word, side in (("gained", gains), ("lost", losses)) if side]
    return "; ".join([*parts, f"conversions take {percent(converting / total_s if total_s else 0.0)} % of its time"])


def _title(pair: Pair) -> str:
    (first, base), (second, row) = pair.before, pair.after
    return f"{second} {row.case} beside {first} {base.case}"


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.0f}"


def _signed(seconds: float) -> str:
    return f"{seconds * 1e6:+.0f}"
