"""Engines as nobody would keep them: the right plan always comes out, and it is built again exactly when it must be.

    python benchmarks/fuzz_engines.py [--cases 20000] [--seed 0] [--only FAMILY] [--case FAMILY:NUMBER]
                                      [--out benchmarks/results/fuzz_engines.json]

Families, each with its share of the cases:

    fields     one field of a fingerprint is another one: of what is asked for, or of what a sidecar says
    plans      bytes of a plan changed, or another thing in its place (a link, a pipe, a folder, nothing)
    sidecars   the JSON of a sidecar changed: fields removed, renamed, of other types, absurd; or its bytes
    swaps      plans and sidecars of several engines exchanged
    files      an engine file of the user's and its sidecar changed, or another machine than the one it was built for
    timing     bytes of a timing cache changed, or another thing in its place
    kills      a process that builds, reads and discards is killed at some moment

The plans are real ones, built by TensorRT for RTX without a card; nothing is deserialised. A case takes at most 2 s of
processor time and 1 GB; warnings count as failures. Outcomes: "result" where a kept engine was used, "BuiltAgain" where
it was not, each only where that is right. The same seed gives the same cases, the moments of kills apart.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the tiny graph
sys.path.insert(0, str(Path(__file__).parent))

import fuzz_harness
from fuzz_changes import Random, change_bytes, change_json

from edgetl import rundir, timing
from edgetl.backends._tensorrt_build import Engine, How
from edgetl.backends._tensorrt_flavor import Flavor
from edgetl.backends._tensorrt_sidecar import sidecar_of, sidecar_path
from edgetl.backends._tensorrt_store import EngineStore, Place, fingerprint, read_engine, write_engine
from edgetl.errors import EdgetlError

SHARES = {"fields": 0.2, "plans": 0.2, "sidecars": 0.25, "swaps": 0.1, "files": 0.15, "timing": 0.08, "kills": 0.02}
SHARED_MEMORY = Path("/dev/shm")
CARD = Place(("8.9",), "580.65.06", "NVIDIA L4")
DECISIVE = ("schema", "fingerprint", "plan_sha256", "plan_size_bytes")  # of a sidecar; the rest is for people


class BuiltAgain(EdgetlError):
    """The kept engine was not used, which was right."""


@dataclass(frozen=True)
class Kept:
    """An engine as a builder made it, and what it was built from."""

    of: dict[str, Any]
    engine: Engine


Kitchen = list[Kept]


def base_engines() -> Kitchen:
    """Real engines: of two graphs, for one card and for several, for other batches."""
    from tiny_bundle import graph_spec, make_graph

    from edgetl.backends import _tensorrt_flavor
    from edgetl.backends._tensorrt_build import build

    flavor = _tensorrt_flavor.find("rtx")
    made = []
    for classes, how in ((3, How(compute_capabilities=("8.9",))), (5, How(compute_capabilities=("8.9",))),
                         (3, How(compute_capabilities=("8.9",), batches=(1, 4, 8))),
                         (3, How(compute_capabilities=("8.6", "8.9", "12.0")))):
        graph = make_graph(classes)
        place = CARD if len(how.compute_capabilities) == 1 else Place.ahead(how.compute_capabilities)
        engine = build(graph, graph_spec(classes), flavor, how)
        made.append(Kept(fingerprint(graph, graph_spec(classes), flavor, how, place), engine))
    return made


def made_up_engines(size: int = 3000) -> Kitchen:
    """Engines of random bytes, for where TensorRT for RTX is not installed."""
    from tiny_bundle import graph_spec

    flavor = Flavor("rtx", None, "1.7.1.116", "tensorrt-rtx-cu13-bindings")
    several = How(compute_capabilities=("8.6", "8.9", "12.0"))
    described = ((b"a", How(), CARD), (b"b", How(), CARD), (b"a", How(batches=(1, 4, 8)), CARD),
                 (b"a", several, Place.ahead(several.compute_capabilities)))
    return [Kept(fingerprint(graph, graph_spec(), flavor, how, place),
                 Engine(np.random.default_rng(number).bytes(size + number), {"fp16": 1.0}, 1.0, None))
            for number, (graph, how, place) in enumerate(described)]


# ------------------------------------------------------------------------------------------------------ what is asked


class Shelf:
    """A store in a folder of its own, with some engines in it."""

    def __init__(self, folder: Path, kept: list[Kept]) -> None:
        self.store = EngineStore(folder / "engines", patience_s=5.0)
        self.folder = self.store.folder
        self.folder.mkdir(parents=True)
        for one in kept:
            plan, side = self.files(one)
            plan.write_bytes(one.engine.plan)
            side.write_bytes(sidecar_of(one.engine, one.of).encoded())

    def files(self, one: Kept) -> tuple[Path, Path]:
        """Its plan and its sidecar."""
        plan = self.store._plan(one.of)
        return plan, sidecar_path(plan)

    def ask(self, one: Kept) -> bool:
        """Whether an engine had to be built; fails where another plan comes out, or a sentence is none."""
        calls = []
        found = self.store.get(one.of, lambda: calls.append(1) or one.engine)
        assert found.plan == one.engine.plan, "another plan came out"
        assert found.built == bool(calls)
        assert "\n" not in found.why + found.note and len(found.why + found.note) < 4000
        assert bool(found.why) == found.built, "nobody says why it was built"
        return found.built

    def expect(self, one: Kept, built: bool | None) -> None:
        """Asks twice: the second time it is there, unless the folder refuses to keep it."""
        found = self.ask(one)
        assert built in (None, found), f"built again: {found}; expected {built}"
        if (self.folder / ".lock").is_file() and all(path.is_file() for path in self.files(one)):
            assert not self.ask(one), "it was built once more"
        if found:
            raise BuiltAgain("It was built again.")


def pick(random: Random, several: list[Any]) -> Any:
    """One of several."""
    return several[int(random.integers(0, len(several)))]


def other_field(random: Random, of: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint in which one value is another, somewhere."""
    changed = copy.deepcopy(of)
    holder: Any = changed
    key: Any = pick(random, sorted(holder))
    while isinstance(holder[key], dict | list) and random.random() < 0.9:
        holder = holder[key]
        key = pick(random, sorted(holder) if isinstance(holder, dict) else list(range(len(holder)))) if holder else 0
        if not holder:
            return {**changed, "more": 1}
    value = holder[key]
    if isinstance(value, str) and value and random.random() < 0.7:
        place = int(random.integers(0, len(value)))
        holder[key] = value[:place] + pick(random, list("0123456789abcx.")) + value[place + 1:]
    elif random.random() < 0.1 and isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = pick(random, [None, True, 0, 1, 2, 1.0, "", "8.9", [], {}, ["8.9"], "none", False])
    return changed


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are written alike."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def put_another_thing(random: Random, path: Path) -> None:
    """In the place of a file."""
    path.unlink()
    things: list[Callable[[], object]] = [
        lambda: None, path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path.name), lambda: path.symlink_to("nowhere"), lambda: path.symlink_to("."),
        lambda: path.symlink_to("/proc/self/mem"), lambda: path.symlink_to("/etc/passwd"), path.touch]
    pick(random, things)()


