"""Lets `edgetl.export` and `edgetl.bench` be both: the packages of those names, and the verbs of the Python API.

Python binds a sub-package to its parent's attribute as soon as anyone imports it, so a function of the same name would
vanish at that moment; a package that can be called does not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any


class CallableRoom(ModuleType):
    """A package whose call is the function of its name in `edgetl.pipeline`."""

    def __call__(self, **fields: Any) -> Any:
        """What the stage returns; see the function of that name in `edgetl.pipeline`."""
        return self._verb()(**fields)

    @property
    def __signature__(self) -> inspect.Signature:
        """The verb's own, so that editors and `inspect.signature` show the recipe's fields."""
        return inspect.signature(self._verb())

    def _verb(self) -> Callable[..., Any]:
        from edgetl import pipeline

        found: Callable[..., Any] = getattr(pipeline, self.__name__.rpartition(".")[2])
        return found
