"""benchmarks/gpu.py on the processor: its data, its bookkeeping, and each of its steps on a tiny model."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_photos
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu
import gpu_data
import gpu_machine
import gpu_plan
import gpu_table
from gpu_plan import DONE, FAILED, NOT_RUN

from edgetl.errors import BackendUnavailable
from edgetl.runtime.preprocess import Preprocess

NAME = "mobilenetv3-large"


def plan_of(folder, **more):
    asked = gpu.arguments(["--device", "cpu", "--quick", "--models", NAME, "--batches", "2", "--engines",
                           "torch,cpu,tensorrt,nonsense", "--work", str(folder), "--out", str(folder / "out.json")])
    return dataclasses.replace(gpu.planned(asked), **more)


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


# --------------------------------------------------------------------------------------------------------------- data


def test_packed_images_come_back_as_they_were(tmp_path):
    drawn = list(gpu_data.textures(3, 4, 32))
    assert gpu_data.write(tmp_path / "drawn.npz", drawn) == 12
    assert drawn == list(gpu_data.textures(3, 4, 32))
    folder = gpu_data.unpack(tmp_path / "drawn.npz", tmp_path / "photos")
    found = [(file.parent.name, file.read_bytes()) for file in sorted(folder.rglob("*.jpg"), key=lambda one: one.name)]
    assert found == drawn


def test_a_folder_is_packed_small_and_square(tmp_path):
    photos = write_photos(tmp_path / "photos", classes=3, images=6, size=40)
    packed = dict.fromkeys(label for label, _ in gpu_data.of_folder(photos, 2, 4, 16))
    assert list(packed) == ["amber", "beryl"]
    images = [image for _, image in gpu_data.of_folder(photos, 2, 4, 16)]
    assert len(images) == 8
    for image in images:
        with Image.open(io.BytesIO(image)) as picture:
            assert (picture.size, picture.format) == ((16, 16), "JPEG")


def test_no_images_and_too_many_are_refused(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no image"):
        gpu_data.write(tmp_path / "none.npz", [])
    monkeypatch.setattr(gpu_data, "MOST_BYTES", 1000)
    with pytest.raises(SystemExit, match="fewer --images"):
        gpu_data.write(tmp_path / "many.npz", gpu_data.textures(2, 2, 32))
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------- bookkeeping


def test_a_row_that_fails_does_not_end_the_others(tmp_path):
    plan = plan_of(tmp_path)
    rows = gpu_plan.Rows(tmp_path / "rows.jsonl", plan)

    def missing():
        raise BackendUnavailable(f"no TensorRT for SM90\nin {tmp_path}/lib here")

    def broken():
        raise RuntimeError("CUDA error: it broke\nand so on")

    for number, work in enumerate((missing, broken, lambda: {"value": 3})):
        rows.attempt(work, model=str(number))
    assert rows_of(tmp_path / "rows.jsonl") == [
        {"status": NOT_RUN, "model": "0", "reason": "no TensorRT for SM90 in .../lib here"},
        {"status": FAILED, "model": "1", "reason": "RuntimeError: CUDA error: it broke"},
        {"status": DONE, "model": "2", "value": 3}]


@pytest.mark.parametrize(("code", "budget_s", "says"), [
    ("import time; time.sleep(600)", 0.1, "its budget of 0 s was used up"),
    ("raise SystemExit('the card fell off the bus')", 300, "it ended with 1: the card fell off the bus"),
    ("", 300, None)])
def test_a_step_that_ends_badly_keeps_its_rows(tmp_path, monkeypatch, code, budget_s, says):
    def start(step, file, rows):
        rows.write_text(json.dumps({"status": DONE, "model": "first"}) + "\n")
        return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True)

    monkeypatch.setattr(gpu, "start", start)
    found = gpu.run_step("latency", plan_of(tmp_path), budget_s)
    assert (found["status"], found["rows"]) == (FAILED if says else DONE, [{"status": DONE, "model": "first"}])
    assert found["reason"] is None if says is None else found["reason"].startswith(says)


def test_a_later_call_replaces_only_what_it_measured_anew():
    old = {"rows": [{"model": "a", "batch": 1, "value": 1}, {"model": "b", "batch": 1, "value": 1}]}
    new = {"reason": None, "rows": [{"model": "b", "batch": 1, "value": 2}, {"model": "b", "batch": 8, "value": 2}]}
    assert gpu.merged(old, new) == {"reason": None, "rows": [old["rows"][0], *new["rows"]]}


def test_results_of_two_devices_are_not_mixed(tmp_path):
    out = tmp_path / "out.json"
    out.write_text(json.dumps({"device": "NVIDIA H100", "steps": {"versions": {}}}))
    assert gpu.earlier(out, {"device": "NVIDIA H100"})["steps"] == {"versions": {}}
    with pytest.raises(SystemExit, match="of device 'NVIDIA H100', and this would be of 'NVIDIA L4'"):
        gpu.earlier(out, {"device": "NVIDIA L4"})


@pytest.mark.parametrize(("words", "says"), [
    (["--steps", "latency,nonsense"], "expected some of versions"), (["--precisions", "fp8"], "expected some of fp32")])
def test_a_wrong_word_is_told(words, says, capsys):
    with pytest.raises(SystemExit) as caught:
        gpu.arguments(words)
    assert caught.value.code == 2 and says in capsys.readouterr().err


def test_a_wrong_model_is_told_and_so_is_a_missing_card(tmp_path):
    with pytest.raises(SystemExit, match="--models vgg"):
        gpu.planned(gpu.arguments(["--models", "vgg"]))
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="sees no CUDA device"):
            gpu.main(["--work", str(tmp_path)])


# --------------------------------------------------------------------------------------------------------------- steps


CONTRACT = '''
import pytest

@pytest.mark.gpu
class TestCuda:
    def test_one(self):
        pass

    def test_two(self):
        assert 1 == 2

@pytest.mark.gpu
@pytest.mark.skip(reason="TestTensorrt: There is no TensorRT for SM90.")
class TestTensorrt:
    def test_one(self):
        pass

class TestCpu:
    def test_one(self):
        raise AssertionError("has no mark")
'''


def test_contract_classes_become_rows(tmp_path):
    folder = tmp_path / "contract"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    (folder / "test_made_up_contract.py").write_text(CONTRACT)
    gpu_machine.contract(plan := plan_of(tmp_path, contract=str(folder)), gpu_plan.Rows(tmp_path / "rows", plan))
    cuda, tensorrt = rows_of(tmp_path / "rows")
    assert (cuda["contract"], cuda["status"], cuda["passed"], cuda["failed"]) == ("TestCuda", FAILED, 1, 1)
    assert cuda["failures"] == ["test_two"] and "assert 1 == 2" in cuda["reason"]
    assert (tensorrt["status"], tensorrt["reason"]) == (NOT_RUN, "There is no TensorRT for SM90.")


def tiny_network(model, *, classes, pretrained, image_size):
    from torch import nn

    from edgetl.models import Network

    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
                           nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
    return Network(model, layers, "6", Preprocess(size_hw=(image_size, image_size)))


def test_the_steps_on_a_tiny_model(tmp_path, monkeypatch):
    """Graphs, engines, parity and latency in this process; training and the processes around it are the slow test's."""
    import gpu_engines
    import gpu_measure
    import gpu_models

    monkeypatch.setattr(gpu_models.models, "create", tiny_network)
    plan = plan_of(tmp_path)
    found = {}
    for module, step in ((gpu_models, "graphs"), (gpu_engines, "engines"), (gpu_measure, "parity"),
                         (gpu_measure, "latency")):
        rows = gpu_plan.Rows(tmp_path / f"{step}.jsonl", plan)
        getattr(module, step)(plan, rows)
        found[step] = rows_of(rows.file)
    assert [row["precision"] for row in found["graphs"] if row["status"] == DONE] == ["fp32", "fp16", "int8"]
    parity = {(row["engine"], row["precision"]): row for row in found["parity"]}
    assert parity["torch", "fp32"]["worst_share"] == 0 and parity["torch", "fp32"]["accuracy"] is None
    assert parity["cpu", "fp32"]["worst_share"] < 1e-4 < parity["cpu", "int8"]["worst_share"] < 0.3
    assert parity["cpu", "fp16"]["worst_share"] < 0.01
    latency = {(row["engine"], row["precision"]): row for row in found["latency"]}
    for answer in (("torch", "fp32"), ("cpu", "fp32"), ("cpu", "fp16"), ("cpu", "int8")):
        row = latency[answer]
        assert row["status"] == DONE and row["throughput_ips"] == pytest.approx(2 / row["latency_s"])
        assert len(row["rounds_s"]) == plan.rounds and row["device_s"] is None
        assert min(row["rounds_s"]) <= row["latency_s"] <= max(row["rounds_s"])
    assert latency["cpu", "fp32"]["over_torch"]["value"] > 0 and "over_torch" not in latency["torch", "fp32"]
    assert {row["status"] for answer, row in latency.items() if answer[0] in ("nonsense", "tensorrt")} == {NOT_RUN}
    assert FAILED not in {row["status"] for rows in found.values() for row in rows}
    page = gpu_table.markdown({"device": "made up", "quick": True, "image_size": 32, "data": "textures",
                               "steps": {step: {"reason": None, "rows": rows} for step, rows in found.items()}})
    assert f"| {NAME} | 2 | cpu | int8 | " in page and "- not run: nonsense; " in page and str(tmp_path) not in page