# --------------------------------------------------------------------------------------------------------- families


def fields_case(random: Random, kitchen: Kitchen, folder: Path) -> None:
    """See the module."""
    one = pick(random, kitchen)
    other = other_field(random, one.of)
    shelf = Shelf(folder, [one])
    if random.random() < 0.5:  # the sidecar says another thing than is asked for
        side = shelf.files(one)[1]
        side.write_text(json.dumps({**json.loads(side.read_bytes()), "fingerprint": other}))
        shelf.expect(one, not same(other, one.of))
        return
    try:
        other["compute_capabilities"] = [str(value) for value in other["compute_capabilities"]]
        known = same(other, one.of)
        second = Kept(other, one.engine if known else pick(random, [two for two in kitchen if two is not one]).engine)
        built = shelf.ask(second)
    except (TypeError, KeyError):  # no fingerprint that this program would ever ask for
        return
    assert built != known
    assert not shelf.ask(one)
    if built:
        raise BuiltAgain("It was built.")


def plans_case(random: Random, kitchen: Kitchen, folder: Path) -> None:
    """See the module."""
    one = pick(random, kitchen)
    shelf = Shelf(folder, [one])
    plan = shelf.files(one)[0]
    if random.random() < 0.1:
        put_another_thing(random, plan)
        shelf.expect(one, True)
    changed = change_bytes(random, one.engine.plan)
    plan.write_bytes(changed)
    shelf.expect(one, changed != one.engine.plan)


