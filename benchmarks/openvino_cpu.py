"""`openvino` against `cpu` in one run: ONNX Runtime and OpenVINO on the same graphs, fp32 and INT8, one thread.

python benchmarks/openvino_cpu.py --out benchmarks/results/openvino_cpu.json
    [--bundle BUNDLE...] [--data D] [--image-size 128] [--rounds 12] [--calls 300] [--arrival back-to-back,10ms]

Without --bundle, the graphs are EfficientNet-Lite0, a slim:0.4 of it and MobileNetV2 with random weights, whose INT8
graphs have the form that the export gives them for this machine; with it, the variants of bundles that name both
backends.

In every round each side measures its graph once in a fresh process, in random order: warm-up, then a block of so many
calls. The ratio is the median time of `openvino` by that of `cpu`, with a bootstrap interval over the rounds. It is
slower where it takes 3 % longer or more, which is what `edgetl tune` calls slower, and the whole interval is above 1.
Where the processor computes in bf16, each fp32 graph has one more row, with `openvino` in bf16.

With --data, both backends answer the test split, and may lie 0.3 points apart in accuracy, bf16 too; without, they
answer random images, and the agreement is told.

Exit code 0: nowhere slower, and as right; 3: somewhere slower or less right; 4: somewhere too much noise to say.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import stopwatch

from edgetl import plugins, recipe, rundir
from edgetl.bench import cases, exam, phases, stats
from edgetl.bench.cases import Case, Subject
from edgetl.bench.environment import load_average
from edgetl.bench.selection import FASTER_BY
from edgetl.bench.trial import Trial
from edgetl.events import ignore
from edgetl.runtime import processor
from edgetl.runtime.session import open_session
from edgetl.timing import DROPPED

CPU, OPENVINO, BF16 = "cpu", "openvino", "bf16"
PANEL = {"EfficientNet-Lite0": "efficientnet-lite/efficientnet_lite0", "slim:0.4": "slim:0.4",
         "MobileNetV2": "torchvision/mobilenet_v2"}
CLASSES, CALIBRATION, IMAGES = 10, 16, 64
MOST_POINTS = 0.3  # that the accuracies of the two may lie apart
SLOWER, UNDECIDED, NOT_SLOWER = "slower", "not sure", "not slower"
EXIT = {NOT_SLOWER: 0, SLOWER: 3, UNDECIDED: 4}


@dataclasses.dataclass(frozen=True)
class Graph:
    """One graph with a subject for each way to run it, the first of which the others are held against."""

    name: str
    precision: str
    ways: Mapping[str, Subject]


# -------------------------------------------------------------------------------------------------------------- graphs


def of_bundles(bundles: Sequence[str]) -> Iterator[Graph]:
    """The fp32 and INT8 variants of bundles that name both backends."""
    for path in bundles:
        found: dict[str, dict[str, Subject]] = {}
        for case in cases.find(recipe.Bench(cases=(path,), out="none", backend=(CPU, OPENVINO))):
            found.setdefault(str(case.subject.variant), {})[case.subject.backend] = case.subject
        for variant, ways in found.items():
            precision = str(next(iter(ways.values())).precision)
            if set(ways) == {CPU, OPENVINO} and precision in ("fp32", "int8"):
                yield graph(f"{Path(path).name} {variant}", precision, ways)


def graph(name: str, precision: str, ways: Mapping[str, Subject]) -> Graph:
    """With OpenVINO in bf16 as a third way, where the graph is fp32 and the processor has it."""
    if precision == "fp32" and processor.accelerates(BF16):
        # The backend computes in the precision that the spec names.
        spec = dataclasses.replace(ways[OPENVINO].spec, precision=BF16)
        ways = {**ways, BF16: dataclasses.replace(ways[OPENVINO], spec=spec, precision=BF16)}
    return Graph(name, precision, ways)


def of_panel(size: int, folder: Path) -> Iterator[Graph]:
    """The panel with random weights, as fp32 and as the INT8 that the export makes for this machine."""
    import torch

    from edgetl import models
    from edgetl.compress import prune
    from edgetl.export import graph as exporting

    teacher = None
    for name, model in PANEL.items():
        torch.manual_seed(0)
        if model.startswith("slim:"):
            assert teacher is not None  # the panel begins with it
            network = prune.slim(teacher, float(model.removeprefix("slim:"))).network
        else:
            network = models.create(model, classes=CLASSES, pretrained=False, image_size=size)
            settle(network.module, size)
        teacher = teacher or network
        exported = exporting.export(network, [str(one) for one in range(CLASSES)])
        for precision, data in (("fp32", exported.graph), ("int8", rounded(exported.graph, network.preprocess))):
            file = folder / f"{name.replace(':', '-')}.{precision}.onnx"
            file.write_bytes(data)
            spec = dataclasses.replace(exported.spec, precision=precision)
            yield graph(f"{name} {precision}", precision, {
                backend: Subject(f"{name} {precision} {backend}", file, "onnx", backend, file, spec,
                                 precision=precision) for backend in (CPU, OPENVINO)})


def settle(module: Any, size: int) -> None:
    """Batch norms' statistics from random images: else activations grow or vanish with the depth."""
    import torch

    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    module.train()
    with torch.no_grad():
        module(torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(0)))
    module.eval()


