"""Shows that a bundle gives, on this machine, what training gave.

Without a signature nothing vouches for the manifest itself; the golden file (see `edgetl.runtime.golden`) catches what
was changed in its preprocessing, as far as the golden images show it. Two steps are compared, bytes -> tensor and
tensor -> logits (and features, where the bundle gives them).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BackendUnavailable, GateFailed
from edgetl.runtime.bundle import SIGNATURE, Bundle, PublicKey, open_bundle
from edgetl.runtime.choice import AUTO, choose
from edgetl.runtime.classifier import open_variant
from edgetl.runtime.heads import agreeing, agreement_words
from edgetl.runtime.manifest import GOLDEN, Variant
from edgetl.runtime.preprocess import Preprocess, prepare
from edgetl.runtime.session import GraphSpec, open_session

if TYPE_CHECKING:
    from edgetl.runtime.golden import Golden
    from edgetl.runtime.session import Session

# In grey levels (1/255 of the range). JPEG decoders may round a pixel differently by one level, so one is allowed
# anywhere (and half a level for arithmetic); but few pixels are, so a channel's mean stays far below. A wrong filter,
# crop, colour order, mean or std shifts many pixels, and the mean tells: `mean` off by 0.001 already exceeds it.
PIXEL_LIMIT = 1.5
MEAN_LIMIT = 0.25

# What stands in for a device that is not here. ONNX Runtime's CPU has no bf16; graphs in fp16 it must not rewrite:
# version 1.31 fuses nodes that it has no kernel for, and rounds biases to int32 in steps that are 0 in fp16.
SIMULATORS = {"bf16": ("openvino", {"precision": "fp32"}), "other": ("cpu", {"graph_optimization": "off"})}


@dataclass(frozen=True)
class Check:
    """One comparison that was made, or could not be made here."""

    name: str
    status: str  # "passed" | "skipped"
    measured: float | None = None  # the worst difference
    limit: float | None = None
    unit: str = ""  # of both
    note: str = ""  # why it was skipped, or what was compared


@dataclass(frozen=True)
class VerifyReport:
    """Every check of a bundle; a check that fails raises instead."""

    bundle: str
    images: int  # golden images
    kind: str  # "photos" | "synthetic"
    checks: tuple[Check, ...]


def verify(bundle: str | os.PathLike[str], backend: str = AUTO, threads: int = 0,
           public_key: PublicKey = None) -> VerifyReport:
    """Checks of every file's digest, of the preprocessing, and of the logits of every variant that can run here.

    Args:
        bundle: folder of the bundle, or the file that `edgetl pack` made of it.
        backend: "auto" takes for each variant the first of its backends that can run here. Where none can, and the
            export judged the variant on the processor, that is where it is checked, see `_check_simulated`.
        threads: 0 takes what the cgroup quota and the affinity allow.
        public_key: as `open_bundle` takes it; with one configured the signature is a check too.

    Raises:
        BundleError: a file is missing or altered, there is no golden file, or the signature is not the key's.
        GateFailed: the preprocessing or a variant's logits or features differ from training's; says by how much.
        BackendUnavailable: no variant can run here.
    """
    from edgetl.runtime.golden import read_golden  # here: who only classifies needs no golden images

    opened = open_bundle(bundle, public_key)
    checks = _check_seal(opened) + [_check_file(opened, one) for one in opened.manifest.variants]
    golden = read_golden(opened)
    checks.append(Check(GOLDEN, "passed", note="size and SHA-256 as in the manifest"))
    checks.append(check_preprocess(golden, opened.manifest.preprocess))
    variants = [check for one in opened.manifest.variants
                for check in _check_variant(opened, one, golden, backend, threads)]
    if all(one.status == "skipped" for one in variants):
        raise BackendUnavailable(f"No variant of '{opened.manifest.name}' can be verified here: "
                                 + "; ".join(one.note for one in variants))
    kind = str(opened.manifest.golden["kind"])
    return VerifyReport(str(opened.path), len(golden.sources), kind, (*checks, *variants))


def _check_seal(bundle: Bundle) -> list[Check]:
    seal = bundle.seal
    return [] if seal is None else [Check(SIGNATURE, "passed", note=f"signed by {seal.key_id}: {seal.comment}")]


def _check_file(bundle: Bundle, variant: Variant) -> Check:
    bundle.read(variant.file, variant.sha256, variant.size_bytes)
    return Check(variant.file, "passed", note="size and SHA-256 as in the manifest")


def _differs(what: str) -> GateFailed:
    return GateFailed(f"The preprocessing differs from training's: {what}.",
                      hint="The 'preprocess' of manifest.json was changed, or another Pillow decodes these images "
                           "otherwise; predictions would be wrong without any error.")


def check_preprocess(golden: Golden, preprocess: Preprocess) -> Check:
    """Bytes -> tensor: the greatest difference of any pixel, in grey levels.

    Raises:
        GateFailed: more than PIXEL_LIMIT anywhere, or more than MEAN_LIMIT on average over a channel.
    """
    if golden.tensor.shape[1:] != preprocess.input_shape:
        raise _differs(f"training made arrays of shape {list(golden.tensor.shape[1:])}, the manifest makes "
                       f"{list(preprocess.input_shape)}")
    shape, across = ((-1, 1, 1), (1, 2)) if preprocess.layout == "NCHW" else ((-1,), (0, 1))
    levels = (np.asarray(preprocess.std) / preprocess.scale).reshape(shape)
    worst = 0.0
    for index, source in enumerate(golden.sources):
        found = prepare(source, preprocess, name=f"source_{index:03d} of {GOLDEN}")
        apart = np.abs(found.astype(np.float64) - golden.tensor[index]) * levels
        greatest, mean = float(apart.max()), float(apart.mean(axis=across).max())
        if not (greatest <= PIXEL_LIMIT and mean <= MEAN_LIMIT):
            likely = _likely(found, golden.tensor[index], preprocess)
            raise _differs(f"golden image {index} is {mean:.3g} grey levels away on average and {greatest:.3g} at "
                           f"most, expected {MEAN_LIMIT} and {PIXEL_LIMIT}; {likely}")
        worst = max(worst, greatest)
    return Check("preprocess", "passed", worst, PIXEL_LIMIT, "grey levels", "bytes -> tensor")


def _likely(found: NDArray[np.float32], stored: NDArray[np.float32], preprocess: Preprocess) -> str:
    """What kind of difference it is, by what would undo it: the other channel order, or a straight line per channel."""
    if preprocess.layout != "NCHW":
        found, stored = found.transpose(2, 0, 1), stored.transpose(2, 0, 1)
    if _alike(found, stored):
        return "mean, std or scale differ"
    if len(found) == 3 and _alike(found[::-1], stored):
        return "red and blue are swapped"
    return "decoding, resizing or cropping differ"


def _alike(found: NDArray[np.float32], stored: NDArray[np.float32]) -> bool:
    """Whether every channel of one is a straight line of the other's."""
    for one, other in zip(found.astype(np.float64), stored.astype(np.float64), strict=True):
        flat = np.stack([one.ravel(), np.ones(one.size)], axis=1)
        line, *_ = np.linalg.lstsq(flat, other.ravel(), rcond=None)
        if np.abs(flat @ line - other.ravel()).mean() > 0.002 * (np.ptp(other) + 1e-6):
            return False
    return True


