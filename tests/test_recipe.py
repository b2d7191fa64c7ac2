"""Recipes: every problem at once, limits, TOML in and out, overrides, paths."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.errors import RecipeError
from edgetl.recipe import STAGES, Bench, Distill, Export, Finetune, build, decisive, fields_of, to_toml, toml_value
from edgetl.recipe_fields import REQUIRED
from edgetl.recipe_file import commented, parse_recipe, read_recipe

MINIMAL = {"data": "photos", "teacher": "timm/test_resnet", "out": "runs/teacher"}


def problems(text: str, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, overrides, where="r.toml")
    return caught.value.problems


def test_every_field_has_help_that_is_a_sentence() -> None:
    for stage in STAGES.values():
        for name, field in fields_of(stage).items():
            assert field.metadata["help"].endswith("."), f"{stage.__name__}.{name}"


def test_defaults_pass_their_own_limits() -> None:
    for stage in STAGES.values():
        values = {name: field.default for name, field in fields_of(stage).items() if field.default is not REQUIRED}
        missing = {name: ["x"] if name == "cases" else "x" for name in fields_of(stage) if name not in values}
        assert dataclasses.asdict(build(stage, {**values, **missing}, where="here")) == {
            **values,
            **{name: ("x",) if name == "cases" else "x" for name in missing},
        }


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        build(
            Finetune,
            {"dat": "photos", "epochs": 0, "lr": "fast", "amp": "fp15", "hflip": 1, "teacher": "t/x"},
            where="here",
        )
    said = str(caught.value)
    for expected in (
        "unknown key 'dat'; did you mean 'data'?",
        "'epochs': found 0, expected at least 1",
        "'lr': found 'fast', expected a number",
        "'amp': found 'fp15', expected one of auto, off, bf16, fp16",
        "'hflip': found 1, expected true or false",
        "'data' is missing",
        "'out' is missing",
    ):
        assert expected in said
    assert len(caught.value.problems) == 7


@pytest.mark.parametrize(
    ("value", "expected"),
    [(float("nan"), "a finite number"), (float("inf"), "a finite number"), (True, "a number"), (None, "a number")],
)
def test_numbers_are_finite_numbers(value: object, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        build(Finetune, {**MINIMAL, "lr": value}, where="here")


def test_a_whole_number_is_a_number_and_a_batch_size_may_be_one() -> None:
    made = build(Finetune, {**MINIMAL, "lr": 1, "batch_size": 32, "image_size": None}, where="here")
    assert (made.lr, made.batch_size, made.image_size) == (1.0, "32", None)


def test_lists_come_as_lists_texts_with_commas_or_one_number() -> None:
    bench = {"cases": ["a"], "out": "r"}
    assert build(Bench, {**bench, "backend": "cpu, torch"}, where="here").backend == ("cpu", "torch")
    assert build(Bench, {**bench, "threads": 2}, where="here").threads == ("2",)
    assert build(Bench, {**bench, "threads": [1, 2]}, where="here").threads == ("1", "2")
    for said in ("none, 10ms", ["none", "10ms"]):
        assert build(Bench, {**bench, "interval": said}, where="here").interval == ("none", "10ms")
    assert build(Bench, {**bench, "interval": "10ms"}, where="here").interval == ("10ms",)  # as recipes always said it
    assert build(Bench, {**bench, "interval": None}, where="here").interval is None
    with pytest.raises(RecipeError, match="expected a list of names"):
        build(Bench, {**bench, "backend": [True]}, where="here")
    with pytest.raises(RecipeError, match="found 'sometimes', expected a duration"):
        build(Bench, {**bench, "interval": "10ms, sometimes"}, where="here")


def test_a_loss_is_one_text_with_its_commas_or_tables() -> None:
    base = {"data": "d", "teacher": "t", "out": "o"}
    assert build(Distill, {**base, "loss": "labels:0.1,kd:0.9"}, where="here").loss == ("labels:0.1,kd:0.9",)
    recipe = parse_recipe(
        '[[distill.loss]]\nname = "kd"\nweight = 0.9\ntemperature = 4\n[[distill.loss]]\nname = "labels"\n',
        where="r.toml",
    )
    assert recipe.distill["loss"] == ("kd:0.9;temperature=4", "labels:1")
    assert "needs a 'name'" in problems("[[distill.loss]]\nweight = 1\n")[0]


def test_a_key_above_the_tables_is_every_stage_s_default() -> None:
    recipe = parse_recipe("seed = 3\nimage_size = 96\nthreads = 2\n[distill]\nseed = 4\n", where="r.toml")
    assert (recipe.finetune["seed"], recipe.distill["seed"], recipe.export["seed"]) == (3, 4, 3)
    assert "image_size" not in recipe.export
    assert (recipe.finetune["threads"], recipe.bench["threads"]) == (2, ("2",))


def test_keys_that_the_run_decides_are_refused_above_and_in_the_tables() -> None:
    said = problems(
        'out = "x"\noverwrite = true\nresume = true\nrun = "x"\n[distill]\nteacher = "x"\n[bench]\nout = "y"\n'
    )
    assert said == tuple(
        f"'{key}' is decided by `edgetl run`; remove it"
        for key in ("out", "overwrite", "resume", "run", "distill.teacher", "bench.out")
    )


def test_a_teacher_above_the_tables_is_the_fine_tuned_one() -> None:
    recipe = parse_recipe('teacher = "timm/test_resnet"\n', where="r.toml")
    assert recipe.finetune["teacher"] == "timm/test_resnet"
    assert "teacher" not in recipe.distill


def test_unknown_tables_and_keys_suggest_the_nearest() -> None:
    said = problems("schema = 9\nepoch = 3\n[finetun]\nepochs = 1\n[bench]\nround = 3\n")
    assert said == (
        "'schema' is not 1, the only one that this version reads",
        "unknown key 'epoch'; did you mean 'epochs'?",
        "unknown key 'finetun'; did you mean 'finetune'?",
        "unknown key 'bench.round'; did you mean 'rounds'?",
    )


def test_a_stage_that_is_no_table_is_a_problem_even_with_an_override() -> None:
    assert problems("finetune = 3\n", "finetune.epochs=3") == ("'finetune' is 3, expected a table [finetune]",)


@pytest.mark.parametrize("override", ["finetune.epochs", "nostage.epochs=3", "finetune.=3", "=3"])
def test_an_override_of_no_known_shape(override: str) -> None:
    assert problems("", override)[0].startswith(f"--set {override}: expected STAGE.KEY=VALUE")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("finetune.epochs=3", "epochs", 3),
        ("finetune.lr=1e-4", "lr", 1e-4),
        ("finetune.hflip=false", "hflip", False),
        ("finetune.teacher=timm/test_resnet", "teacher", "timm/test_resnet"),
        ('finetune.amp="off"', "amp", "off"),
        ("data=my photos", "data", "my photos"),
        ("data=1\nseed = 7", "data", "1\nseed = 7"),
    ],
)
def test_an_override_is_toml_or_else_a_text(override: str, key: str, value: object) -> None:
    assert parse_recipe("", [override], where="r.toml").finetune[key] == value


def test_paths_in_a_recipe_count_from_its_folder_and_those_of_set_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kitchen/photos").mkdir(parents=True)
    (tmp_path / "here/photos").mkdir(parents=True)
    (tmp_path / "kitchen/list.csv").write_text("")
    file = tmp_path / "kitchen/r.toml"
    file.write_text('data = "photos"\n[export]\ndata = "csv:list.csv"\n[bench]\ndata = "elpv"\n')
    monkeypatch.chdir(tmp_path / "here")
    recipe = read_recipe(file)
    assert recipe.finetune["data"] == str(tmp_path / "kitchen/photos")
    assert recipe.export["data"] == f"csv:{tmp_path / 'kitchen/list.csv'}"
    assert recipe.bench["data"] == "elpv"
    assert read_recipe(file, ["data=photos"]).finetune["data"] == "photos"


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"a = [", "this is not TOML"), (b"\xff\xfe", "not a text file"), (None, "cannot be read: No such file")],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes | None, expected: str) -> None:
    file = tmp_path / "r.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError, match=expected) as caught:
        read_recipe(file)
    assert str(file) in str(caught.value)


@settings(deadline=None, max_examples=100)
@given(
    value=st.text(st.characters(exclude_categories=["Cs"]))
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
)
def test_every_value_survives_toml(value: object) -> None:
    assert tomllib.loads(f"x = {toml_value(value)}")["x"] == value
    assert tomllib.loads(f"x = {toml_value((value, value))}")["x"] == [value, value]


def test_a_written_stage_reads_back_the_same() -> None:
    made = build(Export, {"run": 'a "b"\n', "out": "o", "target": ["x86-vnni"]}, where="here")
    values = tomllib.loads(to_toml(made))
    assert list(values) == ["export"]
    assert build(Export, {**values["export"], "run": made.run, "out": "o"}, where="here") == made


def test_the_recipe_beside_a_result_is_a_recipe() -> None:
    made = build(Distill, {"data": "photos", "teacher": "t", "out": "o", "resume": True}, where="here")
    read = parse_recipe(to_toml(made), where="r.toml")
    assert read.distill["student"] == "slim:0.4"
    assert '# teacher = "t"\n' in to_toml(made)
    assert "# image_size is not set\n" in to_toml(made)


@pytest.mark.parametrize("text", ["0", "1", "1.0", ".", "", "x", "-0.4", "0.4x", "0.0"])
def test_slim_keeps_a_share_between_nothing_and_everything(text: str) -> None:
    assert len(problems(f'[distill]\nstudent = "slim:{text}"')) == 1


@pytest.mark.parametrize("text", ["slim:0.4", "slim:.05", "slim:0.10", "timm/x", "runs/a b"])
def test_students_that_are_well_written(text: str) -> None:
    assert parse_recipe(f'distill.student = "{text}"', where="r.toml").distill["student"] == text


def test_a_commented_recipe_says_every_key_once_and_is_valid_when_uncommented() -> None:
    text = commented({"finetune": {"teacher": "timm/test_resnet", "epochs": 2}}, {"data": "photos"}, head="Hello.")
    recipe = parse_recipe(text, where="r.toml")
    assert recipe.finetune == {"data": "photos", "teacher": "timm/test_resnet", "epochs": 2}
    uncommented = "\n".join(
        line.removeprefix("# ") if " = " in line and "..." not in line else line
        for line in text.splitlines()
        if not line.startswith("# name = name")
    )
    full = parse_recipe(uncommented, where="r.toml")
    for name, stage in STAGES.items():
        for key, field in fields_of(stage).items():
            if not field.metadata["given"]:
                assert f"\n# {key} = " in text or f"\n{key} = " in text
                expected = recipe.finetune.get(key) if name == "finetune" and key in recipe.finetune else field.default
                if expected not in (None, REQUIRED) and key != "data":
                    assert getattr(full, name)[key] == expected, key


def test_what_decides_a_result_is_not_where_things_lie(tmp_path: Path) -> None:
    options = Finetune(data="photos", teacher="timm/resnet18", out="runs/a")
    alike = Finetune(data="elsewhere", teacher="timm/resnet18", out="runs/b", workers=3, threads=2,
                     checkpoint_minutes=1.0, resume=True)
    assert decisive(options) == decisive(alike)
    assert decisive(options) != decisive(Finetune(data="photos", teacher="timm/resnet18", out="runs/a", epochs=11))
    assert decisive(options)["teacher"] == "timm/resnet18"
    assert "teacher" not in decisive(Finetune(data="photos", teacher=str(tmp_path), out="runs/a"))
    assert decisive(Bench(cases=("x",), out="r", threads=("1", "2")))["threads"] == ["1", "2"]
