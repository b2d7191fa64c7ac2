"""Lets `edgetl.export` and `edgetl.bench` be both: the packages of those names, and the verbs of the Python API.

Python binds a sub-package to its parent's attribute as soon as anyone imports it, so a function of the same name would
vanish at that moment; a package that can be called does not.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any


class CallableRoom(ModuleType):
    """A package whose call is the function of its name in `edgetl.pipeline`."""

    def __call__(self, **fields: Any) -> Any:
        """What the stage returns; see the function of that name in `edgetl.pipeline`."""
        from edgetl import pipeline

        return getattr(pipeline, self.__name__.rpartition(".")[2])(**fields)
