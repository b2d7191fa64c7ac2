"""What a library opened, held until it is closed; in a forked child it is left alone.

The threads of ONNX Runtime, OpenVINO and PyTorch do not exist in a child that `os.fork` made, and destroying in the
child what waits for them hangs or ends the process. So a forked child gets a sentence instead of an engine, and what it
inherited is never destroyed there.
"""

from __future__ import annotations

import os
import weakref
from typing import Any

from edgetl.errors import BackendUnavailable

FORK_HINT = ("Call edgetl.runtime.load() in the child, before or instead of the parent's; "
             "or start processes by 'spawn' or 'forkserver'.")


class Handle:
    """One native object. Users read `native` once a call, so that a thread inside keeps it while another closes."""

    __slots__ = ("__weakref__", "_backend", "_opened_in", "native")

    def __init__(self, backend: str, native: Any) -> None:
        self.native: Any = native  # None once it is closed or this is a forked child
        self._backend = backend
        self._opened_in = os.getpid()
        _watch(self)

    def close(self) -> None:
        """Lets go of the native object; a second call does nothing."""
        self.native = None

    def error(self) -> BackendUnavailable:
        """Why `native` is None."""
        here = os.getpid()
        if here != self._opened_in:
            return BackendUnavailable(
                f"The session of the backend '{self._backend}' was opened in process {self._opened_in}; process "
                f"{here} is a fork of it, in which the session's threads do not exist.", hint=FORK_HINT)
        return BackendUnavailable(f"The session of the backend '{self._backend}' is closed.", hint="Open it again.")

    def abandon(self) -> None:
        """In a forked child: the native object is neither used nor ever destroyed."""
        import ctypes

        if self.native is not None:
            # One reference too many, for good: not even the end of the interpreter destroys the object.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.native))
            self.native = None


_handles: weakref.WeakSet[Handle] | None = None  # all of this process


def _watch(handle: Handle) -> None:
    global _handles
    if _handles is None:
        _handles = weakref.WeakSet()
        if hasattr(os, "register_at_fork"):  # not where processes cannot fork
            os.register_at_fork(after_in_child=_abandon_all)
    _handles.add(handle)


def _abandon_all() -> None:
    for handle in list(_handles or ()):
        handle.abandon()
