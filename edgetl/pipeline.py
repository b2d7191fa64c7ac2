"""The stages one after the other, for `edgetl run` and for Python; the only module that imports all of them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl import extras, rundir, weights
from edgetl.errors import EdgetlError, GateFailed, OutputError
from edgetl.events import Listener, ignore
from edgetl.ledger import Ledger
from edgetl.plan import FOLDERS, preflight, require_model, resolve, to_toml
from edgetl.recipe import Bench, Distill, Export, Finetune, Recipe
from edgetl.recipe_compare import Compare
from edgetl.recipe_compare_strategies import CompareStrategies
from edgetl.recipe_engine import Engine
from edgetl.recipe_file import parse_recipe, read_recipe
from edgetl.recipe_gate import RegressionGate
from edgetl.recipe_prune import Prune
from edgetl.recipe_quantize import Quantize
from edgetl.recipe_report import Report as Gallery
from edgetl.recipe_tune import Tune
from edgetl.signatures import built, shows
from edgetl.walker import Walker

if TYPE_CHECKING:
    from edgetl.bench.comparison import Comparison
    from edgetl.bench.gallery import Page
    from edgetl.bench.gate_verdict import Verdict
    from edgetl.bench.report import Report
    from edgetl.bench.tune import Tuning
    from edgetl.export.engines import Outcome as Built
    from edgetl.export.quantizing import Outcome as Quantized
    from edgetl.models import Network
    from edgetl.runtime.session import GraphSpec
    from edgetl.train.contest import Compared

@shows(Finetune)
def finetune(*, listener: Listener = ignore, **fields: Any) -> Path:
    """RUN folder of the fine-tuned teacher; `fields` are those of `recipe.Finetune` (`data`, `teacher`, `out`, ...).

    Raises:
        RecipeError: a field is unknown, missing or outside its limits; all problems at once.
        EdgetlError: whatever `edgetl finetune` would say.
    """
    return finetune_with(built(Finetune, fields, "finetune"), listener)


@shows(CompareStrategies)
def compare_strategies(*, listener: Listener = ignore, **fields: Any) -> Compared:
    """Which strategy of fine-tuning wins on the data; its `insist` turns one that failed into an error.

    `fields` are those of `recipe_compare_strategies.CompareStrategies`; errors as in `finetune`.
    """
    return compare_strategies_with(built(CompareStrategies, fields, "compare_strategies"), listener)


@shows(Distill)
def distill(*, listener: Listener = ignore, **fields: Any) -> Path:
    """RUN folder of the distilled student; `fields` are those of `recipe.Distill`; errors as in `finetune`."""
    return distill_with(built(Distill, fields, "distill"), listener)


@shows(Prune)
def prune(*, listener: Listener = ignore, **fields: Any) -> Path:
    """RUN folder of the pruned network; `fields` are those of `recipe_prune.Prune`; errors as in `finetune`."""
    return prune_with(built(Prune, fields, "prune"), listener)


@shows(Export)
def export(*, listener: Listener = ignore, **fields: Any) -> Path:
    """Folder of the bundle; `fields` are those of `recipe.Export`; errors as in `finetune`."""
    return export_with(built(Export, fields, "export"), listener)


@shows(Quantize)
def quantize(*, listener: Listener = ignore, **fields: Any) -> Quantized:
    """What became of a graph that edgetl need not have made; `fields` are those of `recipe_quantize.Quantize`."""
    return quantize_with(built(Quantize, fields, "quantize"), listener)


@shows(Engine)
def engine(*, listener: Listener = ignore, **fields: Any) -> Built:
    """What became of a TensorRT engine in a file; `fields` are those of `recipe_engine.Engine`; errors as there."""
    return engine_with(built(Engine, fields, "engine"), listener)


@shows(Bench)
def bench(*, listener: Listener = ignore, **fields: Any) -> Report:
    """The report; `fields` are those of `recipe.Bench`; errors as in `finetune`."""
    return bench_with(built(Bench, fields, "bench"), listener)


@shows(Tune)
def tune(*, listener: Listener = ignore, **fields: Any) -> Tuning | None:
    """What was measured on this machine, chosen, and stored for `edgetl.load`; None with `forget=True`.

    `fields` are those of `recipe_tune.Tune`; errors as in `finetune`.
    """
    return tune_with(built(Tune, fields, "tune"), listener)


@shows(Gallery)
def report(*, listener: Listener = ignore, **fields: Any) -> Page:
    """The page over reports or about a RUN; `fields` are those of `recipe_report.Report`; errors as in `finetune`."""
    return report_with(built(Gallery, fields, "report"), listener)


@shows(Compare)
def compare(*, listener: Listener = ignore, **fields: Any) -> Comparison:
    """What is faster or slower between two reports; `fields` are those of `recipe_compare.Compare`."""
    return compare_with(built(Compare, fields, "compare"), listener)


@shows(RegressionGate)
def gate(*, listener: Listener = ignore, **fields: Any) -> Verdict:
    """The verdict, which its `insist` turns into an error unless it is "pass".

    `fields` are those of `recipe_gate.RegressionGate` (`base`, `new`, ...); errors as in `finetune`.
    """
    return gate_with(built(RegressionGate, fields, "gate"), listener)


def finetune_with(options: Finetune, listener: Listener = ignore) -> Path:
    """RUN folder of the fine-tuned teacher."""
    extras.require("torch", extra="train", purpose="Fine-tuning")
    extras.require("scipy", extra="train", purpose="Fine-tuning")
    require_model(options.teacher, options.weights)
    from edgetl.train import teacher

    return teacher.finetune(options, listener=listener)


def compare_strategies_with(options: CompareStrategies, listener: Listener = ignore) -> Compared:
    """The finished comparison, written to `options.out`."""
    extras.require("torch", extra="train", purpose="A comparison of strategies")
    extras.require("scipy", extra="train", purpose="A comparison of strategies")
    extras.require("matplotlib", extra="cli", purpose="A comparison of strategies")
    require_model(options.teacher, options.weights)
    from edgetl.bench import strategy_page
    from edgetl.train import contest

    return contest.compare(options, draw=strategy_page.write, listener=listener)


def distill_with(options: Distill, listener: Listener = ignore) -> Path:
    """RUN folder of the distilled student."""
    extras.require("torch", extra="train", purpose="Distillation")
    extras.require("scipy", extra="train", purpose="Distillation")
    require_model(options.student, options.weights)
    from edgetl import latency
    from edgetl.train import student

    return student.distill(options, listener=listener, graph_of=_graph_of, latency_share=latency.Shares(_graph_of))


def prune_with(options: Prune, listener: Listener = ignore) -> Path:
    """RUN folder of the pruned network."""
    weights.read_record(Path(options.run))  # says that it is no RUN
    return distill_with(options.as_distill(), listener)


def _graph_of(network: Network, labels: Sequence[str]) -> tuple[bytes, GraphSpec]:
    """The ONNX graph of a network, with which another engine than torch can run it."""
    from edgetl.export import graph

    made = graph.export(network, labels)
    return made.graph, made.spec


def export_with(options: Export, listener: Listener = ignore) -> Path:
    """Folder of the bundle."""
    extras.require("torch", extra="train", purpose="Export")
    extras.require("scipy", extra="train", purpose="Export")
    extras.require("onnx", extra="train", purpose="Export")
    extras.require("onnxruntime", extra="cpu", purpose="Checking what was exported")
    from edgetl.export import bundle

    return bundle.export(options, listener=listener)


def quantize_with(options: Quantize, listener: Listener = ignore) -> Quantized:
    """The INT8 graph of any classifier in ONNX, written to `options.out`."""
    for package, extra in (("torch", "train"), ("scipy", "train"), ("onnx", "train"), ("onnxruntime", "cpu")):
        extras.require(package, extra=extra, purpose="Quantization")
    from edgetl.export import quantizing

    return quantizing.quantize(options, listener=listener)


def engine_with(options: Engine, listener: Listener = ignore) -> Built:
    """The engine, written to `options.out`."""
    from edgetl.export import engines

    return engines.engine(options, listener=listener)


def bench_with(options: Bench, listener: Listener = ignore) -> Report:
    """The report, written to `options.out`."""
    from edgetl.bench import runner

    return runner.bench(options, listener=listener)


def tune_with(options: Tune, listener: Listener = ignore) -> Tuning | None:
    """What was measured and chosen; None where something was to be forgotten."""
    from edgetl.bench import tune

    if options.forget:
        tune.forget(options.bundle)
        return None
    return tune.tune(options, listener=listener)


def report_with(options: Gallery, listener: Listener = ignore) -> Page:
    """The page over many reports, or about one RUN, written to `options.out`."""
    from edgetl.bench import gallery, run_page

    write = run_page.write if run_page.is_meant(options.reports) else gallery.write
    return write(options, listener=listener)


def compare_with(options: Compare, listener: Listener = ignore) -> Comparison:
    """What has become of each case, written to `options.out` where that is given."""
    from edgetl.bench import compare

    return compare.compare(options)


def gate_with(options: RegressionGate, listener: Listener = ignore) -> Verdict:
    """The verdict, written to `options.out` where that is given."""
    extras.require("scipy", extra="cli", purpose="A gate")
    from edgetl.bench import gate

    return gate.gate(options, listener=listener)


@dataclass(frozen=True)
class Outcome:
    """What `edgetl run` made."""

    out: Path
    teacher: Path
    student: Path
    bundle: Path
    report: Path
    kept: tuple[str, ...]  # stages that were finished before and whose inputs had not changed
    gate: tuple[str, ...]  # what the recipe's gate and the stages' own object to; empty when they are content

    def insist(self) -> None:
        """Returns when the gate is content.

        Raises:
            GateFailed: it is not; says every objection.
        """
        if self.gate:
            raise GateFailed(" ".join(self.gate), hint=f"Everything was written; the report is in {self.report}.")


def run(recipe: Path | str | Recipe, *, out: Path | str, overrides: Sequence[str] = (), resume: bool = False,
        overwrite: bool = False, listener: Listener = ignore) -> Outcome:
    """The whole path into OUT/{teacher,student,bundle,report}; ends with the gate.

    Args:
        recipe: a TOML file, or what `read_recipe` made of one.
        out: where to.
        overrides: `stage.key=value`, laid over the file.
        resume: keep the stages that are finished and whose inputs did not change, continue the one that was
            interrupted, and build again what changed and everything after it.
        overwrite: build every stage again.
        listener: hears every event.

    Raises:
        GateFailed: see `Outcome.insist`; everything was written.
        EdgetlError: whatever a stage says.
    """
    outcome = walk(recipe, out=out, overrides=overrides, resume=resume, overwrite=overwrite, listener=listener)
    outcome.insist()
    return outcome


def walk(recipe: Path | str | Recipe, *, out: Path | str, overrides: Sequence[str] = (), resume: bool = False,
         overwrite: bool = False, listener: Listener = ignore) -> Outcome:
    """As `run`, but the gate's objections are only recorded."""
    out = Path(out)
    rundir.require_place(out, whole=False)
    read = recipe if isinstance(recipe, Recipe) else read_recipe(Path(recipe), overrides)
    plan = resolve(read, out, where="the recipe" if isinstance(recipe, Recipe) else str(recipe))
    rundir.claim(out, resume=resume, overwrite=overwrite, whole=False)
    preflight(plan)
    ledger = Ledger.begun_again(out, FOLDERS) if overwrite else Ledger.read(out) if resume else Ledger(out)
    _require_stage_folders(out, ledger)
    with _unless_nothing_was_made(out):
        with rundir.explained(out):
            out.mkdir(parents=True, exist_ok=True)
            ledger.write()  # first: by it the next run knows the folder
            rundir.write_text(out / rundir.RECIPE, to_toml(plan))
        walker = Walker(out, ledger, listener)
        walker.stage("finetune", plan.finetune, finetune_with, parents=())
        walker.stage("distill", plan.distill, distill_with, parents=("finetune",))
        walker.stage("export", plan.export, export_with, parents=("distill",))
        walker.stage("bench", plan.bench, bench_with, parents=("finetune", "distill", "export"))
    folders = {name: out / name for name in FOLDERS.values()}
    from edgetl.bench.objections import objections

    gate = (*ledger.objections(), *objections(plan.gate, out, plan.export.precision))
    return Outcome(out=out, **folders, kept=tuple(walker.kept), gate=gate)


@contextlib.contextmanager
def _unless_nothing_was_made(out: Path) -> Iterator[None]:
    """Keeps `out`, unless it is new and the work in the block fails before any stage has left something: a wrong word
    in a recipe shall not make the next, right one find a folder in its way."""
    new = not out.exists()
    try:
        yield
    except EdgetlError:
        places = [out / name for name in FOLDERS.values()]
        if new and not any(place.exists() or rundir.partial(place).exists() for place in places):
            shutil.rmtree(out, ignore_errors=True)
        raise


def _require_stage_folders(out: Path, ledger: Ledger) -> None:
    """Raises OutputError, before the hours of work, where a stage will find a folder that it may not replace."""
    for stage, name in FOLDERS.items():
        folder = out / name
        rundir.require_ours(folder)
        if folder.exists() and stage not in ledger.entries:
            raise OutputError(f"{folder} exists already, and was not made by a run into {out}.",
                              hint="Choose another --out, or move that folder away.")


def demo_recipe(overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of `edgetl demo`, which comes with the package.

    Raises:
        RecipeError: an override is wrong.
    """
    text = resources.files("edgetl").joinpath("demo.toml").read_text(encoding="utf-8")
    return parse_recipe(text, overrides, where="the demo's recipe")
