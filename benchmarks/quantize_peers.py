"""Other people's quantizers on the very graph and calibration images of a bundle, each in a process of its own.

Shared by `quantize_accuracy.py` and `quantize_latency.py`. NNCF asks for other versions of shared packages than edgetl
has: it may live in an environment of its own, whose interpreter `--peer-python` names.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgetl import datasets, evaluate, rundir, timing
from edgetl.compress import calibrate
from edgetl.recipe import Export, build
from edgetl.runtime.bundle import Bundle
from edgetl.runtime.manifest import Variant
from edgetl.splits import Splits, resolve

WORKER = Path(__file__).with_name("quantize_worker.py")
FOLDERS = re.compile(r"(/[^\s/:'\"]+)+/")  # whom it may concern reads the results elsewhere
TOOLS = ("ort-default", "ort-best", "nncf", "nncf-mixed")
IN_OWN_PLACE = ("nncf", "nncf-mixed")  # run by --peer-python


@dataclass(frozen=True)
class Peer:
    """What a tool made of a graph; `graph` is None where it made nothing, and `reason` says why."""

    tool: str
    graph: Path | None
    reason: str | None
    seconds: float
    told: Mapping[str, Any]  # {tool, version, settings}


@dataclass(frozen=True)
class Workload:
    """The data of a bundle as the export saw it."""

    data: datasets.DataSet
    parts: Splits
    calibration: tuple[datasets.Item, ...]


def workload(source: str, rule: Mapping[str, Any] | None, images: int) -> Workload:
    """Data, splits, and the calibration images that edgetl's own export chooses."""
    data = datasets.open_data(source)
    values = build(Export, {"run": "run", "data": source, "out": "out"}, where="benchmark")
    parts = resolve(data, values, recorded=rule)
    return Workload(data, parts, calibrate.choose(parts.train, images, values.seed))


def calibration_file(work: Workload, preprocess: Any, folder: Path) -> Path:
    """The calibration images, float32 [n, C, H, W], as the graph takes them."""
    path = folder / "calibration.npy"
    if not path.is_file():
        found = np.concatenate(list(evaluate.images(work.calibration, work.data.read, preprocess)))
        with rundir.replacing(path) as target, target.open("wb") as stream:
            np.save(stream, found)
    return path


def fp32_of(bundle: Bundle) -> Variant:
    """The float32 variant."""
    return next(one for one in bundle.manifest.variants if one.precision == "fp32")


def made(
    tools: Sequence[str], graph: Path, images: Path, name: str, folder: Path, peer_python: Path | None
) -> list[Peer]:
    """What each tool makes of a graph; kept in `folder`, so that a second call finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_made(tool, graph, images, name, folder, peer_python) for tool in tools]


def _made(tool: str, graph: Path, images: Path, name: str, folder: Path, peer_python: Path | None) -> Peer:
    record, out = folder / f"{tool}.json", folder / f"{tool}.onnx"
    if not (record.is_file() and out.is_file()):  # what failed is tried again
        rundir.write_json(record, _run(tool, graph, images, name, out, peer_python))
    told = rundir.read_json(record, ValueError)
    return Peer(tool, out if out.is_file() else None, told["reason"], told["seconds"], told["told"])


def _run(tool: str, graph: Path, images: Path, name: str, out: Path, peer_python: Path | None) -> dict[str, Any]:
    interpreter = peer_python if tool in IN_OWN_PLACE and peer_python is not None else Path(sys.executable)
    command = [str(interpreter), str(WORKER), tool, *map(str, (graph, images, out)), "--input", name]
    done, seconds = timing.timed(lambda: subprocess.run(command, capture_output=True, text=True, check=False))
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        out.unlink(missing_ok=True)
        return {"reason": FOLDERS.sub("", lines[-1])[:300], "seconds": seconds, "told": {}}
    return {"reason": None, "seconds": seconds, "told": json.loads(done.stdout.strip().splitlines()[-1])}
