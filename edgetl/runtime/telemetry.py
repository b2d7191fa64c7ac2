"""Keeps ONNX Runtime from reporting to its maker.

Since 1.29 the official builds for Linux, macOS and Windows send events over HTTPS and keep an identifier of the device
below ~/.cache/Microsoft, unless ORT_DISABLE_TELEMETRY=1 stands in the environment when onnxruntime is first imported
(Privacy.md in its wheel). A device that shall be silent, offline or read-only wants neither.
"""

from __future__ import annotations

import os
import sys

VARIABLE = "ORT_DISABLE_TELEMETRY"


def off() -> None:
    """Call it before every import of onnxruntime. Where $ORT_DISABLE_TELEMETRY is set, to whatever, it is left so.

    An app that imported onnxruntime first has its process-wide events stopped; what was sent before is sent.
    """
    if VARIABLE in os.environ:
        return
    os.environ[VARIABLE] = "1"
    imported = sys.modules.get("onnxruntime")
    if imported is not None:
        imported.disable_telemetry_events()
