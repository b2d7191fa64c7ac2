"""The options of `edgetl prune`: a RUN that is its own teacher, cut to a share of its parameters, work or time, or
made sparse.

They are no table of a recipe: what is pruned is a student that is cut out of its teacher, and `[distill]` says that
with `student = "slim:R"`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from edgetl.errors import RecipeError
from edgetl.recipe import Distill, fields_of
from edgetl.recipe_fields import TrainFields, opt

SHARES = ("params", "macs", "latency")  # exactly one is given, or none with --sparsity


def same(name: str) -> Any:
    """The field of `edgetl distill` of that name, as it stands there."""
    field = fields_of(Distill)[name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


@dataclass(frozen=True, kw_only=True)
class Prune(TrainFields):
    """`edgetl prune`."""

    run: str = opt(dataclasses.MISSING, "RUN folder to prune; it is the teacher, too.", positional=True, given=True)
    params: float | None = opt(None, "Share of the parameters to keep, e.g. 0.4.", low=0.001, high=0.999)
    macs: float | None = opt(
        None, "Share of the multiplications of an image to keep, counted on the ONNX graph.", low=0.001, high=0.999)
    latency: float | None = opt(
        None, "Share of the latency to keep, measured here on --backend in turn with the RUN's own.", low=0.001,
        high=0.999)
    backend: str = opt("cpu", "Backend on which --latency measures, with one thread and one image.")
    steps: int = opt(1, "Cuts on the way, whose shares fall geometrically, with distillation after each.", low=1,
                     high=32)
    step_epochs: int = opt(2, "Epochs after each cut but the last, which gets --epochs.", low=1)
    preset: str | None = same("preset")
    importance: str = same("importance")
    prune_cost: str = same("prune_cost")
    round_to: int = same("round_to")
    sparsity: str = same("sparsity")
    loss: tuple[str, ...] = same("loss")
    unlabeled: tuple[str, ...] = same("unlabeled")
    views: int = same("views")
    refresh_views: int = same("refresh_views")
    softlabels: str = same("softlabels")
    teacher_engine: str = same("teacher_engine")
    control: bool = same("control")
    seeds: int = same("seeds")

    def as_distill(self) -> Distill:
        """The distillation that this is: a student that is cut out of its teacher, or the same one made sparse.

        Raises:
            RecipeError: none or several of --params, --macs and --latency are given, and no --sparsity in place of
                them.
        """
        given = [name for name in SHARES if getattr(self, name) is not None]
        if len(given) > 1 or (not given and self.sparsity == "none"):
            found = " and ".join(f"--{name}" for name in given) or "none"
            raise RecipeError([f"expected one of --params, --macs and --latency, or --sparsity alone, found {found}"],
                              where="edgetl prune")
        shared = {name: getattr(self, name) for name in fields_of(Distill) if name in fields_of(Prune)}
        if not given:
            return Distill(**shared, teacher=self.run, student=self.run)
        return Distill(
            **shared,
            teacher=self.run,
            student=f"slim:{getattr(self, given[0]):.6f}".rstrip("0"),
            slim_by=given[0],
            slim_backend=self.backend,
            slim_steps=self.steps,
            slim_epochs=self.step_epochs,
        )
