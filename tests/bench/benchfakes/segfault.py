"""Reads where it may not, in its first block."""

import ctypes

from benchfakes import Eye
from benchfakes import usable as probe  # noqa: F401


class Segfault(Eye):
    def run(self, feeds):
        if self.calls >= 3:
            ctypes.string_at(0)
        return super().run(feeds)


def open(graph, spec, *, threads, cache_dir, options):
    return Segfault(spec, threads)
