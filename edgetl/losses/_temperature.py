"""The option temperature of losses that soften a teacher's answers: a number, or `auto`."""

from __future__ import annotations

from edgetl.errors import EdgetlError

AUTO = "auto"  # fitted to how sure the teacher is before the training, see `edgetl.train.softness`


def read(loss: str, value: float | str) -> float | None:
    """A temperature as an option says it; None for `auto`.

    Raises:
        EdgetlError: it is neither `auto` nor a number above 0.
    """
    if value == AUTO:
        return None
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise EdgetlError(f"The loss '{loss}' has temperature={value}, expected auto or a number above 0.")
    return number
