"""The device runtime: standard library and numpy at import, onnxruntime and Pillow when a bundle is opened.

    classifier = edgetl.runtime.load("BUNDLE")
    print(classifier.predict("photo.jpg").label)

Every public name is described in docs/runtime.md.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    from edgetl.runtime.classifier import Classifier, Prediction, load
except KeyboardInterrupt:
    # `python -m edgetl.runtime` imports this file (and numpy) before __main__.py can catch anything; meanwhile argv[0]
    # is "-m". Ctrl-C then ends it with 130 as it does later. An app that imports edgetl gets its KeyboardInterrupt.
    if sys.argv[:1] != ["-m"]:
        raise
    exec("")  # see main() in __main__.py
    sys.exit(130)

if TYPE_CHECKING:
    from edgetl.runtime.batching import Batching
    from edgetl.runtime.bundle import Bundle, open_bundle
    from edgetl.runtime.drift import Drift, DriftVerdict
    from edgetl.runtime.heads import Head
    from edgetl.runtime.manifest import Manifest, Variant
    from edgetl.runtime.preprocess import Preprocess
    from edgetl.runtime.slot import Slot
    from edgetl.runtime.task_prediction import HeadsPrediction, LabelsPrediction, ValuesPrediction
    from edgetl.runtime.verifying import Check, VerifyReport, verify

# What few programs need is imported when it is asked for, so that the others start sooner.
_HOMES = {"Batching": "batching", "Bundle": "bundle", "Check": "verifying", "Drift": "drift", "DriftVerdict": "drift",
          "Head": "heads", "HeadsPrediction": "task_prediction", "LabelsPrediction": "task_prediction",
          "Manifest": "manifest", "Preprocess": "preprocess", "Slot": "slot", "ValuesPrediction": "task_prediction",
          "Variant": "manifest", "VerifyReport": "verifying", "open_bundle": "bundle", "verify": "verifying"}

__all__ = ["Batching", "Bundle", "Check", "Classifier", "Drift", "DriftVerdict", "Head", "HeadsPrediction",
           "LabelsPrediction", "Manifest", "Prediction", "Preprocess", "Slot", "ValuesPrediction", "Variant",
           "VerifyReport", "load", "open_bundle", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgetl.runtime' has no attribute '{name}'")
    return getattr(import_module(f"edgetl.runtime.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