def test_nothing_is_imported_that_a_machine_with_a_card_may_lack():
    """What cuts students, other runtimes and the command line are missed only where they are asked for."""
    absent = ("torch_pruning", "openvino", "tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings",
              "rich", "cryptography", "fastapi")
    modules = "gpu_machine, gpu_models, gpu_engines, gpu_measure, edgetl.train.teacher, edgetl.train.student"
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import {modules}"
    path = os.pathsep.join((str(gpu.ROOT), str(Path(gpu.__file__).parent)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_script_as_it_is_started(tmp_path, capfd):
    out = tmp_path / "out.json"
    words = ["--device", "cpu", "--quick", "--work", str(tmp_path / "work"), "--out", str(out), "--budget", "600"]
    folder = tmp_path / "contract"
    folder.mkdir()
    assert gpu.main([*words, "--contract", str(folder)]) == 0, capfd.readouterr().err
    steps = json.loads(out.read_text())["steps"]
    assert list(steps) == list(gpu.STEPS)
    trained = [row["model"] for row in steps["train"]["rows"] if row["status"] == DONE]
    assert sorted(trained) == sorted(gpu_plan.QUICK_PANEL)
    assert "## Latency" in out.with_suffix(".md").read_text()
    assert str(tmp_path) not in out.read_text()
