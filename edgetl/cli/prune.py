"""`edgetl prune`."""

from __future__ import annotations

from edgetl.cli.options import WrongUsage
from edgetl.errors import RecipeError
from edgetl.recipe_prune import Prune

EXAMPLE = """
edgetl prune runs/teacher --data photos --params 0.4 --out runs/pruned
edgetl prune runs/teacher --data photos --macs 0.3 --steps 3 --out runs/light
edgetl prune runs/teacher --data photos --sparsity 2:4 --out runs/sparse
edgetl prune runs/teacher --data photos --latency 0.5 --backend openvino --out runs/quick
"""


def prune(options: Prune, as_json: bool) -> None:
    """Cut channels out of a trained RUN, or make it sparse, and train what is left with the RUN as its teacher.

    To a share of its parameters, of its multiplications or of its measured latency; with --sparsity, half of the
    weights become zeros in a pattern that TensorRT computes faster. Writes a RUN folder, as `edgetl distill --student
    slim:R` does, which this is another door to. The test images decide nothing.
    """
    from edgetl import pipeline, weights
    from edgetl.cli import present, progress

    try:
        options.as_distill()
    except RecipeError as problem:
        found = f"{problem.problems[0][0].upper()}{problem.problems[0][1:]}."
        raise WrongUsage(found, hint="Give one of them, e.g. --params 0.4.") from problem
    with progress.shown() as listener:
        folder = pipeline.prune_with(options, listener)
    present.taught(folder, weights.read_record(folder), as_json)
