"""How often the intervals of percentiles hold the truth: synthetic latencies whose quantiles are known exactly.

python benchmarks/percentile_coverage.py [--repetitions 1000] [--out benchmarks/results/percentile_coverage.json]

Each scenario draws [rounds, calls] again and again and asks for the interval at 95 %. An end that is None is open: it
claims nothing, and cannot be wrong. `as_if_independent` is what the order statistics of all calls would have covered,
had nobody asked how the rounds differ. No clock is involved: the figures are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from edgetl import rundir
from edgetl.bench import stats

SHAPES = ((5, 50), (10, 70), (20, 50), (40, 200))
PERCENTS = (50.0, 90.0, 95.0, 99.0, 99.9)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Scenario:
    """Latencies whose distribution is known."""

    what: str
    draw: Callable[[np.random.Generator, int, int], np.ndarray]  # generator, rounds, calls -> [rounds, calls]
    below: Callable[[float, int], float]  # latency, rounds -> share of all calls below it

    def quantile(self, percent: float, rounds: int) -> float:
        """The latency that exactly `percent` % of all calls stay below."""
        return float(brentq(lambda latency: self.below(latency, rounds) - percent / 100, 0.01, 100, xtol=1e-12))


def lognormal_below(latency: float, sigma: float, level: float = 1.0) -> float:
    """Share of lognormal latencies with median `level` below `latency`."""
    return float(norm.cdf(math.log(latency / level) / sigma))


def autocorrelated(generator: np.random.Generator, rounds: int, calls: int) -> np.ndarray:
    """Every call remembers nine tenths of the one before; log-latencies are an AR(1) process with deviation 0.2."""
    noise = generator.standard_normal((rounds, calls))
    states = np.empty_like(noise)
    states[:, 0] = noise[:, 0]
    for call in range(1, calls):
        states[:, call] = 0.9 * states[:, call - 1] + math.sqrt(1 - 0.9**2) * noise[:, call]
    return np.exp(0.2 * states)


def bimodal(generator: np.random.Generator, rounds: int, calls: int) -> np.ndarray:
    """Seven calls of a hundred meet something that makes them three times as long."""
    shape = rounds, calls
    return np.where(generator.random(shape) < 0.07, generator.normal(3, 0.1, shape), generator.normal(1, 0.02, shape))


def warming(rounds: int) -> np.ndarray:
    """Levels [rounds] of a machine that becomes slower by a tenth from the first round to the last."""
    return np.linspace(1.0, 1.1, rounds)


SCENARIOS = {
    "heavy tail": Scenario(
        "independent lognormal calls, deviation 0.8",
        lambda generator, rounds, calls: generator.lognormal(0, 0.8, (rounds, calls)),
        lambda latency, _: lognormal_below(latency, 0.8)),
    "bimodal": Scenario(
        "independent calls, 7 % of them around three times as long", bimodal,
        lambda latency, _: 0.93 * float(norm.cdf((latency - 1) / 0.02)) + 0.07 * float(norm.cdf((latency - 3) / 0.1))),
    "drift": Scenario(
        "levels of rounds lognormal with deviation 0.08, calls around them with 0.03",
        lambda generator, rounds, calls:
            generator.lognormal(0, 0.08, (rounds, 1)) * generator.lognormal(0, 0.03, (rounds, calls)),
        lambda latency, _: lognormal_below(latency, math.hypot(0.08, 0.03))),
    "slight drift": Scenario(
        "levels of rounds lognormal with deviation 0.02, calls around them with 0.05",
        lambda generator, rounds, calls:
            generator.lognormal(0, 0.02, (rounds, 1)) * generator.lognormal(0, 0.05, (rounds, calls)),
        lambda latency, _: lognormal_below(latency, math.hypot(0.02, 0.05))),
    "warming": Scenario(
        "levels rise by a tenth over the rounds, calls around them with 0.03",
        lambda generator, rounds, calls: warming(rounds)[:, None] * generator.lognormal(0, 0.03, (rounds, calls)),
        lambda latency, rounds: float(np.mean([lognormal_below(latency, 0.03, level) for level in warming(rounds)]))),
    "autocorrelated": Scenario(
        "calls of a round correlated by 0.9 from one to the next", autocorrelated,
        lambda latency, _: lognormal_below(latency, 0.2)),
    "neighbour": Scenario(
        "one round in five beside a neighbour, 1.5 times as long",
        lambda generator, rounds, calls: np.where(generator.random((rounds, 1)) < 0.2, 1.5, 1.0)
        * generator.lognormal(0, 0.05, (rounds, calls)),
        lambda latency, _: 0.8 * lognormal_below(latency, 0.05) + 0.2 * lognormal_below(latency, 0.05, 1.5)),
}


def interval(samples: np.ndarray, percent: float) -> stats.Interval | None:
    """What a report states."""
    if percent == 50:
        return stats.median_interval(samples, CONFIDENCE)
    return stats.percentile_interval(samples, percent, CONFIDENCE)


def holds(found: stats.Interval, truth: float) -> bool:
    """Whether the truth lies within; an open end leaves room for everything."""
    return (found.low is None or found.low <= truth) and (found.high is None or truth <= found.high)


def coverage(name: str, rounds: int, calls: int, percent: float, repetitions: int, seed: int) -> dict | None:
    """One row of the result; None where so many samples do not give the percentile."""
    if percent != 50 and rounds * calls < stats.PERCENTILE_MINIMA[percent]:
        return None
    scenario, generator = SCENARIOS[name], np.random.default_rng(seed)
    truth = scenario.quantile(percent, rounds)
    found = []
    for _ in range(repetitions):
        drawn = scenario.draw(generator, rounds, calls)
        found.append((interval(drawn, percent), interval(drawn.ravel(), percent)))
    covered = sum(holds(clustered, truth) for clustered, _ in found)
    widths = [one.high / one.low - 1 for one, _ in found if one.low is not None and one.high is not None]
    bounds = binomtest(covered, repetitions).proportion_ci(0.99, method="exact")
    return {"scenario": name, "rounds": rounds, "calls": calls, "percent": percent, "repetitions": repetitions,
            "truth": truth, "covered": covered / repetitions, "covered_low": float(bounds.low),
            "covered_high": float(bounds.high), "both_ends": len(widths) / repetitions,
            "median_width": float(np.median(widths)) if widths else None,
            "as_if_independent": sum(holds(flat, truth) for _, flat in found) / repetitions}


def main() -> None:
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for name in SCENARIOS:
        for rounds, calls in SHAPES:
            for percent in PERCENTS:
                row = coverage(name, rounds, calls, percent, options.repetitions, options.seed)
                if row is not None:
                    rows.append(row)
                    print(f"{name:15} {rounds:3} x {calls:<4} p{percent:<4g} covered {row['covered']:.3f}, both ends "
                          f"{row['both_ends']:.2f}, as if independent {row['as_if_independent']:.3f}", flush=True)
    if options.out is not None:
        rundir.write_json(options.out, {
            "confidence": CONFIDENCE, "seed": options.seed, "environment": rundir.environment(),
            "scenarios": {name: one.what for name, one in SCENARIOS.items()}, "rows": rows})
        print(json.dumps({"written": str(options.out)}))


if __name__ == "__main__":
    main()