def rounded(source: bytes, wanted: Any) -> bytes:
    """The INT8 graph for the target of this machine, calibrated on random pictures by the cheapest method."""
    from PIL import Image

    from edgetl.compress import calibrate, quantize
    from edgetl.datasets import Item

    def picture(item: Item) -> bytes:
        coarse = np.random.default_rng(item.label).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize(wanted.size_hw[::-1], Image.Resampling.BICUBIC).save(buffer, "PNG")
        return buffer.getvalue()

    # Compensated rounding would take minutes for the same kernels.
    scheme = {**plugins.load("targets", target()).TARGET.quantize, "rounding": "nearest"}
    reader = calibrate.Reader([Item(str(one), one) for one in range(CALIBRATION)], picture, wanted)
    return quantize.quantize(source, scheme, reader, method=scheme["methods"][0]).graph


def target() -> str:
    """The target of this processor's INT8 graphs."""
    if processor.read().architecture == "arm":
        return "arm"
    return "x86-avx2" if processor.missing(("vnni",)) else "x86-vnni"


# ----------------------------------------------------------------------------------------------------------- measuring


def measured(one: Graph, arrival: str, rounds: int, calls: int, order: np.random.Generator) -> dict[str, np.ndarray]:
    """Seconds [rounds, calls] of each way, every round in fresh processes and in random order."""
    found: dict[str, list[tuple[float, ...]]] = {way: [] for way in one.ways}
    options = stopwatch.options([], CPU, arrival, calls)
    for _ in range(rounds):
        for place in order.permutation(len(one.ways)):
            way = list(one.ways)[place]
            trial = Trial(case_of(one, way, arrival), options)
            try:
                trial.start(keep=True)
                trial.warm_up()
                trial.block()
            finally:
                trial.close()
            if not trial.alive:
                raise SystemExit(f"{one.name} on {way}: {trial.reason}")
            found[way].append(trial.measurement().seconds)
    return {way: np.array(seconds) for way, seconds in found.items()}


def case_of(one: Graph, way: str, arrival: str) -> Case:
    """One thread, one image a call."""
    return Case(f"{one.name} {way}", one.ways[way], 1, 1, None if arrival == stopwatch.BACK_TO_BACK else arrival)


