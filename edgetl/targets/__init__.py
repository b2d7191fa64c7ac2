"""Catalogue of targets: what graph one kind of machine wants, per precision. A file here has `TARGET`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Target:
    """What a runtime wants of a graph."""

    name: str  # its first word is the architecture where it is made for a processor: x86-vnni, arm
    precisions: tuple[str, ...]
    backends: tuple[str, ...]  # which backends run its graphs
    opset: int
    requires: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # precision -> CPU features
    quantize: Mapping[str, Any] = field(default_factory=dict)  # the INT8 scheme, read by compress.quantize
    # CPU features of which one is enough for a machine to compute the INT8 graph's answers as the target does, and so
    # to judge its accuracy, although it may not be the machine that the graph is made for; () is those of `requires`.
    judges: tuple[str, ...] = ()
    better: tuple[str, ...] = ()  # CPU features with which another target is: there this one is made when asked for
    # When it is exported without being named: "features", where this processor has what INT8 requires; "backend", where
    # one of its backends can run; "asked", never.
    comes: str = "features"
