"""Works, and prints to stdout as badly behaved libraries do."""

from benchfakes import Eye
from benchfakes import usable as probe  # noqa: F401


def open(graph, spec, *, threads, cache_dir, options):
    print("a library's banner")
    return Eye(spec, threads)
