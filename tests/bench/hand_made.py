"""Reports made by hand for the tests of tables and pages."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

from edgetl import evaluate, recipe
from edgetl.bench import exam, report, stats

LABELS = ("dress", "hat", "long sleeve", "shoes", "t-shirt")
OPTIONS = recipe.Bench(cases=("teacher", "bundle"), out="report", data="photos")
IMAGES = 60


def samples(median_ms: float, seed: int, rounds: int = 5, calls: int = 50) -> tuple[float, ...]:
    """Skewed latencies in seconds around a median."""
    generator = np.random.default_rng(seed)
    return tuple((median_ms / 1000 * (1 + generator.gamma(1.5, 0.02, rounds * calls))).tolist())


def evaluation(errors: int, seed: int) -> evaluate.Evaluation:
    """Answers to the same images with so many errors, at random places."""
    labels = np.arange(IMAGES) % len(LABELS)
    generator = np.random.default_rng(seed)
    said = labels.copy()
    said[generator.choice(IMAGES, errors, replace=False)] += 1
    logits = generator.normal(0, 0.5, (IMAGES, len(LABELS))).astype(np.float32)
    logits[np.arange(IMAGES), said % len(LABELS)] += generator.uniform(2, 6, IMAGES).astype(np.float32)
    return evaluate.summarize(logits, labels, tuple(f"{LABELS[label]}/{i:03d}.png" for i, label in enumerate(labels)))


def row(case: str, median_ms: float, *, backend: str, errors: int | None = None, reason: str | None = None,
        seed: int = 0, **changes) -> report.Row:
    """A row that was measured, or that failed for a reason."""
    seconds = () if reason else samples(median_ms, seed)
    measured = report.Measurement(case, seconds, 0 if reason else 5, 10, "back-to-back",
                                  report.FAILED if reason else report.MEASURED, reason)
    reference = None if case.startswith("teacher") else evaluation(7, 1)
    accuracy = None if errors is None else exam.grade(evaluation(errors, seed + 1), reference, LABELS)
    plain = report.Row(measurement=measured, source=case.split()[0], kind="run" if backend == "torch" else "bundle",
                       backend=backend, threads=1, batch=1, precision="fp32", size_bytes=3_400_000,
                       parameters=1_700_000, import_s=(1.2, 1.1), load_s=(0.05, 0.04), first_s=(0.01, 0.02),
                       memory_loaded_bytes=90_000_000, memory_peak_bytes=120_000_000, accuracy=accuracy,
                       accuracy_reason=None if accuracy else "nobody asked")
    return dataclasses.replace(plain, **changes)


def make_report() -> report.Report:
    """Six cases, one of which failed."""
    rows = (
        row("teacher torch", 37, backend="torch", errors=7),
        row("student torch", 16, backend="torch", errors=8, seed=2, speedup=stats.Interval(2.3, 2.2, 2.4, 0.95)),
        row("bundle x86-vnni.int8 cpu", 1.3, backend="cpu", errors=9, seed=3, precision="int8",
            speedup=stats.Interval(28.4, 27.9, 29.0, 0.95)),
        row("bundle x86-vnni.int8 openvino", 1.2, backend="openvino", errors=9, seed=4, precision="int8",
            speedup=stats.Interval(30.8, 30.1, 31.7, 0.95)),
        row("bundle fp32 cpu", 2.6, backend="cpu", errors=8, seed=5, speedup=stats.Interval(14.2, 13.9, 14.6, 0.95)),
        row("bundle fp32 openvino", 0, backend="openvino", reason="the worker was ended by SIGKILL"),
    )
    data = report.Data("photos", "data/photos", LABELS, IMAGES, "3f" * 32, {"method": "stratified", "seed": 0},
                       ("Photos: CC0 <1.0> & free.",))
    machine = {"cpu": "AMD EPYC", "governor": None, "versions": {"onnxruntime": "1.31.1", "torch": "2.15.0"},
               "cpu_features": ["avx2", "avx512_vnni"], "variables": {}, "memory_bytes": 8_000_000_000}
    return report.Report(report.SCHEMA, machine, dataclasses.asdict(OPTIONS), rows, "teacher torch",
                         "bundle x86-vnni.int8 cpu", data, ("A warning.",))


def picture(seed: int) -> bytes:
    """A small JPEG."""
    generator = np.random.default_rng(seed)
    pixels = np.kron(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((24, 24, 1), np.uint8))
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "JPEG")
    return target.getvalue()
