"""What INT8 costs in accuracy: edgetl's variants beside ONNX Runtime's and NNCF's quantizers, on trained models.

    python benchmarks/quantize_accuracy.py --work DIR [--clothing FOLDER] [--cifar FOLDER --cifar-weights FOLDER]
        [--fashion FOLDER] [--squeezenet FILE.pkl] [--peer-python PATH] [--models lite0,slim,...] [--run NAME=RUN]...
        [--targets x86-vnni] [--tools ort-default,ort-best,nncf,nncf-mixed] [--out results/quantize_accuracy.json]

Models: lite0, lite2 (EfficientNet-Lite), slim (cut out of lite0) and squeezenet1_1 on photos of clothing;
cifar_resnet20 and cifar_resnet56 with their published weights; mobilenet_v2, mobilenet_v3_small and resnet18 trained on
Fashion-MNIST at 64 px. Trainings that are needed are RUNs kept in --work; `--run lite0=RUN` takes one that is there.
FOLDERs: that of clothing has train, val and test; `cifar` and `cifar-weights` as in `cifar_anchor.py`; `fashion` holds
the four idx files; the weights of SqueezeNet come from the source package ndf 0.1.4.

Every tool rounds the very fp32 graph of the bundle with the very calibration images that edgetl's export chose, which
are training images. All graphs answer the whole test split on each backend, and are held against fp32 on the same
images: points lost with the paired 95 % interval, and agreement. edgetl's variants were chosen on the validation split;
what it made but does not take as its default (slower, or outside --max-drop on validation) is a row too.

A model's figures are written when it is done, and a second call goes on with the next. Exit code 3 where edgetl's
default loses more than --max-drop points of test accuracy, or its INT8 does not lose less than `quantize_static` with
its defaults on a model on which that loses for sure.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openvino_cpu
import quantize_models
import quantize_peers

import edgetl
from edgetl import evaluate, rundir, weights
from edgetl.compress import quantize
from edgetl.errors import EdgetlError, GateFailed
from edgetl.export import private
from edgetl.runtime import processor
from edgetl.runtime.bundle import Bundle, open_bundle
from edgetl.runtime.manifest import Variant
from edgetl.runtime.session import GraphSpec, open_session

BACKENDS = ("cpu", "openvino")
OWN, DEFAULT_PEER = "edgetl", "ort-default"
INT8 = "int8"
RESULT = "accuracy.json"


@dataclasses.dataclass(frozen=True)
class Graph:
    """A graph to be judged."""

    tool: str  # "edgetl", or a peer
    variant: str
    data: bytes
    spec: GraphSpec
    backends: tuple[str, ...]


def main() -> int:
    """Judges what is lacking, prints and writes what there is."""
    options = parsed()
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        kept = options.work / name / RESULT
        if options.again or not kept.is_file():
            rundir.write_json(kept, judged(options, name))
        print("\n".join(lines(rundir.read_json(kept, EdgetlError))), flush=True)
        written(options)
    return 0 if all(one["holds"] for one in recorded(options)) else 3


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    for name in ("clothing", "cifar", "cifar-weights", "fashion", "squeezenet"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--models", type=listed, default=list(quantize_models.MODELS))
    parser.add_argument("--run", action="append", default=[], help="NAME=RUN: a model that is trained already")
    parser.add_argument("--targets", type=listed, default=[openvino_cpu.target()])
    parser.add_argument("--tools", type=listed, default=list(quantize_peers.TOOLS))
    parser.add_argument("--peer-python", type=Path, help="interpreter that has NNCF (default: this one)")
    parser.add_argument("--calibration-images", type=int, default=256)
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, help="of each training (default: the model's own)")
    parser.add_argument("--limit", type=int, help="judge so many test images only, to try the script")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="judge what was judged before, too")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.run = dict(one.partition("=")[::2] for one in options.run)
    unknown = sorted({*options.models, *options.run} - set(quantize_models.MODELS))
    if unknown:
        parser.error(f"unknown models {unknown}; there are {', '.join(quantize_models.MODELS)}")
    lacking = quantize_models.missing(options, options.models)
    if lacking:
        parser.error(f"these models need {', '.join('--' + one.replace('_', '-') for one in lacking)}")
    return options


def listed(text: str) -> list[str]:
    """Names between commas."""
    return text.split(",")


# ------------------------------------------------------------------------------------------------------------ one model


def judged(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """A model's row: fp32, edgetl's variants and what each tool made, on the test images."""
    run = quantize_models.run_of(options, name)
    source = quantize_models.source(options, quantize_models.MODELS[name].data)
    bundle = open_bundle(exported(options, run, source, options.work / name / "bundle"))
    record = weights.read_record(run)
    work = quantize_peers.workload(source, record["data"].get("rule"), options.calibration_images)
    peers = peers_of(options, bundle, work, options.work / name)
    items = work.parts.test[: options.limit]
    graphs = [*own_graphs(bundle), *(graph_of(one, bundle) for one in peers if one.graph is not None)]
    answers = {
        (one.tool, one.variant, backend): answered(options, one, backend, work, items, bundle)
        for one in graphs
        for backend in BACKENDS
        if backend in one.backends
    }
    rows = [
        compared(one, backend, answers, bundle) for one in graphs for backend in BACKENDS if backend in one.backends
    ]
    made = {
        "model": name,
        "architecture": record["model"],
        "data": work.data.name,
        "images": len(items),
        "image_points": 100 / len(items),
        "size_hw": list(bundle.manifest.preprocess.size_hw),
        "calibration_images": len(work.calibration),
        "default": bundle.manifest.variants[0].name,
        "rejected": [one["sentence"] for one in bundle.manifest.provenance.get("rejected", ())],
        "rungs": {one.name: one.calibration["rungs"] for one in bundle.manifest.variants if one.calibration},
        "tools": {one.tool: {"seconds": one.seconds, "reason": one.reason, **one.told} for one in peers},
        "rows": rows,
    }
    return {**made, **verdict(made, options.max_drop)}


def exported(options: argparse.Namespace, run: Path, source: str, out: Path) -> Path:
    """The bundle, made by edgetl's own export."""
    if not out.exists():
        try:
            edgetl.export(
                run=run,
                data=source,
                out=out,
                target=options.targets,
                max_drop=options.max_drop,
                calibration_images=options.calibration_images,
                threads=options.threads,
            )
        except GateFailed:  # the bundle is there without what is outside the limits, and its manifest says so
            if not out.exists():
                raise
    return out


