"""How often the interval of the gain over the control holds the truth: made-up students whose true gain is known.

python benchmarks/gain_coverage.py [--repetitions 1000] [--out benchmarks/results/gain_coverage.json]

An image is as hard for all (`difficulty`) and in its own way for taught students and for controls (`method`); a seed is
better or worse as a whole (`seed`) and answers each image by chance besides (`chance`). All four are normal, an answer
is right where their sum is above a threshold, so that the accuracies and the gain over all images and seeds are exact.
`crossed` is what `edgetl distill --seeds K` states; `seeds alone` is Student's interval of the seeds' means, as if the
test images were all there are; `images alone` is the paired interval of the first seed, as if no other could be drawn.
No clock is involved: the figures are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binomtest, norm, t

from edgetl import metrics, rundir

SEEDS = (2, 3, 5, 10)
IMAGES = (100, 372, 1000)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class World:
    """Standard deviations of what makes an answer right or wrong, and the true accuracies."""

    difficulty: float
    method: float
    seed: float
    chance: float
    control: float = 0.85
    gain: float = 0.02

    def differences(self, generator: np.random.Generator, seeds: int, images: int) -> np.ndarray:
        """[K, N] of right(student) - right(control)."""
        whole = math.hypot(self.difficulty, self.method, self.seed, self.chance)
        shared = generator.normal(0, self.difficulty, images)
        right = []
        for share in (self.control + self.gain, self.control):
            own = generator.normal(0, self.method, images)
            level = generator.normal(0, self.seed, (seeds, 1))
            luck = generator.normal(0, self.chance, (seeds, images))
            right.append(norm.ppf(share) * whole + shared + own + level + luck > 0)
        return right[0].astype(np.float64) - right[1]


WORLDS = {
    "no seed is better": World(1, 0.3, 0, 0.5),
    "seeds differ a little": World(1, 0.3, 0.05, 0.5),
    "seeds differ": World(1, 0.3, 0.15, 0.5),
    "seeds decide": World(1, 0.3, 0.4, 0.5),
    "chance decides": World(0.3, 0, 0, 1, control=0.9, gain=0),
    "images decide": World(1, 1, 0, 0.05, gain=0.03),
    "nearly all right": World(1, 0.3, 0.05, 0.3, control=0.99, gain=0.002),
    "no gain": World(1, 0.3, 0.1, 0.5, gain=0),
}


def intervals(drawn: np.ndarray) -> dict[str, tuple[float, float]]:
    """Each way's interval of one experiment."""
    by_seed, images = drawn.mean(axis=1), drawn.shape[1]
    half = t.ppf((1 + CONFIDENCE) / 2, len(drawn) - 1) * by_seed.std(ddof=1) / math.sqrt(len(drawn))
    first = metrics.paired_interval(int((drawn[0] > 0).sum()), int((drawn[0] < 0).sum()), images, CONFIDENCE)
    return {"crossed": metrics.crossed_interval(drawn, CONFIDENCE),
            "seeds alone": (by_seed.mean() - half, by_seed.mean() + half), "images alone": first}


def coverage(name: str, seeds: int, images: int, repetitions: int, seed: int) -> dict:
    """One row of the result."""
    world, generator = WORLDS[name], np.random.default_rng([seed, seeds, images])
    found = [intervals(world.differences(generator, seeds, images)) for _ in range(repetitions)]
    row = {"world": name, "seeds": seeds, "images": images, "repetitions": repetitions}
    for way in found[0]:
        ends = np.array([one[way] for one in found])
        held = int(((ends[:, 0] <= world.gain) & (world.gain <= ends[:, 1])).sum())
        bounds = binomtest(held, repetitions).proportion_ci(0.99, method="exact")
        row[way] = {"covered": held / repetitions, "covered_low": float(bounds.low),
                    "covered_high": float(bounds.high), "median_width": float(np.median(ends[:, 1] - ends[:, 0])),
                    "significant": float(((ends[:, 0] > 0) | (ends[:, 1] < 0)).mean())}
    return row


def main() -> None:
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for name in WORLDS:
        for seeds in SEEDS:
            for images in IMAGES:
                rows.append(row := coverage(name, seeds, images, options.repetitions, options.seed))
                told = ", ".join(f"{way} {row[way]['covered']:.3f} (width {100 * row[way]['median_width']:.1f})"
                                 for way in ("crossed", "seeds alone", "images alone"))
                print(f"{name:22} {seeds:2} seeds, {images:4} images: {told}", flush=True)
    least = min(row["crossed"]["covered"] for row in rows)
    print(f"least coverage of the crossed interval: {least:.3f}")
    if options.out is not None:
        rundir.write_json(options.out, {
            "confidence": CONFIDENCE, "seed": options.seed, "environment": rundir.environment(),
            "worlds": {name: asdict(one) for name, one in WORLDS.items()}, "rows": rows,
            "least_coverage_of_crossed": least})
        print(json.dumps({"written": str(options.out)}))


if __name__ == "__main__":
    main()
