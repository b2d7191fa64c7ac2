"""Works, and tells that its card alone takes a quarter of a second and more a call; after 60 of them it is lost."""

from benchfakes import Eye
from benchfakes import usable as probe  # noqa: F401
from edgetl.errors import BackendUnavailable

MOST = 60


class Carded(Eye):
    told = 0

    def device_s(self, feeds):
        self.run(feeds)
        self.told += 1
        if self.told > MOST:
            raise BackendUnavailable("The card is lost.")
        return 0.25 + self.told / 1000


def open(graph, spec, *, threads, cache_dir, options):
    return Carded(spec, threads)
