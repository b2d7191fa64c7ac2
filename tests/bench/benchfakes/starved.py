"""Runs out of memory in a way that Python notices."""

from benchfakes import Eye
from benchfakes import usable as probe  # noqa: F401


class Starved(Eye):
    def run(self, feeds):
        raise MemoryError


def open(graph, spec, *, threads, cache_dir, options):
    return Starved(spec, threads)