def peers_of(
    options: argparse.Namespace, bundle: Bundle, work: quantize_peers.Workload, folder: Path
) -> list[quantize_peers.Peer]:
    """What the other tools make of the bundle's fp32 graph."""
    fp32 = quantize_peers.fp32_of(bundle)
    images = quantize_peers.calibration_file(work, bundle.manifest.preprocess, folder)
    graph = bundle.path / fp32.file
    return quantize_peers.made(options.tools, graph, images, fp32.inputs[0].name, folder / "peers", options.peer_python)


def own_graphs(bundle: Bundle) -> list[Graph]:
    """The variants of the bundle, fp32 first."""
    order = sorted(bundle.manifest.variants, key=lambda one: one.precision != "fp32")
    return [Graph(OWN, one.name, read(bundle, one), spec_of(one), one.backends) for one in order]


def graph_of(peer: quantize_peers.Peer, bundle: Bundle) -> Graph:
    """A tool's graph, which has the inputs and outputs of fp32."""
    assert peer.graph is not None
    spec = dataclasses.replace(spec_of(quantize_peers.fp32_of(bundle)), precision=INT8)
    return Graph(peer.tool, INT8, peer.graph.read_bytes(), spec, BACKENDS)


def read(bundle: Bundle, variant: Variant) -> bytes:
    """The graph, whose digest is compared."""
    return bytes(bundle.read(variant.file, variant.sha256, variant.size_bytes))


def spec_of(variant: Variant) -> GraphSpec:
    """What a session is opened with."""
    return GraphSpec(variant.inputs, variant.outputs, variant.precision)


