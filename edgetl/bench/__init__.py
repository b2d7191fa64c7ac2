"""Measures cases (bundles, ONNX files, runs) beside one another and writes one report.

Called, it is the verb of that name: `edgetl.bench(cases=[bundle], out="report")`; its fields are shown by
`help(edgetl.pipeline.bench)`.
"""

import sys

from edgetl.verbs import CallableRoom

# `edgetl.bench(...)` is the verb of the Python API, and this package has its name.
sys.modules[__name__].__class__ = CallableRoom