def sidecars_case(random: Random, kitchen: Kitchen, folder: Path) -> None:
    """See the module."""
    one = pick(random, kitchen)
    shelf = Shelf(folder, [one])
    side = shelf.files(one)[1]
    before = side.read_bytes()
    kind = random.random()
    if kind < 0.08:
        put_another_thing(random, side)
        shelf.expect(one, True)
        return
    after = change_json(random, before.decode()).encode(errors="surrogatepass") if kind < 0.6 else (
        change_bytes(random, before, near=b'"'))
    side.write_bytes(after)
    shelf.expect(one, _must_build(before, after))


def _must_build(before: bytes, after: bytes) -> bool | None:
    """Whether a sidecar that was changed must not be believed; None where only what is for people differs."""
    if after == before:
        return False
    try:
        told = json.loads(after)
    except (ValueError, RecursionError):
        return True
    meant = json.loads(before)
    if not isinstance(told, dict) or any(not same(told.get(name), meant[name]) for name in DECISIVE):
        return True
    return None


def swaps_case(random: Random, kitchen: Kitchen, folder: Path) -> None:
    """See the module."""
    shelf = Shelf(folder, kitchen)
    for _ in range(int(random.integers(1, 4))):
        source, into = (pick(random, [path for one in kitchen for path in shelf.files(one)]) for _ in range(2))
        into.write_bytes(source.read_bytes())
    wrong = [one for one in kitchen if shelf.files(one)[0].read_bytes() != one.engine.plan
             or not _says(shelf.files(one)[1], one)]
    for one in kitchen:
        assert shelf.ask(one) == any(one is two for two in wrong)
    assert not any(shelf.ask(one) for one in kitchen)
    if wrong:
        raise BuiltAgain(f"{len(wrong)} were built again.")


def _says(side: Path, one: Kept) -> bool:
    try:
        return same(json.loads(side.read_bytes())["fingerprint"], one.of)
    except (ValueError, TypeError):
        return False


def files_case(random: Random, kitchen: Kitchen, folder: Path) -> None:
    """See the module."""
    one = pick(random, kitchen)
    folder.mkdir()
    file = folder / "model.engine"
    write_engine(file, one.engine, one.of)
    here = {**one.of, "compute_capabilities": [pick(random, one.of["compute_capabilities"])],
            "driver": one.of["driver"] or "999.1", "device": one.of["device"] or "A Card"}
    whole, kind = True, random.random()
    if kind < 0.4:
        changed = change_bytes(random, one.engine.plan)
        file.write_bytes(changed)
        whole = changed == one.engine.plan
    elif kind < 0.8:
        side = sidecar_path(file)
        side.write_bytes(change_json(random, side.read_text()).encode(errors="surrogatepass"))
    elif kind < 0.9:
        put_another_thing(random, pick(random, [file, sidecar_path(file)]))
        whole = False
    else:
        here["compute_capabilities"] = ["7.5"]
        whole = False
    found = read_engine(file, here, pick(random, [(), ("batches",), tuple(one.of["flags"])]))
    assert found.plan is None or (whole and found.plan == one.engine.plan)
    assert (found.plan is None) == bool(found.reason)
    assert "\n" not in found.reason and len(found.reason) < 4000
    if found.plan is None:
        raise BuiltAgain(found.reason)


