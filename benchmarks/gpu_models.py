"""The models of benchmarks/gpu.py: a short training, and the graphs in each precision."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gpu_data
import torch
from gpu_plan import TEACHER, Plan, Rows

import edgetl
from edgetl import datasets, models, plugins, rundir, splits, timing, weights
from edgetl.bench import cases, worker
from edgetl.compress import calibrate, quantize
from edgetl.datasets import DataSet
from edgetl.errors import MissingDependency, OutputError
from edgetl.export import graph as exporting
from edgetl.export.half import to_half
from edgetl.models import Network
from edgetl.recipe_fields import DataFields
from edgetl.runtime.session import GraphSpec, open_session
from edgetl.splits import Splits

STUDENTS = ("mobilenetv3-large", "slim")
CALIBRATION_IMAGES = 128
BATCH = "32"  # with all that fits on a large card, few images are an epoch of one step


def photos(plan: Plan) -> tuple[DataSet, Splits, Path]:
    """The images as a folder, unpacked or drawn when first asked for, and how they are split."""
    folder = plan.folder / "photos"
    if not folder.exists():
        file = Path(plan.data) if plan.data is not None else plan.folder / "textures.npz"
        if plan.data is None:
            gpu_data.write(file, gpu_data.textures(plan.classes, plan.images, max(32, min(128, plan.image_size))))
        partly = plan.folder / "photos.partly"
        gpu_data.unpack(file, partly).rename(folder)
    data = datasets.open_data(str(folder))
    return data, splits.resolve(data, DataFields(data=str(folder))), folder


def network(plan: Plan, name: str) -> tuple[Network, bool]:
    """The model of the panel and whether it was trained; one that was not has the same random weights every time.

    Raises:
        OutputError: it comes out of the training, which has not been done.
    """
    if weights.is_run(plan.run_of(name)):
        return weights.load(plan.run_of(name)).network, True
    if plan.panel[name].startswith("slim:"):
        raise OutputError(f"{name} is made by the step train, which has not made it.")
    torch.manual_seed(0)
    classes = len(photos(plan)[0].labels)
    made = models.create(plan.panel[name], classes=classes, pretrained=False, image_size=plan.image_size)
    made.module.eval()
    return made, False


# ----------------------------------------------------------------------------------------------------------- training


def train(plan: Plan, rows: Rows) -> None:
    """One fine-tuning from random weights and its students, in mixed precision where there is a card."""
    if TEACHER in plan.models:
        rows.attempt(lambda: finetuned(plan), model=TEACHER, verb="finetune")
    for name in STUDENTS:
        if name in plan.models:
            rows.attempt(lambda name=name: distilled(plan, name), model=name, verb="distill")


def finetuned(plan: Plan) -> dict[str, Any]:
    """The teacher's row."""
    out = plan.run_of(TEACHER)
    _, seconds = timing.timed(lambda: edgetl.finetune(
        data=str(photos(plan)[2]), teacher=plan.panel[TEACHER], pretrained=False, out=out, overwrite=True,
        lr=3e-3, **_training(plan)))
    return {"seconds": seconds, **told(out)}


def distilled(plan: Plan, name: str) -> dict[str, Any]:
    """A student's row."""
    if not weights.is_run(plan.run_of(TEACHER)):
        raise OutputError(f"The teacher {TEACHER} has not been trained.")
    if plan.panel[name].startswith("slim:") and importlib.util.find_spec("torch_pruning") is None:
        raise MissingDependency("torch_pruning", extra="train", purpose="Cutting a student out of the teacher")
    out = plan.run_of(name)
    _, seconds = timing.timed(lambda: edgetl.distill(
        data=str(photos(plan)[2]), teacher=str(plan.run_of(TEACHER)), student=plan.panel[name], pretrained=False,
        out=out, overwrite=True, lr=3e-3, control=False, **_training(plan)))
    return {"seconds": seconds, **told(out)}


def _training(plan: Plan) -> dict[str, Any]:
    return {"device": plan.device, "image_size": plan.image_size, "epochs": plan.epochs, "workers": 2,
            "batch_size": BATCH}


