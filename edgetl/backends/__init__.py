"""Catalogue of backends: how a graph is opened on one runtime.

A backend file has

- `probe() -> Availability`: usable, or the reason why not and the fix; never raises for an absent package;
- `open(graph: bytes, spec: GraphSpec, *, threads: int, cache_dir: Path | None, options: Mapping[str, str]) -> Session`.

and may have

- `open_profiled(graph: bytes, spec: GraphSpec, *, threads: int, options: Mapping[str, str]) -> ProfiledSession`: the
  same session with the engine's own profiler on; see `edgetl.runtime.layers`;
- `SURVIVES_DAMAGE = True`: its parser was tried on damaged graphs and neither aborted nor hung on any. The digest of
  an unsigned graph is then computed while `open` is at work, and the session thrown away if it differs;
- `COMPUTES_ON_THREADS = False`: a card computes, and the number of the host's threads changes next to nothing, so that
  `edgetl tune` measures one.

Files here import the standard library and numpy only at module level (`torch.py` apart).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run on this machine."""

    usable: bool
    version: str | None = None  # version of the library that would run, None when it is absent
    device: str | None = None  # what it would run on, in words
    reason: str | None = None  # why it is not usable
    fix: str | None = None  # what to do about it
