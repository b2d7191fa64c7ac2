"""The two cases of a gate: what the runtime would run of BASE and of NEW, under the same conditions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl import recipe, recipe_fields, weights
from edgetl.bench import cases
from edgetl.bench.cases import Case
from edgetl.errors import EdgetlError
from edgetl.recipe_gate import RegressionGate
from edgetl.runtime import choice, tuned
from edgetl.runtime.bundle import is_bundle, open_bundle
from edgetl.runtime.choice import AUTO

ONNX_BACKEND = "cpu"  # of a bare graph, where none is asked for


@dataclass(frozen=True)
class Sides:
    """BASE and NEW, and how they are measured."""

    base: Case
    new: Case
    options: recipe.Bench  # what a trial needs to know
    from_pixels: bool  # whether a call begins with an image's pixels, see `find`

    @property
    def both(self) -> tuple[Case, Case]:
        """BASE, NEW."""
        return self.base, self.new


def find(options: RegressionGate) -> Sides:
    """What is to be held against one another: the same backend, threads, batch and arrival on both sides.

    A call begins with the graph's input, unless only one of the two graphs embeds the normalisation: then both begin
    with an image's pixels, so that what one of them does inside counts for the other too.

    Raises:
        EdgetlError: a side that is no case, or whose backend cannot be the other's.
        UnknownName: a backend or variant that does not exist.
        BackendUnavailable: nothing of a bundle that was asked for can run here.
        BundleError: a bundle is incomplete or altered.
    """
    plain = _bench(options)
    base = _case("BASE", options.base, options.backend, options, plain)
    new = _case("NEW", options.new, base.subject.backend, options, plain)
    embedding = [one.subject.embeds_preprocess for one in (base, new)]
    return Sides(base, new, plain, from_pixels=_from_pixels((base, new)) if any(embedding) else False)


def _from_pixels(both: Sequence[Case]) -> bool:
    if all(one.subject.embeds_preprocess for one in both):
        return False
    lacking = next((one for one in both if one.subject.preprocess is None), None)
    if lacking is not None:
        raise EdgetlError(f"{lacking.subject.source} takes normalised images and says not how they are made, and the "
                          "other side takes pixels: their calls are not the same work.",
                          hint="Hold bundles against one another, or two ONNX files that take the same input.")
    return True


def _bench(options: RegressionGate) -> recipe.Bench:
    """What a trial and an exam need to know."""
    shared: dict[str, Any] = {name: getattr(options, name) for name in recipe.fields_of(recipe_fields.DataFields)}
    return recipe.Bench(cases=(options.base, options.new), out="", threads=(str(options.threads),),
                        batch=(str(options.batch),), seed=options.seed, timeout_s=options.timeout_s, pin=options.pin,
                        spin=options.spin, interval=None if options.interval is None else (options.interval,), **shared)


def _case(side: str, path: str, backend: str, options: RegressionGate, plain: recipe.Bench) -> Case:
    variants: tuple[str, ...] = ()
    if is_bundle(Path(path)):
        opened = open_bundle(Path(path))
        chosen = choice.choose(opened.manifest, backend, options.variant, tuned=tuned.find(opened.digest))
        choice.check_classifier(opened.manifest, chosen.variant)
        backend, variants = chosen.backend, (chosen.variant.name,)
    elif backend == AUTO:
        backend = cases.RUN_BACKEND if weights.is_run(Path(path)) else ONNX_BACKEND
    (found,) = cases.find(dataclasses.replace(plain, cases=(path,), backend=(backend,), variant=variants))
    return dataclasses.replace(found, name=f"{side} ({found.name})")
