"""Which variant of a bundle runs on which backend. Nothing is timed: requirements first, then the manifest's order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgetl import plugins
from edgetl.errors import BackendUnavailable, BundleError, UnknownName
from edgetl.runtime.manifest import Manifest, Variant
from edgetl.runtime.processor import missing

AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """A variant, the backend that runs it, and why these two."""

    variant: Variant
    backend: str
    why: str
    passed_over: tuple[str, ...] = ()  # what stood before it in the manifest's order and cannot run here


def choose(manifest: Manifest, backend: str = AUTO, variant: str = AUTO) -> Choice:
    """The first variant and backend, in the manifest's order, that can run here and are what was asked for.

    Raises:
        UnknownName: no such variant or backend.
        BackendUnavailable: nothing that was asked for can run here; carries every reason.
    """
    wanted = backend if "." in backend else backend.replace("_", "-")
    if wanted != AUTO:
        plugins.load("backends", wanted)
    passed_over: list[str] = []
    for one, name, refusal in _pairs(_candidates(manifest, variant), wanted):
        if refusal is None:
            return Choice(one, name, _why(wanted, variant), tuple(passed_over))
        passed_over.append(f"{one.name} {refusal}")
    reasons = "; ".join(passed_over)
    raise BackendUnavailable(f"No variant of '{manifest.name}' that was asked for can run here: {reasons}.",
                             hint="`edgetl doctor` lists what this machine can run.")


def _candidates(manifest: Manifest, variant: str) -> tuple[Variant, ...]:
    if variant == AUTO:
        return manifest.variants
    named = tuple(one for one in manifest.variants if one.name == variant)
    if not named:
        raise UnknownName("variant", variant, [one.name for one in manifest.variants])
    return named


def _pairs(variants: tuple[Variant, ...], wanted: str) -> Iterator[tuple[Variant, str, str | None]]:
    """Every variant with every backend it may have here, and why that pair cannot run; None where it can."""
    for one in variants:
        backends = [name for name in one.backends if wanted in (AUTO, name)]
        if lacking := missing(one.requires):
            yield one, wanted, f"requires {', '.join(lacking)}, which this processor does not show"
        elif one.embeds_preprocess:
            yield one, wanted, "holds its preprocessing in the graph, which this version does not feed"
        elif not backends:
            yield one, wanted, f"is made for {', '.join(one.backends)}, not for {wanted}"
        else:
            yield from ((one, name, _unusable(name, asked=name == wanted)) for name in backends)


def _unusable(backend: str, *, asked: bool) -> str | None:
    """Why a backend cannot run here; a bundle may name backends that only a later edgetl has.

    A module that only the manifest names is never imported: that would run whatever lies beside the bundle.
    """
    if not asked and not plugins.trusted(backend):
        return (f"runs on the module '{backend}', which is no part of edgetl and is imported only when it is asked for "
                f"by name or in ${plugins.TRUST}")
    try:
        available = plugins.load("backends", backend).probe()
    except UnknownName:
        return f"runs on '{backend}', which this edgetl does not have"
    if available.usable:
        return None
    return f"cannot run on {backend}: {available.reason} {available.fix or ''}".rstrip(" .")


def _why(backend: str, variant: str) -> str:
    if AUTO not in (backend, variant):
        return "variant and backend were asked for"
    if variant != AUTO:
        return "the variant was asked for; its first backend that can run here"
    asked = "" if backend == AUTO else f" with the backend '{backend}'"
    return f"first in the manifest's order that can run here{asked}"


def check_classifier(manifest: Manifest, variant: Variant) -> None:
    """Refuses a variant that is no classifier of prepared images: one image in, one [N, K] of logits out.

    Raises:
        BundleError: says what was found.
    """
    shape = ("N", *manifest.preprocess.input_shape)
    images = [(one.role, one.dtype, one.shape) for one in variant.inputs]
    if images != [("image", "float32", shape)]:
        raise BundleError(f"Variant '{variant.name}' takes {images}; expected one image, float32 {list(shape)}, "
                          "as the manifest's preprocess makes it.")
    if [one.role for one in variant.outputs].count("logits") != 1:
        found = ", ".join(one.role for one in variant.outputs)
        raise BundleError(f"Variant '{variant.name}' gives {found}; expected logits, once.")
