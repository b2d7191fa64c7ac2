"""Never answers, and makes the file that BENCHFAKES_BEGUN names when it begins not to."""

import os
import time
from pathlib import Path

from benchfakes import usable as probe  # noqa: F401


def open(graph, spec, *, threads, cache_dir, options):
    if "BENCHFAKES_BEGUN" in os.environ:
        Path(os.environ["BENCHFAKES_BEGUN"]).touch()
    time.sleep(3600)
