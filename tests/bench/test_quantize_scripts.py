"""The bookkeeping of benchmarks/quantize_accuracy.py and quantize_latency.py: verdicts, means and peers."""

from __future__ import annotations

import argparse
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compress.test_calibrate_quantize import cnn, items, png, reader

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import quantize_accuracy
import quantize_latency
import quantize_models
import quantize_networks
import quantize_peers


def row(tool: str, variant: str, drop: float, low: float, backend: str = "cpu") -> dict[str, Any]:
    found = {"drop_points": drop, "drop_low": low}
    return {"tool": tool, "variant": variant, "backend": backend, "against_fp32": found}


def test_the_default_keeps_its_budget_and_int8_beats_quantize_static_where_that_loses():
    def judged(default: str, own: float, peer: float, low: float) -> dict[str, Any]:
        rows = [row("edgetl", "fp32", 0.0, 0.0), row("edgetl", "x.int8", own, -1.0),
                row("ort-default", "int8", peer, low),
                row("ort-default", "int8", 50.0, 40.0, "openvino")]
        return quantize_accuracy.verdict({"rows": rows, "default": default}, 0.5)

    assert judged("x.int8", 0.5, 3.0, 1.0) == {"within": True, "quantize_static_loses": True, "beaten": True,
                                               "holds": True}
    assert judged("x.int8", 0.6, 3.0, 1.0)["holds"] is False  # outside the budget
    assert judged("fp32", 0.6, 3.0, 1.0)["within"] is True  # it was not chosen
    assert judged("fp32", 3.0, 3.0, 1.0)["holds"] is False  # no better than quantize_static
    assert judged("x.int8", 0.5, 0.4, -0.2) == {"within": True, "quantize_static_loses": False, "beaten": None,
                                                "holds": True}


def seconds(middle: float, seed: int, spread: float = 0.003) -> np.ndarray:
    chance = np.random.default_rng(seed)
    return middle * (1 + spread * chance.standard_normal((8, 1))) * (1 + 0.01 * chance.standard_normal((8, 10)))