def timing_case(random: Random, kitchen: Kitchen, folder: Path) -> None:
    """See the module."""
    one = pick(random, kitchen)
    shelf = Shelf(folder, [])
    learned = random.bytes(500)
    engine = Engine(one.engine.plan, one.engine.precisions, 1.0, learned)
    shelf.store.get(one.of, lambda: engine)
    cache = next(shelf.folder.glob("timing-*"))
    before = cache.read_bytes()
    if random.random() < 0.1:
        put_another_thing(random, cache)
        expected = None
    else:
        cache.write_bytes(change_bytes(random, before))
        expected = learned if cache.read_bytes() == before else None
    assert shelf.store.timing_cache(one.of) == expected
    assert not shelf.ask(one)
    if expected is None:
        raise BuiltAgain("What was learned is lost.")


def kills_case(random: Random, kitchen: Kitchen, folder: Path) -> None:
    """See the module."""
    shelf = Shelf(folder, [])
    child = os.fork()
    if child == 0:
        _for_ever(shelf.store, kitchen)
    time.sleep(float(random.uniform(0, 0.03)))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "the child ended by itself"
    built = [shelf.ask(one) for one in kitchen]
    assert not any(shelf.ask(one) for one in kitchen)
    if any(built):
        assert not list(shelf.folder.glob(".*.tmp")), "something unfinished is left"
        raise BuiltAgain(f"{sum(built)} were built again.")


def _for_ever(store: EngineStore, kitchen: Kitchen) -> None:
    try:
        while True:
            for one in kitchen:
                assert store.get(one.of, lambda engine=one.engine: engine).plan == one.engine.plan
                store.discard(one.of)
    finally:
        os._exit(1)


FAMILIES: dict[str, Callable[[Random, Kitchen, Path], None]] = {
    "fields": fields_case, "plans": plans_case, "sidecars": sidecars_case, "swaps": swaps_case, "files": files_case,
    "timing": timing_case, "kills": kills_case}


def prepare(family: str, seed: int, scratch: Path, kitchen: Kitchen) -> fuzz_harness.Case:
    """The cases of a family; called in the worker."""
    def case(number: int) -> None:
        random = np.random.default_rng([seed, list(FAMILIES).index(family), number])
        place = Path(tempfile.mkdtemp(dir=scratch))
        try:
            FAMILIES[family](random, kitchen, place / "case")
        finally:
            shutil.rmtree(place)

    return case


def run(cases: dict[str, int], seed: int, scratch: Path, kitchen: Kitchen) -> dict[str, fuzz_harness.Tally]:
    """All families, one after another."""
    found = {}
    for family, count in cases.items():
        begin = timing.now_s()
        found[family] = fuzz_harness.run(functools.partial(prepare, family, seed, scratch, kitchen), count)
        told = found[family].to_json()
        print(f"{family}: {count} cases in {timing.now_s() - begin:.0f} s, {json.dumps(told['outcomes'])}, "
              f"{told['crashes']} crashes, {told['hangs']} hangs, {told['bugs']} bugs; slowest {told['slowest_s']} s",
              flush=True)
        for one in (found[family].crashes + found[family].hangs + found[family].bugs)[:3]:
            print(f"  {family}:{one['case']}: {str(one.get('bug') or one.get('signal') or one)[-600:]}", flush=True)
    return found


def main() -> int:
    """Exit code 0 if the right plan came out of every case, and was built exactly when it had to be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FAMILIES)
    parser.add_argument("--case", help="do one case in this process, e.g. plans:17")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    kitchen = base_engines()
    cases = {family: round(options.cases * share) for family, share in SHARES.items()}
    if options.only:
        cases = {options.only: options.cases}
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as folder:
        if options.case:
            family, number = options.case.split(":")
            prepare(family, options.seed, Path(folder), kitchen)(int(number))
            return 0
        found = run(cases, options.seed, Path(folder), kitchen)
    failures = sum(tally.failures for tally in found.values())
    if options.out is not None:
        plans = [{"plan_bytes": len(one.engine.plan), "for": one.of["compute_capabilities"]} for one in kitchen]
        rundir.write_json(options.out, {"seed": options.seed, "failures": failures, "plans": plans,
                                        "tensorrt_rtx": kitchen[0].of["version"],
                                        "families": {family: tally.to_json() for family, tally in found.items()},
                                        "environment": rundir.environment()})
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
