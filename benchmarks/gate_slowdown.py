"""The backend `cpu` with a slowdown inside the session: the factor stands in the graph's metadata as `gate_slowdown`.

`gate_live.py` names this module as the backend of both sides; a graph without the entry takes as long as it takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgetl import timing
from edgetl.backends import cpu

KEY = "gate_slowdown"
probe = cpu.probe


class Slowed:
    """A session whose every call goes on, busy, until it has taken `factor` times as long as it needed."""

    def __init__(self, session: Any, factor: float) -> None:
        self.session, self.factor = session, factor
        self.close, self.info = session.close, session.info

    def run(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `edgetl.runtime.session.Session.run`."""
        begun_s = timing.now_s()
        answer = self.session.run(feeds)
        end_s = begun_s + self.factor * (timing.now_s() - begun_s)
        while timing.now_s() < end_s:
            pass
        return answer


def open(graph: bytes, spec: Any, **options: Any) -> Slowed:
    """The graph on the CPU, slowed down as its metadata say."""
    # The key, then the value as protobuf's field 2 of 8 bytes: importing onnx would make every start a second longer.
    found = re.search(KEY.encode() + rb"\x12\x08([0-9.]{8})", graph)
    return Slowed(cpu.open(graph, spec, **options), 1.0 if found is None else float(found[1]))


def value(factor: float) -> str:
    """The factor as it stands in the metadata."""
    text = f"{factor:.6f}"
    if len(text) != 8:
        raise ValueError(f"a factor of {factor} is not between 1 and 10")
    return text
