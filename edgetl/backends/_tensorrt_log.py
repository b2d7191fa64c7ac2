"""What TensorRT says, collected instead of printed.

TensorRT takes one logger a process for builder, runtime and refitter, and complains of a second one, so there is one
here for each module. It may be called from TensorRT's own threads.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

KEPT = 500  # messages of one piece of work; of endless ones the last
SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING")  # what is collected, the gravest first
TOLD = "(Sparsity)"  # what informs of the kernels that sparse weights got begins so; it is collected, too
# `IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] Cannot ... In f at /_src/g.cpp:20)`
WRAPPING = re.compile(r"^(?:\d+: )?(?:\[?[\w:.]+\]?:? )?Error Code \d+: [\w ]+ \(", re.ASCII)
PLACES = re.compile(r"\s*\bIn [\w:~]+ at \S+:\d+\)?|\[\w+\.cpp:\d+: \w+\] |\[\d+\] (?=Assertion)")
NO_DRIVER = re.compile(r"cudaError 35|CUDA driver version is insufficient|cudaErrorInsufficientDriver|"
                       r"CUDA initialization failure with error: (?:35|100|999)|no CUDA-capable device", re.IGNORECASE)

_LOGGERS: dict[str, Any] = {}
_LOCK = threading.Lock()


class Message(NamedTuple):
    """One thing that TensorRT said."""

    severity: str
    text: str


def logger(module: Any) -> Any:
    """The logger of a TensorRT module, which lives as long as the process; see `collected`."""
    with _LOCK:
        if module.__name__ not in _LOGGERS:
            _LOGGERS[module.__name__] = _made(module)
        return _LOGGERS[module.__name__]


@contextlib.contextmanager
def collected(module: Any) -> Iterator[deque[Message]]:
    """What the module says while the block runs: warnings, errors and what begins with `TOLD`, from all threads."""
    ears = logger(module).ears
    heard: deque[Message] = deque(maxlen=KEPT)
    with _LOCK:
        ears.append(heard)
    try:
        yield heard
    finally:
        with _LOCK:  # several threads listen at once
            # By identity: two deques with the same messages are equal.
            ears[:] = [one for one in ears if one is not heard]


def _made(module: Any) -> Any:
    class Collecting(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)  # pybind11 asks for it by name
            self.ears: list[deque[Message]] = []

        def log(self, severity: Any, text: str) -> None:
            if severity.name in SEVERITIES or text.startswith(TOLD):
                for ear in tuple(self.ears):
                    ear.append(Message(severity.name, text))

    return Collecting()


def errors(heard: deque[Message]) -> list[str]:
    """The errors among messages as plain clauses, in their order, without those that only say there is no driver."""
    found = [plain(one.text) for one in heard if one.severity in SEVERITIES[:2]]
    return [text for text in dict.fromkeys(found) if text and not NO_DRIVER.search(text)]


def lacks_driver(heard: deque[Message]) -> bool:
    """Whether TensorRT complained that there is no NVIDIA driver, or one that is too old."""
    return any(NO_DRIVER.search(one.text) for one in heard)


def plain(text: str) -> str:
    """What a message says, without where in TensorRT's sources it was said, and without the want of a driver."""
    lines = [_without_wrapping(line.strip()) for line in text.splitlines() if not NO_DRIVER.search(line)]
    return " ".join(" ".join(lines).split()).rstrip(". ")[:400]


def _without_wrapping(line: str) -> str:
    line = PLACES.sub("", WRAPPING.sub("", line)).strip()
    return line[:-1] if line.endswith(")") and line.count(")") > line.count("(") else line
