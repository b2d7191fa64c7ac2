"""A card whose engine is built by the first start and found by the later ones; threads change nothing, fp16 does."""

import os
import time
from pathlib import Path

from benchfakes import Eye
from edgetl.backends import Availability

COMPUTES_ON_THREADS = False
FOLDER = "BENCHFAKES_ENGINES"  # the variable that names where engines are kept; without it none is
passed_s = 0.0


def probe():
    return Availability(usable=True, version="11.4", device=os.environ.get("BENCHFAKES_CARD", "Made-up card"))


class Engined(Eye):
    facts = {}

    def run(self, feeds):
        global passed_s
        passed_s += {"fp32": 2e-3, "fp16": 1e-3, "int8": 1.02e-3}[self.spec.precision]
        return super().run(feeds)

    def info(self):
        return {**super().info(), "engine": self.facts}


def open(graph, spec, *, threads, cache_dir, options):
    time.perf_counter = lambda: passed_s
    session, folder = Engined(spec, threads), os.environ.get(FOLDER)
    engine = Path(folder or ".", f"{spec.precision}.engine")
    session.facts = {"built": folder is None or not engine.exists(), "kept": folder is not None, "build_s": 31.5}
    if folder is not None:
        engine.touch()
    return session
