"""edgetl: from a folder of labelled images and a large teacher to a small verified bundle on a device.

The verbs of the command line are functions here, with the recipe's fields as keyword arguments:

    teacher = edgetl.finetune(data="photos", teacher="efficientnet-lite/efficientnet_lite0", out="runs/teacher")
    edgetl.compare_strategies(data="photos", teacher="timm/resnet18", out="strategies", folds=5).insist()
    student = edgetl.distill(data="photos", teacher=teacher, out="runs/student")
    pruned = edgetl.prune(run=student, data="photos", latency=0.5, out="runs/pruned")
    bundle = edgetl.export(run=student, out="runs/bundle")
    report = edgetl.bench(cases=[teacher, bundle], data="photos", out="runs/report")
    edgetl.compare(base="main/report", new="runs/report", max_regression="5%").insist()
    edgetl.gate(base="main/bundle", new=bundle).insist()
    edgetl.report(reports=["runs"], out="benchmarks.html")
    edgetl.verify(bundle)
    edgetl.tune(bundle=bundle)
    edgetl.quantize(model="other.onnx", data="photos", out="other.int8.onnx")
    edgetl.engine(source=bundle, compute_capability=["8.6", "8.9"], out="model.engine")
    edgetl.load(bundle).predict("photo.jpg").label

Each takes `listener=`, a function that hears `edgetl.events.Event`s. Importing edgetl imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["__version__", "bench", "compare", "compare_strategies", "distill", "engine", "export",
           "finetune", "gate", "load", "prune", "quantize", "report", "run", "tune", "verify"]

if TYPE_CHECKING:
    from edgetl.pipeline import (
        bench,
        compare,
        compare_strategies,
        distill,
        engine,
        export,
        finetune,
        gate,
        prune,
        quantize,
        report,
        run,
        tune,
    )
    from edgetl.runtime import load
    from edgetl.runtime.verifying import verify

_HOMES = {"finetune": "edgetl.pipeline", "distill": "edgetl.pipeline", "prune": "edgetl.pipeline",
          "run": "edgetl.pipeline",
          "tune": "edgetl.pipeline", "report": "edgetl.pipeline", "gate": "edgetl.pipeline",
          "compare": "edgetl.pipeline", "compare_strategies": "edgetl.pipeline",
          "quantize": "edgetl.pipeline", "engine": "edgetl.pipeline",
          "load": "edgetl.runtime", "verify": "edgetl.runtime.verifying"}
_ROOMS = ("bench", "export")  # packages that can be called, see edgetl.verbs


def __getattr__(name: str) -> Any:
    home = f"edgetl.{name}" if name in _ROOMS else _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'edgetl' has no attribute '{name}'")
    try:
        found = importlib.import_module(home)
    except ModuleNotFoundError as problem:
        if problem.name != home:
            raise
        raise AttributeError(f"edgetl.{name} is not part of edgetl-runtime, which is what is installed here; the "
                             "whole edgetl has it") from problem
    return found if name in _ROOMS else getattr(found, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
