"""`edgetl tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetl.cli.options import WrongUsage
from edgetl.recipe_tune import Tune

if TYPE_CHECKING:
    from edgetl.bench.tune import Tuning

EXAMPLE = """
edgetl tune bundle --data photos --budget 60s
edgetl tune bundle --backend cpu,openvino --threads 1,2,4
edgetl tune --forget
"""


def tune(options: Tune, as_json: bool) -> None:
    """Measure a bundle's variants on this machine and remember the best.

    Variants x backends x threads in interleaved rounds; what is loaded with "auto" afterwards is what was best.
    """
    if options.forget:
        _forget(options.bundle, as_json)
        return
    if options.bundle is None:
        raise WrongUsage("Missing argument 'BUNDLE'.", hint="`edgetl tune --help` shows what it takes.")
    from edgetl import pipeline
    from edgetl.cli import present, progress

    with progress.shown() as listener:
        made = pipeline.tune_with(options, listener)
    assert made is not None  # only --forget makes nothing
    if as_json:
        present.document(made.to_json())
        return
    _show(made)
    present.hint(f"kept in {made.path}; `edgetl tune --forget` removes it")


def _forget(bundle: str | None, as_json: bool) -> None:
    from edgetl.bench import tune
    from edgetl.cli import present

    gone = tune.forget(bundle)
    if as_json:
        present.document({"forgotten": [str(path) for path in gone]})
        return
    print(f"{len(gone)} forgotten" if gone else "There was nothing to forget.")


def _show(made: Tuning) -> None:
    from edgetl.cli import present

    columns = ("variant", "backend", "threads", "median ms", "rounds", "drop points", "")
    rows = []
    for one, refusal in zip(made.candidates, made.refusals, strict=True):
        median = "-" if one.median_s is None else f"{1e3 * one.median_s:.3f}"
        drop = "-" if one.drop_points is None else f"{one.drop_points:.2f}"
        told = "chosen" if one is made.chosen else refusal or ""
        rows.append((one.variant, one.backend, str(one.threads), median, str(len(one.rounds_s)), drop, told))
    present.table(columns, rows, numeric=(False, False, True, True, True, True))
    print()
    print(f"chosen: {made.chosen.name}: {made.why}")
    print(f"From an image's pixels to its logits, one image a call; {made.rounds} rounds in {made.elapsed_s:.0f} s. "
          "Drop: validation accuracy below fp32's.")