def verdict(base: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """How many times as long the other takes, with its interval, and whether that is slower.

    Args:
        base: seconds [rounds, calls] on `cpu`.
        other: of the same rounds.
    """
    found = stats.speedup(other, base, seed=0)
    assert found.low is not None and found.high is not None
    said = UNDECIDED
    if found.high < FASTER_BY or found.value <= 1:
        said = NOT_SLOWER
    elif found.value >= FASTER_BY and found.low > 1:
        said = SLOWER
    return {"cpu_s": float(np.median(base)), "openvino_s": float(np.median(other)), "ratio": found.value,
            "ratio_low": found.low, "ratio_high": found.high, "verdict": said,
            "cpu_rounds_s": np.median(base, axis=1).tolist(), "openvino_rounds_s": np.median(other, axis=1).tolist()}


def answers(graphs: Sequence[Graph], data: str | None) -> list[dict[str, Any]]:
    """How right each way of each graph is, and how often it says the same as `cpu`."""
    return graded(graphs, data) if data is not None else agreed(graphs)


def graded(graphs: Sequence[Graph], data: str) -> list[dict[str, Any]]:
    """Accuracy on the test split, by the very machinery of `edgetl bench`."""
    options = recipe.Bench(cases=(), out="none", data=data)
    trials = {(one.name, way): Trial(case_of(one, way, stopwatch.BACK_TO_BACK), options)
              for one in graphs for way in one.ways}
    paper = exam.prepare(options, [trial.case for trial in trials.values()], ignore)
    assert paper is not None  # there are data
    rows = []
    for one in graphs:
        ours = [trials[one.name, way] for way in one.ways]
        with phases.closing(ours):
            for trial in ours:
                trial.start(keep=True)
            phases.examine(ours, paper, ignore, "answers")
        base = ours[0].answers
        for way, trial in zip(one.ways, ours, strict=True):
            if trial.answers is None or base is None:
                raise SystemExit(f"{one.name} on {way}: {trial.no_answers or trial.reason}")
            found = exam.grade(trial.answers, base, trial.case.subject.labels or ())
            points = 100 * (trial.answers.accuracy - base.accuracy)
            rows.append({"graph": one.name, "way": way, "accuracy": trial.answers.accuracy, "n": trial.answers.n,
                         "agreement": found.agreement, "points": points, "right": abs(points) <= MOST_POINTS})
    return rows


def agreed(graphs: Sequence[Graph]) -> list[dict[str, Any]]:
    """The share of random images with the same answer, and how far apart the logits are."""
    rows = []
    for one in graphs:
        base: np.ndarray | None = None
        for way, subject in one.ways.items():
            session = open_session(subject.backend, graph_bytes(subject), subject.spec, threads=1)
            (name,), shape = [port.name for port in subject.spec.inputs], subject.spec.inputs[0].shape[1:]
            images = np.random.default_rng(1).standard_normal((IMAGES, *map(int, shape)), dtype=np.float32)
            logits = np.concatenate([session.run({name: images[place:place + 1]})[subject.spec.outputs[0].name]
                                     for place in range(IMAGES)])
            session.close()
            base = logits if base is None else base
            rows.append({"graph": one.name, "way": way, "n": IMAGES, "random_images": True,
                         "agreement": float((logits.argmax(1) == base.argmax(1)).mean()),
                         "greatest_difference": float(np.abs(logits - base).max() / np.abs(base).max())})
    return rows


def graph_bytes(subject: Subject) -> bytes:
    """The graph, out of a packed bundle too."""
    begin, size = subject.within or (0, subject.size_bytes)
    return subject.graph.read_bytes()[begin:begin + size]


# ------------------------------------------------------------------------------------------------------------- telling


def outcome(rows: Sequence[Mapping[str, Any]], answered: Sequence[Mapping[str, Any]]) -> int:
    """The exit code."""
    said = {str(row["verdict"]) for row in rows}
    if SLOWER in said or not all(row.get("right", True) for row in answered):
        return EXIT[SLOWER]
    return EXIT[UNDECIDED] if UNDECIDED in said else EXIT[NOT_SLOWER]


def line(row: Mapping[str, Any]) -> str:
    """A row for the terminal."""
    return (f"{row['graph']:32} {row['way']:9} {row['arrival']:13} {row['cpu_s'] * 1e3:8.3f} ms "
            f"{row['openvino_s'] * 1e3:8.3f} ms  ratio {row['ratio']:.3f} [{row['ratio_low']:.3f}, "
            f"{row['ratio_high']:.3f}]  {row['verdict']}")


def main() -> int:
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", nargs="+", default=[])
    parser.add_argument("--data")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--arrival", default=f"{stopwatch.BACK_TO_BACK},10ms")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.data is not None and not asked.bundle:
        parser.error("--data needs --bundle: the panel's weights are random")
    busy, core, order = load_average(), stopwatch.bind(), np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="edgetl-openvino-") as folder:
        graphs = list(of_bundles(asked.bundle) if asked.bundle else of_panel(asked.image_size, Path(folder)))
        answered = answers(graphs, asked.data)
        print(json.dumps(answered, indent=1))
        for arrival in asked.arrival.split(","):
            for one in graphs:
                seconds = measured(one, arrival, asked.rounds, asked.calls, order)
                for way in list(one.ways)[1:]:
                    rows.append({"graph": one.name, "precision": one.precision, "way": way, "arrival": arrival,
                                 **verdict(seconds[CPU], seconds[way])})
                    print(line(rows[-1]), flush=True)
    if asked.out is not None:
        rundir.write_json(asked.out, {
            "slower_from": FASTER_BY, "most_points": MOST_POINTS, "rounds": asked.rounds, "calls": asked.calls,
            "dropped": DROPPED, "image_size": None if asked.bundle else asked.image_size, "core": core, "rows": rows,
            "answers": answered, "exit": outcome(rows, answered), "load_average": busy,
            "features": list(processor.features()), "environment": rundir.environment()})
    return outcome(rows, answered)


if __name__ == "__main__":
    sys.exit(main())
