"""Takes green for red."""

from benchfakes import Eye
from benchfakes import usable as probe  # noqa: F401


class Colourblind(Eye):
    def run(self, feeds):
        answer = super().run(feeds)
        for logits in answer.values():
            logits[:, 1] -= 9
        return answer


def open(graph, spec, *, threads, cache_dir, options):
    return Colourblind(spec, threads)
