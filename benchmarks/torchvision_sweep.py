"""Every classifier of torchvision through edgetl: built small, trained for one step, exported, compared with torch.

python benchmarks/torchvision_sweep.py [--models resnet18,vit_b_16] [--least 32]
    [--out benchmarks/results/torchvision_sweep.json]
python benchmarks/torchvision_sweep.py --timm [--models convnext,levit] [--out benchmarks/results/timm_sweep.json]

Weights are random, the classes five, the images square, of the smallest size from --least on that the architecture
takes. The step is one of edgetl's own loop (AdamW, cross-entropy); what is exported is that network, its batch norms
settled on coloured squares and its head scaled to logits of about 10. Features and logits are compared on noise, at
batch sizes 1 and 5; the difference is given as a share of the greatest value. Each architecture runs in a process of
its own, one at a time; one that crashes, or for which memory or ONNX does not suffice, is a row that says so. A
markdown table of the same name is written beside FILE.json. With --timm the same for one model of fewer than 30 million
parameters from each file of timm, at 96 px where the size is free.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from edgetl import rundir
from edgetl.bench.environment import load_average

CLASSES, BATCH, LEAST = 5, 2, 32
LIMIT_S = 1800.0
TIMM_PARAMETERS, TIMM_SIZE, TIMM_TRIES = 30_000_000, 96, 12
LITTLE = ("atto", "femto", "pico", "nano", "zepto", "tiny", "xxs", "small", "mini", "18", "26", "050")
# Weights, gradients, AdamW's two moments and the exporter's copies, as multiples of the weights; and what torch and
# its kernels take before any weight.
MEMORY_FACTOR, MEMORY_BASE = 6, 1 << 30


@dataclass
class OneBatch:
    """A loader of one batch of noise, for the training loop."""

    batch: Any
    steps: int = 1

    def epoch(self, epoch: int, first: int) -> Iterator[Any]:
        """The batch."""
        yield self.batch


def smallest(variant: str, least: int = LEAST) -> int:
    """Side of the smallest images from `least` on that an architecture takes."""
    from edgetl.errors import EdgetlError
    from edgetl.models import torchvision as zoo

    name, published = zoo.named(variant)
    for size in range(least, 1025):
        try:
            zoo.require_size(name, size, published)
        except EdgetlError:
            continue
        return size
    raise SystemExit(f"{variant} takes no image of up to 1024 px.")


def trained_once(network: Any, size: int) -> float:
    """Loss of the one training step that the network makes; its head must have moved."""
    import torch

    from edgetl.losses import parse
    from edgetl.recipe import Finetune
    from edgetl.train.loader import Batch
    from edgetl.train.loop import Fit, Precision, Score
    from edgetl.train.task import ClassifierTask

    noise = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 3, size, size, generator=noise) * 255
    labels = torch.arange(BATCH) % CLASSES
    batch = Batch(images, labels, torch.nn.functional.one_hot(labels, CLASSES).float(), torch.arange(BATCH))
    options = Finetune(data="noise", teacher=network.model, out="none", epochs=1, ema=0.0)
    head = network.module.get_submodule(network.head).weight
    before = head.detach().clone()
    with tempfile.TemporaryDirectory() as folder:
        fit = Fit(ClassifierTask(network, parse(["labels"])), OneBatch(batch), lambda _: Score(0.0, 0.0), options,
                  Path(folder), Precision(torch.device("cpu"), None), lambda _: None, "sweep", {})
        fit.task.train_mode()
        fit._step(batch)
    if torch.equal(before, head.detach()):
        raise SystemExit("The step left the head as it was.")
    return fit.progress.sums["loss"] / BATCH


def pictures(count: int, size: int, seed: int) -> np.ndarray:
    """Images [count, 3, size, size] of coloured squares under some noise.

    Of noise alone all images look alike to a network; batch norms would blow up the little that tells them apart.
    """
    chance = np.random.default_rng(seed)
    coarse, place = chance.standard_normal((count, 3, 4, 4)), np.arange(size) * 4 // size
    fine = chance.standard_normal((count, 3, size, size))
    return (coarse[:, :, place][:, :, :, place] + 0.3 * fine).astype(np.float32)


def settle(network: Any, size: int) -> None:
    """Makes the random network's answers worth comparing: logits up to 10, which lean on every layer.

    Batch norms that have seen no image let activations fade or grow from layer to layer, until a logit is all bias.
    """
    import torch
    from torch import nn

    count = 32 if size <= 128 else 8  # the fewer pixels a map has left, the more images its statistics need
    images = torch.from_numpy(pictures(count, size, seed=1))
    module, head = network.module, network.module.get_submodule(network.head)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None  # the mean over what was seen
    with torch.no_grad():
        module.train()
        module(images)
        head.weight.mul_(10 / float(module.eval()(images).abs().max()))
        if head.bias is not None:
            head.bias.zero_()


def measure(model: str, size: int | None) -> dict[str, Any]:
    """One row: a model built, trained for a step and exported, in this process.

    Raises:
        EdgetlError: the model cannot be built or exported; its sentence is the row.
    """
    import onnx
    import torch

    from edgetl import models, timing, weights
    from edgetl.export import graph
    from edgetl.runtime.session import usable_threads

    torch.set_num_threads(usable_threads())
    torch.manual_seed(0)
    network, build_s = timing.timed(lambda: models.create(model, classes=CLASSES, pretrained=False, image_size=size))
    row = {"size": network.preprocess.size_hw[0], "parameters": weights.parameter_count(network.module),
           "head": network.head, "build_s": build_s}
    need, free = MEMORY_FACTOR * 4 * row["parameters"] + MEMORY_BASE, psutil.virtual_memory().available
    if need > free:
        return row | {"why_not": f"Needs about {need / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free."}
    loss, train_s = timing.timed(lambda: trained_once(network, row["size"]))
    settle(network, row["size"])
    exported, export_s = timing.timed(
        lambda: graph.export(network, [str(one) for one in range(CLASSES)], with_features=True))
    proof = exported.parity
    return row | {
        "loss": loss, "train_s": train_s, "export_s": export_s, "exporter": exported.exporter,
        "reason": exported.reason, "nodes": len(onnx.load_from_string(exported.graph).graph.node),
        "graph_bytes": len(exported.graph), "features": exported.spec.outputs[1].shape[1],
        "difference": proof.difference / proof.scale,
        "features_difference": proof.features.difference / proof.features.scale if proof.features else None,
    }


def alone(model: str, size: int | None = None, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """The same in a fresh process; whatever ends it is told in `why_not`."""
    command = [sys.executable, __file__, "--one", model, *(["--size", str(size)] if size else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"model": model, "why_not": f"Not done after {limit_s:.0f} s."}
    lines = done.stdout.splitlines()
    if done.returncode < 0:
        return {"model": model, "why_not": f"The process was ended by signal {-done.returncode}."}
    if done.returncode or not lines:
        last = (done.stderr.strip() or "It said nothing.").splitlines()[-1]
        return {"model": model, "why_not": f"The process failed: {last}"}
    return {"model": model, **json.loads(lines[-1])}


def one(model: str, size: int | None) -> None:
    """Prints the row of one model as a line of json."""
    from edgetl.allocator import set_allocator
    from edgetl.errors import EdgetlError

    set_allocator()
    try:
        row = measure(model, size)
    except EdgetlError as problem:
        row = {"why_not": problem.message}
    print(json.dumps(row))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in markdown."""
    lines = ["| model | px | parameters | exporter | nodes | features | greatest difference | step s | export s |",
             "|---|---:|---:|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        name = f"| {row['model']} | {row.get('size', '')} | {millions(row)} |"
        if "why_not" in row:
            lines.append(f"{name} {row['why_not']} |  |  |  |  |  |")
            continue
        differences = [row["difference"], row["features_difference"] or 0.0]
        lines.append(f"{name} {row['exporter']} | {row['nodes']} | {row['features']} | {max(differences):.1e} | "
                     f"{row['train_s']:.2f} | {row['export_s']:.1f} |")
    return "\n".join(lines)


def millions(row: dict[str, Any]) -> str:
    """The parameters for people."""
    return f"{row['parameters'] / 1e6:.1f} M" if "parameters" in row else ""


def write(out: Path, rows: Sequence[dict[str, Any]], text: str, title: str, **more: Any) -> None:
    """Writes the rows as json, and the same as a markdown table beside it."""
    rundir.write_json(out, {"rows": list(rows), **more, "environment": rundir.environment()})
    rundir.write_text(out.with_suffix(".md"), f"# {title}\n\n{text}\n")


def of_timm(modules: Sequence[str] = ()) -> list[tuple[str, int | None]]:
    """One architecture for each file of timm, with its size: the first below TIMM_PARAMETERS, short names first.

    Where the architecture is built for one size, that is left to it.
    """
    import timm
    import torch

    chosen: list[tuple[str, int | None]] = []
    for module in modules or timm.list_modules():
        names = [name for name in timm.list_models(module=module) if not name.startswith("test_")]
        names.sort(key=lambda name: (not any(word in name for word in LITTLE), len(name), name))
        for name in names[:TIMM_TRIES]:
            with torch.device("meta"):
                try:
                    made = timm.create_model(name, num_classes=CLASSES)
                except (NotImplementedError, RuntimeError):  # reads values while it is built
                    continue
            if sum(one.numel() for one in made.parameters()) < TIMM_PARAMETERS:
                fixed = bool(timm.models.get_pretrained_cfg_value(name, "fixed_input_size"))
                chosen.append((f"timm/{name}", None if fixed else TIMM_SIZE))
                break
    return chosen


def sweep(models: Sequence[tuple[str, int | None]]) -> list[dict[str, Any]]:
    """A row for each model with the size of its images, told as it comes."""
    rows = []
    for model, size in models:
        row = alone(model, size)
        rows.append(row)
        print(row["model"], row.get("why_not") or f"{row['difference']:.1e} of the greatest logit", flush=True)
    return rows


def wanted(asked: argparse.Namespace) -> list[tuple[str, int | None]]:
    """The models that were asked for, with the sizes of their images."""
    names = asked.models.split(",") if asked.models else []
    if asked.timm:
        return of_timm(names)
    from edgetl.models import torchvision as zoo

    return [(f"torchvision/{name}", smallest(name, asked.least)) for name in names or zoo.variants()]


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="names, separated by commas (default: all)")
    parser.add_argument("--least", type=int, default=LEAST)
    parser.add_argument("--timm", action="store_true", help="one model for each file of timm; --models names files")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.one:
        one(asked.one, asked.size)
        return
    busy = load_average()
    rows = sweep(wanted(asked))
    print(table(rows))
    if asked.out is not None:
        library = "timm" if asked.timm else "torchvision"
        write(asked.out, rows, table(rows), f"Classifiers of {library} through edgetl", classes=CLASSES, batch=BATCH,
              load_average=busy)


if __name__ == "__main__":
    main()
