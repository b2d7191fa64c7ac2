"""How MLPerf Inference measures: what each scenario asks for, and the early-stopping estimate of its percentile.

The rules are those of the edge category: mlcommons/inference_policies, inference_rules.adoc, "Scenarios" and appendix
"Early Stopping Criterion"; the numbers that they leave to LoadGen are those of its mlperf.conf and test_settings.h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Nanoseconds = NDArray[np.int64]

NOT_A_RESULT = "not an MLPerf result; MLPerf's method on your data"
MIN_DURATION_S = 600.0
CONFIDENCE = 0.99  # of the early-stopping estimate; its tolerance is 0
SLACK = 1.1  # an offline query is longer than the expected rate says, by which LoadGen means to last long enough
MOST_SAMPLES = 1024  # held in memory and taken in turn: LoadGen's performance sample count of image classification


@dataclass(frozen=True)
class Rule:
    """What a scenario asks for."""

    samples: int | None  # a query; None is all of them in one
    min_queries: int  # one after another, each as soon as the one before is answered
    min_samples: int  # in all
    percentile: float | None  # of the queries' latencies; None where the result is a rate
    metric: str  # MLPerf's name of the result


RULES = {
    "single-stream": Rule(1, 100, 100, 0.90, "90th percentile latency, early-stopping estimate"),
    "multi-stream": Rule(8, 662, 662 * 8, 0.99, "99th percentile latency, early-stopping estimate"),
    "offline": Rule(None, 1, 24_576, None, "samples/s"),
}


@dataclass(frozen=True)
class Scenario:
    """What a case did in one scenario; what was not measured or cannot be said is None."""

    name: str  # a key of `RULES`
    metric: str
    queries: int = 0
    samples: int = 0
    duration_s: float = 0.0  # to the begin of the last query; offline to the end of the only one
    min_duration_s: float = MIN_DURATION_S  # that was asked for
    min_queries: int = 0
    min_samples: int = 0
    early_stopping_needs: int | None = None  # queries below which there is no estimate
    discarded: int | None = None  # queries of the greatest latencies that the estimate leaves out
    estimate_s: float | None = None  # early-stopping estimate of the percentile: a bound at 99 % confidence
    percentile_s: float | None = None  # the sample's own percentile, which promises nothing
    samples_per_s: float | None = None  # offline only
    inputs: str = ""  # what the samples were
    latencies_ns: tuple[int, ...] = ()  # of every query, in order
    # LoadGen's verdicts, for the duration that was asked for.
    duration_satisfied: bool = False
    queries_satisfied: bool = False  # and samples
    early_stopping_satisfied: bool = False  # true where the result is no percentile
    valid: bool = False  # all three
    reason: str | None = None  # why the scenario failed
    note: str = NOT_A_RESULT

    @property
    def full_length(self) -> bool:
        """Whether MLPerf's own duration was asked for."""
        return self.min_duration_s >= MIN_DURATION_S


def overlatency_allowed(queries: int, percentile: float) -> int:
    """Greatest t for which so many queries, t of them too late, show the percentile to hold; below 1 there is none.

    A system that is late with probability 1 - percentile has t or fewer late ones of n with the probability
    P(Binomial(n, 1 - percentile) <= t), which must be below 1 - `CONFIDENCE`. LoadGen asks from the other side: it
    seeks for t = 1, 2, ... the least n by bisection over the regularized incomplete beta function, which is the same
    probability (mlcommons/inference, loadgen/early_stopping.cc and results.cc, PerformanceSummary::EarlyStopping).

    Args:
        queries: n.
        percentile: in 0..1.
    """
    from scipy import stats

    # The least k that reaches the probability is the first that is too many.
    return int(stats.binom.ppf(1 - CONFIDENCE, queries, 1 - percentile)) - 1


