"""Recipes of labels, values and several heads: what `edgetl init` writes, and what `edgetl run` makes of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_bundle import encode, make_photo

import edgetl
from edgetl import datasets
from edgetl.bench import objections
from edgetl.bench import report as reports
from edgetl.cli.app import main
from edgetl.heads import ONE_CLASS, Asked
from edgetl.plan import resolve
from edgetl.recipe import Gate
from edgetl.recipe_file import parse_recipe

TABLES = {
    "labels": (Asked("multilabel"), "path,labels", ("sea|sky", "sky", "", "sea")),
    "marks": (Asked("multilabel", ("sea", "sky")), "path,sea,sky", ("1,0", "yes,1", "0,", "no,0")),
    "values": (Asked("regress", ("height_mm", "mass_g")), "path,height_mm,mass_g", ("61.5,120", "70,", "1e2,3", "0,1")),
    "heads": (
        Asked("classify", ("shape", "colour")),
        "path,shape,colour",
        ("round,red", "long,", "round,blue", "long,red"),
    ),
    "plain": (ONE_CLASS, "path,label,more", ("a,1", "b,2", "a,3", "b,4")),
}


def table(folder: Path, name: str, images: int = 24) -> str:
    _, head, cells = TABLES[name]
    for place in range(images):
        (folder / f"{place}.png").write_bytes(encode(make_photo(place)))
    lines = [head, *(f"{place}.png,{cells[place % len(cells)]}" for place in range(images))]
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return f"csv:{folder / f'{name}.csv'}"


@pytest.mark.parametrize("name", TABLES)
def test_init_writes_a_recipe_that_run_accepts(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, data = TABLES[name][0], table(tmp_path, name)
    assert datasets.guess(data) == asked
    assert main(["init", data]) == 0
    text = capsys.readouterr().out
    plan = resolve(parse_recipe(text, (), where="init"), tmp_path / "out")
    assert plan.finetune.task == asked.task and plan.finetune.data == plan.bench.data == data
    opened = datasets.open_data(data, asked=Asked(plan.finetune.task, plan.finetune.label_columns))
    assert opened.labels == datasets.open_data(data, asked=asked).labels
    assert ("smallest class" in text) == (name == "plain") and ("change it where that is" in text) == (name != "plain")


def test_numbers_beside_texts_are_not_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("path,size,shape\na.png,1.5,round\nb.png,2,long\n")
    assert main(["init", f"csv:{tmp_path / 't.csv'}"]) == 1
    told = capsys.readouterr().err
    assert "columns of numbers ('size') and of texts ('shape')" in told and "only the columns to be learned" in told
    assert datasets.guess(str(tmp_path)) == ONE_CLASS == datasets.guess("digits")


def test_the_gate_of_a_recipe_counts_hundredths_of_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        SimpleNamespace(
            source=f"OUT/{name}", variant=variant, accuracy=None, score=SimpleNamespace(name="R2", value=value)
        )
        for name, variant, value in (("teacher", None, 0.9), ("bundle", "fp32", 0.85))
    ]
    monkeypatch.setattr(reports, "read", lambda path: SimpleNamespace(rows=rows))
    monkeypatch.setattr(objections, "_judged", lambda *_: ["fp32"])
    ask: Any = objections.objections
    assert ask(Gate(min_teacher_accuracy=90, max_student_drop=5), Path("OUT")) == ()
    first, second = ask(Gate(min_teacher_accuracy=95, max_student_drop=4), Path("OUT"))
    assert first == "The teacher has 90.0 hundredths of R2 on the test images; the recipe asks for 95."
    assert "variant fp32 has 85.0 hundredths of R2" in second and "5.0 points below the teacher" in second


@pytest.mark.slow
@pytest.mark.parametrize("name", ["values", "marks", "heads"])
def test_run_walks_all_stages(name: str, tmp_path: Path) -> None:
    asked, data = TABLES[name][0], table(tmp_path, name, 60)
    tiny = {
        "image_size": 32,
        "epochs": 1,
        "batch_size": "16",
        "workers": 0,
        "threads": 1,
        "compile": "off",
        "amp": "off",
    }
    lines = ["schema = 1", f'data = "{data}"', "[finetune]", 'teacher = "timm/test_resnet"', "pretrained = false",
             f'task = "{asked.task}"', f"label_columns = {list(asked.columns)}", "[distill]",
             'student = "timm/test_resnet"', "pretrained = false", 'teacher_engine = "torch"', "[export]",
             'precision = ["fp32"]', "max_drop = 100.0", "[bench]", 'backend = ["cpu", "torch"]', "rounds = 1",
             "starts = 1", "warmup_s = 0.0", "[gate]", "max_student_drop = 100.0"]  # fmt: skip
    overrides = [f"{stage}.{key}={value}" for stage in ("finetune", "distill") for key, value in tiny.items()]
    made = edgetl.run(parse_recipe("\n".join(lines), overrides, where="test"), out=tmp_path / "out")
    found = reports.read(made.report)
    assert {row.kind for row in found.rows} == {"run", "bundle"} and all(row.score for row in found.rows)
    student, bundle = (next(row for row in found.rows if Path(row.source).name == one) for one in ("student", "bundle"))
    assert bundle.score is not None and student.score is not None
    assert bundle.score.value == pytest.approx(student.score.value, abs=1e-3)
    assert edgetl.report(reports=[made.student], out=tmp_path / "page.html").path.is_file()
