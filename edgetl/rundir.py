"""Names of the files a stage writes, writing them whole or not at all, and the record of the environment."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from edgetl.errors import DiskFull, EdgetlError, OutputError

RUN = "run.json"
MODEL = "model.safetensors"
RECIPE = "recipe.toml"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"  # the one before
SPLIT = "split.json"
REPORT = "report.json"
GATE = "gate.json"
COMPARISON = "comparison.json"
STRATEGIES = "strategies.json"
LEDGER = "stages.json"
MARKS = (RUN, "manifest.json", REPORT, GATE, COMPARISON, STRATEGIES, LEDGER)  # what edgetl writes has one of them
UNFINISHED = ".tmp"  # ending of files that are being written; a killed process leaves them

ELSEWHERE = "Choose a folder you may write to with --out."
NO_PLACE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk is full, a quota is used up, a file may not grow

PACKAGES = (
    "edgetl",
    "numpy",
    "torch",
    "torchvision",
    "timm",
    "torch-pruning",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "pillow",
    "safetensors",
)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; refuses NaN, which is not JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: temporary name, fsync, `os.replace`.

    Raises:
        OutputError: the disk is full or the folder is not writable.
    """
    with explained(path), replacing(path) as temporary:
        temporary.write_bytes(data)


def append_line(path: Path, line: str) -> None:
    """Adds one line to a text file and flushes it to the disk."""
    with explained(path), path.open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well and vanishes when it does not."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


@contextlib.contextmanager
def explained(path: Path, *, elsewhere: str = ELSEWHERE) -> Iterator[None]:
    """Turns what the operating system says about writing `path` into one sentence.

    Args:
        path: what is being written.
        elsewhere: how the person names another place.
    """
    try:
        with room_for(path):
            yield
    except DiskFull as problem:
        if elsewhere != ELSEWHERE:  # of --out the person knows
            raise DiskFull(f"{problem.message} {elsewhere}", hint=problem.hint) from problem
        raise
    except OSError as problem:
        if problem.errno in NO_PLACE:
            raise OutputError(f"{path} cannot be written: {problem.strerror}.", hint=elsewhere) from problem
        raise


@contextlib.contextmanager
def room_for(what: Path | str) -> Iterator[None]:
    """Turns a full disk into one sentence.

    Raises:
        DiskFull: the system has no room for `what`.
    """
    try:
        yield
    except OSError as problem:
        # Where all disks are full, Python finds no place for a temporary file and says it so.
        if problem.errno not in NO_ROOM and "No usable temporary directory" not in (problem.strerror or ""):
            raise
        raise DiskFull(
            f"{what} could not be written: {problem.strerror}.",
            hint="Make room, then run the same command again.",
        ) from problem


def partial(out: Path) -> Path:
    """Where a folder is built before it is renamed to `out`; the name is fixed so that --resume finds it."""
    return out.parent / f".{out.name}.partial"


