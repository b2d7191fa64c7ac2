"""Catalogue of targets: what graph one kind of machine wants, per precision. A file here has `TARGET`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Target:
    """What a runtime wants of a graph."""

    name: str
    precisions: tuple[str, ...]
    backends: tuple[str, ...]  # which backends run its graphs
    opset: int
    requires: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # precision -> CPU features
    quantize: Mapping[str, Any] = field(default_factory=dict)  # the INT8 scheme, read by compress.quantize
