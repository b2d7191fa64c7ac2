"""Which variant of a bundle runs on which backend, without timing anything.

Three rules, the first that knows an answer decides:

1. "tuned": what `edgetl tune` measured for this bundle on this machine;
2. "features": a variant made for a card comes first where a card may be and the export could not measure it, and one
   made for this kind of processor, of known accuracy and in a precision that this very processor computes fast in,
   before the portable ones, unless the manifest's order was measured on this kind of processor;
3. "order": the manifest's order, in which the export measured the variants.

What cannot run here, or would give wrong answers, is passed over by all three.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from edgetl import plugins
from edgetl.errors import BackendUnavailable, BundleError, UnknownName
from edgetl.runtime import cards, processor
from edgetl.runtime.manifest import Manifest, Variant

if TYPE_CHECKING:
    from edgetl.runtime.tuned import Answer, Entry, Found

AUTO = "auto"
PORTABLE = "portable"  # the target of a graph that is made for no processor in particular
CARDS = frozenset({"tensorrt", "cuda"})  # backends whose probes are not asked without a sign of a card
PROCESSOR = "CPU"  # the device of a backend that computes on the processor
PROCESSORS = ("x86", "arm")  # architectures that a target's first word may name: x86-vnni, arm


class Choice(NamedTuple):
    """A variant, the backend that runs it, and why these two."""

    variant: Variant
    backend: str
    why: str
    passed_over: tuple[str, ...] = ()  # what stood before it and cannot run here, with the reasons
    rule: str = "order"  # "asked" | "tuned" | "features" | "order"
    threads: int = 0  # what `edgetl tune` measured as best for these two; 0 where it did not


def choose(manifest: Manifest, backend: str = AUTO, variant: str = AUTO, *, tuned: Found | None = None) -> Choice:
    """The variant and backend to run, of those that were asked for and can run here.

    Args:
        manifest: of the bundle.
        backend: a name, or "auto".
        variant: a name, or "auto".
        tuned: what `tuned.find` knows of this bundle on this machine; None was not looked for.

    Raises:
        UnknownName: no such variant or backend.
        BackendUnavailable: nothing that was asked for can run here; carries every reason.
    """
    wanted = plugins.public(backend)
    if wanted != AUTO:
        plugins.load("backends", wanted)
    candidates = _candidates(manifest, variant)
    measured, note = _measured(tuned, candidates, variant, wanted)
    if measured is not None:
        return measured
    ordered, promoted = _by_cards(*_by_features(manifest, candidates))
    passed_over: list[str] = []
    for one, name, why_not in _pairs(ordered, wanted):
        if why_not is None:
            rule, why = _rule(one, wanted, variant, promoted)
            return Choice(one, name, "; ".join(filter(None, (why, note))), tuple(passed_over), rule)
        passed_over.append(f"{one.name} {why_not}")
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


# ------------------------------------------------------------------------------------------------ what can run here


def _pairs(variants: tuple[Variant, ...], wanted: str) -> Iterator[tuple[Variant, str, str | None]]:
    """Every variant with every backend it may have here, and why that pair cannot run; None where it can."""
    for one in variants:
        backends = list(one.backends) if wanted == AUTO else [wanted] * made_for(one, wanted)
        if lacking := _lacking(one):
            yield one, wanted, lacking
        elif not backends:
            yield one, wanted, f"is made for {', '.join(one.backends)}, not for {wanted}"
        else:
            yield from ((one, name, refusal(one, name, asked=name == wanted)) for name in backends)


def made_for(variant: Variant, backend: str) -> bool:
    """Whether a variant names that backend, or one that it stands for: `ort:xnnpack` runs what is made for `cpu`."""
    if ":" not in backend or not plugins.trusted(backend):
        return backend in variant.backends
    stands_for = getattr(plugins.load("backends", backend), "STANDS_FOR", ())
    return not set(stands_for).isdisjoint(variant.backends)


def refusal(variant: Variant, backend: str, *, asked: bool) -> str | None:
    """Why a variant cannot run on one of its backends here, to follow its name; None where it can.

    Args:
        variant: of a bundle.
        backend: one that the variant names.
        asked: whether the user named the backend too; otherwise a module that is no part of edgetl is not imported.
    """
    return _lacking(variant) or _probed(backend, asked=asked)[1]


def _lacking(variant: Variant) -> str | None:
    lacking = processor.missing(variant.requires)
    return f"requires {', '.join(lacking)}, which this processor does not show" if lacking else None


def _probed(backend: str, *, asked: bool) -> tuple[Any, str | None]:
    """What a backend's probe says (an Availability, or None), and why it cannot run here.

    A bundle may name backends that only a later edgetl has. A module that only the manifest names is never imported:
    that would run whatever lies beside the bundle.
    """
    if not asked and not plugins.trusted(backend):
        return None, (f"runs on the module '{backend}', which is no part of edgetl and is imported only when it is "
                      f"asked for by name or in ${plugins.TRUST}")
    try:
        available = plugins.load("backends", backend).probe()
    except UnknownName:
        return None, f"runs on '{backend}', which this edgetl does not have"
    if available.usable:
        return available, None
    return available, f"cannot run on {backend}: {available.reason} {available.fix or ''}".rstrip(" .")


# ---------------------------------------------------------------------------------------------- 1. what was measured


def _measured(tuned: Found | None, candidates: tuple[Variant, ...], variant: str,
              wanted: str) -> tuple[Choice | None, str]:
    """What `edgetl tune` measured as best for what is asked, or why that does not count."""
    if tuned is None or tuned.entry is None:
        return None, tuned.note if tuned else ""
    answer = tuned.entry.answer(variant, wanted)
    if answer is None:
        return None, "`edgetl tune` has not measured what was asked for to the end"
    one = next((one for one in candidates if one.name == answer.variant), None)
    objection = _objection(tuned.entry, answer, one, asked=answer.backend == wanted)
    if one is None or objection is not None:
        return None, f"what `edgetl tune` measured is passed by: {objection}"
    return Choice(one, answer.backend, f"tuned {tuned.entry.tuned_at}: {answer.why}", (), "tuned", answer.threads), ""


def _objection(entry: Entry, answer: Answer, variant: Variant | None, *, asked: bool) -> str | None:
    """Why a measured answer cannot be followed; only the backend that it chose is asked for its version.

    To import the others as well, only to learn their versions, takes longer than opening the graph.
    """
    if variant is None or not made_for(variant, answer.backend):
        return f"the bundle has no variant {answer.variant} for {answer.backend}"
    available, why_not = _probed(answer.backend, asked=asked)
    if lacking := _lacking(variant) or why_not:
        return f"{variant.name} {lacking}"
    measured = entry.versions.get(answer.backend)
    if measured != identity(available):
        return f"{answer.backend} was {measured} when it was measured, and is {identity(available)}"
    return None


def identity(available: Any) -> str:
    """What a measurement on a backend holds for, of an Availability: the version, and the device unless the processor.

    The processor is part of `tuned.Machine`; cards are exchanged, and their drivers, without another processor.
    """
    elsewhere = available.device not in (None, PROCESSOR)
    return f"{available.version or ''} on {available.device}" if elsewhere else available.version or ""


# ----------------------------------------------------------------------------------------------- 2. what the CPU has


def _by_features(manifest: Manifest, variants: tuple[Variant, ...]) -> tuple[tuple[Variant, ...], Mapping[str, str]]:
    """The variants reordered by what this processor has, and of those that moved forward why.

    Only variants for processors change places with one another; those for other devices keep theirs.
    """
    here = processor.read().architecture
    elsewhere = _architecture_of_export(manifest) != here
    promoted: dict[str, str] = {}
    ranks: dict[str, int] = {}
    for one in variants:
        fits = processor.architecture(one.target.partition("-")[0])
        if fits not in PROCESSORS and one.target != PORTABLE:
            continue
        fast = processor.accelerates(one.precision)
        ranks[one.name] = 1
        if fits in PROCESSORS and fits != here:
            ranks[one.name] = 3  # made for another architecture
        elif one.precision in ("fp16", "bf16") and not fast:
            ranks[one.name] = 2  # every operation would be converted to fp32 and back
        elif fits == here and fast and elsewhere and _accuracy_is_known(one):
            ranks[one.name] = 0
            promoted[one.name] = f"this processor has {fast}, which makes {one.precision} fast"
    moved = iter(sorted((one for one in variants if one.name in ranks), key=lambda one: ranks[one.name]))
    return tuple(next(moved) if one.name in ranks else one for one in variants), promoted


def _by_cards(variants: tuple[Variant, ...],
              promoted: Mapping[str, str]) -> tuple[tuple[Variant, ...], Mapping[str, str]]:
    """First those made for a card that nobody could measure, where there may be one; the export has put them last.

    Whether it can be used, their backends' probes say when it is their turn.
    """
    unmeasured = [one for one in variants if one.target != PORTABLE and CARDS.intersection(one.backends)
                  and one.status == "not-measured" and _accuracy_is_known(one)]
    if not unmeasured or not cards.nvidia():
        return variants, promoted
    others = [one for one in variants if one not in unmeasured]
    why = "this machine has a card for it"
    return (*unmeasured, *others), {**promoted, **{one.name: why for one in unmeasured}}


def _accuracy_is_known(variant: Variant) -> bool:
    """Whether the export has held it against its limits, wherever that was."""
    return any(row.get("accuracy") is not None for row in variant.evaluations)


def _architecture_of_export(manifest: Manifest) -> str | None:
    """The architecture on which the manifest's order was measured; None where it does not say."""
    table: Any = manifest.provenance
    for key in ("export", "environment", "machine"):
        table = table.get(key) if isinstance(table, Mapping) else None
    return processor.architecture(table) if isinstance(table, str) else None


