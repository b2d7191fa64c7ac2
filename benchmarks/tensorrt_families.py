"""Every family of torchvision's classifiers as TensorRT engines: exported, halved, quantized, parsed and built.

python benchmarks/tensorrt_families.py [--models resnet18,vit_b_32] [--size 224]
    [--out benchmarks/results/tensorrt_families.json]

Needs TensorRT for RTX (tensorrt-rtx-cu13-bindings and -libs), but no driver and no card: the engines are built ahead of
time, for 8.6, 8.9 and 12.0 in one build, and for 7.5, which has no fp32 matrix products, in another where the graph is
based on fp16. The families are torchvision's own files; of each the architecture with the fewest parameters is taken,
and a second one where SECOND knows of another kind. Weights are random, images coloured squares of the size that the
published weights want; INT8 is what the target `tensorrt` says, rounded to the nearest step. Beside the engines of fp16
stands how far the graph answers from the fp32 one on this processor, as a share of the greatest logit. INT8 has no such
figure: random networks magnify what is rounded, and what it costs a trained one every export finds out on real images.
Whatever crashes is a row: graphs and engines are made in processes of their own. A markdown table of the same name is
written beside FILE.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torchvision_sweep as sweep

from edgetl.bench.environment import load_average
from edgetl.errors import BundleError, EdgetlError, GateFailed

# Another kind of network in the same file of torchvision: grouped convolutions, other blocks, other attention.
SECOND = {"resnet": "resnext50_32x4d", "efficientnet": "efficientnet_v2_s", "regnet": "regnet_x_400mf",
          "swin_transformer": "swin_v2_t", "mobilenetv3": "mobilenet_v3_large"}
PRECISIONS = ("fp32", "fp16", "int8")
TOGETHER, TURING = ("8.6", "8.9", "12.0"), ("7.5",)
CLASSES = sweep.CLASSES
CALIBRATION = 8  # images that calibrate INT8
GREATEST_BATCH = 8
LIMIT_S = 3600.0


def families() -> dict[str, tuple[str, ...]]:
    """Architectures that stand for each of torchvision's families, its smallest first."""
    from edgetl.models import torchvision as zoo

    members: dict[str, list[tuple[int, str]]] = {}
    for name in zoo.variants():
        _, published = zoo.named(name)
        members.setdefault(zoo.family(name), []).append((int(published.meta["num_params"]), name))
    chosen = {family: [min(found)[1], *([SECOND[family]] if family in SECOND else [])]
              for family, found in members.items()}
    return {family: tuple(dict.fromkeys(names)) for family, names in chosen.items()}


class Images:
    """Calibration images, as ONNX Runtime's quantizer asks for them."""

    def __init__(self, images: np.ndarray, name: str) -> None:
        self._images, self._name = images, name
        self.set_range(0, len(self))

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Goes back to image `start_index` and ends before `end_index`."""
        self._left = iter(self._images[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image by the graph's input name, or None at the end."""
        image = next(self._left, None)
        return None if image is None else {self._name: image[None]}


def graphs(model: str, size: int | None, folder: Path) -> dict[str, Any]:
    """Writes PRECISION.onnx for each precision, and tells of the model and of what each graph answers."""
    import torch

    from edgetl import models, weights
    from edgetl.export import graph
    from edgetl.runtime.session import usable_threads

    torch.set_num_threads(usable_threads())
    torch.manual_seed(0)
    network = models.create(model, classes=CLASSES, pretrained=False, image_size=size)
    side = network.preprocess.size_hw[0]
    sweep.settle(network, side)
    exported = graph.export(network, [str(one) for one in range(CLASSES)])
    parameters = weights.parameter_count(network.module)
    del network
    told: dict[str, Any] = {"size": side, "parameters": parameters, "exporter": exported.exporter, "graphs": {}}
    for precision in PRECISIONS:
        try:
            made = in_precision(exported.graph, precision, images(side), exported.spec.inputs[0].name)
        except EdgetlError as problem:
            told["graphs"][precision] = {"why_not": problem.message}
            continue
        (folder / f"{precision}.onnx").write_bytes(made)
        told["graphs"][precision] = {"graph_bytes": len(made)}
    return told


def images(size: int) -> np.ndarray:
    """Images [CALIBRATION, 3, size, size], the same ones each time."""
    return sweep.pictures(CALIBRATION, size, seed=2)


def in_precision(graph: bytes, precision: str, images: np.ndarray, name: str) -> bytes:
    """The fp32 graph as the target `tensorrt` wants it in a precision."""
    if precision == "fp32":
        return graph
    from edgetl import plugins
    from edgetl.export.half import to_half

    if precision == "fp16":
        return to_half(graph, "fp16").graph
    from edgetl.compress import quantize

    scheme = {**plugins.load("targets", "tensorrt").TARGET.quantize, "rounding": "nearest"}
    source = quantize.study(graph, Images(images, name), opset=scheme["opset"])
    return to_half(quantize.write(source, scheme, method="min-max").graph, scheme["remainder"]).graph


def difference(file: Path, size: int) -> dict[str, Any]:
    """How far a graph in half answers from fp32.onnx beside it; on the processor its twin answers in its place."""
    from edgetl.export.twin import open_judge

    logits = []
    for graph in (file, file.with_name("fp32.onnx")):
        spec = spec_of(size, graph.stem)
        session = open_judge(graph.read_bytes(), spec, threads=1)
        try:
            found = session.run({spec.inputs[0].name: images(size)[:2]})
            logits.append(found[spec.outputs[0].name].astype(np.float64))
        finally:
            session.close()
    return {"difference": float(np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max())}


