"""Backends that misbehave, loaded by their dotted names; and one that does not, without any library to wait for."""

from __future__ import annotations

import numpy as np

from edgetl.backends import Availability


def usable() -> Availability:
    """What a backend that can run here says."""
    return Availability(usable=True, version="1", device="nowhere")


class Eye:
    """Answers with the class of the strongest colour channel: right on images of plain red, green and blue."""

    def __init__(self, spec, threads):
        self.spec, self.threads, self.calls = spec, threads, 0

    def run(self, feeds):
        self.calls += 1
        return {self.spec.outputs[0].name: feeds[self.spec.inputs[0].name].mean(axis=(2, 3)).astype(np.float32)}

    def close(self):
        pass

    def info(self):
        return {"backend": "fake", "threads": self.threads}
