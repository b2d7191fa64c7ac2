"""What stands beside a plan: a json file that says what the engine was built from, by what and for what.

A plan is believed only where that file says the same of it as is asked for here and now, field by field, and where size
and SHA-256 of the plan are those of the file. Everything else has a reason in words and means: build it again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl import __version__
from edgetl.errors import BundleError
from edgetl.runtime import durable, strict_json
from edgetl.runtime.fields import Table, words
from edgetl.runtime.session import GraphSpec
from edgetl.runtime.storage import open_regular, read_at_most, require_memory

if TYPE_CHECKING:
    from edgetl.backends._tensorrt_build import Engine, How
    from edgetl.backends._tensorrt_flavor import Flavor

SCHEMA = 1
SUFFIX = ".json"  # of the sidecar, behind the plan's name
MOST_BYTES = 1 << 20  # of a sidecar; it takes a few thousand
PROOFS = 16  # that are kept, the latest: one a bundle that holds the graph
FIELDS = {"flavor": "flavor", "version": "version", "compute_capabilities": "compute capability", "driver": "driver",
          "device": "card", "system": "system", "graph_sha256": "graph", "inputs": "inputs",
          "flags": "flags"}
# Hardware compatibilities (docs.nvidia.com/deeplearning/tensorrt): every card from Ampere on, or of one capability.
AMPERE_PLUS, SAME_CAPABILITY = "ampere-plus", "same-compute-capability"
VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})*")
HINT = "It is built again from the graph."  # of errors that never leave this module as such

Fingerprint = Mapping[str, Any]


def this_system() -> str:
    """Operating system and architecture: `Linux-x86_64`."""
    return f"{platform.system()}-{platform.machine()}"


@dataclass(frozen=True)
class Place:
    """What an engine is for: the card that is here, or cards that are named ahead of time."""

    compute_capabilities: tuple[str, ...]  # "8.9"; of the card that is here exactly one
    driver: str | None = None  # None where the engine was built without one: for any
    device: str | None = None  # name of the card that kernels were timed on; None where there was none
    system: str = field(default_factory=this_system)

    @classmethod
    def ahead(cls, compute_capabilities: Collection[str]) -> Place:
        """Cards that are not here."""
        return cls(tuple(sorted(compute_capabilities, key=numbers)))


def numbers(text: str) -> tuple[int, ...]:
    """(8, 9) of "8.9", so that compute capabilities and versions can be compared."""
    return tuple(int(part) for part in text.split("."))


def fingerprint(graph: bytes, spec: GraphSpec, flavor: Flavor, how: How, place: Place) -> dict[str, Any]:
    """Everything that an engine depends on, as plain JSON values: where one differs, the engine is another.

    Args:
        graph: the ONNX graph.
        spec: its inputs; where the graph leaves a size free and they do not, the engine is built for theirs.
        flavor: the TensorRT that builds it, or runs it.
        how: the flags of the build.
        place: the machine.
    """
    made = {"flavor": flavor.name, "version": flavor.version, "compute_capabilities": place.compute_capabilities,
            "driver": place.driver, "device": place.device, "system": place.system,
            "graph_sha256": hashlib.sha256(graph).hexdigest(), "inputs": {one.name: one.shape for one in spec.inputs},
            "flags": how.to_json()}
    return dict(json.loads(_text(made)))  # as it will be read: lists for tuples


def key_of(found: Fingerprint) -> str:
    """A name for files, another one for every fingerprint."""
    return hashlib.sha256(_text(found).encode()).hexdigest()[:32]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


# ------------------------------------------------------------------------------------------------------- the sidecar


@dataclass(frozen=True)
class Sidecar:
    """The content of the file beside a plan."""

    fingerprint: Fingerprint
    plan_sha256: str
    plan_size_bytes: int
    precisions: Mapping[str, float]  # shares of the compute layers
    build_s: float
    built_at: str  # UTC, ISO 8601
    edgetl: str  # version
    proofs: tuple[str, ...] = ()  # what the engine was shown to answer rightly here; see `edgetl.runtime.proving`

    def encoded(self) -> bytes:
        """The bytes of the file."""
        return (json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=1, allow_nan=False) + "\n").encode()

    def proven(self, proof: str) -> Sidecar:
        """The same with one proof more."""
        others = [one for one in self.proofs if one != proof]
        return dataclasses.replace(self, proofs=(*others, proof)[-PROOFS:])


def sidecar_of(engine: Engine, of: Fingerprint) -> Sidecar:
    """The sidecar of an engine that was built just now."""
    return Sidecar(of, hashlib.sha256(engine.plan).hexdigest(), len(engine.plan), dict(engine.precisions),
                   engine.build_s, datetime.now(UTC).isoformat(timespec="seconds"), __version__)


def sidecar_path(plan: Path) -> Path:
    """FILE.engine.json of FILE.engine."""
    return plan.with_name(plan.name + SUFFIX)


def read_sidecar(path: Path) -> Sidecar:
    """The sidecar in a file.

    Raises:
        BundleError: it is missing, cannot be read, or is not what `Sidecar.encoded` makes; says which field.
    """
    data = _read(path, MOST_BYTES)
    if len(data) > MOST_BYTES:
        raise BundleError(f"{path} has more than {MOST_BYTES} bytes.", hint=HINT)
    try:
        table = Table(strict_json.parse(data.decode()), str(path))
    except ValueError as problem:
        raise BundleError(f"{path} is not JSON: {problem}.", hint=HINT) from problem
    if table.whole("schema") != SCHEMA:
        raise BundleError(f"{path} has schema {table.whole('schema')}; this edgetl reads {SCHEMA}.", hint=HINT)
    shares = Table(table.table("precisions"), f"{path}: precisions")
    return Sidecar(dict(table.table("fingerprint")), table.text("plan_sha256"), table.whole("plan_size_bytes", low=1),
                   {name: shares.number(name, low=0.0) for name in shares.values}, table.number("build_s", low=0.0),
                   table.text("built_at"), table.text("edgetl"), table.texts("proofs", ()))


def _read(path: Path, most: int) -> bytes:
    """At most one byte more than `most` of a regular file that nobody else owns; raises BundleError."""
    with open_regular(path, str(path), hint=HINT) as (opened, size):
        require_memory(min(size, most + 1), str(path))
        return read_at_most(opened, most + 1, min(size, most + 1), str(path))


def read_plan(path: Path, sidecar: Sidecar) -> bytes:
    """The plan that a sidecar describes, its size and SHA-256 compared.

    Raises:
        BundleError: it is missing, cannot be read, or is another.
    """
    plan = _read(path, sidecar.plan_size_bytes)
    if len(plan) != sidecar.plan_size_bytes:
        found = "more" if len(plan) > sidecar.plan_size_bytes else f"{len(plan)} bytes"
        raise BundleError(f"{path} should have {sidecar.plan_size_bytes} bytes and has {found}.", hint=HINT)
    if hashlib.sha256(plan).hexdigest() != sidecar.plan_sha256:
        raise BundleError(f"{path} is damaged: its SHA-256 is not the one beside it.", hint=HINT)
    return plan


# ------------------------------------------------------------------------------------------- engines that the user has


@dataclass(frozen=True)
class Read:
    """A plan that fits, or why there is none."""

    plan: bytes | None
    sidecar: Sidecar | None
    reason: str = ""  # a clause: "it was built for driver 570.1, here is 580.2"


def write_engine(path: Path, engine: Engine, of: Fingerprint) -> Sidecar:
    """Writes FILE.engine and FILE.engine.json, each whole or not at all; returns what stands in the latter.

    The plan comes first: after a power cut between the two it has no sidecar, or an old one that does not fit.

    Raises:
        OutputError: they cannot be written; DiskFull where there is no room.
    """
    sidecar = sidecar_of(engine, of)
    durable.write(path, engine.plan)
    durable.write(sidecar_path(path), sidecar.encoded())
    return sidecar


def read_engine(path: str | os.PathLike[str], wanted: Fingerprint, asked: Collection[str] = ()) -> Read:
    """The plan in FILE.engine where it runs on the machine of `wanted`, else the reason why it does not.

    An engine that was built ahead of time fits every driver and every card of its compute capabilities.

    Args:
        path: of the plan; its sidecar must lie beside it.
        wanted: fingerprint for the card that is here.
        asked: names of those flags that must be as in `wanted`; the others are as the file was built.
    """
    plan = Path(path)
    try:
        sidecar = read_sidecar(sidecar_path(plan))
        reason = _unfit(sidecar.fingerprint, wanted, asked)
        return Read(None, sidecar, reason) if reason else Read(read_plan(plan, sidecar), sidecar)
    except BundleError as problem:
        return Read(None, None, problem.message.rstrip("."))


def difference(found: Fingerprint, wanted: Fingerprint) -> str:
    """The first field in which two fingerprints differ, as a clause; empty where they are equal."""
    for name in (*FIELDS, *sorted({*found, *wanted} - {*FIELDS})):
        if _held(found, name) != _held(wanted, name):
            return _differs(name, found.get(name), wanted.get(name))
    return ""


def _held(table: Fingerprint, name: str) -> str:
    """The text of a value: to Python, 1 and True are equal, and a field that is missing is as good as None."""
    return _text([table[name]] if name in table else [])


def _differs(name: str, found: Any, wanted: Any) -> str:
    what = FIELDS.get(name, name)
    if name == "graph_sha256":
        return "it was built from another graph"
    if name == "flags" and isinstance(found, Mapping) and isinstance(wanted, Mapping):
        one = next(one for one in sorted({*found, *wanted}) if _held(found, one) != _held(wanted, one))
        return f"it was built with {one} {_words(found.get(one))}, asked for is {_words(wanted.get(one))}"
    return f"it was built for {what} {_words(found)}, here is {_words(wanted)}"


def _words(value: Any) -> str:
    """A value from anybody, for a sentence."""
    if isinstance(value, list) and len(value) <= PROOFS:
        return ", ".join(map(_words, value)) or "none"
    if value is None:
        return "none"
    return value if isinstance(value, str) and value.isprintable() and len(value) < 80 else words(value)


def _unfit(found: Fingerprint, wanted: Fingerprint, asked: Collection[str]) -> str:
    """Why an engine built for one machine cannot run on another; empty where it can."""
    flags = found.get("flags")
    if not isinstance(flags, Mapping):
        return "its sidecar does not say with which flags it was built"
    here = {**wanted, "flags": {**flags, **{name: wanted["flags"].get(name) for name in asked}}}
    compatible = flags.get("hardware_compatible")
    if found.get("driver") is None:  # built ahead of time
        here["driver"] = None
    if found.get("device") is None or compatible in (AMPERE_PLUS, SAME_CAPABILITY):
        here["device"] = found.get("device")
    if _runs_on(found.get("compute_capabilities"), wanted["compute_capabilities"], compatible):
        here["compute_capabilities"] = found["compute_capabilities"]
    if flags.get("version_compatible") is True and _newer(str(found.get("version")), wanted["version"]):
        here["version"] = found["version"]
    return difference(found, here)


def _runs_on(built: Any, here: list[str], compatible: Any) -> bool:
    """Whether an engine for some compute capabilities runs on the card that is here."""
    if not isinstance(built, list):
        return False
    if all(one in built for one in here):
        return True
    return compatible == AMPERE_PLUS and all(numbers(one) >= (8, 0) for one in here)


def _newer(built: str, here: str) -> bool:
    """Whether a version runs what an older one of the same major number built to be version compatible."""
    if not VERSION.fullmatch(built) or not VERSION.fullmatch(here):
        return False
    return numbers(built)[0] == numbers(here)[0] and numbers(built) <= numbers(here)


__all__ = ["Fingerprint", "Place", "Read", "Sidecar", "difference", "fingerprint", "key_of", "numbers",
           "read_engine", "read_plan", "read_sidecar", "sidecar_of", "sidecar_path", "this_system", "write_engine"]
