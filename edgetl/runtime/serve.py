"""A worker for programs in any language: one JSON request a line comes in, one JSON answer a line goes out, in order.

    {"id": 7, "path": "photo.jpg"}           -> {"id": 7, "label": "cat", "index": 0, "score": 0.98, "top": [...],
                                                 "rejected": false}
    {"id": "a", "image": "/9j/...", "top": 3}   the same for the bytes of an image file in base64
    of labels, values or several heads       -> {"id": 7, "labels": ["sea"], "scores": [["sea", 0.97], ...]},
                                                 {"id": 7, "values": {"height_mm": 61.5}} or
                                                 {"id": 7, "heads": {"shape": {"label": "round", ...}}}
    anything else                            -> {"id": null, "line": 3, "error": "one sentence", "hint": "what to do"}
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import select
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from edgetl.errors import EdgetlError, InputError
from edgetl.runtime.classifier import Classifier

MAX_LINE_BYTES = 64 * 2**20  # a photo of 48 MB in base64
CHUNK_BYTES = 2**16
EXAMPLE = 'A request looks like {"id": 1, "path": "photo.jpg"} or {"id": 1, "image": "<base64>"}.'


class Stop:
    """Hears SIGTERM while its `with` block lasts (main thread only); waiting for input then ends at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Stop:
        self._heard, self._alarm = os.pipe()
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None,
                 trace: TracebackType | None) -> None:
        signal.signal(signal.SIGTERM, self._before)
        os.close(self._heard)
        os.close(self._alarm)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = True
            os.write(self._alarm, b".")

    def wait(self, source: int) -> bool:
        """True as soon as the file descriptor `source` can be read, False when a stop was asked for first."""
        ready, _, _ = select.select([source, self._heard], [], [])
        return self._heard not in ready


def answers(classifier: Classifier, source: int, stop: Stop, *, top: int = 5,
            max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[dict[str, Any]]:
    """One answer for each line of the file descriptor `source`, until it ends or a stop is asked for.

    Args:
        classifier: what answers.
        source: file descriptor of the requests.
        stop: ends the iteration after the request in hand.
        top: labels in an answer where the request has no "top" of its own.
        max_line_bytes: a longer line is answered with an error and not kept.
    """
    for number, line in enumerate(_lines(source, stop, max_line_bytes), 1):
        yield _answer(classifier, line, number, top, max_line_bytes)


def _lines(source: int, stop: Stop, max_line_bytes: int) -> Iterator[bytes | None]:
    """Lines without their line ends; None stands for one that was too long and was thrown away."""
    held, searched, too_long = bytearray(), 0, False
    while not stop.asked:
        end = held.find(b"\n", searched)
        if end >= 0:
            yield None if too_long or end > max_line_bytes else bytes(held[:end])
            del held[:end + 1]
            searched, too_long = 0, False
            continue
        if len(held) > max_line_bytes:
            held.clear()
            too_long = True
        searched = len(held)
        if not stop.wait(source):
            return
        piece = os.read(source, CHUNK_BYTES)
        if not piece:
            break
        held += piece
    if not stop.asked and (held or too_long):  # the last line may lack its line end
        yield None if too_long else bytes(held)


def _answer(classifier: Classifier, line: bytes | None, number: int, top: int, limit: int) -> dict[str, Any]:
    identity: str | int | None = None
    try:
        if line is None:
            raise InputError(f"The line is longer than the limit of {limit} bytes.",
                             hint="Send the path of a large image instead, or raise --max-line-bytes.")
        request = _request(line)
        identity = _identity(request)
        found = classifier.predict(_source(request), top=_top(request, top))
    except EdgetlError as problem:
        return {"id": identity, "line": number, "error": problem.message, "hint": problem.hint}
    except MemoryError:
        return {"id": identity, "line": number, "error": "There was not enough memory for this image.",
                "hint": "Shrink the image first."}
    return {"id": identity, **dataclasses.asdict(found)}


def _request(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise InputError(f"The line is not JSON: {problem}.", hint=EXAMPLE) from problem
    if not isinstance(request, dict):
        raise InputError(f"The line is {_kind(request)}; expected an object.", hint=EXAMPLE)
    return request


def _identity(request: dict[str, Any]) -> str | int | None:
    """What the answer repeats; numbers with a fraction are refused, since not every language gives them back alike."""
    found = request.get("id")
    if found is None or (isinstance(found, str | int) and not isinstance(found, bool)):
        return found
    raise InputError(f"'id' is {_kind(found)}; expected a text or a whole number.", hint=EXAMPLE)


def _source(request: dict[str, Any]) -> str | bytes:
    given = [name for name in ("path", "image") if name in request]
    if len(given) != 1:
        found = "both 'path' and" if given else "neither 'path' nor"
        raise InputError(f"The request has {found} 'image'; expected one of them.", hint=EXAMPLE)
    found = request[given[0]]
    if not isinstance(found, str):
        raise InputError(f"'{given[0]}' is {_kind(found)}; expected a text.", hint=EXAMPLE)
    if given == ["path"]:
        return _regular(found)
    try:
        return base64.b64decode(found, validate=True)
    except ValueError as problem:
        raise InputError(f"'image' is not base64: {problem}.", hint="Send the bytes of an image file in the standard "
                         "alphabet, padded, without line ends or 'data:' before them.") from problem


def _regular(path: str) -> str:
    """The path, unless it is one at which a worker would read for ever: a pipe, a terminal, /dev/zero."""
    try:
        kind = Path(path).stat().st_mode
    except (OSError, ValueError):
        return path  # predict() says what is wrong with it
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise InputError(f"{path} is no regular file; expected the path of an image file.",
                         hint="Send its bytes as 'image' instead.")
    return path


def _top(request: dict[str, Any], default: int) -> int:
    found = request.get("top", default)
    if isinstance(found, int) and not isinstance(found, bool) and found >= 1:
        return found
    raise InputError(f"'top' is {json.dumps(found)[:40]}; expected a whole number of at least 1.", hint=EXAMPLE)


def _kind(found: Any) -> str:
    """What JSON calls the type of a value."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list",
             dict: "an object"}
    return kinds.get(type(found), "null")