def told(run: Path) -> dict[str, Any]:
    """What a RUN says of its training: accuracies, mixed precision, batch size."""
    record = json.loads((run / rundir.RUN).read_text())
    metrics = {split: {name: found[name] for name in ("n", "accuracy", "accuracy_low", "accuracy_high")}
               for split, found in record["metrics"].items() if isinstance(found, Mapping) and "accuracy" in found}
    return {"metrics": metrics, "parameters": record["parameters"],
            **{name: record.get("choices", {}).get(name) for name in ("device", "amp", "batch_size")}}


# ------------------------------------------------------------------------------------------------------------- graphs


def graphs(plan: Plan, rows: Rows) -> None:
    """The graphs of every model, parity-checked in fp32, fp16 by casts, INT8 as the target `tensorrt` wants it."""
    (plan.folder / "graphs").mkdir(exist_ok=True)
    for name in plan.models:
        rows.attempt(lambda name=name: exported(plan, name), model=name, precision="fp32")
        for precision, make in (("fp16", halved), ("int8", rounded)):
            if precision in plan.precisions:
                rows.attempt(lambda name=name, make=make: make(plan, name), model=name, precision=precision)


def exported(plan: Plan, name: str) -> dict[str, Any]:
    """Writes the fp32 graph and its spec; the row."""
    made, trained = network(plan, name)
    found, seconds = timing.timed(lambda: exporting.export(made, photos(plan)[0].labels))
    plan.graph_of(name, "fp32").write_bytes(found.graph)
    kept = {"spec": cases.spec_to_json(found.spec), "trained": trained, "model": made.model}
    rundir.write_json(plan.folder / "graphs" / f"{name}.json", kept)
    return {"seconds": seconds, "size_bytes": len(found.graph), "exporter": found.exporter, "trained": trained,
            "parameters": weights.parameter_count(made.module), "of": made.model}


def opened(plan: Plan, name: str, precision: str) -> tuple[bytes, GraphSpec, bool]:
    """A graph that was written, its spec, and whether the model was trained.

    Raises:
        OutputError: it was not.
    """
    file = plan.graph_of(name, precision)
    if not file.exists():
        raise OutputError(f"There is no graph of {name} in {precision}: the step graphs says why.")
    kept = json.loads((plan.folder / "graphs" / f"{name}.json").read_text())
    spec = worker.spec_from_json(kept["spec"])
    return file.read_bytes(), dataclasses.replace(spec, precision=precision), kept["trained"]


def halved(plan: Plan, name: str) -> dict[str, Any]:
    """Writes the fp16 graph; the row."""
    source, _, _ = opened(plan, name, "fp32")
    found, seconds = timing.timed(lambda: to_half(source, "fp16"))
    plan.graph_of(name, "fp16").write_bytes(found.graph)
    return {"seconds": seconds, "size_bytes": len(found.graph), "kept_in_fp32": list(found.kept)}


def rounded(plan: Plan, name: str) -> dict[str, Any]:
    """Writes the INT8 graph with its fp16 remainder, calibrated by the cheapest method on training images; the row."""
    source, spec, _ = opened(plan, name, "fp32")
    scheme = plugins.load("targets", "tensorrt").TARGET.quantize
    data, parts, _ = photos(plan)
    items = calibrate.choose(parts.train, CALIBRATION_IMAGES, seed=0)
    reader = calibrate.Reader(items, data.read, network(plan, name)[0].preprocess, name=spec.inputs[0].name)
    method = scheme["methods"][0]
    made, seconds = timing.timed(
        lambda: to_half(quantize.quantize(source, scheme, reader, method=method).graph, scheme["remainder"]))
    plan.graph_of(name, "int8").write_bytes(made.graph)
    session = open_session("cpu", made.graph, dataclasses.replace(spec, precision="int8"))  # it is one
    session.close()
    return {"seconds": seconds, "size_bytes": len(made.graph), "method": method, "calibration_images": len(items),
            "kept_in_fp32": list(made.kept)}
