"""Takes 2 ms a call in fp32 and 1 ms in less, three fifths of it with two threads, and then errs on every green image.

By a clock of its own: this is loaded in a worker's process, where nothing else is timed, and a busy machine may be as
slow as it likes.
"""

import time

from benchfakes import Eye
from benchfakes import usable as probe  # noqa: F401

passed_s = 0.0


class Paced(Eye):
    def run(self, feeds):
        global passed_s
        passed_s += (2e-3 if self.spec.precision == "fp32" else 1e-3) * (1.0 if self.threads == 1 else 0.6)
        answer = super().run(feeds)
        if self.spec.precision != "fp32":
            for logits in answer.values():
                logits[:, 1] -= 9
        return answer


def open(graph, spec, *, threads, cache_dir, options):
    time.perf_counter = lambda: passed_s
    return Paced(spec, threads)
