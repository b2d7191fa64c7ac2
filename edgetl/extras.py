"""Says what to install before work begins that would fail for want of a package."""

from __future__ import annotations

import importlib.util

from edgetl.errors import MissingDependency


def require(package: str, *, extra: str, purpose: str) -> None:
    """Returns when `package` (its import name) is installed; nothing is imported.

    Raises:
        MissingDependency: it is not; names what to install.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingDependency(package, extra=extra, purpose=purpose)
