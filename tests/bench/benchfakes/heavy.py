"""Takes 100 s to import, 1,000 s to open, 10,000 s for its first call and one for each further, by a clock of its own.

This is loaded in a worker's process, where nothing else is timed: a busy machine may be as slow as it likes.
"""

import sys
import time

from benchfakes import Eye
from benchfakes import usable as probe  # noqa: F401

passed_s = time.perf_counter()


def take(seconds):
    """Lets the clock go on by so much, and by nothing else."""
    global passed_s
    passed_s += seconds
    time.perf_counter = lambda: passed_s


class Heavy(Eye):
    def run(self, feeds):
        take(10_000 if self.calls == 0 else 1)
        return super().run(feeds)


def open(graph, spec, *, threads, cache_dir, options):
    take(1_000)
    return Heavy(spec, threads)


if getattr(sys.modules["__main__"].__spec__, "name", None) == "edgetl.bench.worker":
    # Whoever else looks in keeps its clock.
    take(100)