def _check_variant(bundle: Bundle, variant: Variant, golden: Golden, backend: str, threads: int) -> list[Check]:
    """The check of the logits, and that of the features where the variant gives some."""
    try:
        choice = choose(bundle.manifest, backend, variant.name)
    except BackendUnavailable as problem:
        return _check_simulated(bundle, variant, golden, backend, threads, problem)
    session = open_variant(bundle, choice, threads=threads)
    try:
        return check_answers(bundle, variant, golden, session, choice.backend)
    finally:
        session.close()


def _check_simulated(bundle: Bundle, variant: Variant, golden: Golden, backend: str, threads: int,
                     problem: BackendUnavailable) -> list[Check]:
    """On the processor, what is made for a device that is not here, if the export could judge it there too.

    The graph is the very one; the processor may compute in float32 what it has in half, which is nearer to training.
    """
    name, options = SIMULATORS["bf16" if variant.precision == "bf16" else "other"]
    skipped = [Check(variant.name, "skipped", note=problem.message)]
    if backend not in (AUTO, name) or not any("simulates" in row for row in variant.evaluations):
        return skipped
    graph = bundle.read(variant.file, variant.sha256, variant.size_bytes)
    spec = GraphSpec(variant.inputs, variant.outputs, variant.precision)
    try:
        session = open_session(name, graph, spec, threads=threads, options=options)
    except BackendUnavailable:
        return skipped
    try:
        place = f"{name}, in place of {' or '.join(variant.backends)}"
        return check_answers(bundle, variant, golden, session, place)
    finally:
        session.close()


