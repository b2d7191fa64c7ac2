"""Has a bug."""

from benchfakes import usable as probe  # noqa: F401


def open(graph, spec, *, threads, cache_dir, options):
    raise RuntimeError("a bug in the backend")