def queries_needed(percentile: float) -> int:
    """Least number of queries that have an early-stopping estimate: 64 for 0.90 and 662 for 0.99.

    Args:
        percentile: in 0..1.
    """
    from scipy import stats

    # Queries in time before the second late one are negative binomial; n of them show it when fewer are unlikely.
    in_time = int(stats.nbinom.isf(1 - CONFIDENCE, 2, 1 - percentile))
    return in_time + 2


def early_stopping(latencies_ns: Sequence[int] | Nanoseconds, percentile: float) -> tuple[int, int] | None:
    """The estimate of the percentile in ns and how many greater latencies it discards; None of too few queries.

    Discards the t - 1 greatest latencies and takes the greatest of the rest, with the t of `overlatency_allowed`.
    mlcommons/inference_policies, inference_rules.adoc, appendix "Early Stopping Criterion".

    Args:
        latencies_ns: of every query.
        percentile: in 0..1.
    """
    allowed = overlatency_allowed(len(latencies_ns), percentile)
    if allowed < 1:
        return None
    return int(np.sort(np.asarray(latencies_ns, np.int64))[-allowed]), allowed - 1


def plain_percentile(latencies_ns: Sequence[int] | Nanoseconds, percentile: float) -> int:
    """LoadGen's percentile of the sample in ns: the latency at the rank n * percentile, counted from 0.

    Raises:
        ValueError: no latencies.
    """
    if not len(latencies_ns):
        raise ValueError("a percentile needs at least one latency")
    return int(np.sort(np.asarray(latencies_ns, np.int64))[int(len(latencies_ns) * percentile)])


def offline_samples(min_duration_s: float, expected_per_s: float, least: int) -> int:
    """Samples of the one offline query: as many as are expected to fill the time, with LoadGen's slack, or `least`."""
    return max(least, math.ceil(SLACK * min_duration_s * expected_per_s))


def least_samples(name: str, images: int | None) -> int:
    """Samples that a scenario asks for; offline no more than the data set has, as the rules allow.

    Args:
        name: a key of `RULES`.
        images: in the data set; None where inputs are made up.
    """
    least = RULES[name].min_samples
    return least if RULES[name].samples is not None or images is None else min(least, images)


def judge(name: str, run: Any, *, min_duration_s: float, images: int | None) -> Scenario:
    """The result of a scenario.

    Args:
        name: a key of `RULES`.
        run: reply of a worker: `duration_s`, `samples`, `latencies_ns` and `inputs`.
        min_duration_s: that was asked for.
        images: as in `least_samples`.
    """
    rule, latencies = RULES[name], tuple(run["latencies_ns"])
    queries, least = len(latencies), least_samples(name, images)
    special: dict[str, Any] = {}
    if rule.percentile is None:
        queries, special = 1, {"samples_per_s": run["samples"] / run["duration_s"]}
    else:
        estimate, discarded = early_stopping(latencies, rule.percentile) or (None, None)
        special = {"estimate_s": None if estimate is None else estimate / 1e9, "discarded": discarded,
                   "percentile_s": plain_percentile(latencies, rule.percentile) / 1e9, "latencies_ns": latencies,
                   "early_stopping_needs": queries_needed(rule.percentile)}
    satisfied = (run["duration_s"] >= min_duration_s, queries >= rule.min_queries and run["samples"] >= least,
                 rule.percentile is None or special["estimate_s"] is not None)
    return Scenario(
        name, rule.metric, queries=queries, samples=run["samples"], duration_s=run["duration_s"],
        min_duration_s=min_duration_s, min_queries=rule.min_queries, min_samples=least, inputs=run["inputs"],
        duration_satisfied=satisfied[0], queries_satisfied=satisfied[1], early_stopping_satisfied=satisfied[2],
        valid=all(satisfied), **special)


def failed(name: str, reason: str, *, min_duration_s: float) -> Scenario:
    """A scenario that could not be measured, with the reason."""
    rule = RULES[name]
    return Scenario(name, rule.metric, min_duration_s=min_duration_s, min_queries=rule.min_queries,
                    min_samples=rule.min_samples, reason=reason)
