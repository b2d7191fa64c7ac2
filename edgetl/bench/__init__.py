"""Measures cases (bundles, ONNX files, runs) beside one another and writes one report."""

import sys

from edgetl.verbs import CallableRoom

# `edgetl.bench(...)` is the verb of the Python API, and this package has its name.
sys.modules[__name__].__class__ = CallableRoom
