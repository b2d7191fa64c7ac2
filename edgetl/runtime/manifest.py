"""The bundle's table of contents: plain JSON, one dataclass a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.session import TensorSpec

SCHEMA = 1
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"


@dataclass(frozen=True)
class Variant:
    """One graph of a bundle."""

    name: str  # "<target>.<precision>", e.g. "x86-vnni.int8"; the portable graph is "fp32"
    file: str
    target: str
    precision: str  # "fp32" | "fp16" | "bf16" | "int8"
    opset: int
    sha256: str
    size_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    backends: tuple[str, ...]
    requires: tuple[str, ...] = ()  # CPU features without which the answers may be wrong, e.g. "avx512_vnni"
    embeds_preprocess: bool = False
    tolerance: float = 1e-3  # greatest |logit - golden logit| allowed on the golden images
    calibration: Mapping[str, Any] | None = None
    status: str = "not-measured"  # "measured" | "not-measured"
    evaluations: tuple[Mapping[str, Any], ...] = ()  # {backend, split, n, accuracy, accuracy_low, accuracy_high, agreement, latency_s, machine}


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds and how it is to be used."""

    schema: int
    name: str
    task: str  # "classify"
    labels: tuple[str, ...]
    preprocess: Preprocess
    variants: tuple[Variant, ...]  # in the order of preference; variants[0] is the default
    features: tuple[str, ...] = ()
    golden: Mapping[str, Any] = field(default_factory=dict)  # {file, sha256, size_bytes, count, kind: "photos"|"synthetic"}
    provenance: Mapping[str, Any] = field(default_factory=dict)


def to_json(manifest: Manifest) -> str:
    """The manifest as indented JSON."""
    raise NotImplementedError


def from_json(text: str, *, where: str) -> Manifest:
    """The manifest in `text`.

    Raises:
        BundleError: not JSON; a field is missing or of the wrong type; the schema is too old or too new (two
            different sentences); a file path is absolute or leaves the bundle. Unknown fields are ignored.
    """
    raise NotImplementedError
