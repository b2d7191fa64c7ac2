"""What a graph that has lost its bundle still says: `metadata_props`, read by ONNX Runtime's `get_modelmeta()`.

The values of the keys `edgetl.*` are JSON. Beside them stand the keys that Ultralytics' exporter writes and that
viewers and other runtimes read to name the classes; their values are Python literals there, so they are here. They
do not say how pixels are normalised: only `edgetl.preprocess` does. ONNX's own keys (`Image.NominalPixelRange` and its
kin, onnx/docs/MetadataProps.md) know three ranges of pixels and no mean or std, so they could not be right.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from edgetl.runtime import heads as questions
from edgetl.runtime import preprocess as preprocessing
from edgetl.runtime.heads import Head
from edgetl.runtime.preprocess import Preprocess

SCHEMA = 1


def metadata_of(preprocess: Preprocess, labels: Sequence[str], *, heads: Sequence[Head] = (),
                embeds_preprocess: bool = False) -> dict[str, str]:
    """Labels and preprocessing as metadata of a graph.

    Args:
        preprocess: from an image to the graph's input.
        labels: in the order of the outputs.
        heads: what they say; none: one class an image. With heads there are no keys of other tools, which would take
            the outputs for classes.
        embeds_preprocess: whether the graph normalises and transposes by itself, so that it takes resized pixels,
            uint8 [N, H, W, C].
    """
    ours = {"schema": SCHEMA, "task": "classify", "labels": list(labels),
            "preprocess": preprocessing.to_dict(preprocess), "embeds_preprocess": embeds_preprocess}
    if heads:
        ours |= {"task": heads[0].kind, "heads": questions.to_json(heads)}
        return {f"edgetl.{key}": json.dumps(value) for key, value in ours.items()}
    widely_read = {"names": dict(enumerate(labels)), "task": "classify", "imgsz": list(preprocess.size_hw),
                   "channels": len(preprocess.mean), "stride": 1, "batch": 1}
    return {**{f"edgetl.{key}": json.dumps(value) for key, value in ours.items()},
            **{key: str(value) for key, value in widely_read.items()}}
