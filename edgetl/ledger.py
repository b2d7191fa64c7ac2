"""Which stages of `edgetl run` are finished and from which inputs: OUT/stages.json."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgetl import rundir
from edgetl.errors import OutputError

LEDGER = rundir.LEDGER
SCHEMA = 1

# What makes a folder what it is, of a RUN, a bundle and a report.
CONTENTS = (rundir.RUN, rundir.MODEL, "manifest.json", "*.onnx", "golden.npz", rundir.REPORT)

FINISHED, INTERRUPTED, NEW, CHANGED = "finished", "interrupted", "new", "changed"


def digest(path: Path) -> str | None:
    """SHA-256 of a file, or over the files that make a RUN, a bundle or a report; None where there is nothing."""
    if path.is_file():
        return rundir.sha256(path.read_bytes())
    files = sorted({file for pattern in CONTENTS for file in path.glob(pattern)})
    if not files:
        return None
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.name}\0{rundir.sha256(file.read_bytes())}\n".encode())
    return whole.hexdigest()


def _entry(inputs: Mapping[str, Any], *, before: str | None = None, made: str | None = None,
           objection: str | None = None) -> dict[str, Any]:
    return {"inputs": dict(inputs), "before": before, "made": made, "objection": objection}


class Ledger:
    """The record of one OUT folder; written whole after each change."""

    def __init__(self, out: Path, entries: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.path = out / LEDGER
        self.entries: dict[str, Mapping[str, Any]] = dict(entries or {})

    @classmethod
    def read(cls, out: Path) -> Ledger:
        """The ledger in `out`, empty where there is none.

        Raises:
            OutputError: the file is not a ledger, or is a later version's.
        """
        if not (out / LEDGER).exists():
            return cls(out)
        values = rundir.read_json(out / LEDGER, OutputError)
        if not isinstance(values, dict) or values.get("schema") != SCHEMA or not isinstance(values.get("stages"), dict):
            raise OutputError(f"{out / LEDGER} was not written by this version of edgetl: expected schema {SCHEMA}.",
                              hint="Give --overwrite to start again.")
        return cls(out, values["stages"])

    @classmethod
    def begun_again(cls, out: Path, stages: Iterable[str]) -> Ledger:
        """A ledger by which whatever these stages have made may be replaced, also by a later --resume."""
        return cls(out, {stage: _entry({}) for stage in stages})

    def fill(self, stage: str, inputs: Mapping[str, Any], unsaid: Mapping[str, Any]) -> None:
        """Has the record of an older version say what it did where it does not name an option, which was not there yet.

        Args:
            stage: whose record.
            inputs: those of now, which name the options that count.
            unsaid: see `edgetl.recipe.unsaid`.
        """
        entry = self.entries.get(stage)
        if entry is not None and entry["inputs"]:
            meant = {name: value for name, value in unsaid.items() if name in inputs}
            self.entries[stage] = {**entry, "inputs": {**meant, **entry["inputs"]}}

    def state(self, stage: str, inputs: Mapping[str, Any], folder: Path) -> str:
        """FINISHED, INTERRUPTED (begun with these very inputs), CHANGED (other inputs or altered files) or NEW."""
        entry = self.entries.get(stage)
        if entry is None:
            return NEW
        if entry["inputs"] != inputs:
            return CHANGED
        if entry["made"] is None:
            # A stage that was to replace a folder and left nothing of its own: what lies there is still the old one.
            untouched = entry.get("before") is not None and entry["before"] == digest(folder)
            return CHANGED if untouched and not rundir.resumable(rundir.partial(folder)) else INTERRUPTED
        return FINISHED if digest(folder) == entry["made"] else CHANGED

    def reason(self, stage: str, inputs: Mapping[str, Any]) -> str:
        """Why a CHANGED stage is built again, in words."""
        entry = self.entries[stage]
        then = entry["inputs"]
        if not then:
            return "as --overwrite asked"
        if differing := [name for name in {**then, **inputs} if then.get(name) != inputs.get(name)]:
            return f"changed: {', '.join(differing)}"
        return "changed: the files in its folder" if entry["made"] else "an earlier attempt left nothing"

    def begin(self, stage: str, inputs: Mapping[str, Any], folder: Path) -> None:
        """Records that a stage is under way, and what lies in its folder, which it may be about to replace."""
        self.entries[stage] = _entry(inputs, before=digest(folder))
        self.write()

    def finish(self, stage: str, inputs: Mapping[str, Any], folder: Path, objection: str | None = None) -> None:
        """Records that a stage is finished, and what its own gate objected to."""
        self.entries[stage] = _entry(inputs, made=digest(folder), objection=objection)
        self.write()

    def objections(self) -> tuple[str, ...]:
        """What the gates of the stages object to, also of those that were kept."""
        return tuple(entry["objection"] for entry in self.entries.values() if entry["objection"] is not None)

    def write(self) -> None:
        """Puts the record on the disk."""
        rundir.write_json(self.path, {"schema": SCHEMA, "stages": self.entries})
