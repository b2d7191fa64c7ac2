"""Bundles as nobody would make them: always a result or an EdgetlError, never a crash, a hang or a burst of memory.

    python benchmarks/fuzz_bundles.py [--cases 100000] [--graphs 2000] [--seed 0] [--only FAMILY]
                                      [--case FAMILY:NUMBER] [--out benchmarks/results/fuzz_bundles.json]

Families, each with its share of the cases:

    manifest   the JSON of the manifest changed: fields removed, renamed, of other types, absurd, nested, double; the
               digests of all files stay right
    tasks      the same of manifests with heads: labels, values, several classes
    folder     bytes changed anywhere in a file of the folder, or another thing in its place (a link, a pipe, a folder)
    packed     bytes changed anywhere in the packed file
    zips       the packed file put together otherwise: names, order, compression, flags, sizes, copies, comments
    golden     golden.npz changed and its digest brought up to date
    signed     a signature or a signed manifest changed, with a public key configured
    graphs     (--graphs) a graph changed and its digest brought up to date: what the engine makes of it. The engine's
               parser may abort; each runs in a process of its own, and what was found is counted, not judged

Of every case all is done that a user may do: load and predict, verify, inspect on the command line, pack. A case takes
at most 2 s of processor time and 1 GB; warnings count as failures. The same seed gives the same cases.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the tiny bundle
sys.path.insert(0, str(Path(__file__).parent))

import fuzz_harness
from fuzz_changes import Random, change_bytes, change_graph, change_json

from edgetl import rundir, timing

Files = dict[str, bytes]
Build = Callable[[Random, Files, Path], Path]  # puts a changed bundle into a folder; returns its path

SHARES = {"manifest": 0.3, "tasks": 0.15, "folder": 0.15, "packed": 0.15, "zips": 0.1, "golden": 0.1, "signed": 0.05}
NAMES = ("manifest.json", "fp32.onnx", "other.onnx", "golden.npz")
SHARED_MEMORY = Path("/dev/shm")

REJECTION = {"target_accuracy": 0.95, "confidence": 0.95, "variant": "fp32", "split": "val", "n": 10, "checks": [
    {"variant": "fp32", "split": "val", "n": 10, "accepted": 8, "coverage": 0.8, "accuracy": 1.0}]}
DRIFT = {"variant": "fp32", "split": "val", "count": 10, "top": {"mean": 0.9, "variance": 0.01},
         "entropy": {"mean": 0.2, "variance": 0.03}, "class_counts": [5, 5, 0]}


# --------------------------------------------------------------------------------------------------------- families


def write(files: Files, folder: Path) -> Path:
    """A folder with these files."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def resigned(files: Files, name: str, data: bytes) -> Files:
    """The files with another content of one, and its digest in the manifest."""
    manifest = json.loads(files["manifest.json"])
    for entry in (*manifest["variants"], manifest["golden"]):
        if entry["file"] == name:
            entry |= {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    return {**files, name: data, "manifest.json": json.dumps(manifest).encode()}


def manifest_case(random: Random, files: Files, folder: Path) -> Path:
    """See the module."""
    text = change_json(random, files["manifest.json"].decode())
    return write({**files, "manifest.json": text.encode(errors="surrogatepass")}, folder)


def tasks_case(random: Random, files: Files, folder: Path) -> Path:
    """See the module."""
    from tiny_bundle import HEADS, give_heads

    bundle = give_heads(write(files, folder), HEADS[str(random.choice(list(HEADS)))])
    text = change_json(random, (bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))
    return bundle


def folder_case(random: Random, files: Files, folder: Path) -> Path:
    """See the module."""
    made = write(files, folder)
    file = made / NAMES[int(random.choice(4, p=[0.55, 0.15, 0.15, 0.15]))]
    if random.random() < 0.9:
        file.write_bytes(change_bytes(random, file.read_bytes(), near=b'"'))
        return made
    file.unlink()
    other = folder.with_name("outside")
    other.write_bytes(files["manifest.json"])
    things: tuple[Callable[[], object], ...] = (
        lambda: None, file.mkdir, lambda: os.mkfifo(file), lambda: file.symlink_to("/dev/zero"),
        lambda: file.symlink_to(file.name), lambda: file.symlink_to(other), lambda: file.symlink_to("manifest.json"),
        lambda: file.symlink_to("."), lambda: file.symlink_to("/proc/self/mem"), lambda: file.symlink_to("/dev/stdin"))
    things[int(random.integers(0, len(things)))]()
    return made


def packed_bytes(files: Files) -> bytes:
    """What `edgetl pack` makes of these files."""
    return zipped([(name, files[name]) for name in sorted(files)])


def zipped(members: list[tuple[str, bytes]], **changes: Any) -> bytes:
    """A zip of these members, whatever it is."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, data in members:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            for field, value in changes.items():
                setattr(info, field, value)
            with contextlib.suppress(UserWarning):  # of names that are there twice
                made.writestr(info, data)
    return buffer.getvalue()


def packed_case(random: Random, files: Files, folder: Path) -> Path:
    """See the module."""
    file = folder.with_suffix(".edgetl")
    file.write_bytes(change_bytes(random, packed_bytes(files), near=b"PK"))
    return file


def zips_case(random: Random, files: Files, folder: Path) -> Path:
    """See the module."""
    members = list(files.items())
    names = ["../x", "/x", "a/b", "manifest.json", "fp32.onnx", "x" * 300, "manifest.json/x", "a\\b", "C:x", "é", "."]
    for _ in range(int(random.integers(0, 4))):
        place = int(random.integers(0, len(members)))
        members.insert(place, (str(random.choice(names)), change_bytes(random, files["manifest.json"])))
    if random.random() < 0.5:
        members = [members[int(place)] for place in random.permutation(len(members))]
    changes: dict[str, Any] = {}
    if random.random() < 0.5:
        options = (("compress_type", 8), ("compress_type", 12), ("compress_type", 14), ("comment", b"hello"),
                   ("extra", b"\x01\x00\x04\x00abcd"), ("create_system", 0), ("external_attr", 0xA1FF << 16),
                   ("date_time", (2026, 1, 2, 3, 4, 6)))
        changes = dict([options[int(random.integers(0, len(options)))]])
    data = zipped(members, **changes)
    if random.random() < 0.3:
        data = change_bytes(random, data, near=b"PK")
    if random.random() < 0.2:
        data = bytes(random.bytes(int(random.integers(1, 99)))) + data if random.random() < 0.5 else data + data
    file = folder.with_suffix(".edgetl")
    file.write_bytes(data)
    return file


def golden_case(random: Random, files: Files, folder: Path) -> Path:
    """See the module."""
    data = files["golden.npz"]
    if random.random() < 0.5:
        data = change_bytes(random, data, near=b"PK" if random.random() < 0.5 else b"NUMPY")
    else:
        data = _other_arrays(random, data)
    return write(resigned(files, "golden.npz", data), folder)


def _other_arrays(random: Random, data: bytes) -> bytes:
    with np.load(io.BytesIO(data)) as found:
        arrays: dict[str, Any] = dict(found)
    name = str(random.choice(list(arrays)))
    odd = (np.nan, np.inf, -np.inf, 1e38, -1e38, 0.0)
    changes: tuple[Callable[[Any], Any], ...] = (
        lambda one: one.astype(np.float64), lambda one: one[:1], lambda one: one.reshape(-1),
        lambda one: one[..., None], lambda one: np.asfortranarray(one),
        lambda one: np.zeros((0, *one.shape[1:]), one.dtype),
        lambda one: np.full_like(one, random.choice(odd) if one.dtype.kind == "f" else 0), lambda one: one[::-1],
        lambda one: np.frombuffer(change_bytes(random, one.tobytes()) + bytes(8), np.uint8))
    arrays[name] = changes[int(random.integers(0, len(changes)))](arrays[name])
    if random.random() < 0.1:
        del arrays[name]
    buffer = io.BytesIO()
    (np.savez if random.random() < 0.9 else np.savez_compressed)(buffer, **arrays)
    return buffer.getvalue()


def signed_case(random: Random, files: Files, folder: Path) -> Path:
    """See the module."""
    name = str(random.choice(["manifest.json", "manifest.json.minisig", "manifest.json.minisig", "fp32.onnx"]))
    changed = {**files, name: change_bytes(random, files[name])}
    if random.random() < 0.5:
        return write(changed, folder)
    file = folder.with_suffix(".edgetl")
    file.write_bytes(packed_bytes(changed))
    return file


def graphs_case(random: Random, files: Files, folder: Path) -> Path:
    """See the module."""
    graph = files["fp32.onnx"]
    graph = change_bytes(random, graph) if random.random() < 0.4 else change_graph(random, graph)
    changed = resigned(files, "fp32.onnx", graph)
    return write(resigned(changed, "other.onnx", changed["fp32.onnx"]), folder)


FAMILIES: dict[str, Build] = {"manifest": manifest_case, "folder": folder_case, "packed": packed_case,
                              "zips": zips_case, "golden": golden_case, "signed": signed_case, "graphs": graphs_case,
                              "tasks": tasks_case}


# ------------------------------------------------------------------------------------------------------------ a case


def base_files(folder: Path) -> tuple[Files, str]:
    """A good bundle with everything a manifest may have, signed, and the public key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from tiny_bundle import edit_manifest, make_bundle

    from edgetl.runtime import signature

    bundle = make_bundle(folder / "base", second={"requires": (), "precision": "int8", "calibration": {"images": 8}})
    measured = {"backend": "cpu", "split": "test", "n": 40, "accuracy": 0.9, "agreement": 0.98, "latency_s": 1e-3}
    for variant in (0, 1):
        edit_manifest(bundle, "variants", variant, "evaluations", value=[measured])
    for key, value in (("rejection", REJECTION), ("drift_reference", DRIFT), ("reject_below", 0.3)):
        edit_manifest(bundle, key, value=value)
    edit_manifest(bundle, "provenance", value={"run": {"parameters": 127, "data": {"source": "x"}},
                                               "export": {"environment": {"machine": "x86_64"}}})
    key = signature.SecretKey(b"fuzzing.", bytes(range(32)))
    public = Ed25519PrivateKey.from_private_bytes(key.seed).public_key().public_bytes_raw()
    (bundle / signature.FILE).write_bytes(signature.sign((bundle / "manifest.json").read_bytes(), key, "base"))
    files = {path.name: path.read_bytes() for path in sorted(bundle.iterdir())}
    return files, base64.b64encode(signature.PUBLIC + key.key_id + public).decode()


def use(random: Random, bundle: Path, public_key: str | None) -> None:
    """Everything that a user may do with a bundle; raises the first EdgetlError in the end."""
    from edgetl.errors import EdgetlError
    from edgetl.runtime import archive, verify
    from edgetl.runtime.bundle import open_bundle

    opened = open_bundle(bundle, public_key)
    pixels = random.integers(0, 256, (24, 20, 3), np.uint8)
    ways: tuple[Callable[[], object], ...] = (
        lambda: _predict(bundle, public_key, pixels), lambda: verify(bundle, "cpu", 1, public_key),
        lambda: _inspect(bundle), lambda: _inspect(bundle, "--json"), lambda: archive.write(opened, io.BytesIO()))
    problems = []
    for way in ways:
        try:
            way()
        except EdgetlError as problem:
            problems.append(problem)
    if problems:
        raise problems[0]


def _predict(bundle: Path, public_key: str | None, pixels: Any) -> None:
    from edgetl.runtime import load

    with load(bundle, "cpu", threads=1, public_key=public_key) as classifier:
        classifier.predict(pixels, top=3)
        json.dumps(classifier.info(), allow_nan=False)


def _inspect(bundle: Path, *flags: str) -> None:
    from edgetl.cli import app
    from edgetl.errors import EdgetlError

    shown, told = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(told):
        code = app.main(["inspect", str(bundle), *flags])
        shown.flush()
    if code:
        raise EdgetlError(told.getvalue().splitlines()[0])


def prepare(family: str, seed: int, scratch: Path, files: Files, public_key: str) -> fuzz_harness.Case:
    """The cases of a family; called in the worker."""
    from edgetl.runtime import bundle

    bundle.BESIDE_BYTES = 0  # ONNX Runtime sees every graph before its digest is known, as it sees large ones
    random = np.random.default_rng(0)
    good = write(files, scratch / f"good-{family}")
    for _ in range(3):  # whatever is imported or opened at the first use is no memory of a case's
        if family != "graphs":
            use(random, good, public_key)
    shutil.rmtree(good)
    if family == "graphs":
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401

    def case(number: int) -> None:
        random = np.random.default_rng([seed, list(FAMILIES).index(family), number])
        place = Path(tempfile.mkdtemp(dir=scratch))
        try:
            bundle = FAMILIES[family](random, files, place / "bundle")
            use(random, bundle, public_key if family == "signed" else None)
        finally:
            shutil.rmtree(place)

    return case


def run(cases: dict[str, int], seed: int, scratch: Path, files: Files,
        public_key: str) -> dict[str, fuzz_harness.Tally]:
    """All families, one after another."""
    found = {}
    for family, count in cases.items():
        begin = timing.now_s()
        found[family] = fuzz_harness.run(functools.partial(prepare, family, seed, scratch, files, public_key), count,
                                         forked=family == "graphs")
        told = found[family].to_json()
        print(f"{family}: {count} cases in {timing.now_s() - begin:.0f} s, {json.dumps(told['outcomes'])}, "
              f"{told['crashes']} crashes, {told['hangs']} hangs, {told['bugs']} bugs; slowest {told['slowest_s']} s, "
              f"memory +{told['memory_growth_bytes'] / 1e6:.0f} MB", flush=True)
        for one in (found[family].crashes + found[family].hangs + found[family].bugs)[:3]:
            print(f"  {family}:{one['case']}: {str(one.get('bug') or one.get('signal') or one)[-600:]}", flush=True)
    return found


def main() -> int:
    """Exit code 0 if every case but those of graphs was a result or an EdgetlError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--graphs", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FAMILIES)
    parser.add_argument("--case", help="do one case in this process, e.g. packed:17")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cases = {family: round(options.cases * share) for family, share in SHARES.items()} | {"graphs": options.graphs}
    if options.only:
        cases = {options.only: options.graphs if options.only == "graphs" else options.cases}
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as folder:
        if options.case:
            family, number = options.case.split(":")
            prepare(family, options.seed, Path(folder), *base_files(Path(folder)))(int(number))
            return 0
        found = run(cases, options.seed, Path(folder), *base_files(Path(folder)))
    failures = sum(tally.failures for family, tally in found.items() if family != "graphs")
    if options.out is not None:
        rundir.write_json(options.out, {"seed": options.seed, "failures": failures,
                                        "families": {family: tally.to_json() for family, tally in found.items()},
                                        "environment": rundir.environment()})
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
