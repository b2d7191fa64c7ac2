"""What the verbs around the stages print: predict, verify, inspect, list, doctor, init."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from bench import hand_made
from tiny_bundle import LABELS, edit_manifest, encode, make_bundle, make_graph, make_photo

from edgetl import diagnosis, plan, recipe_file, rundir
from edgetl.cli import app, doctor, init, present
from edgetl.datasets import open_data
from edgetl.runtime import load


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a bundle and photos, one of them broken, to be in."""
    monkeypatch.chdir(tmp_path)
    make_bundle(tmp_path / "bundle")
    deep = tmp_path / "photos/deep"
    deep.mkdir(parents=True)
    (deep / "a.PNG").write_bytes(encode(make_photo(1)))
    (tmp_path / "photos/b.jpg").write_bytes(encode(make_photo(2), "JPEG"))
    (tmp_path / "photos/notes.txt").write_text("no image")
    (tmp_path / "broken.jpg").write_text("no image")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = app.main(argv)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_predict_answers_for_files_and_folders_to_the_bottom(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, "predict", "bundle", "photos", "--json", "--top", "2")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [one["path"] for one in found["predictions"]] == ["photos/b.jpg", "photos/deep/a.PNG"]
    assert found["failed"] == []
    with load("bundle") as classifier:
        for one in found["predictions"]:
            answer = classifier.predict(one["path"], top=2)
            assert (one["label"], one["index"], one["score"]) == (answer.label, answer.index, answer.score)
            assert [(top["label"], top["score"]) for top in one["top"]] == list(answer.top)


