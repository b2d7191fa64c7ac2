"""Classifies the frames of a camera, a video or a folder of images, and writes one line a frame.

    python camera_loop.py BUNDLE photos/                          # every image of a folder, as JSON lines
    python camera_loop.py BUNDLE film.mp4 --every 10 --out film.csv
    python camera_loop.py BUNDLE 0 --out camera.jsonl             # the first webcam, until Ctrl-C or SIGTERM

Videos and cameras need OpenCV (`pip install opencv-python-headless`), folders do not. A camera does not wait: frames
that came while another was classified are dropped, so that each answer is about now (`--no-drop` keeps them all).
An output file that exists is appended to.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from edgetl.errors import EdgetlError, InputError
from edgetl.runtime import Classifier, load

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
COLUMNS = ("frame", "time", "source", "label", "score", "rejected", "error")
Frame = tuple[int, str, Any]  # its number, what it is called, and what Classifier.predict takes
Row = dict[str, Any]


def open_frames(source: str) -> tuple[Iterator[tuple[str, Any]], bool]:
    """Named frames of `source`, and whether it is live: a camera that does not wait."""
    if Path(source).is_dir():
        return _folder(Path(source)), False
    live = source.isdecimal() or source.startswith("/dev/video") or "://" in source
    if not live and not Path(source).exists():
        raise InputError(f"{source} does not exist.", hint="Give a folder of images, a video, or a camera's number.")
    return _video(source, live), live


def _folder(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(one for one in folder.iterdir() if one.suffix.lower() in SUFFIXES):
        yield str(path), path


def _video(source: str, live: bool) -> Iterator[tuple[str, Any]]:
    try:
        import cv2
    except ImportError as problem:
        raise EdgetlError("Reading videos and cameras needs OpenCV, which is not installed.",
                          hint="Install it with: pip install opencv-python-headless") from problem
    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    try:
        if not capture.isOpened():
            raise InputError(f"{source} cannot be opened as a video or camera.")
        while (read := capture.read())[0]:
            yield source, read[1][:, :, ::-1]  # OpenCV gives BGR, the runtime takes RGB
        if live:
            raise InputError(f"The camera {source} gives no more frames.", hint="Check its cable, then start again.")
    finally:
        capture.release()


class Stop:
    """Hears Ctrl-C and SIGTERM (from systemd or docker): the frame in hand is finished, its line written whole."""

    def __init__(self) -> None:
        self._asked = self._waiting = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self._asked = self._asked, True
        if self._waiting or again:
            raise KeyboardInterrupt

    def until(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames until a stop is asked for."""
        rest = iter(frames)
        while True:
            try:
                self._waiting = True
                if self._asked:
                    return
                frame = next(rest)
            except (StopIteration, KeyboardInterrupt):
                return
            finally:
                self._waiting = False
            yield frame


class Latest:
    """Iterates over what is newest: a thread reads on, and items that were not taken in time are dropped.

    Leave its `with` block when no more are wanted.
    """

    def __init__(self, items: Iterable[Frame]) -> None:
        self.dropped = 0
        self._items = items
        self._newest: Frame | None = None
        self._ended = False
        self._problem: Exception | None = None
        self._changed = threading.Condition()
        # A daemon: a camera that hangs in its driver does not keep the program from ending.
        self._thread = threading.Thread(target=self._read, name="camera", daemon=True)
        self._thread.start()

    def __enter__(self) -> Latest:
        return self

    def __exit__(self, *problem: object) -> None:
        with self._changed:
            self._ended = True
        self._thread.join(timeout=5)

    def _read(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    if self._ended:
                        return
                    self.dropped += self._newest is not None
                    self._newest = item
                    self._changed.notify()
        except Exception as problem:  # noqa: BLE001 - told where the items are taken
            self._problem = problem
        with self._changed:
            self._ended = True
            self._changed.notify()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._ended)
                item, self._newest = self._newest, None
            if item is None:
                break
            yield item
        if self._problem is not None:
            raise self._problem


def classify(classifier: Classifier, frames: Iterable[Frame]) -> Iterator[Row]:
    """A row of `COLUMNS` for each frame; one that cannot be used has an error in place of a label."""
    for number, name, frame in frames:
        row: Row = {"frame": number, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "source": name}
        try:
            found = classifier.predict(frame, top=1)
        except InputError as problem:
            yield row | {"error": problem.message}
        else:
            values = dataclasses.asdict(found)
            yield row | {name: values[name] for name in COLUMNS if name in values}


def writer(out: TextIO, kind: str) -> Callable[[Row], None]:
    """What writes one row; each is flushed at once, so that a reader sees it and a power cut loses one at most."""
    table = csv.DictWriter(out, COLUMNS)
    if kind == "csv" and (not out.seekable() or out.tell() == 0):
        table.writeheader()

    def write(row: Row) -> None:
        if kind == "csv":
            table.writerow(row)
        else:
            out.write(json.dumps(row) + "\n")
        out.flush()

    return write


def run(arguments: argparse.Namespace, stop: Stop) -> None:
    """Classifies until the source ends, --limit is reached, or a stop is asked for."""
    named, live = open_frames(arguments.source)
    numbered: Iterable[Frame] = ((number, name, frame) for number, (name, frame) in enumerate(named))
    frames = itertools.islice(numbered, 0, None, arguments.every)
    drop = live if arguments.drop is None else arguments.drop
    kind = "csv" if arguments.format == "csv" or (arguments.out or "").endswith(".csv") else "jsonl"
    done = 0
    with contextlib.ExitStack() as stack:
        classifier = stack.enter_context(load(arguments.bundle, arguments.backend, threads=arguments.threads))
        classifier.warmup()
        out = stack.enter_context(Path(arguments.out).open("a", newline="")) if arguments.out else sys.stdout
        write = writer(out, kind)
        latest = stack.enter_context(Latest(frames)) if drop else None
        taken = stop.until(frames if latest is None else latest)
        for row in classify(classifier, itertools.islice(taken, arguments.limit)):
            write(row)
            done += 1
    print(f"{done} frames classified, {latest.dropped if latest else 0} dropped", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0 also after Ctrl-C or SIGTERM, a camera's usual end; 1 for an expected failure, 130 if forced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("source", metavar="SOURCE", help="folder of images, video file, camera number, device or URL")
    parser.add_argument("--out", metavar="FILE", help="where to write (default: standard output)")
    parser.add_argument("--format", choices=("jsonl", "csv"), help="default: by the name of --out, else jsonl")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th frame (default: 1)")
    parser.add_argument("--limit", type=int, metavar="N", help="stop after N frames")
    parser.add_argument("--drop", action=argparse.BooleanOptionalAction, help="drop old frames (default: for cameras)")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args(argv)
    if arguments.every < 1 or (arguments.limit is not None and arguments.limit < 1):
        parser.error("--every and --limit take whole numbers of at least 1")
    try:
        run(arguments, Stop())
    except EdgetlError as problem:
        print(f"error: {problem.message}" + (f"\nhint: {problem.hint}" if problem.hint else ""), file=sys.stderr)
        return problem.exit_code
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:  # asked for twice
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
