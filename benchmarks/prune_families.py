"""Which of torchvision's families can be cut: the smallest network of each, cut to 60 % of its parameters.

python benchmarks/prune_families.py [--only NAME,...] [--seconds 900] [--out benchmarks/results/prune_families.json]

Each family in a process of its own. A row is only "cut" where the cut network was built again from its file and answers
the same, took a training step that changed its weights and its loss, and was exported to ONNX with parity. Of every
family, cut or not, it is said how much of its work layers do that can have 2:4 sparsity. A table in Markdown is written
beside the JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
import torchvision

from edgetl import models, rundir, timing, weights
from edgetl.compress import cost, prune, sparsity
from edgetl.errors import EdgetlError
from edgetl.export import graph
from edgetl.models import Network

SHARE = 0.6
LABELS = ("a", "b", "c")
SIZES = {"maxvit": 224, "inception": 96}  # least sizes, in pixels; 64 for the others


def smallest() -> dict[str, str]:
    """The variant of each family with the fewest parameters."""
    from edgetl import plugins

    zoo = plugins.load("models", "torchvision")
    found: dict[str, list[tuple[int, str]]] = {}
    for variant in zoo.variants():
        published = torchvision.models.get_model_weights(variant).DEFAULT
        found.setdefault(zoo.family(variant), []).append((published.meta["num_params"], variant))
    return {family: min(variants)[1] for family, variants in sorted(found.items())}


def row_of(family: str, variant: str) -> dict:
    """What became of one network."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    size = SIZES.get(family, 64)
    network = models.create(f"torchvision/{variant}", classes=len(LABELS), pretrained=False, image_size=size)
    settle(network, size)
    row = {"family": family, "variant": variant, "image_size": size, "parameters": weights.parameter_count(
        network.module)}
    row |= sparse_part(network)
    begin_s = timing.now_s()
    # Within a tenth below: the search's last percent is no question of the architecture.
    close = dataclasses.replace(prune.parameters_of(network), tolerance=0.1, loose=0.2, trials=6)
    try:
        found = prune.slim(network, SHARE, importance="magnitude", size=close)
    except EdgetlError as problem:
        return {**row, "status": "refused", "reason": problem.message}
    cut = found.network
    settle(cut, size)
    total = cost.image_macs(network.module, (size, size))
    row |= {"kept": found.kept, "macs_kept": cost.image_macs(cut.module, (size, size)) / total,
            "cut_s": timing.now_s() - begin_s}
    row |= {"rebuilt_difference": rebuilt_difference(cut, size), **trained(cut, size)}
    made = graph.export(cut, LABELS)
    return {**row, "status": "cut", "graph_bytes": len(made.graph), "graph_macs": cost.graph_macs(made.graph),
            "torch_macs": cost.image_macs(cut.module, (size, size))}


def sparse_part(network: Network) -> dict:
    """How much of a network can be 2:4 sparse: layers, their share of the multiplications, and why others cannot."""
    masks = sparsity.masks_of(network)
    told = sparsity.described(network, masks)
    return {"sparse_layers": told["layers"], "sparse_macs_share": told["macs_share"],
            "dense_layers": dict(Counter(masks.left_out.values()))}


def settle(network: Network, size: int) -> None:
    """Gives batch norms the statistics of some noise: with none, logits of random weights overflow in deep networks."""
    for layer in network.module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None
    network.module.train()
    with torch.no_grad():
        network.module(torch.randn(8, 3, size, size))
    network.module.eval()


def rebuilt_difference(cut: Network, size: int) -> float:
    """Greatest difference of logits between a network and what is built from its file."""
    cut.module.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        weights.save(Path(folder), cut, {"labels": list(LABELS)})
        again = weights.load(Path(folder)).network.module
        images = torch.randn(2, 3, size, size)
        return float((again(images) - cut.module(images)).abs().max())


def trained(cut: Network, size: int) -> dict:
    """Losses on one batch before and after a small step of gradient descent on it."""
    images, labels = torch.randn(4, 3, size, size), torch.tensor([0, 1, 2, 0])
    cut.module.eval()  # no dropout, and batch norms as they are: the step alone makes the difference
    descent = torch.optim.SGD(cut.module.parameters(), lr=1e-3)
    seen = []
    for _ in range(2):
        descent.zero_grad()
        loss = torch.nn.functional.cross_entropy(cut.module(images), labels)
        loss.backward()
        seen.append(float(loss))
        descent.step()
    return {"loss_before": seen[0], "loss_after": seen[1]}


def in_its_own_process(family: str, variant: str, seconds: float) -> dict:
    """A row, also where the process dies or takes too long."""
    row = {"family": family, "variant": variant}
    command = [sys.executable, __file__, "--row", f"{family},{variant}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {**row, "status": "failed", "reason": f"took more than {seconds:g} s"}
    if done.returncode:
        return {**row, "status": "failed", "reason": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def markdown(rows: list[dict]) -> str:
    """The rows as a table."""
    lines = ["| family | network | px | 2:4 sparse can be | parameters | kept | multiplications kept | |",
             "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        if row["status"] == "cut":
            shares = f"{row['parameters']:,} | {row['kept']:.1%} | {row['macs_kept']:.1%} | cut"
        else:
            shares = f"{row.get('parameters', 0):,} | - | - | {row['status']}: {row['reason']}"
        sparse = f"{row['sparse_macs_share']:.0%}" if "sparse_macs_share" in row else "-"
        lines.append(f"| {row['family']} | {row['variant']} | {row.get('image_size', '-')} | {sparse} | {shares} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints a line for each family and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="families, separated by commas")
    parser.add_argument("--seconds", type=float, default=900.0, help="after which a family has failed")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(row_of(*options.row.split(","))))
        return
    wanted = options.only.split(",") if options.only else None
    rows = []
    for family, variant in smallest().items():
        if wanted is None or family in wanted:
            rows.append(in_its_own_process(family, variant, options.seconds))
            print(family, variant, rows[-1].get("kept", rows[-1].get("reason")), flush=True)
    if options.out is not None:
        rundir.write_json(options.out, {"share": SHARE, "environment": rundir.environment(), "rows": rows})
        rundir.write_text(options.out.with_suffix(".md"), markdown(rows))


if __name__ == "__main__":
    main()
