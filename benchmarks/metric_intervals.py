"""How often the intervals of a RUN's figures hold the truth: made-up classifiers whose true figures are known.

python benchmarks/metric_intervals.py [--repetitions 400] [--out benchmarks/results/metric_intervals.json]

An image has the true logits z = strength * [its hidden class] + noise + log(share of each class), and its label is
drawn by softmax(z); the classifier answers with sharpness * z, so that it is too sure by that factor and right as often
as it can be. The true figures are those of 400,000 other images, where each counts with its probabilities and not with
one label. `stated` is what a RUN states, as far as it states any interval; `plain` is the percentile interval of the
same draws; `stratified` draws the images within their classes, for macro-F1. No clock is involved: the figures are the
same on every machine.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from edgetl import calibration, metrics, rundir, scorecard

FIGURES = ("macro_f1", "ece", "nll", "brier")
IMAGES = (100, 372, 1000)
TRUTH = 400_000  # images
AT_ONCE = 50_000
ENDS = [(1 - scorecard.LEVEL) / 2, (1 + scorecard.LEVEL) / 2]


@dataclass(frozen=True)
class World:
    """A kind of images and a classifier of them."""

    classes: int
    strength: float  # what the hidden class adds to its logit
    sharpness: float  # 1 is calibrated
    rarest: float = 1.0  # share of the rarest class, as a part of the most common one's

    def images(self, generator: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """True probabilities [N, K] and the classifier's logits [N, K] of `n` images."""
        share = self.rarest ** (np.arange(self.classes) / (self.classes - 1))
        hidden = generator.choice(self.classes, n, p=share / share.sum())
        z = generator.normal(0, 1, (n, self.classes)) + np.log(share)
        z[np.arange(n), hidden] += self.strength
        return metrics.softmax(z), self.sharpness * z

    def truth(self, seed: int) -> np.ndarray:
        """Macro-F1, ECE, negative log-likelihood and Brier score of the classifier, [4]."""
        generator, k = np.random.default_rng([seed, TRUTH]), self.classes
        confusion, gaps, sums = np.zeros((k, k)), np.zeros(calibration.BINS), np.zeros(2)
        for _ in range(TRUTH // AT_ONCE):
            true, logits = self.images(generator, AT_ONCE)
            told, said = metrics.softmax(logits), logits.argmax(axis=1)
            np.add.at(confusion.T, said, true)
            sure = told.max(axis=1)
            gaps += np.bincount(calibration.places(sure), true[np.arange(AT_ONCE), said] - sure, calibration.BINS)
            squares = (told**2).sum(axis=1) - 2 * (true * told).sum(axis=1) + 1
            sums += np.array([-(true * np.log(told)).sum(), squares.sum()])
        f1 = 2 * np.diag(confusion) / (confusion.sum(axis=0) + confusion.sum(axis=1))
        return np.array([f1.mean(), np.abs(gaps).sum() / TRUTH, *(sums / TRUTH)])


WORLDS = {
    "six classes": World(6, 5, 1.5),
    "six classes, calibrated": World(6, 5, 1),
    "six classes, nearly all right": World(6, 9, 1.5),
    "six classes, not sure enough": World(6, 5, 0.6),
    "two classes, one rare": World(2, 4, 1.5, rarest=0.1),
    "ten classes, some rare": World(10, 5, 2, rarest=0.05),
    "twenty classes, some rare": World(20, 5, 2, rarest=0.05),
}


def intervals(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Each way's ends [2, 4] of the four figures; NaN where it states none."""
    told = [one.to_json("x") for one in scorecard.drawn_intervals(logits, labels)]
    stated = np.array([(one["x_low"], one["x_high"]) for one in told], np.float64).T
    _, again = scorecard.drawn_figures(logits, labels)
    stratified = np.full((2, len(FIGURES)), np.nan)
    stratified[:, 0] = np.quantile(_stratified(logits, labels), ENDS)
    return {"stated": stated, "plain": np.quantile(again, ENDS, axis=0), "stratified": stratified}


def _stratified(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Macro-F1 of draws in which each class has as many images as it has."""
    matrix, generator = metrics.confusion(logits.argmax(axis=1), labels, logits.shape[1]), np.random.default_rng(0)
    drawn = np.stack([generator.multinomial(row.sum(), row / max(1, row.sum()), scorecard.DRAWS) for row in matrix], 1)
    return np.array([metrics.macro_f1(one) for one in drawn])


def coverage(name: str, images: int, repetitions: int, seed: int) -> dict:
    """One row of the result."""
    world, generator = WORLDS[name], np.random.default_rng([seed, images])
    truth, found, values = world.truth(seed), [], []
    for _ in range(repetitions):
        true, logits = world.images(generator, images)
        labels = (true.cumsum(axis=1) < generator.random((images, 1))).sum(axis=1).clip(max=world.classes - 1)
        found.append(intervals(logits, labels))
        values.append([metrics.macro_f1(metrics.confusion(logits.argmax(axis=1), labels, world.classes)),
                       metrics.ece(logits, labels), calibration.nll(logits, labels), calibration.brier(logits, labels)])
    row: dict = {"world": name, "images": images, "repetitions": repetitions}
    for place, figure in enumerate(FIGURES):
        row[figure] = {"truth": float(truth[place]), "mean": float(np.mean(values, axis=0)[place])}
        for way in found[0]:
            ends = np.array([one[way][:, place] for one in found])
            known = ends[~np.isnan(ends).any(axis=1)]
            if len(known):
                row[figure][way] = {"stated_in": len(known), **_held(known, float(truth[place]))}
    return row


def _held(ends: np.ndarray, truth: float) -> dict[str, float]:
    held = int(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).sum())
    bounds = binomtest(held, len(ends)).proportion_ci(0.99, method="exact")
    return {"covered": held / len(ends), "covered_low": float(bounds.low), "covered_high": float(bounds.high),
            "median_width": float(np.median(ends[:, 1] - ends[:, 0]))}


def main() -> None:
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for name in WORLDS:
        for images in IMAGES:
            rows.append(row := coverage(name, images, options.repetitions, options.seed))
            told = ", ".join(f"{figure} {'/'.join(f'{one:.3f}' for one in _shares(row[figure]))}" for figure in FIGURES)
            print(f"{name:30} {images:4} images, covered as stated/plain/stratified: {told}", flush=True)
    least = {figure: min(row[figure]["stated"]["covered"] for row in rows if _often(row[figure], options.repetitions))
             for figure in FIGURES}
    print(f"least coverage as stated: {least}")
    if options.out is not None:
        rundir.write_json(options.out, {
            "confidence": scorecard.LEVEL, "draws": scorecard.DRAWS, "seed": options.seed,
            "environment": rundir.environment(), "worlds": {name: asdict(one) for name, one in WORLDS.items()},
            "rows": rows, "least_coverage_as_stated": least})
        print(json.dumps({"written": str(options.out)}))


def _often(found: dict, repetitions: int) -> bool:
    """Whether an interval was stated in half of the repetitions at least."""
    return 2 * found.get("stated", {}).get("stated_in", 0) >= repetitions


def _shares(found: dict) -> list[float]:
    return [found[way]["covered"] for way in ("stated", "plain", "stratified") if way in found]


if __name__ == "__main__":
    main()
