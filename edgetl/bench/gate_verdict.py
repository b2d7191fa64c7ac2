"""The answer of a gate with everything that it rests on; as JSON, markdown and JUnit XML."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl import rundir
from edgetl.bench import gate_words, junit, markdown
from edgetl.bench.pairs import Pattern
from edgetl.bench.report import rebuild, require_schema
from edgetl.bench.sequential import FAIL, INCONCLUSIVE, PASS, Outcome
from edgetl.bench.tables import legible
from edgetl.errors import EdgetlError, GateFailed, GateUndecided
from edgetl.recipe_gate import margin, seconds

SCHEMA = 1
MARKDOWN, JUNIT = "gate.md", "junit.xml"
JUNIT_WORDS = {PASS: junit.PASSED, FAIL: junit.FAILURE, INCONCLUSIVE: junit.ERROR}


@dataclass(frozen=True)
class Condition:
    """One thing that was asked, and the answer."""

    name: str  # "size" | "accuracy" | "drop" | "latency"
    verdict: str  # "pass" | "fail" | "inconclusive"
    text: str  # what was found, and the limit


@dataclass(frozen=True)
class Side:
    """What was measured of BASE or NEW."""

    source: str
    kind: str
    backend: str
    threads: int
    batch: int
    size_bytes: int
    variant: str | None = None
    precision: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The answer of a gate and everything that it rests on."""

    schema: int
    verdict: str  # "pass" | "fail" | "inconclusive"
    conditions: tuple[Condition, ...]  # in the order in which they were asked; the first "fail" is the last
    base: Side
    new: Side
    options: Mapping[str, Any]
    environment: Mapping[str, Any]
    notes: tuple[str, ...]
    latency: Outcome | None = None  # None: a cheaper condition said no
    pattern: Pattern | None = None
    floor_pairs: tuple[Mapping[str, Any], ...] = ()  # raw latencies, see `pairs.Pair.to_json`
    pairs: tuple[Mapping[str, Any], ...] = ()

    @property
    def line(self) -> str:
        """The answer and why, in one line."""
        return f"{self.verdict}: " + "; ".join(one.text for one in reversed(self.conditions))

    def insist(self) -> None:
        """Returns when the verdict is "pass".

        Raises:
            GateFailed: it is "fail".
            GateUndecided: it is "inconclusive".
        """
        if self.verdict == FAIL:
            raise GateFailed(f"The gate said no: {self.conditions[-1].text}.")
        if self.verdict == INCONCLUSIVE:
            raise GateUndecided(f"The gate could not decide: {self.conditions[-1].text}.",
                                hint=gate_words.what_helps(self.latency, margin(self.options["max_regression"]),
                                                           seconds(self.options["budget"])))


# ------------------------------------------------------------------------------------------------------ plain JSON


def to_json(verdict: Verdict) -> dict[str, Any]:
    """Plain JSON values; `line` and, of the latencies, `ratio` and `noise` stand beside what they follow from."""
    plain = dataclasses.asdict(verdict)
    if verdict.latency is not None:
        ratio = verdict.latency.ratio
        plain["latency"] |= {"ratio": None if ratio is None else dataclasses.asdict(ratio),
                             "noise": verdict.latency.noise}
    return {"schema": SCHEMA, "verdict": verdict.verdict, "line": verdict.line, **plain}


def from_json(values: Any, *, where: str) -> Verdict:
    """The verdict that `to_json` wrote; unknown fields are ignored.

    Raises:
        EdgetlError: the schema is too old or too new (two sentences), or a field is missing or of a wrong type.
    """
    require_schema(values, SCHEMA, where, "the verdict of a gate", "Give the gate.json that `edgetl gate --out` wrote.",
                   again="Hold the gate again with `edgetl gate`.")
    try:
        found: Verdict = rebuild(Verdict, values, "verdict")
    except ValueError as problem:
        raise EdgetlError(f"{where}: {problem}.", hint="The file was changed or cut; hold the gate again.") from problem
    return found


# --------------------------------------------------------------------------------------------------------- the folder


def write(found: Verdict, out: Path, *, overwrite: bool) -> None:
    """gate.json with all latencies, gate.md for a job's summary, and junit.xml with a test for each condition."""
    with rundir.building(out, overwrite=overwrite) as folder:
        rundir.write_text(folder / rundir.GATE, json.dumps(to_json(found), allow_nan=False) + "\n")
        rundir.write_text(folder / MARKDOWN, legible(page(found)))
        rundir.write_text(folder / JUNIT, suite(found))


def page(found: Verdict) -> str:
    """Markdown: the verdict, what was asked, and what was compared."""
    lines = [f"{one.name}: {one.verdict}: {one.text}" for one in found.conditions]
    sides = [f"{name}: {side.source}, {side.variant or side.kind} on {side.backend}, threads {side.threads}, batch "
             f"{side.batch}" for name, side in (("BASE", found.base), ("NEW", found.new))]
    machine = [f"{name}: {found.environment.get(name)}" for name in ("cpu", "usable_threads", "load_average")]
    parts = [f"# Gate: {found.verdict}", markdown.bullets(lines), "## Compared", markdown.bullets(sides)]
    if found.notes:
        parts += ["## Notes", markdown.bullets(found.notes)]
    return "\n\n".join([*parts, "## Machine", markdown.bullets(machine)]) + "\n"


def suite(found: Verdict) -> str:
    """JUnit XML; a condition that could not be decided is an error, for a skipped test would be taken as green."""
    took_s = found.latency.elapsed_s if found.latency is not None else 0.0
    tests = [junit.Test(one.name, "edgetl.gate", took_s if one.name == "latency" else 0.0, JUNIT_WORDS[one.verdict],
                        None if one.verdict == PASS else one.text, one.text) for one in found.conditions]
    return junit.suite("edgetl gate", tests)
