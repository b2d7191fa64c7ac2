"""What `edgetl tune` measured on this machine: one small JSON file a bundle and machine, in the user's cache.

It is only ever a help: a file that is damaged, of another machine or older than a backend is passed by, and
`Classifier.info()` says why.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgetl.errors import BundleError, EdgetlError
from edgetl.runtime import processor, strict_json
from edgetl.runtime.fields import Table
from edgetl.runtime.session import usable_threads
from edgetl.runtime.storage import open_regular, read_at_most

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = 1
FOLDER = "tuned"
MOST_BYTES = 1 << 20
MOST_THREADS = 4096
NEVER = "`edgetl tune` has not measured it on this machine"


@dataclass(frozen=True)
class Machine:
    """What a measurement holds for. Versions of the backends stand beside it, see `Entry`."""

    architecture: str
    model: str
    features: tuple[str, ...]  # names of `processor.FEATURES`
    usable_threads: int  # a container with another share of the same processor is another machine

    def digest(self) -> str:
        """SHA-256 in hexadecimal digits."""
        return hashlib.sha256(repr(dataclasses.astuple(self)).encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What to run when that variant and backend are asked for, each a name or "auto"."""

    asked_variant: str
    asked_backend: str
    variant: str
    backend: str
    threads: int
    why: str


@dataclass(frozen=True)
class Entry:
    """One tuning of one bundle on one machine."""

    manifest_sha256: str
    bundle: str  # the name in its manifest
    machine: Machine
    versions: Mapping[str, str]  # by backend, of those that were measured
    tuned_at: str  # UTC, ISO 8601
    answers: tuple[Answer, ...]

    def answer(self, variant: str, backend: str) -> Answer | None:
        """What was measured as best for what is asked; None where it was not among what was measured."""
        asked = (variant, backend)
        return next((one for one in self.answers if (one.asked_variant, one.asked_backend) == asked), None)


@dataclass(frozen=True)
class Found:
    """The entry of this bundle and machine, or why there is none to go by."""

    entry: Entry | None
    note: str = ""


def cache_root() -> Path:
    """Where edgetl keeps what can be made again: $EDGETL_CACHE, else $XDG_CACHE_HOME/edgetl, else ~/.cache/edgetl.

    Raises:
        EdgetlError: none of them is set and this user has no home.
    """
    from pathlib import Path  # here: it takes as long to import as half of the runtime

    return Path(_root())


def _root() -> str:
    if os.environ.get("EDGETL_CACHE"):
        return os.environ["EDGETL_CACHE"]
    base = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"))
    if base.startswith("~"):
        raise EdgetlError("This user has no home folder, so there is no place for a cache.",
                          hint="Name one: EDGETL_CACHE=FOLDER")
    return os.path.join(base, "edgetl")


def machine() -> Machine:
    """This machine, as this process may use it."""
    here = processor.read()
    return Machine(here.architecture, here.model, processor.features(), usable_threads())


def path_of(manifest_sha256: str, where: Machine) -> Path:
    """The file of a bundle on a machine."""
    return cache_root() / FOLDER / f"{manifest_sha256[:16]}-{where.digest()[:16]}.json"


def find(manifest_sha256: str) -> Found:
    """What is known of this bundle on this machine; raises nothing."""
    try:
        # First the look for any file: to describe this machine takes longer than all the rest of a load.
        if not any(name.startswith(f"{manifest_sha256[:16]}-") for name in _listed(os.path.join(_root(), FOLDER))):
            return Found(None, NEVER)
        here = machine()
        path = path_of(manifest_sha256, here)
        if not os.path.lexists(path):
            return Found(None, f"{NEVER}, only on another one, or on this one with other processor features or another "
                               "number of usable threads")
        entry = read(path)
    except EdgetlError as problem:
        return Found(None, f"what `edgetl tune` measured is passed by: {problem.message.rstrip('.')}")
    if entry.machine != here or entry.manifest_sha256 != manifest_sha256:
        return Found(None, f"what `edgetl tune` measured is passed by: {path} is of another bundle or machine")
    return Found(entry)


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):  # most machines have tuned nothing
        return []
    except OSError as problem:
        raise EdgetlError(f"{folder} cannot be listed: {problem.strerror}.") from problem


def read(path: Path) -> Entry:
    """The entry in a file.

    Raises:
        BundleError: it cannot be read, or is not what `edgetl tune` writes; says which field.
    """
    with open_regular(path, str(path)) as (opened, size):
        data = read_at_most(opened, MOST_BYTES + 1, min(size, MOST_BYTES + 1), str(path))
    if len(data) > MOST_BYTES:
        raise BundleError(f"{path} has more than {MOST_BYTES} bytes; `edgetl tune` writes a few thousand.")
    try:
        values = strict_json.parse(data.decode())
    except ValueError as problem:
        raise BundleError(f"{path} is not JSON: {problem}.") from problem
    table = Table(values, str(path))
    if table.whole("schema") != SCHEMA:
        raise BundleError(f"{path} has schema {table.whole('schema')}; this edgetl reads {SCHEMA}.")
    return Entry(table.text("manifest_sha256"), table.text("bundle"), _machine(table), _versions(table),
                 table.text("tuned_at"), tuple(_answers(table)))


def _machine(table: Table) -> Machine:
    values = Table(table.table("machine"), f"{table.where}: machine")
    return Machine(values.text("architecture"), values.text("model"), values.texts("features"),
                   values.whole("usable_threads", low=1))


def _versions(table: Table) -> Mapping[str, str]:
    values = table.table("versions")
    versions = Table(values, f"{table.where}: versions")
    return {name: versions.text(name) for name in values}


def _answers(table: Table) -> Iterator[Answer]:
    for index, values in enumerate(table.tables("answers")):
        one = Table(values, f"{table.where}: answers[{index}]")
        yield Answer(one.text("asked_variant"), one.text("asked_backend"), one.text("variant"), one.text("backend"),
                     one.whole("threads", low=1, high=MOST_THREADS), one.text("why"))


def to_json(entry: Entry, details: Mapping[str, Any]) -> dict[str, Any]:
    """Plain JSON values of an entry; `details` is for people and is not read again."""
    return {"schema": SCHEMA, **dataclasses.asdict(entry), **details}


def files() -> tuple[Path, ...]:
    """Every file in the cache, of whichever bundle and machine.

    Raises:
        EdgetlError: there is no place for a cache.
    """
    return tuple(sorted((cache_root() / FOLDER).glob("*-*.json")))
