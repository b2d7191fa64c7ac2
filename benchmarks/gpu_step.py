"""One step of benchmarks/gpu.py, in a process of its own: `gpu_step.py STEP PLAN.json ROWS.jsonl`."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from gpu_plan import Rows, read

# In this order: a step uses what those before it left in the plan's folder.
STEPS = {"versions": "gpu_machine", "contract": "gpu_machine", "train": "gpu_models", "graphs": "gpu_models",
         "engines": "gpu_engines", "parity": "gpu_measure", "latency": "gpu_measure"}


def main() -> None:
    """Runs the step."""
    step, file, rows = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    plan = read(file)
    getattr(importlib.import_module(STEPS[step]), step)(plan, Rows(rows, plan))


if __name__ == "__main__":
    main()
