"""Never answers."""

import time

from benchfakes import usable as probe  # noqa: F401


def open(graph, spec, *, threads, cache_dir, options):
    time.sleep(600)
