"""Which range of an activation its 8 bits shall cover: everything, or less in finer steps.

    min-max        from the least to the greatest value that was seen
    percentile-P   without the share 1 - P/100 of the values on each side
    mse            the range with the least expected square error, of rounding within and of clipping beyond
    entropy        the range whose steps keep most of the distribution: least Kullback-Leibler divergence
                   (S. Migacz, 8-bit Inference with TensorRT, GTC 2017), here also for values on both sides of zero

H. Wu, P. Judd, X. Zhang, M. Isaev, P. Micikevicius, Integer Quantization for Deep Learning Inference: Principles and
Empirical Evaluation, 2020, arXiv:2004.09602, section 3.3, compares them. Ranges include zero: what pads an image, and
most of what a ReLU lets through, is exactly that. A symmetric range reaches as far to either side; it is chosen by the
sizes of the values, as in the sources, with half as many steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgetl.compress.histogram import Histogram
from edgetl.errors import RecipeError

STEPS = 255  # between the ends of 8 bits
SYMMETRIC_STEPS = 127  # between zero and either end of a symmetric range
SHARES = np.linspace(0.02, 1.0, 99)  # of the seen range that are tried as ends
TINY = 1e-12  # probability that stands for none where a logarithm is taken

Range = tuple[float, float]


def choose(histogram: Histogram, method: str, *, symmetric: bool = False) -> Range:
    """The range of an activation, zero in it.

    Args:
        histogram: of at least one value.
        method: see the module.
        symmetric: whether it shall reach as far below zero as above.

    Raises:
        RecipeError: no such method.
    """
    if symmetric:
        _, size = _chosen(histogram.sizes(), method, SYMMETRIC_STEPS)
        return -size, size
    return _chosen(histogram, method, STEPS)


def _chosen(histogram: Histogram, method: str, steps: int) -> Range:
    share = parse(method)
    if method == "mse":
        low, high = _least_square(histogram, steps)
    elif method == "entropy":
        low, high = _least_divergence(histogram, steps)
    elif share is not None:
        low, high = _percentile(histogram, share)
    else:
        low, high = histogram.low, histogram.high
    return float(min(low, 0.0)), float(max(high, 0.0))


def parse(method: str) -> float | None:
    """The share that a percentile leaves out on each side; None for a method that has none.

    Raises:
        RecipeError: no such method.
    """
    name, _, percent = method.partition("-")
    if method in ("min-max", "mse", "entropy"):
        return None
    if name == "percentile" and percent.replace(".", "", 1).isdigit() and 50 < float(percent) < 100:
        return 1 - float(percent) / 100
    raise RecipeError([f"'{method}' is no calibration method; expected 'min-max', 'mse', 'entropy' or 'percentile-P', "
                       "50 < P < 100"], where="the quantization scheme")


def _percentile(histogram: Histogram, share: float) -> Range:
    """Values that `share` of all lie below, and above; evenly spread within their bins."""
    passed = np.concatenate([[0], np.cumsum(histogram.counts)]) / histogram.total
    edges = (histogram.first + np.arange(len(passed))) * histogram.width
    low, high = (float(np.interp(level, passed, edges)) for level in (share, 1 - share))
    return max(low, histogram.low), min(high, histogram.high)


def _least_square(histogram: Histogram, steps: int) -> Range:
    """Ends L, H with the least sum of (v - L)^2 below, (v - H)^2 above, and (H - L)^2 / steps^2 / 12 for each between.

    Exact zeros cost nothing anywhere.
    """
    centres, counts = histogram.centres, _without_zeros(histogram)
    lows, highs = (np.unique(np.append(end * SHARES, 0.0)) for end in (min(histogram.low, 0.0),
                                                                       max(histogram.high, 0.0)))
    below, lost_below = _clipped(-centres, counts, -lows)
    above, lost_above = _clipped(centres, counts, highs)
    widths = (highs[None, :] - lows[:, None]) / steps
    between = counts.sum() - below[:, None] - above[None, :]
    loss = lost_below[:, None] + lost_above[None, :] + between * widths**2 / 12
    row, column = np.unravel_index(np.argmin(loss), loss.shape)
    return float(lows[row]), float(highs[column])


def _clipped(centres: NDArray[np.float64], counts: NDArray[np.float64],
             ends: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How many values lie beyond each end, and the sum of their squared distances to it."""
    beyond = np.maximum(centres[None, :] - ends[:, None], 0.0)
    return (beyond > 0) @ counts, np.square(beyond) @ counts


def _least_divergence(histogram: Histogram, steps: int) -> Range:
    """Values of at most a certain size, either side of zero, by the least divergence."""
    counts, centres = _without_zeros(histogram), histogram.centres
    if not counts.sum():
        return histogram.low, histogram.high
    sizes = SHARES * max(-histogram.low, histogram.high)
    ends = [(max(histogram.low, -size), min(histogram.high, size)) for size in sizes]
    ends = [(min(low, 0.0), max(high, 0.0)) for low, high in ends]
    losses = [_divergence(counts, centres, low, high, steps) for low, high in ends]
    return ends[int(np.argmin(losses))]


def _divergence(counts: NDArray[np.float64], centres: NDArray[np.float64], low: float, high: float,
                steps: int) -> float:
    """Of the clipped distribution from the same in `steps` + 1 steps, each spread evenly over its bins that count."""
    inside = (centres >= low) & (centres <= high)
    if not inside.any():
        return float("inf")
    kept = counts[inside]
    reference = kept.copy()
    reference[0] += counts[centres < low].sum()
    reference[-1] += counts[centres > high].sum()
    level = np.rint((centres[inside] - low) / ((high - low) / steps)).astype(np.int64)
    used = (kept > 0).astype(np.float64)
    per_level, bins = np.bincount(level, weights=kept), np.bincount(level, weights=used)
    spread = np.where(used > 0, per_level[level] / np.maximum(bins[level], 1.0), 0.0)
    if not spread.sum():
        return float("inf")
    p, q = reference / reference.sum(), spread / spread.sum()
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], TINY))))


def _without_zeros(histogram: Histogram) -> NDArray[np.float64]:
    counts = histogram.counts.astype(np.float64)
    if histogram.zeros:
        counts[-histogram.first] -= histogram.zeros  # the bin of number 0
    return counts
