"""Is killed in its first block, as the system does when memory runs out."""

import os
import signal

from benchfakes import Eye
from benchfakes import usable as probe  # noqa: F401


class Killed(Eye):
    def run(self, feeds):
        if self.calls >= 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(feeds)


def open(graph, spec, *, threads, cache_dir, options):
    return Killed(spec, threads)