def spec_of(size: int, precision: str) -> Any:
    """Input and output of the graphs."""
    from edgetl.export import graph
    from edgetl.runtime.preprocess import Preprocess

    return graph.spec_of(Preprocess(size_hw=(size, size)), CLASSES, precision)


def engine(file: Path, size: int, cards: Sequence[str]) -> dict[str, Any]:
    """What became of a graph whose file has the name of its precision: an engine for the cards, or one sentence."""
    from edgetl.backends import _tensorrt_build, _tensorrt_flavor

    spec = spec_of(size, file.stem)
    how = _tensorrt_build.How(batches=(1, 1, GREATEST_BATCH), compute_capabilities=tuple(cards))
    try:
        made = _tensorrt_build.build(file.read_bytes(), spec, _tensorrt_flavor.find("rtx"), how)
    except BundleError as problem:
        return {"parsed": False, "built": False, "why_not": problem.message}
    except (EdgetlError, GateFailed) as problem:
        return {"parsed": True, "built": False, "why_not": problem.message}
    return {"parsed": True, "built": True, "build_s": made.build_s, "engine_bytes": len(made.plan),
            "precisions": dict(made.precisions)}


def rows_of(family: str, name: str, size: int | None) -> list[dict[str, Any]]:
    """The rows of one architecture: each precision for the three newer cards, and what is based on fp16 for 7.5."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        asked = ["--graphs", f"torchvision/{name}", "--folder", folder, *(["--size", str(size)] if size else [])]
        told = in_process(asked)
        for precision in PRECISIONS:
            known = told.get("graphs", {}).get(precision, {"why_not": told.get("why_not", "No graph was made.")})
            row = {"family": family, "model": name, "size": told.get("size"), "parameters": told.get("parameters"),
                   "precision": precision, **known}
            on_file = [str(Path(folder) / f"{precision}.onnx"), "--size", str(row["size"])]
            if "why_not" not in row and precision == "fp16":
                compared = in_process(["--difference", *on_file])
                row |= {"difference": compared.get("difference"), "difference_why_not": compared.get("why_not")}
            for cards in (TOGETHER, *(() if precision == "fp32" else (TURING,))):
                found = {} if "why_not" in row else in_process(["--engine", *on_file, "--cards", ",".join(cards)])
                rows.append({**row, "cards": list(cards), "parsed": None, "built": False, **found})
    return rows


def in_process(arguments: Sequence[str]) -> dict[str, Any]:
    """What this script says in a process of its own; whatever ends it is told in `why_not`."""
    try:
        done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"why_not": f"Not done after {LIMIT_S:.0f} s."}
    lines = done.stdout.splitlines()
    if done.returncode < 0:
        return {"why_not": f"The process was ended by signal {-done.returncode}."}
    if done.returncode or not lines:
        return {"why_not": f"The process failed: {(done.stderr.strip() or 'it said nothing').splitlines()[-1]}"}
    told: dict[str, Any] = json.loads(lines[-1])
    return told


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in markdown."""
    lines = ["| family | model | px | precision | cards | parsed | built | s | MB | computes in | off fp32 by |",
             "|---|---|---:|---|---|---|---|---:|---:|---|---:|"]
    for row in rows:
        cells = [row["family"], row["model"], row["size"] or "", row["precision"], ", ".join(row["cards"]),
                 {True: "yes", False: "no", None: ""}[row["parsed"]], "yes" if row["built"] else "no"]
        if row["built"]:
            shares = ", ".join(f"{name} {share:.0%}" for name, share in row["precisions"].items())
            cells += [f"{row['build_s']:.1f}", f"{row['engine_bytes'] / 1e6:.1f}", shares,
                      row.get("difference_why_not") or (f"{row['difference']:.1e}" if "difference" in row else "")]
        else:
            cells += ["", "", row["why_not"].replace("|", "/"), ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def child(asked: argparse.Namespace) -> dict[str, Any]:
    """What one of the script's own processes was started for."""
    if asked.engine:
        return engine(asked.engine, asked.size, asked.cards.split(","))
    from edgetl.allocator import set_allocator

    set_allocator()
    try:
        if asked.difference:
            return difference(asked.difference, asked.size)
        return graphs(asked.graphs, asked.size, asked.folder)
    except EdgetlError as problem:
        return {"why_not": problem.message}


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="names, separated by commas (default: every family's)")
    parser.add_argument("--size", type=int, help="of the images, instead of the published weights' own")
    parser.add_argument("--out", type=Path)
    for hidden in ("--graphs", "--cards"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--difference", "--engine", "--folder"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.graphs or asked.engine or asked.difference:
        print(json.dumps(child(asked)))
        return
    from edgetl.backends import _tensorrt_flavor

    busy, flavor = load_average(), _tensorrt_flavor.find("rtx")
    wanted = asked.models.split(",") if asked.models else None
    rows: list[dict[str, Any]] = []
    for family, names in families().items():
        for name in (one for one in (names if wanted is None else wanted_of(family, wanted))):
            rows += rows_of(family, name, asked.size)
            built = sum(row["built"] for row in rows if row["model"] == name)
            print(f"{family}: {name}: {built} of {sum(row['model'] == name for row in rows)} built", flush=True)
    print(table(rows))
    if asked.out is not None:
        sweep.write(asked.out, rows, table(rows), "torchvision's families as TensorRT engines", flavor=flavor.title,
                    version=flavor.version, classes=CLASSES, batches=[1, 1, GREATEST_BATCH], load_average=busy)


def wanted_of(family: str, wanted: Sequence[str]) -> list[str]:
    """Those of the architectures asked for that are of a family."""
    from edgetl.models import torchvision as zoo

    return [name for name in wanted if zoo.family(name) == family]


if __name__ == "__main__":
    main()
