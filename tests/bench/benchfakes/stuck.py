"""Answers some calls and then no more."""

import time

from benchfakes import Eye
from benchfakes import usable as probe  # noqa: F401


class Stuck(Eye):
    def run(self, feeds):
        if self.calls >= 45:
            time.sleep(600)
        return super().run(feeds)


def open(graph, spec, *, threads, cache_dir, options):
    return Stuck(spec, threads)
