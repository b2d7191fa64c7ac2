"""The options of `edgetl gate`. They are no table of a recipe: a gate holds two bundles against one another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgetl.recipe_fields import MOST_SEED, MOST_THREADS, REQUIRED, DataFields, opt

NUMBER = r"([0-9]+([.][0-9]*)?|[.][0-9]+)"
ABOVE_0 = rf"(?=.*[1-9]){NUMBER}"
UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0}
SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True, kw_only=True)
class RegressionGate(DataFields):
    """`edgetl gate`."""

    base: str = opt(REQUIRED, "What is in use: a bundle, ONNX file or RUN folder.", positional=True, given=True)
    new: str = opt(REQUIRED, "What shall replace it.", positional=True, given=True)
    max_regression: str = opt(
        "5%", "Slowdown that must not get through; one of at most half of it is let through.",
        form=(rf"\s*{ABOVE_0}\s*%\s*", "a percentage above 0: 5% or 2.5%"))
    min_accuracy: float | None = opt(None, "Least accuracy of NEW in percent; needs --data.", low=0, high=100)
    max_drop: float | None = opt(
        None, "Most percentage points that NEW may lie below BASE; needs --data.", low=0, high=100)
    max_size: str | None = opt(
        None, "Greatest size of NEW's graph, or how much greater than BASE's it may be.",
        form=(rf"\s*({ABOVE_0}\s*({'|'.join(SIZES)})|[+]{NUMBER}\s*%)\s*", "a size or a growth: 5MB, 800kB or +10%"))
    budget: str = opt(
        "60s", "Longest that the latencies are measured for; it ends sooner when the answer is clear.",
        form=(rf"\s*{ABOVE_0}\s*(ms|s|m)\s*", "a duration above 0 with a unit: 60s or 2m"))
    data: str | None = opt(  # type: ignore[assignment]
        None, "Data to measure accuracy on, validation split.", path=True, result=False)
    backend: str = opt("auto", "Backend of both sides ('auto': what the runtime would choose for BASE).")
    variant: str = opt("auto", "Variant of both bundles ('auto': what the runtime would choose for each).")
    threads: int = opt(1, "Threads of inference; 0 takes what the machine allows.", low=0, high=MOST_THREADS)
    batch: int = opt(1, "Images a call.", low=1)
    interval: str | None = opt(
        None, "Pace the calls, e.g. 10ms (default: back to back).",
        form=(rf"\s*{ABOVE_0}\s*(us|ms|s)\s*", "a duration above 0 with a unit: 10ms, 500us or 1s"))
    pin: str | None = opt(
        None, "Cores that both sides may run on, e.g. 0 or 0-1,4 (default: those that this command may).",
        form=("[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*", "numbers of cores: 0 or 0-1,4"))
    spin: str | None = opt(
        None, "Whether waiting threads keep their cores busy (default: as each backend does).", choices=("on", "off"))
    out: str | None = opt(None, "Folder to write the verdict and all latencies to (default: none).", given=True)
    timeout_s: float = opt(300.0, "Seconds after which a silent worker ends the gate.", low=1, result=False)
    seed: int = opt(0, "Seed of the order of blocks.", low=0, high=MOST_SEED)
    overwrite: bool = opt(False, "Replace --out if it exists.", given=True)


def margin(text: str) -> float:
    """The slowdown of --max-regression as a share: 0.05 for `5%`."""
    return float(text.strip().rstrip("%")) / 100


def seconds(text: str) -> float:
    """Of a duration such as `60s` or `2m`."""
    value, unit = _split(text, UNITS_S)
    return value * UNITS_S[unit]


def size_limit(text: str, base_bytes: int) -> float:
    """Bytes that --max-size allows: `5MB`, or `+10%` of BASE's."""
    if text.strip().startswith("+"):
        return base_bytes * (1 + margin(text.strip()[1:]))
    value, unit = _split(text, SIZES)
    return value * SIZES[unit]


def _split(text: str, units: Mapping[str, float]) -> tuple[float, str]:
    match = re.fullmatch(rf"\s*([0-9.]+)\s*({'|'.join(units)})\s*", text)
    if match is None:
        raise ValueError(f"{text!r} is no number with one of the units {', '.join(units)}")
    return float(match[1]), match[2]
