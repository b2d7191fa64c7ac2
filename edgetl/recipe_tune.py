"""The options of `edgetl tune`. They are no table of a recipe: a tuning belongs to the device, not to the bundle."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.recipe_fields import MOST_SEED, THREAD_COUNTS, DataFields, opt


@dataclass(frozen=True, kw_only=True)
class Tune(DataFields):
    """`edgetl tune`."""

    bundle: str | None = opt(None, "The bundle; with --forget, none stands for all.", positional=True, given=True)
    data: str | None = opt(  # type: ignore[assignment]
        None, "Data to measure accuracy on, validation split (default: what the export measured on its own).",
        path=True, result=False)
    backend: tuple[str, ...] = opt((), "Backends to measure (default: those of the bundle).", split=True)
    variant: tuple[str, ...] = opt((), "Variants to measure (default: all).", split=True)
    threads: tuple[str, ...] = opt(
        (), "Thread counts to measure, 0 is what the machine allows (default: 1, 2, 4, ... up to that).", split=True,
        form=THREAD_COUNTS)
    max_drop: float = opt(
        0.5, "Greatest loss of validation accuracy against fp32 in percentage points.", low=0, high=100)
    budget: str = opt(
        "60s", "About how long to measure; what a verdict needs at least is measured in any case.",
        form=(r"\s*(?=.*[1-9])([0-9]+([.][0-9]*)?|[.][0-9]+)\s*(ms|s|m)\s*",
              "a duration above 0 with a unit: 60s or 5m"))
    timeout_s: float = opt(300.0, "Seconds after which a silent worker is a failed case.", low=1, result=False)
    seed: int = opt(0, "Seed of the order of cases.", low=0, high=MOST_SEED)
    forget: bool = opt(False, "Forget what was measured of the bundle, or of all.", given=True)