def test_predict_as_lines_and_as_csv(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with load("bundle") as classifier:
        answer = classifier.predict("photos/b.jpg")
    code, out, _ = said(capsys, "predict", "bundle", "photos/b.jpg")
    assert (code, out) == (0, f"photos/b.jpg  {answer.label} {100 * answer.score:.1f} %\n")
    code, out, _ = said(capsys, "predict", "bundle", "photos/b.jpg", "--csv", "--top", "9")
    rows = list(csv.reader(io.StringIO(out)))
    assert rows[0] == ["path", "label", "score", "label_2", "score_2", "label_3", "score_3"]
    assert [rows[1][1], rows[1][3], rows[1][5]] == [label for label, _ in answer.top]
    assert float(rows[1][2]) == pytest.approx(answer.score, abs=1e-6)


def test_predict_goes_on_after_what_cannot_be_read(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, "predict", "bundle", "broken.jpg", "photos/b.jpg", "gone.jpg", "--json")
    assert code == 1
    found = json.loads(out)
    assert [one["path"] for one in found["predictions"]] == ["photos/b.jpg"]
    assert [one["path"] for one in found["failed"]] == ["broken.jpg", "gone.jpg"]
    assert err.splitlines()[-1] == "error: 2 of 3 files could not be classified; the others were."
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 3


def test_predict_in_a_folder_without_images(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kitchen / "empty").mkdir()
    code, out, err = said(capsys, "predict", "bundle", "empty")
    assert (code, out) == (1, "")
    assert err.startswith("error: empty holds no images (.bmp,")


def test_verify_prints_every_check_and_exits_3_for_another_colour_order(
    kitchen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = said(capsys, "verify", "bundle", "--backend", "cpu")
    assert code == 0
    assert "preprocess" in out
    assert "tensor -> logits on cpu" in out
    code, out, _ = said(capsys, "verify", "bundle", "--json")
    assert (code, json.loads(out)["images"]) == (0, 2)
    edit_manifest(kitchen / "bundle", "preprocess", "color", value="bgr")
    code, out, err = said(capsys, "verify", "bundle")
    assert (code, out) == (3, "")
    assert "red and blue are swapped" in err


def test_inspect_a_bundle(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = [{"backend": "cpu", "split": "test", "n": 40, "accuracy": 0.9, "agreement": None}]
    edit_manifest(kitchen / "bundle", "variants", 0, "evaluations", value=measured)
    code, out, _ = said(capsys, "inspect", "bundle")
    assert code == 0
    assert f"classes    3: {', '.join(LABELS)}" in out
    assert out.splitlines()[-1].split() == ["fp32", "fp32.onnx", "0.00", "cpu,openvino", "test", "90.0", "%", "-"]
    code, out, _ = said(capsys, "inspect", "bundle", "--json")
    assert json.loads(out)["variants"][0]["evaluations"] == measured


def test_inspect_a_graph(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny.onnx").write_bytes(make_graph())
    code, out, _ = said(capsys, "inspect", "tiny.onnx", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["inputs"] == [{"name": "image", "dtype": "float", "shape": ["N", 3, 16, 16]}]
    assert found["operators"] == {"Conv": 1, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    assert (found["parameters"], found["opset"]) == (4 * 27 + 4 + 3 * 4 + 3, 17)
    code, out, _ = said(capsys, "inspect", "tiny.onnx")
    assert "Conv                   1" in out


@pytest.mark.parametrize("content", [b"no graph at all", b""])
def test_inspect_what_is_no_graph(kitchen: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    Path("text.onnx").write_bytes(content)
    code, _, err = said(capsys, "inspect", "text.onnx")
    assert code == 1
    assert err.startswith("error: text.onnx is not an ONNX file: ")


def test_inspect_a_run(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {
        "schema": 1,
        "kind": "run",
        "model": "timm/test_resnet",
        "stage": "distill",
        "labels": [f"c{i}" for i in range(9)],
        "preprocess": {"size_hw": [32, 48]},
        "kept": 0.4,
        "data": {"source": "photos"},
        "metrics": {"test": {"n": 50, "accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95}},
    }
    Path("run").mkdir()
    rundir.write_json(Path("run") / rundir.RUN, record)
    code, out, _ = said(capsys, "inspect", "run")
    assert code == 0
    assert "test     90.0 % of 50 images, 95 % interval 80.0 to 95.0" in out
    assert "kept     40.0 % of the teacher's parameters" in out
    assert "classes  9: c0, c1, c2, c3, c4, c5, c6, c7, ..." in out
    code, out, _ = said(capsys, "inspect", "run", "--json")
    assert json.loads(out) == {"run": "run", **record}


def test_a_folder_with_the_name_of_a_graph_is_no_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.onnx").mkdir()
    code, _, err = said(capsys, "inspect", str(tmp_path / "x.onnx"))
    assert code == 1
    assert "x.onnx is neither a bundle" in err


def test_a_narrow_terminal_gets_the_columns_that_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = hand_made.make_report()
    present.report(made)
    whole = capsys.readouterr().out  # no terminal: everything
    assert "peak MB" in whole
    assert "agreement %" in whole
    assert "The report also has" not in whole
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    present.report(made)
    narrow = capsys.readouterr().out.splitlines()
    assert len(narrow[1]) <= 80
    assert "accuracy %" in narrow[1]
    named = " ".join(narrow).partition("The report also has: ")[2].partition(".")[0]  # may go on in the next line
    assert "peak MB" in named
    assert all(len(line) <= 80 for line in narrow if not line.startswith(("Steady", "Accuracy", "From", "bundle fp32")))


@pytest.mark.parametrize(("width", "count"), [(1, 2), (7, 2), (8, 3), (80, 3)])
def test_columns_that_fit(width: int, count: int) -> None:
    assert present.fitting([("a", "b", "cc"), ("1", "2", "3")], width) == count


def test_inspect_what_it_does_not_know(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = said(capsys, "inspect", "photos")
    assert code == 1
    assert err.startswith("error: photos is neither a bundle (manifest.json), a RUN (run.json)")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("losses", "kd"),
        ("models", "torchvision"),
        ("targets", "x86-vnni"),
        ("backends", "openvino"),
        ("datasets", "folder"),
        ("strategies", "lp-ft"),
    ],
)
def test_list_knows_every_kind(capsys: pytest.CaptureFixture[str], kind: str, expected: str) -> None:
    code, out, _ = said(capsys, "list", kind)
    assert code == 0
    assert expected in [line.split()[0] for line in out.splitlines()]
    code, out, _ = said(capsys, "list", kind, "--json")
    summaries = {one["name"]: one["summary"] for one in json.loads(out)}
    assert kind == "strategies" or all(summaries.values())


def test_list_the_variants_of_a_family(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "list", "models", "timm")
    assert code == 0
    assert "timm/test_resnet" in out.splitlines()


def test_doctor_tells_every_backend_and_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetl.backends import Availability, openvino

    monkeypatch.setattr(openvino, "probe", lambda: Availability(False, reason="it is not installed", fix="install it"))
    code, out, _ = said(capsys, "doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"cpu", "openvino", "torch"} <= set(found["backends"])
    assert found["backends"]["openvino"]["usable"] is False
    assert found["advice"][0] == "backend openvino: install it"
    assert (found["errors"], found["tuned"]) == ([], [])
    assert found["disk_free_bytes"] > 0
    code, out, _ = said(capsys, "doctor")
    assert code == 0
    assert "openvino  no" in out
    assert "- backend openvino: install it" in out


def test_two_runtimes_that_overwrite_each_other_are_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rundir, "versions", lambda: {"onnxruntime": "1", "onnxruntime-gpu": "1"})
    code, out, err = said(capsys, "doctor", "--json")
    assert (code, json.loads(out)["errors"]) == (1, [diagnosis.BOTH_RUNTIMES])
    assert err == f"error: {diagnosis.BOTH_RUNTIMES}\nhint: {diagnosis.ONE_RUNTIME}\n"
    assert said(capsys, "doctor")[0] == 1


def test_doctor_tells_the_processor_s_features_and_which_variants_they_allow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetl.runtime import processor

    for flags, runs, because in (({"avx2", "avx_vnni"}, "yes", "this processor has vnni"),
                                 ({"avx2"}, "no", "this processor has no vnni")):
        found = processor.Processor("x86", "a processor", frozenset(flags), "a test")
        monkeypatch.setattr(processor, "read", lambda *_, found=found: found)
        code, out, _ = said(capsys, "doctor")
        assert code == 0
        assert "processor   a processor (x86)" in out
        assert re.search(f"x86-vnni.int8 +{runs} +{because}", out)
        assert ("refuses it" in out) == (runs == "no")
        assert re.search("features +avx2.* [(]told by a test[)]", out)


def test_doctor_tells_what_tune_has_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from edgetl.runtime import tuned

    monkeypatch.setattr(doctor, "_backends", lambda: {"cpu": {"usable": True, "version": "2", "device": "CPU"}})
    here = tuned.machine()
    best = tuned.Answer("auto", "auto", "fp32", "cpu", 2, "quick")
    entry = tuned.Entry("a" * 64, "cells", here, {"cpu": "2"}, "2026-01-02", (best,))
    folder = tuned.cache_root() / tuned.FOLDER
    folder.mkdir(parents=True)
    for number, one in enumerate((entry, dataclasses.replace(entry, versions={"cpu": "1"}),
                                  dataclasses.replace(entry, machine=dataclasses.replace(here, model="another")))):
        (folder / f"{number}-0.json").write_text(json.dumps(tuned.to_json(one, {})))
    (folder / "9-damaged.json").write_text("{")
    states = [one["state"] for one in doctor.examine()["tuned"]]
    assert states[:2] == ["counts", "cpu was 1 and is 2; tune again"]
    assert states[2].startswith("of another machine: another, ")
    assert states[3].startswith("passed by: ") and "is not JSON" in states[3]
    code, out, _ = said(capsys, "doctor")
    assert code == 0
    assert re.search("cells +2026-01-02 +fp32 on cpu, 2 threads +counts", out)


def test_init_prints_a_recipe_that_run_accepts(
    photo_folder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photo_folder(classes=3, images=10, size=70)
    monkeypatch.chdir(photos.parent)
    code, out, err = said(capsys, "init", photos.name)
    assert (code, err) == (0, "")
    assert "30 images in 3 classes" in out
    assert "median 70." in out
    monkeypatch.chdir("/")
    planned = plan.resolve(recipe_file.parse_recipe(out, where="r.toml"), tmp_path / "out")
    plan.preflight(planned)
    assert planned.finetune.data == planned.bench.data == str(photos)
    assert (planned.finetune.image_size, planned.finetune.epochs, planned.distill.epochs) == (64, 30, 60)


def test_init_passes_by_an_image_that_is_too_large(photo_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = photo_folder(classes=2, images=4, size=24)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)  # 24 x 24 is more than twice that
    text = init.recipe_for(open_data(str(photos)), str(photos))
    assert "\n# 8 of the images looked at could not be read or are too large.\n" in text


def test_init_fits_the_data(photo_folder, tmp_path: Path) -> None:
    photos = photo_folder(classes=2, images=4, size=24, splits=("train", "val", "test"))
    (photos / "train/amber/broken.jpg").write_text("no image")
    text = init.recipe_for(open_data(str(photos)), str(photos))
    assert "\n# 1 of the images looked at could not be read or are too large.\n" in text
    assert "\n# Splits of its own: " in text
    assert recipe_file.parse_recipe(text, where="r.toml").distill["image_size"] == 32