@contextlib.contextmanager
def building(out: Path, *, resume: bool = False, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into, renamed to `out` when the block ends well; what can be resumed is kept when it does not.

    Raises:
        OutputError: `out` exists, or an interrupted run lies beside it, and neither flag was given.
    """
    claim(out, resume=resume, overwrite=overwrite)
    folder = partial(out)
    with explained(out):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, out):
        for leftover in folder.rglob(f".*{UNFINISHED}"):
            leftover.unlink()
        yield from _filled(folder)
        with explained(out):
            # The old folder goes only now, when its successor is whole.
            if out.exists():
                shutil.rmtree(_replaced(out), ignore_errors=True)
                out.rename(_replaced(out))
            folder.rename(out)
            shutil.rmtree(_replaced(out), ignore_errors=True)


def _filled(folder: Path) -> Iterator[Path]:
    """Hands the folder out, and keeps what can be resumed when that fails."""
    try:
        with room_for(folder):
            yield folder
    except BaseException as problem:
        if not (resumable(folder) or reported(folder)):  # a wrong word in the options leaves nothing behind
            shutil.rmtree(folder, ignore_errors=True)
        elif isinstance(problem, DiskFull):
            raise DiskFull(
                f"{problem.message} The last checkpoint is kept in {folder}.",
                hint="Make room, then run the same command again with --resume.",
            ) from problem
        raise


@contextlib.contextmanager
def locked(folder: Path, out: Path) -> Iterator[None]:
    """Keeps a second process from writing the same folder; the lock ends with the process, however that ends.

    Raises:
        OutputError: another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as problem:
        os.close(handle)
        raise OutputError(
            f"Another process is writing {out}.", hint="Wait for it, or choose another --out."
        ) from problem
    try:
        yield
    finally:
        os.close(handle)


def _replaced(out: Path) -> Path:
    """Where the old folder waits while its successor takes its place."""
    return out.parent / f".{out.name}.replaced"


def claim(out: Path, *, resume: bool | None, overwrite: bool, whole: bool = True) -> None:
    """Checks that `out` may be built, and clears an interrupted run when it is to be overwritten.

    Args:
        out: the folder.
        resume: whether --resume was given; None where the command has no such flag.
        overwrite: whether --overwrite was given.
        whole: whether the folder is built beside its place and renamed, and not filled where it is.

    Raises:
        OutputError: see `building`; also when both flags were given, no folder can be made there, or one lies there
            that edgetl has not written.
    """
    if resume and overwrite:
        raise OutputError("--resume and --overwrite contradict each other.", hint="Give one of them.")
    require_place(out, whole=whole)
    if _replaced(out).exists() and not out.exists():  # killed between two renames: the old folder is whole
        _replaced(out).rename(out)
    require_ours(out)
    if out.exists() and not (resume or overwrite):
        raise OutputError(
            f"{out} exists already.",
            hint="Choose another --out, or give --overwrite to replace it"
            + ("." if resume is None else ", or --resume to continue."),
        )
    if partial(out).exists():
        with locked(partial(out), out):
            pass
        if overwrite or not (resumable(partial(out)) or reported(partial(out))):
            with explained(out):
                shutil.rmtree(partial(out))
        elif resume is None:
            raise OutputError(
                f"An interrupted benchmark of {out} was found; what it measured is kept in {partial(out)}.",
                hint="Move that folder away to keep it, or give --overwrite to start again.",
            )
        elif not resume:
            raise OutputError(
                f"An interrupted run of {out} was found.",
                hint="Give --resume to continue it or --overwrite to start again.",
            )


def require_place(out: Path, *, whole: bool = True) -> None:
    """Returns when a folder can be made at `out`: it would be a pity to find out after the work that it cannot.

    Args:
        out: the folder.
        whole: see `claim`.

    Raises:
        OutputError: it cannot; says why.
    """
    if out.name in ("", "..") or "\0" in str(out):
        raise OutputError(
            f"--out is {str(out)!r}, expected a folder with a name of its own.", hint="Name one, e.g. --out runs/first."
        )
    with explained(out):  # the operating system may not even look at such a name
        begun = partial(out) if whole or not out.is_dir() else out
        place = begun if begun.exists() else next(one for one in begun.absolute().parents if one.exists())
        _require_no_mount(out, whole)
    if not place.is_dir():
        raise OutputError(f"{out} cannot be made: {place} is a file.", hint="Choose another --out.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(
            f"{out} cannot be written: {place} is read-only.", hint="Choose a folder you may write to with --out."
        )
    _require_short_names(out, os.pathconf(place, "PC_NAME_MAX"))
    with explained(out):  # permissions do not tell all: there are quotas, and places where the system makes the files
        Path(tempfile.mkdtemp(prefix=".edgetl.", dir=place)).rmdir()


def _require_no_mount(out: Path, whole: bool) -> None:
    if whole and out.is_dir() and os.path.ismount(out):
        raise OutputError(
            f"{out} is where a disk is mounted, which cannot be replaced.", hint=f"Use a folder in it: --out {out}/run"
        )


def _require_short_names(out: Path, longest: int) -> None:
    long = next((part for part in (*out.parts, _replaced(out).name) if len(os.fsencode(part)) > longest), None)
    if long is not None:
        raise OutputError(
            f"{out} cannot be written: File name too long, '{long[:20]}...' has more than {longest} bytes.",
            hint="Choose a shorter --out.",
        )


def require_ours(folder: Path) -> None:
    """Returns when a folder may be replaced: edgetl wrote it, it is empty, or there is none.

    Raises:
        OutputError: it is a file, or somebody else's files lie there; names one.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; --out names a folder.", hint="Choose another --out.")
    if not folder.is_dir() or any((folder / mark).is_file() for mark in MARKS):
        return
    foreign = min((path.name for path in folder.iterdir()), default=None)
    if foreign is not None:
        raise OutputError(
            f"{folder} exists already and is nothing that edgetl wrote: it holds '{foreign}'.",
            hint="Choose another --out; what edgetl did not write, it does not replace.",
        )


def resumable(folder: Path) -> bool:
    """Whether an interrupted folder holds work that --resume can go on with."""
    return any(any(folder.rglob(name)) for name in (CHECKPOINT, PREVIOUS, RUN))


def reported(folder: Path) -> bool:
    """Whether an interrupted folder holds what a benchmark had measured."""
    return (folder / REPORT).is_file()


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def read_json(path: Path, error: type[EdgetlError]) -> Any:
    """The value in a JSON file; what is wrong with the file is said by `error`."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as problem:
        raise error(f"{path} does not exist.") from problem
    except (ValueError, OSError) as problem:
        raise error(f"{path} cannot be read as JSON: {problem}") from problem


def environment() -> dict[str, Any]:
    """Machine and versions, as plain JSON values; a package that is absent is left out."""
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result, without importing any of them."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def cpu_model() -> str:
    """The processor's own name where the system tells it."""
    from edgetl.runtime import processor  # here, because it brings numpy, and `edgetl --help` comes by

    return processor.read().model