def _rule(one: Variant, backend: str, variant: str, promoted: Mapping[str, str]) -> tuple[str, str]:
    """The name of the rule that decided, and the sentence."""
    if AUTO not in (backend, variant):
        return "asked", "variant and backend were asked for"
    if variant != AUTO:
        return "asked", "the variant was asked for; its first backend that can run here"
    asked = "" if backend == AUTO else f" with the backend '{backend}'"
    if one.name in promoted:
        return "features", (f"made for {one.target}, and {promoted[one.name]}; the first such variant that can run "
                            f"here{asked}")
    return "order", f"first in the manifest's order that can run here{asked}"


# ------------------------------------------------------------------------------------------------ what is a classifier


def check_classifier(manifest: Manifest, variant: Variant) -> None:
    """Refuses a variant that is no classifier: one image in, [N, K] of logits out.

    The image is what the manifest's preprocess makes of it, float32, normalised; a graph that holds that last step
    itself takes the pixels, uint8 [N, H, W, C].

    Raises:
        BundleError: says what was found.
    """
    channels, (height, width) = manifest.preprocess.channels, manifest.preprocess.size_hw
    dtype, shape, made = "float32", ("N", *manifest.preprocess.input_shape), "as the manifest's preprocess makes it"
    if variant.embeds_preprocess:
        dtype, shape, made = "uint8", ("N", height, width, channels), "pixels, since it embeds the preprocessing"
    images = [(one.role, one.dtype, one.shape) for one in variant.inputs]
    if images != [("image", dtype, shape)]:
        raise BundleError(f"Variant '{variant.name}' takes {images}; expected one image, {dtype} "
                          f"{list(shape)}, {made}.")
    if [one.role for one in variant.outputs].count("logits") != 1:
        found = ", ".join(one.role for one in variant.outputs)
        raise BundleError(f"Variant '{variant.name}' gives {found}; expected logits, once.")
