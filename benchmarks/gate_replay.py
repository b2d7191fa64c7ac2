"""Error rates of `edgetl gate`, by replay: its own decision on gates that are drawn from recorded traces.

python benchmarks/gate_replay.py TRACES.npz... --gates 10000 --ratio 1.0 1.05 1.10 --budget 60 120 --out FILE.json

A gate is a walk through the pairs of a trace (`gate_traces.py`: BASE against itself): stretches of consecutive pairs
from random places, so that noise which comes and goes does so in the gate too. Who of a pair was BASE is drawn anew,
which the trace's own draws make as likely as what was recorded. NEW's latencies are multiplied by the injected ratio. A
pair costs what it cost when it was recorded, starts and all, and what NEW's slower calls add.

The deciding code is `edgetl.bench.sequential.conduct`, the very function of the command. Intervals of the rates are
exact (Clopper and Pearson, scipy).
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from edgetl import rundir, timing
from edgetl.bench import pairs, sequential
from edgetl.bench.sequential import FAIL, INCONCLUSIVE, PASS

STRETCH = 8  # pairs: with starts some 15 s, longer than the neighbour of gate_traces.py comes or goes for


@dataclass(frozen=True)
class Trace:
    """What is needed of a recorded trace."""

    name: str
    about: dict
    log_ratios: NDArray[np.float64]  # [pairs]
    elapsed_s: NDArray[np.float64]  # [pairs]
    calls_s: NDArray[np.float64]  # [pairs, 2]: how long each side's own calls took, of what elapsed


def read(path: Path, share: float) -> Trace:
    """The trace in a file, each pair reduced as the gate does."""
    with np.load(path, allow_pickle=False) as found:
        about = json.loads(str(found["about"]))
        seconds, elapsed_s = found["ticks"] * about["unit_s"], found["elapsed_s"]
    plan = pairs.Pattern(**about["pattern"])
    # One block more than is kept, and the dropped calls, all as long as a kept one.
    calls_s = seconds.mean(axis=(2, 3)) * plan.calls * (plan.blocks + 1)
    return Trace(path.stem, about, np.array([pairs.log_ratio(one, share) for one in seconds]), elapsed_s, calls_s)


class Gate:
    """One gate: pairs from the trace, on the trace's own clock."""

    def __init__(self, trace: Trace, ratio: float, draw: np.random.Generator) -> None:
        self.trace, self.ratio, self.draw = trace, ratio, draw
        self.passed_s, self.at, self.left = 0.0, 0, 0

    def measure(self, same: bool) -> float:
        """The log ratio of the next pair."""
        if not self.left:
            self.at, self.left = int(self.draw.integers(len(self.trace.log_ratios))), STRETCH
        place, swapped = self.at, int(self.draw.integers(2))
        self.at, self.left = (self.at + 1) % len(self.trace.log_ratios), self.left - 1
        ratio = 1.0 if same else self.ratio
        self.passed_s += self.trace.elapsed_s[place] + (ratio - 1) * self.trace.calls_s[place, 1 - swapped]
        return (-1.0 if swapped else 1.0) * self.trace.log_ratios[place] + math.log(ratio)

    def held(self, margin: float, budget_s: float) -> sequential.Outcome:
        """How it ends."""
        return sequential.conduct(self.measure, lambda: self.passed_s, margin=margin, budget_s=budget_s)


def replay(trace: Trace, ratio: float, budget_s: float, options: argparse.Namespace) -> dict:
    """Rates and times of many gates of one kind."""
    draw = np.random.default_rng([options.seed, round(1e6 * ratio), round(budget_s)])
    begun_s = timing.now_s()
    found = [Gate(trace, ratio, draw).held(options.margin, budget_s) for _ in range(options.gates)]
    counts = Counter(one.verdict for one in found)
    rates = {}
    for verdict in (PASS, FAIL, INCONCLUSIVE):
        interval = stats.binomtest(counts[verdict], len(found)).proportion_ci(0.95, "exact")
        rates[verdict] = {"count": counts[verdict], "rate": counts[verdict] / len(found),
                          "low": float(interval.low), "high": float(interval.high)}
    clear = [one.elapsed_s for one in found if one.verdict != INCONCLUSIVE]
    return {"trace": trace.name, "ratio": ratio, "budget_s": budget_s, "margin": options.margin,
            "gates": options.gates, **rates,
            "hopeless": dict(Counter(one.hopeless for one in found if one.hopeless)),
            "time_s": quantiles([one.elapsed_s for one in found]), "time_to_verdict_s": quantiles(clear),
            "pairs": quantiles([len(one.log_ratios) for one in found]),
            "noise_floor": quantiles([one.noise for one in found]), "replayed_in_s": timing.now_s() - begun_s}


def quantiles(values: list[float]) -> dict[str, float] | None:
    """Median, tenth and ninth decile, and the greatest."""
    if not values:
        return None
    p10, p50, p90 = np.quantile(values, [0.1, 0.5, 0.9])
    return {"p10": float(p10), "p50": float(p50), "p90": float(p90), "max": float(max(values))}


def describe(trace: Trace) -> dict:
    """What the trace is like, for the record."""
    deviation = float(np.median(np.abs(trace.log_ratios))) / sequential.MAD
    return {"trace": trace.name, "pairs": len(trace.log_ratios), "hours": float(trace.elapsed_s.sum()) / 3600,
            "pair_s": quantiles(list(trace.elapsed_s)), "scale": deviation,
            "kurtosis": float(stats.kurtosis(trace.log_ratios)), "about": trace.about}


def main() -> None:
    """Prints a line a kind of gate, and writes everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--gates", type=int, default=10_000)
    parser.add_argument("--ratio", type=float, nargs="+", default=[1.0, 1.05, 1.10])
    parser.add_argument("--budget", type=float, nargs="+", default=[60.0, 120.0], help="seconds")
    parser.add_argument("--margin", type=float, default=0.05)
    parser.add_argument("--share", type=float, default=pairs.LOWER, help="of the calls, see pairs.log_ratio")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    traces = [read(path, options.share) for path in options.traces]
    rows = []
    for trace in traces:
        print(f"{trace.name}: {len(trace.log_ratios)} pairs, scale {100 * describe(trace)['scale']:.2f} %")
        for budget_s in options.budget:
            for ratio in options.ratio:
                row = replay(trace, ratio, budget_s, options)
                rows.append(row)
                told = ", ".join(f"{name} {100 * row[name]['rate']:.2f} % ({100 * row[name]['low']:.2f} to "
                                 f"{100 * row[name]['high']:.2f})" for name in (PASS, FAIL, INCONCLUSIVE))
                print(f"  ratio {ratio:.2f}, budget {budget_s:.0f} s: {told}; median {row['time_s']['p50']:.0f} s",
                      flush=True)
    if options.out is not None:
        rundir.write_json(options.out, {
            "rows": rows, "traces": [describe(one) for one in traces], "stretch": STRETCH, "share": options.share,
            "false_alarm": sequential.FALSE_ALARM, "let_through": sequential.LET_THROUGH,
            "innocent": sequential.INNOCENT, "environment": rundir.environment()})


if __name__ == "__main__":
    main()
