"""The walk over the stages: what is kept, continued, built again, refused, and what the gate says."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench import hand_made
from tiny_bundle import edit_manifest, make_bundle

from edgetl import contact_sheet, ledger, pipeline, plan, rundir, walker
from edgetl.bench import objections, report
from edgetl.cli import app
from edgetl.errors import DiskFull, EdgetlError, GateFailed, MissingDependency, OutputError, RecipeError, UnknownName
from edgetl.events import Event
from edgetl.recipe_file import parse_recipe

RECIPE = """
[finetune]
teacher = "timm/test_resnet"
epochs = 2
[bench]
backend = ["cpu", "torch"]
"""


INT8 = "x86-vnni.int8"


class Kitchen:
    """Stages that only write what they were asked for, and keep a list of it."""

    def __init__(self, root: Path, photos: Path) -> None:
        self.root, self.photos, self.out = root, photos, root / "out"
        self.calls: list[tuple[str, Any]] = []
        self.fail: dict[str, BaseException] = {}  # by stage; raised before it writes
        self.checkpoint = False  # whether a training that is interrupted can be continued
        self.refuse: set[str] = set()  # stages whose own gate says no after they wrote
        self.right = {"teacher": 0.9, "bundle": 0.88}
        self.notes: list[str] = []

    @property
    def walked(self) -> list[str]:
        names = [name for name, _ in self.calls]
        self.calls.clear()
        return names

    def walk(self, *overrides: str, text: str = RECIPE, **how: bool) -> pipeline.Outcome:
        recipe = self.root / "recipe.toml"
        recipe.write_text(f'data = "{self.photos}"\n{text}')
        return pipeline.walk(recipe, out=self.out, overrides=overrides, listener=self.hear, **how)

    def hear(self, event: Event) -> None:
        self.notes.append(f"{event.stage}: {event.values['text']}")

    def run_stage(self, name: str) -> Callable[[Any, Any], Path]:
        def stage(options: Any, listener: object) -> Path:
            self.calls.append((name, options))
            out = Path(options.out)
            rundir.claim(out, resume=options.resume, overwrite=options.overwrite)
            with rundir.building(out, resume=options.resume, overwrite=options.overwrite) as folder:
                (folder / (rundir.CHECKPOINT if self.checkpoint else "log")).write_text("begun")
                if name in self.fail:
                    raise self.fail.pop(name)
                said = dataclasses.asdict(options) | {"resume": 0, "overwrite": 0}
                made_from = ledger.digest(Path(options.teacher)) if Path(options.teacher).exists() else None
                rundir.write_json(folder / rundir.RUN, {"options": said, "made_from": made_from})
            return out

        return stage

    def export(self, options: Any, listener: object) -> Path:
        self.calls.append(("export", options))
        if "export" in self.fail:
            raise self.fail.pop("export")
        out = Path(options.out)
        rundir.claim(out, resume=False, overwrite=options.overwrite)
        shutil.rmtree(out, ignore_errors=True)
        make_bundle(out, labels=("cat", "dog", str(len(self.notes))))  # another bundle each time
        if "int8" in options.precision and "export" not in self.refuse:
            edit_manifest(out, "variants", 0, "name", value=INT8)
            edit_manifest(out, "variants", 0, "precision", value="int8")
        if "export" in self.refuse:
            raise GateFailed("int8 lost too much. It was left out.")
        return out

    def bench(self, options: Any, listener: object) -> report.Report:
        self.calls.append(("bench", options))
        out = Path(options.out)
        rundir.claim(out, resume=False, overwrite=options.overwrite)
        rows = tuple(self.row(Path(case)) for case in options.cases)
        made = dataclasses.replace(hand_made.make_report(), rows=rows, options={"n": len(self.notes)})
        out.mkdir(exist_ok=True)
        (out / rundir.REPORT).write_text(report.dumps(made))
        return made

    def row(self, case: Path) -> report.Row:
        plain = hand_made.row(case.name, 3, backend="cpu", errors=0)
        share = self.right.get(case.name)
        accuracy = None if share is None else dataclasses.replace(plain.accuracy, accuracy=share)  # type: ignore[type-var]
        return dataclasses.replace(
            plain, source=str(case), variant=INT8 if case.name == "bundle" else None, accuracy=accuracy
        )


@pytest.fixture
def kitchen(tmp_path: Path, photo_folder: Any, monkeypatch: pytest.MonkeyPatch) -> Kitchen:
    made = Kitchen(tmp_path, photo_folder(classes=2, images=4, size=16))
    monkeypatch.setattr(pipeline, "finetune_with", made.run_stage("finetune"))
    monkeypatch.setattr(pipeline, "distill_with", made.run_stage("distill"))
    monkeypatch.setattr(pipeline, "export_with", made.export)
    monkeypatch.setattr(pipeline, "bench_with", made.bench)
    return made


ALL = ["finetune", "distill", "export", "bench"]


def test_every_stage_takes_what_the_one_before_made(kitchen: Kitchen) -> None:
    outcome = kitchen.walk()
    finetune, distill, export, bench = (options for _, options in kitchen.calls)
    assert [name for name, _ in kitchen.calls] == ALL
    out = kitchen.out
    assert (finetune.out, distill.teacher, distill.out) == (
        str(out / "teacher"),
        str(out / "teacher"),
        str(out / "student"),
    )
    assert (export.run, export.out) == (str(out / "student"), str(out / "bundle"))
    assert bench.cases == tuple(str(out / name) for name in ("teacher", "student", "bundle"))
    assert {one.data for one in (finetune, distill, export, bench)} == {str(kitchen.photos)}
    assert (outcome.kept, outcome.gate, outcome.report) == ((), (), out / "report")
    assert {one.name for one in out.iterdir()} == {
        "teacher",
        "student",
        "bundle",
        "report",
        "stages.json",
        "recipe.toml",
    }


def test_the_recipe_that_was_resolved_is_kept_and_runs_the_same(kitchen: Kitchen) -> None:
    kitchen.walk("distill.epochs=7", "split_seed=5")
    text = (kitchen.out / "recipe.toml").read_text()
    again = plan.resolve(parse_recipe(text, where="kept"), kitchen.out)
    assert again.distill == kitchen.calls[1][1]
    assert [again.finetune.split_seed, again.distill.split_seed, again.export.split_seed, again.bench.split_seed] == [
        5
    ] * 4


def test_data_and_split_of_finetune_hold_where_the_others_are_silent(tmp_path: Path) -> None:
    recipe = parse_recipe(
        '[finetune]\ndata = "a"\nteacher = "timm/x"\nsplit_seed = 3\n[bench]\ndata = "b"\n', where="r"
    )
    planned = plan.resolve(recipe, tmp_path)
    assert (planned.distill.data, planned.distill.split_seed) == ("a", 3)
    assert (planned.bench.data, planned.bench.split_seed) == ("b", 3)


def test_runs_are_measured_by_torch_and_bundles_by_the_others(tmp_path: Path) -> None:
    def cases(backend: str) -> list[str]:
        text = f'data = "a"\n[finetune]\nteacher = "timm/x"\n[bench]\nbackend = {backend}\n'
        return [Path(one).name for one in plan.resolve(parse_recipe(text, where="r"), tmp_path).bench.cases]

    assert cases('["cpu"]') == ["bundle"]
    assert cases('["torch"]') == ["teacher", "student"]
    assert cases('["cpu", "torch"]') == ["teacher", "student", "bundle"]


def test_what_is_missing_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^r\.toml has 2 problems") as caught:
        plan.resolve(parse_recipe("", where="r.toml"), tmp_path, where="r.toml")
    assert [one.split(":")[0] for one in caught.value.problems] == ["'data' is missing", "'teacher' is missing"]


@pytest.mark.parametrize(
    ("gate", "backend", "expected"),
    [
        ("min_teacher_accuracy = 80", '["cpu"]', "'gate.min_teacher_accuracy' needs the teacher's accuracy"),
        ("max_student_drop = 3", '["cpu"]', "'gate.max_student_drop' needs the teacher's accuracy"),
        ("max_student_drop = 3", '["torch"]', "'gate.max_student_drop' needs the bundle's accuracy"),
    ],
)
def test_a_gate_that_nothing_will_measure_is_a_problem_at_once(
    tmp_path: Path, gate: str, backend: str, expected: str
) -> None:
    text = f'data = "a"\n[finetune]\nteacher = "timm/x"\n[bench]\nbackend = {backend}\n[gate]\n{gate}\n'
    with pytest.raises(RecipeError, match=expected):
        plan.resolve(parse_recipe(text, where="r"), tmp_path)


@pytest.mark.parametrize(
    ("override", "kind", "expected"),
    [
        ("finetune.teacher=tim/test_resnet", UnknownName, "Did you mean 'timm'?"),
        ("finetune.teacher=test_resnet", EdgetlError, "'test_resnet' is not a model: expected FAMILY/VARIANT"),
        ("distill.student=torchvison/resnet18", UnknownName, "Did you mean 'torchvision'?"),
        ("distill.loss=kdd:1", UnknownName, "no loss named 'kdd'"),
        ("export.target=x86-vni", UnknownName, "Did you mean 'x86-vnni'?"),
        ("bench.backend=cpu,torhc", UnknownName, "Did you mean 'torch'?"),
        ("finetune.teacher=timm/test_resnett", UnknownName, "Did you mean 'test_resnet'?"),
        ("distill.student=torchvision/resnet81", UnknownName, "Did you mean 'resnet18'?"),
        ("distill.student=slim:40", RecipeError, "'distill.student': found 'slim:40', expected slim:R"),
        ("distill.batch_size=large", RecipeError, "'distill.batch_size': found 'large', expected 'auto'"),
        ("distill.device=gpu", RecipeError, "'distill.device': found 'gpu'"),
        ("bench.threads=x", RecipeError, "'bench.threads': found 'x', expected whole numbers"),
        ("bench.batch=0", RecipeError, "'bench.batch': found '0', expected whole numbers above 0"),
        ("bench.interval=10", RecipeError, "'bench.interval': found '10', expected a duration"),
        ("bench.block=49", RecipeError, "'bench.block': found 49, expected at least 50"),
        ("bench.reference=tea torch", RecipeError, "'bench.reference': found 'tea torch', which no case"),
        ("bench.reference=student openvino", RecipeError, "'bench.reference': found 'student openvino'"),
        ("export.precision=fp32,int4", RecipeError,
         "'export.precision': found 'int4', expected one of bf16, fp16, fp32, int8"),
        ("distill.weights=w.pt", EdgetlError, "slim:0.4 brings its own weights, so --weights w.pt would not be read"),
        ("finetune.weights=w.pt", EdgetlError, "The file of weights w.pt does not exist."),
    ],
)
def test_wrong_names_are_found_before_any_work(
    kitchen: Kitchen, override: str, kind: type[EdgetlError], expected: str
) -> None:
    with pytest.raises(kind) as caught:
        kitchen.walk(override)
    assert expected in str(caught.value)
    assert kitchen.walked == []
    assert not kitchen.out.exists()


@pytest.mark.parametrize(
    ("reference", "more"),
    [
        ("teacher torch", ""),
        ("bundle x86-vnni.int8 cpu", ""),
        ("student torch 2 threads batch 8", 'threads = [1, 2]\nbatch = [1, 8]'),
        ("bundle fp32 cpu all threads", "threads = [0, 1]"),
        ("teacher torch batch 8 paced 10ms", 'batch = [1, 8]\ninterval = ["none", "10ms"]'),
        ("teacher torch back-to-back", 'interval = ["none", "10ms"]'),
    ],
)
def test_a_reference_that_there_will_be(tmp_path: Path, reference: str, more: str) -> None:
    text = f'data = "a"\n[finetune]\nteacher = "timm/x"\n[bench]\nreference = "{reference}"\n{more}\n'
    assert plan.resolve(parse_recipe(text, where="r"), tmp_path).bench.reference == reference


def test_a_family_whose_package_is_missing(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingDependency, match="needs the package 'torchvision'"):
        kitchen.walk("distill.student=torchvision/resnet18")


def test_what_cuts_a_student_is_missing(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch_pruning" else find(name))
    with pytest.raises(MissingDependency, match=r"student slim:0\.4 needs the package 'torch_pruning'"):
        kitchen.walk()


def test_a_folder_that_is_no_run_is_no_teacher(kitchen: Kitchen) -> None:
    with pytest.raises(EdgetlError, match=r"run\.json"):
        kitchen.walk(f"finetune.teacher={kitchen.root}")


def test_a_run_takes_no_file_of_weights(kitchen: Kitchen) -> None:
    (kitchen.root / rundir.RUN).write_text("{}")
    with pytest.raises(EdgetlError, match="brings its own weights"):
        kitchen.walk(f"finetune.teacher={kitchen.root}", "finetune.weights=w.pt")


def test_a_missing_package_is_found_before_any_work(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TOOLS", {"no_such_package": "train"})
    with pytest.raises(MissingDependency) as caught:
        kitchen.walk()
    assert caught.value.hint.startswith("Install what is missing with: pip install torch torchvision timm ")
    assert kitchen.walked == []


def test_a_second_run_into_the_same_folder_needs_leave(kitchen: Kitchen) -> None:
    kitchen.walk()
    with pytest.raises(OutputError, match="exists already"):
        kitchen.walk()


def test_finished_stages_are_kept(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 3.0)  # seconds; read when a stage begins and when it has ended
    monkeypatch.setattr(walker, "timing", types.SimpleNamespace(now_s=lambda: next(clock)))
    kitchen.walk()
    assert kitchen.walked == ALL
    assert kitchen.notes == [f"{name}: done in 3 s." for name in ALL]
    kitchen.notes.clear()
    outcome = kitchen.walk(resume=True)
    assert kitchen.walked == []
    assert outcome.kept == tuple(ALL)
    assert (
        kitchen.notes[0]
        == f"finetune: {kitchen.out / 'teacher'} is finished and its inputs did not change; it is kept."
    )


@pytest.mark.parametrize(
    ("override", "rebuilt", "reason"),
    [
        ("finetune.epochs=3", ALL, "epochs"),
        ("distill.epochs=3", ALL[1:], "epochs"),
        ("export.precision=fp32", ALL[2:], "precision"),
        ("bench.rounds=2", ALL[3:], "rounds"),
        ("seed=4", ALL, "seed"),
    ],
)
def test_a_changed_stage_is_built_again_with_everything_after_it(
    kitchen: Kitchen, override: str, rebuilt: list[str], reason: str
) -> None:
    kitchen.walk()
    kitchen.walked  # noqa: B018
    outcome = kitchen.walk(override, resume=True)
    assert outcome.kept == tuple(name for name in ALL if name not in rebuilt)
    assert all(options.overwrite for _, options in kitchen.calls)
    assert kitchen.walked == rebuilt
    assert any(note.startswith(f"{rebuilt[0]}: ") and f"changed: {reason}" in note for note in kitchen.notes)
    kitchen.walk(override, resume=True)
    assert kitchen.walked == []


def test_a_stage_whose_parent_was_built_again_to_the_same_is_kept(kitchen: Kitchen) -> None:
    kitchen.walk()
    kitchen.walked  # noqa: B018
    (kitchen.out / "teacher" / rundir.RUN).write_text("{}")
    outcome = kitchen.walk(resume=True)
    assert kitchen.walked == ["finetune"]
    assert outcome.kept == tuple(ALL[1:])


def test_changed_images_change_everything_and_moved_ones_nothing(kitchen: Kitchen) -> None:
    kitchen.walk()
    kitchen.photos = kitchen.photos.rename(kitchen.root / "moved")
    kitchen.walk(resume=True)
    assert kitchen.walked == ALL
    picture = next(kitchen.photos.rglob("*.png"))
    picture.write_bytes(picture.read_bytes() + b"\0")
    kitchen.walk(resume=True)
    assert kitchen.walked == ALL
    assert "finetune: " + f"{kitchen.out / 'teacher'} is built again; changed: images." in kitchen.notes


def test_a_teacher_that_is_a_run_counts_with_its_content(kitchen: Kitchen) -> None:
    start = kitchen.root / "start"
    start.mkdir()
    (start / rundir.RUN).write_text("{}")
    kitchen.walk(f"finetune.teacher={start}")
    kitchen.walk(f"finetune.teacher={start}", resume=True)
    assert kitchen.walked == ALL
    (start / rundir.MODEL).write_bytes(b"other weights")
    kitchen.walk(f"finetune.teacher={start}", resume=True)
    assert kitchen.walked == ALL


def test_altered_files_are_built_again(kitchen: Kitchen) -> None:
    kitchen.walk()
    kitchen.walked  # noqa: B018
    (kitchen.out / "student" / rundir.RUN).write_text("{}")
    kitchen.walk(resume=True)
    assert kitchen.walked[0] == "distill"
    assert f"distill: {kitchen.out / 'student'} is built again; changed: the files in its folder." in kitchen.notes


@pytest.mark.parametrize("stage", ["finetune", "distill"])
def test_an_interrupted_training_is_continued(kitchen: Kitchen, stage: str) -> None:
    kitchen.fail[stage] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        kitchen.walk()
    kitchen.walked  # noqa: B018
    kitchen.walk(resume=True)
    resumed = {name: options.resume for name, options in kitchen.calls if name in ("finetune", "distill")}
    assert resumed[stage] is True
    assert sum(resumed.values()) == 1
    assert kitchen.walked == ALL[ALL.index(stage) :]


def test_an_interrupted_training_with_other_options_begins_again(kitchen: Kitchen) -> None:
    kitchen.fail["finetune"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        kitchen.walk()
    kitchen.walk("finetune.epochs=5", resume=True)
    _, options = kitchen.calls[1]
    assert (options.resume, options.overwrite, options.epochs) == (False, True, 5)


def test_an_interrupted_export_begins_again(kitchen: Kitchen) -> None:
    kitchen.fail["export"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        kitchen.walk()
    assert kitchen.walked == ALL[:3]
    kitchen.walk(resume=True)
    assert kitchen.walked == ALL[2:]


def test_overwrite_builds_everything_again_and_touches_nothing_else(kitchen: Kitchen) -> None:
    kitchen.walk()
    kitchen.walked  # noqa: B018
    (kitchen.out / "thoughts.txt").write_text("mine")
    kitchen.walk(overwrite=True)
    assert kitchen.walked == ALL
    assert (kitchen.out / "thoughts.txt").read_text() == "mine"


@pytest.mark.parametrize("stage", ALL[:3])
def test_an_overwrite_that_was_interrupted_is_resumed(kitchen: Kitchen, stage: str) -> None:
    kitchen.walk()
    kitchen.fail[stage] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        kitchen.walk(overwrite=True)
    kitchen.walked  # noqa: B018
    kitchen.walk(resume=True)
    assert kitchen.walked == ALL[ALL.index(stage) :]  # also what the overwrite had not reached is built again
    assert f"bench: {kitchen.out / 'report'} is built again; as --overwrite asked." in kitchen.notes


def test_what_an_interrupted_rebuild_did_not_touch_is_not_taken_for_the_new_one(kitchen: Kitchen) -> None:
    kitchen.walk()
    kitchen.fail["finetune"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        kitchen.walk("finetune.epochs=5", resume=True)
    kitchen.calls.clear()
    kitchen.walk("finetune.epochs=5", resume=True)
    options = kitchen.calls[0][1]
    assert (options.resume, options.overwrite, options.epochs) == (False, True, 5)
    assert kitchen.walked == ALL


def test_a_rebuild_that_was_killed_before_its_first_checkpoint_begins_again(kitchen: Kitchen) -> None:
    kitchen.walk()
    kitchen.fail["finetune"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        kitchen.walk("finetune.epochs=5", resume=True)
    partial = rundir.partial(kitchen.out / "teacher")
    partial.mkdir()  # what kill -9 leaves
    kitchen.calls.clear()
    kitchen.walk("finetune.epochs=5", resume=True)
    assert (kitchen.calls[0][1].resume, kitchen.calls[0][1].overwrite) == (False, True)


def test_an_interrupted_rebuild_that_got_somewhere_is_continued(kitchen: Kitchen) -> None:
    kitchen.walk()
    partial = rundir.partial(kitchen.out / "teacher")
    partial.mkdir()
    (partial / rundir.CHECKPOINT).write_bytes(b"with other options")
    kitchen.fail["finetune"] = KeyboardInterrupt()
    kitchen.checkpoint = True
    with pytest.raises(KeyboardInterrupt):
        kitchen.walk("finetune.epochs=5", resume=True)
    assert (partial / rundir.CHECKPOINT).read_bytes() == b"begun"  # the other attempt's is gone
    kitchen.calls.clear()
    kitchen.walk("finetune.epochs=5", resume=True)
    options = kitchen.calls[0][1]
    assert (options.resume, options.overwrite, options.epochs) == (True, False, 5)


def test_resume_does_not_replace_a_folder_that_is_somebody_else_s(kitchen: Kitchen) -> None:
    (kitchen.out / "teacher").mkdir(parents=True)
    for found in ("out exists already and is nothing that edgetl wrote: it holds 'teacher'", "teacher exists already"):
        for _ in range(2):  # nor does asking again
            with pytest.raises(OutputError, match=found) as caught:
                kitchen.walk(resume=True)
            assert "--resume" not in str(caught.value.hint)  # which was given
        (kitchen.out / ledger.LEDGER).write_text('{"schema": 1, "stages": {}}')
    assert (kitchen.out / "teacher").is_dir()
    assert not kitchen.walked


@pytest.mark.parametrize("content", ["[]", '{"schema": 2, "stages": {}}', "{"])
def test_a_ledger_that_cannot_be_read(kitchen: Kitchen, content: str) -> None:
    kitchen.out.mkdir()
    (kitchen.out / ledger.LEDGER).write_text(content)
    with pytest.raises(OutputError, match=r"stages\.json"):
        kitchen.walk(resume=True)


GATE = "[gate]\nmin_teacher_accuracy = 80\nmax_student_drop = 3\n"


def test_a_gate_that_is_content(kitchen: Kitchen) -> None:
    kitchen.right = {"teacher": 0.8, "bundle": 0.77}  # at the limits
    outcome = kitchen.walk(text=RECIPE + GATE)
    assert outcome.gate == ()
    outcome.insist()


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        (
            {"teacher": 0.799, "bundle": 0.79},
            ["The teacher is right on 79.9 % of the test images; the recipe asks for 80 %."],
        ),
        (
            {"teacher": 0.9, "bundle": 0.86},
            [
                "The bundle's variant x86-vnni.int8 is right on 86.0 % of the test images, 4.0 points below "
                "the teacher; the recipe allows 3."
            ],
        ),
        ({"teacher": 0.7, "bundle": 0.5}, ["The teacher", "The bundle's"]),
    ],
)
def test_a_gate_that_says_no_after_everything_was_written(
    kitchen: Kitchen, right: dict[str, float], expected: list[str]
) -> None:
    kitchen.right = right
    outcome = kitchen.walk(text=RECIPE + GATE)
    assert len(outcome.gate) == len(expected)
    assert all(one.startswith(start) for one, start in zip(outcome.gate, expected, strict=True))
    with pytest.raises(GateFailed, match="The ") as caught:
        outcome.insist()
    assert caught.value.exit_code == 3
    with pytest.raises(GateFailed):
        pipeline.run(kitchen.root / "recipe.toml", out=kitchen.out, resume=True)
    assert kitchen.walked == ALL


def test_a_gate_of_a_folder_that_was_moved(kitchen: Kitchen) -> None:
    kitchen.walk(text=RECIPE + GATE)
    kitchen.out = kitchen.out.rename(kitchen.root / "moved")
    assert kitchen.walk("gate.min_teacher_accuracy=99", text=RECIPE + GATE, resume=True).kept == tuple(ALL)
    assert len(objections.objections(plan.Gate(min_teacher_accuracy=99.0), kitchen.out)) == 1


def test_a_gate_without_a_measurement_is_not_passed(kitchen: Kitchen) -> None:
    kitchen.right = {"teacher": 0.9}
    with pytest.raises(GateFailed, match=r"no accuracy of the variant x86-vnni\.int8 of the bundle"):
        kitchen.walk(text=RECIPE + GATE)


def test_a_gate_without_int8_says_so_when_it_was_asked_for(kitchen: Kitchen) -> None:
    kitchen.refuse.add("export")
    outcome = kitchen.walk(text=RECIPE + GATE)
    assert outcome.gate[1:] == (
        "The recipe asks for INT8, and the bundle has no INT8 variant to hold against the teacher.",
    )


def test_a_gate_judges_the_default_where_no_int8_is_asked_for(kitchen: Kitchen) -> None:
    with pytest.raises(GateFailed, match="no accuracy of the variant fp32 of the bundle"):
        kitchen.walk("export.precision=fp32", text=RECIPE + GATE)


def test_an_export_that_refuses_a_variant_goes_on_and_is_remembered(kitchen: Kitchen) -> None:
    kitchen.refuse.add("export")
    outcome = kitchen.walk()
    assert kitchen.walked == ALL
    assert outcome.gate == ("int8 lost too much. It was left out.",)
    kitchen.refuse.clear()
    assert kitchen.walk(resume=True).gate == outcome.gate
    assert kitchen.walked == []


def test_an_export_that_wrote_nothing_stops_the_walk(kitchen: Kitchen) -> None:
    kitchen.fail["export"] = GateFailed("The graph does not answer as the model.")
    with pytest.raises(GateFailed, match="The graph"):
        kitchen.walk()
    assert kitchen.walked == ALL[:3]
    kitchen.walk(resume=True)
    kitchen.fail["export"] = GateFailed("The graph does not answer as the model.")
    with pytest.raises(GateFailed, match="The graph"):  # the old bundle lies there and is not taken for the new one
        kitchen.walk("export.precision=fp32", resume=True)


def test_the_demo_s_recipe_is_a_recipe_and_takes_overrides(tmp_path: Path) -> None:
    planned = plan.resolve(pipeline.demo_recipe(["finetune.epochs=1"]), tmp_path)
    plan.preflight(planned)
    assert planned.finetune.epochs == 1
    assert planned.gate == plan.Gate(min_teacher_accuracy=80.0, max_student_drop=3.0)
    with pytest.raises(RecipeError, match=r"unknown key 'finetune\.epoch'; did you mean 'epochs'"):
        pipeline.demo_recipe(["finetune.epoch=1"])


def test_a_demo_whose_picture_cannot_be_drawn_shows_its_tables_and_a_second_one_draws_it(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = parse_recipe(f'data = "{kitchen.photos}"\n{RECIPE}', where="the demo's recipe")
    monkeypatch.setattr(pipeline, "demo_recipe", lambda overrides: recipe)

    def full(bundle: Path, run: Path, out: Path) -> Path:
        raise DiskFull(f"{out} could not be written: No space left on device.", hint="Make room.")

    def drawn(bundle: Path, run: Path, out: Path) -> Path:
        out.write_bytes(b"a picture")
        return out

    picture = kitchen.out / "predictions.png"
    monkeypatch.setattr(contact_sheet, "draw", full)
    assert app.main(["demo", "--out", str(kitchen.out)]) == 1
    said = capsys.readouterr()
    assert f"error: {picture} could not be written: No space left on device." in said.err
    assert f"hint: Make room, then continue with: edgetl demo --out {kitchen.out}\n" in said.err
    assert "Steady-state latency" in said.out and "predictions" not in said.out and not picture.exists()
    assert kitchen.walked == ALL
    monkeypatch.setattr(contact_sheet, "draw", drawn)
    assert app.main(["demo", "--out", str(kitchen.out)]) == 0
    assert f"predictions  {picture}" in capsys.readouterr().out
    assert kitchen.walked == []  # nothing was done twice


def test_a_report_that_was_begun_and_not_finished_is_made_again(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(options: Any, listener: object) -> report.Report:
        kitchen.bench(options, listener)  # report.json is there, its page is not
        raise DiskFull("report.html could not be written")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "bench_with", half)
        with pytest.raises(DiskFull):
            kitchen.walk()
    assert kitchen.walked == ALL
    assert json.loads((kitchen.out / ledger.LEDGER).read_text())["stages"]["bench"]["made"] is None
    kitchen.walk(resume=True)
    assert kitchen.walked == ["bench"]


def test_the_ledger_is_plain_json(kitchen: Kitchen) -> None:
    kitchen.walk()
    values = json.loads((kitchen.out / ledger.LEDGER).read_text())
    assert values["schema"] == 1
    assert list(values["stages"]) == ALL
    assert values["stages"]["distill"]["inputs"]["teacher"] == ledger.digest(kitchen.out / "teacher")
