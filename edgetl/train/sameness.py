"""Whether a training that shall go on is the very same that was begun, perhaps by an older version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetl import recipe
from edgetl.errors import TrainingError


def require_same(then: Mapping[str, Any], now: Mapping[str, Any], what: str, options: type[Any]) -> None:
    """Returns when two trainings have the same options and inputs.

    Args:
        then: the identity of the one that was begun; fields that its version did not have yet count as `recipe.unsaid`.
        now: of the one that shall go on.
        what: the one that was begun, in words.
        options: the dataclass of their options.

    Raises:
        TrainingError: they have not; lists what differs.
    """
    begun = {**recipe.unsaid(options), **then}
    gone = [name for name in then if name not in now and name.endswith("sha256")]  # a file that is not named any more
    changed = [f"{name} was {begun.get(name)!r} and is {now.get(name)!r}" for name in (*now, *gone)
               if begun.get(name) != now.get(name)]  # fmt: skip
    if changed:
        raise TrainingError(
            f"{what} had other options: {'; '.join(changed)}.",
            hint="--resume goes on with the very same training only: give the same options, or --overwrite (or another "
            "--out) to start again with other ones.",
        )
