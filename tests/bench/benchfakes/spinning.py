"""Has the option `spin`, and tells where it runs and what it was told."""

import os

from benchfakes import Eye
from benchfakes import usable as probe  # noqa: F401

OPTIONS = {"spin": ("on", "off")}


class Spinning(Eye):
    def info(self):
        cores = sorted(os.sched_getaffinity(0))
        return {**super().info(), **self.told, "cores": cores, "omp": os.environ.get("OMP_WAIT_POLICY")}


def open(graph, spec, *, threads, cache_dir, options):
    session = Spinning(spec, threads)
    session.told = dict(options)
    return session