def test_a_default_is_held_against_fp32_and_the_fastest_peer_within_the_budget():
    found = {"fp32": seconds(2e-3, 0), "x.int8": seconds(1e-3, 1), "ort-default": seconds(0.5e-3, 2),
             "nncf": seconds(0.9e-3, 3)}
    judged = {way: {"within": way != "ort-default"} for way in found}
    held = quantize_latency.held(found, "x.int8", judged)
    assert held["fastest_peer"] == "nncf"  # the faster one loses too much
    assert held["against_fp32"]["verdict"] == "not slower" and held["against_peer"]["verdict"] == "slower"
    assert held["ways"]["x.int8"]["speedup"] == pytest.approx(2, rel=0.05)
    kept = quantize_latency.held(found, "fp32", judged)
    assert kept["against_fp32"] == {"ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0, "verdict": "not slower"}
    alone = quantize_latency.held({way: found[way] for way in ("fp32", "x.int8")}, "x.int8", judged)
    assert alone["fastest_peer"] is None and alone["against_peer"] is None


def network(default: str, speedups: dict[str, tuple[float, bool]], said: str = "not slower") -> dict[str, Any]:
    ways = {way: {"speedup": value, "within": within} for way, (value, within) in speedups.items()}
    return {"rows": [{"backend": "cpu", "threads": 1, "arrival": "back-to-back", "default": default, "ways": ways,
                      "against_fp32": {"verdict": said}, "against_peer": None}]}


def test_means_are_geometric_and_a_graph_outside_the_budget_counts_as_fp32():
    found = [network("x.int8", {"fp32": (1.0, True), "x.int8": (4.0, True), "nncf": (2.0, False)}),
             network("fp32", {"fp32": (1.0, True), "x.int8": (0.5, True), "nncf": (8.0, True)})]
    (means,) = quantize_latency.geometric_means(found)
    told = {way: one["mean"] for way, one in means["speedups"].items()}
    assert told == pytest.approx({"edgetl": 2.0, "nncf": 8**0.5, "nncf, whatever it loses": 4.0})
    assert "edgetl 2.00x" in quantize_latency.summary_line(means)


def test_the_worst_verdict_of_any_row_is_the_exit_code():
    fine, unsure, slow = (network("fp32", {}, said) for said in ("not slower", "not sure", "slower"))
    assert [quantize_latency.outcome(one) for one in ([fine], [fine, unsure], [unsure, slow], [{"rows": []}])] == [
        0, 4, 3, 0]


def test_a_peer_that_fails_is_a_row_with_the_reason_and_is_tried_again(tmp_path, monkeypatch):
    commands: list[list[str]] = []

    def fails(command: list[str], **named: Any) -> Any:
        commands.append(command)
        return argparse.Namespace(returncode=1, stderr="Traceback\nError: no graph in /home/me/graph.onnx", stdout="")

    monkeypatch.setattr(quantize_peers.subprocess, "run", fails)
    given = (tmp_path / "graph.onnx", tmp_path / "images.npy", "image", tmp_path / "peers", Path("other/python"))
    for _ in range(2):
        failed = quantize_peers.made(["ort-default", "nncf"], *given)
        assert [one.graph for one in failed] == [None, None] and failed[0].reason == "Error: no graph in graph.onnx"
    assert [command[0] for command in commands] == [sys.executable, "other/python"] * 2


def test_a_peer_rounds_the_graph_in_a_process_of_its_own_and_is_kept(tmp_path):
    images = tmp_path / "images.npy"
    np.save(images, np.concatenate([batch["image"] for batch in iter(reader().get_next, None)]))
    (tmp_path / "graph.onnx").write_bytes(cnn())
    given = (["ort-best"], tmp_path / "graph.onnx", images, "image", tmp_path / "peers", None)
    (made,) = quantize_peers.made(*given)
    assert made.reason is None and made.graph is not None and made.told["tool"] == "ort-best" and made.told["version"]
    images.unlink()  # a second call makes nothing
    assert quantize_peers.made(*given) == [made]


def test_peers_get_the_calibration_images_of_the_export(tmp_path):
    from edgetl.compress import calibrate
    from edgetl.runtime.preprocess import Preprocess

    chosen = calibrate.choose(items(6), 4, 0)
    work = quantize_peers.Workload(argparse.Namespace(read=png), None, chosen)  # type: ignore[arg-type]
    square = Preprocess(size_hw=(8, 8), resize_mode="squash")
    found = np.load(quantize_peers.calibration_file(work, square, tmp_path))
    assert found.shape == (4, 3, 8, 8)
    assert np.array_equal(found, next(iter([calibrate.Reader(chosen, png, square).get_next()["image"]])))


def test_only_arrays_come_out_of_a_pickle(tmp_path):
    good, bad = tmp_path / "good.pkl", tmp_path / "bad.pkl"
    good.write_bytes(pickle.dumps({"conv1": [np.ones((1, 1, 2, 3), np.float32), np.zeros(3, np.float32)]}))
    bad.write_bytes(pickle.dumps(Path("/etc/passwd")))
    assert quantize_models.numbers_of(good)["conv1"][0].shape == (1, 1, 2, 3)
    with pytest.raises(pickle.UnpicklingError, match="only arrays are read"):
        quantize_models.numbers_of(bad)


def test_squeezenet_gets_torchvision_s_names_and_layout():
    layers = ["conv1", "conv10", *(f"fire{number}/{part}" for number in range(2, 10)
                                   for part in ("squeeze1x1", "expand1x1", "expand3x3"))]
    given = {layer: [np.full((1, 2, 3, 4), place), np.full((4, 1), place)] for place, layer in enumerate(layers)}
    found = quantize_models.torchvision_names(given)
    assert len(found) == 2 * len(layers)
    assert found["features.0.weight"].shape == (4, 3, 1, 2) and found["features.0.bias"].shape == (4,)
    # torchvision counts the poolings between the fire modules too.
    places = {"features.3.squeeze": "fire2/squeeze1x1", "features.6.expand1x1": "fire4/expand1x1",
              "features.9.expand3x3": "fire6/expand3x3", "features.12.squeeze": "fire9/squeeze1x1",
              "classifier.1": "conv10"}
    assert {name: layers[int(found[f"{name}.bias"][0])] for name in places} == places


def test_a_model_without_its_data_is_wrong_usage():
    given = argparse.Namespace(clothing="photos", cifar="pngs", cifar_weights=None, fashion=None, squeezenet=None)
    assert quantize_models.missing(given, ["lite0", "slim"]) == []
    assert quantize_models.missing(given, ["cifar_resnet20", "mobilenet_v2", "squeezenet1_1"]) == [
        "cifar_weights", "fashion", "squeezenet"]


def test_pictures_differ_by_class_split_and_number_and_are_the_same_again():
    one = np.asarray(quantize_networks.picture(3, "train", 0))
    assert np.array_equal(one, np.asarray(quantize_networks.picture(3, "train", 0)))
    for other in ((3, "train", 1), (3, "val", 0), (4, "train", 0)):
        assert not np.array_equal(one, np.asarray(quantize_networks.picture(*other)))
    assert one.shape == (quantize_networks.SIDE, quantize_networks.SIDE, 3)


def test_the_last_layer_is_fitted_to_tell_the_classes_apart():
    import torch

    from edgetl.models import Network

    chance = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % quantize_networks.CLASSES
    images = torch.randn(60, 1, 4, 4, generator=chance) * 0.1
    images[torch.arange(60), 0, labels // 4, labels % 4] += 2.0
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, quantize_networks.CLASSES))
    made = Network("x/y", module, "1", None)  # type: ignore[arg-type]
    quantize_networks.fit(made, images, labels)
    assert torch.equal(module(images).argmax(1), labels)