def check_answers(bundle: Bundle, variant: Variant, golden: Golden, session: Session, backend: str) -> list[Check]:
    """Tensor -> logits, and features where the variant gives some: what a session makes of the golden images.

    Args:
        bundle: of the variant.
        variant: what the session was opened from.
        golden: of the bundle.
        session: run once.
        backend: its name, for sentences.

    Raises:
        GateFailed: an output has another shape than in training, or lies outside the variant's tolerance.
        BackendUnavailable: the session cannot run them.
    """
    images = pixels_of(golden.tensor, bundle.manifest.preprocess) if variant.embeds_preprocess else golden.tensor
    # An engine may take no fewer images than it was built for: the same ones again.
    count = max(len(images), session.info().get("batches", [1])[0])
    fed = images if count == len(images) else images[np.arange(count) % len(images)]
    found = session.run({variant.inputs[0].name: fed})
    outputs = {one.role: found[one.name][:len(images)] for one in variant.outputs}
    logits, who = outputs["logits"], f"Variant '{variant.name}' on '{backend}'"
    checks = [_check_output(variant.name, who, "logits", logits, golden.logits, variant.tolerance,
                            f"tensor -> logits on {backend}; {_agreement(bundle, logits, golden)} agree")]
    if "features" in outputs:
        checks.append(_check_features(variant, who, outputs["features"], golden, backend))
    return checks


def _agreement(bundle: Bundle, logits: NDArray[np.float32], golden: Golden) -> str:
    """How many answers are the same, e.g. `8 of 8 top-1 answers`; outputs of another shape are told as such."""
    heads = bundle.manifest.heads
    if not heads or logits.shape != golden.logits.shape:
        same = int((logits.argmax(axis=1) == golden.logits.argmax(axis=1)).sum())
        return f"{same} of {len(logits)} top-1 answers"
    each = agreeing(heads, logits, golden.logits)
    return f"{int(each.sum())} of {each.size} {agreement_words(heads).removeprefix('of the ')}"


def pixels_of(tensor: NDArray[np.float32], preprocess: Preprocess) -> NDArray[np.uint8]:
    """The pixels [N, H, W, C] that a normalised array was made of; what a graph takes that normalises by itself."""
    images = tensor.transpose(0, 2, 3, 1) if preprocess.layout == "NCHW" else tensor
    pixels = (images.astype(np.float64) * preprocess.std + preprocess.mean) / preprocess.scale
    return np.rint(pixels).clip(0, 255).astype(np.uint8)


def _check_features(variant: Variant, who: str, found: NDArray[np.float32], golden: Golden, backend: str) -> Check:
    name = f"{variant.name} features"
    if golden.features is None or variant.features_tolerance is None:
        lacking = f"{GOLDEN} holds no features" if golden.features is None else "the manifest has no features_tolerance"
        return Check(name, "skipped", note=lacking)
    return _check_output(name, who, "features", found, golden.features, variant.features_tolerance,
                         f"tensor -> features on {backend}")


def _check_output(name: str, who: str, what: str, found: NDArray[np.float32], expected: NDArray[np.float32],
                  tolerance: float, note: str) -> Check:
    if found.shape != expected.shape:
        raise GateFailed(f"{who} gives {what} {list(found.shape)}, {GOLDEN} holds {list(expected.shape)}.")
    apart = np.abs(found.astype(np.float64) - expected).max(axis=1)
    worst = int(np.argmax(apart))
    if not apart[worst] <= tolerance:  # written so that NaN fails
        raise GateFailed(f"{who} gives other {what} than training did: golden image {worst} is {apart[worst]:.3g} "
                         f"away, expected at most {tolerance:.3g} ({note}).",
                         hint="Use another variant or backend, or export the bundle again for this machine.")
    return Check(name, "passed", float(apart[worst]), tolerance, what.removesuffix("s"), note)
