"""From a RUN to a bundle: the graph, the proof that it answers as the model did, and what it says of itself.

Called, it is the verb of that name: `edgetl.export(run=student, out="bundle")`; its fields are shown by
`help(edgetl.pipeline.export)`.
"""

import sys

from edgetl.verbs import CallableRoom

# `edgetl.export(...)` is the verb of the Python API, and this package has its name.
sys.modules[__name__].__class__ = CallableRoom