def answered(
    options: argparse.Namespace,
    one: Graph,
    backend: str,
    work: quantize_peers.Workload,
    items: Sequence[Any],
    bundle: Bundle,
) -> evaluate.Evaluation:
    """What a graph answers on the test images."""
    session = open_session(backend, one.data, one.spec, threads=options.threads)
    try:
        predict = evaluate.session_predict(session, image=one.spec.inputs[0].name, logits=one.spec.outputs[0].name)
        classes = len(bundle.manifest.labels)
        return evaluate.evaluate(predict, items, work.data.read, bundle.manifest.preprocess, classes=classes)
    finally:
        session.close()


def compared(
    one: Graph, backend: str, answers: Mapping[tuple[str, str, str], evaluate.Evaluation], bundle: Bundle
) -> dict[str, Any]:
    """A row: how right a graph is on a backend, and against fp32 there."""
    own = answers[one.tool, one.variant, backend]
    reference = answers[OWN, quantize_peers.fp32_of(bundle).name, backend]
    kept = ("n", "correct", "accuracy", "accuracy_low", "accuracy_high")
    return {
        "tool": one.tool,
        "variant": one.variant,
        "backend": backend,
        **{name: getattr(own, name) for name in kept},
        "against_fp32": dataclasses.asdict(evaluate.compare(own, reference)),
        "size_bytes": len(one.data),
        "kernels": quantize.fused(one.data) if backend == "cpu" else None,
    }


def verdict(made: Mapping[str, Any], max_drop: float) -> dict[str, Any]:
    """Whether the default keeps its budget, and whether INT8 loses less than `quantize_static` where that loses."""
    rows = [one for one in made["rows"] if one["backend"] == "cpu"]
    drops = {(one["tool"], one["variant"]): one["against_fp32"] for one in rows}
    own = [found for (tool, variant), found in drops.items() if tool == OWN and variant != "fp32"]
    default = drops.get((OWN, made["default"]))
    within = default is None or default["drop_points"] <= max_drop + 1e-9
    peer = drops.get((DEFAULT_PEER, INT8))
    loses = peer is not None and peer["drop_low"] > 0
    beaten = None
    if loses and own:
        beaten = min(one["drop_points"] for one in own) < peer["drop_points"]
    return {"within": within, "quantize_static_loses": loses, "beaten": beaten, "holds": within and beaten is not False}


# -------------------------------------------------------------------------------------------------------------- telling


def recorded(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows that there are, also those of earlier calls."""
    kept = [options.work / name / RESULT for name in quantize_models.MODELS]
    return [rundir.read_json(path, EdgetlError) for path in kept if path.is_file()]


def written(options: argparse.Namespace) -> None:
    """Writes all rows with the machine beside them, where that was asked for."""
    if options.out is not None:
        rows = recorded(options)
        shown = private.without_folders(
            {"max_drop": options.max_drop, "features": list(processor.features()), "models": rows}
        )
        rundir.write_json(options.out, {**shown, "environment": rundir.environment()})


def lines(row: Mapping[str, Any]) -> list[str]:
    """A model in words."""
    head = f"{row['model']} on {row['data']}, {row['images']} test images; the default is {row['default']}"
    told = [head, *row["rejected"]]
    for one in row["rows"]:
        found = one["against_fp32"]
        kernels = one["kernels"]
        nodes = "" if kernels is None else f"  {kernels['integer_nodes']} integer, {kernels['float_nodes']} float"
        told.append(
            f"  {one['tool']:12} {one['variant']:16} {one['backend']:9} {100 * one['accuracy']:6.2f} %  "
            f"{-found['drop_points']:+.2f} [{-found['drop_high']:+.2f}, {-found['drop_low']:+.2f}]  agreement "
            f"{100 * found['agreement']:6.2f} %{nodes}"
        )
    told += [f"  {tool}: {one['reason']}" for tool, one in row["tools"].items() if one["reason"]]
    said = "holds" if row["holds"] else "DOES NOT HOLD"
    return [*told, f"  {said}: within the budget {row['within']}, beats quantize_static {row['beaten']}"]


if __name__ == "__main__":
    sys.exit(main())
