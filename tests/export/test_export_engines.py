"""`edgetl engine` on bundles and on graphs in ONNX, with real engines of TensorRT for RTX."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_builder import made_up
from tiny_bundle import edit_manifest, make_bundle, make_graph, make_variant
from tiny_precisions import half_graph, onnx_bytes, quantized_graph

import edgetl
from edgetl import plugins
from edgetl.backends import _cuda, _tensorrt_flavor
from edgetl.cli import app
from edgetl.errors import BackendUnavailable, BundleError, EdgetlError, GateFailed, OutputError, UnknownName
from edgetl.events import Event
from edgetl.export.engines import _Bar
from edgetl.runtime.manifest import MANIFEST

needs_rtx = pytest.mark.skipif(all(one.name != "rtx" for one in _tensorrt_flavor.installed()),
                               reason="TensorRT for RTX is not installed")
ADA = ["--compute-capability", "8.9"]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of fp32 alone."""
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A graph in a file."""
    path = tmp_path / "model.onnx"
    path.write_bytes(make_graph())
    return path


def add_variant(bundle: Path, name: str, graph: bytes, *, target: str = "tensorrt", precision: str = "fp16") -> None:
    """Adds a variant behind those that the manifest has."""
    file = f"{name}.onnx"
    (bundle / file).write_bytes(graph)
    made = make_variant(name, graph, file, target=target, precision=precision, backends=("tensorrt",))
    variants = json.loads((bundle / MANIFEST).read_text())["variants"]
    edit_manifest(bundle, "variants", value=[*variants, json.loads(json.dumps(dataclasses.asdict(made)))])


def built(source: Path, out: Path, **more: Any) -> Any:
    return edgetl.engine(source=source, out=out, **{"compute_capability": ["8.9"], **more})


# ------------------------------------------------------------------------------------------------------- of a bundle


@needs_rtx
def test_a_bundle_without_a_variant_for_tensorrt_gives_its_portable_one(bundle: Path, tmp_path: Path) -> None:
    told: list[Event] = []
    made = built(bundle, tmp_path / "new/m.engine", listener=told.append)
    plan = (tmp_path / "new/m.engine").read_bytes()
    assert (made.variant, made.size_bytes, made.sha256) == ("fp32", len(plan), hashlib.sha256(plan).hexdigest())
    assert "portable" in made.why and made.precisions == {"fp32": 1.0} and made.precision == "fp32"
    assert [one.values["text"] for one in told if one.kind == "note"] == [f"variant fp32: {made.why}."]
    kinds = [one.kind for one in told]
    assert (kinds.count("begin"), kinds.count("end")) == (1, 1)
    done = [one.values["done"] for one in told if one.kind == "advance"]
    assert done == sorted(set(done)) and done[-1] == 100
    sidecar = json.loads((tmp_path / "new/m.engine.json").read_text())
    assert sidecar["plan_sha256"] == made.sha256
    assert sidecar["fingerprint"]["graph_sha256"] == hashlib.sha256(make_graph()).hexdigest()
    assert sidecar["fingerprint"]["flags"]["compute_capabilities"] == ["8.9"]
    assert sorted(one.name for one in (tmp_path / "new").iterdir()) == ["m.engine", "m.engine.json"]


@needs_rtx
def test_the_first_variant_for_tensorrt_is_preferred(bundle: Path, tmp_path: Path) -> None:
    add_variant(bundle, "tensorrt.fp16", half_graph())
    made = built(bundle, tmp_path / "one.engine")
    assert (made.variant, made.why, made.precisions) == ("tensorrt.fp16", "it is made for TensorRT", {"fp16": 1.0})
    add_variant(bundle, "tensorrt.int8", quantized_graph(), precision="int8")
    first = built(bundle, tmp_path / "two.engine", overwrite=True)
    assert first.variant == "tensorrt.fp16" and "the first of the manifest's" in first.why
    named = built(bundle, tmp_path / "three.engine", variant="tensorrt.int8", batches="2,4,8")
    assert (named.variant, named.why, named.batches) == ("tensorrt.int8", "it was asked for", (2, 4, 8))
    with pytest.raises(UnknownName, match=r"no variant named 'tensorrt\.fp8'\. Did you mean 'tensorrt\.fp16'"):
        built(bundle, tmp_path / "four.engine", variant="tensorrt.fp8")


@needs_rtx
def test_a_packed_bundle_is_a_bundle(bundle: Path, tmp_path: Path) -> None:
    assert app.main(["pack", str(bundle), "--out", str(tmp_path / "tiny.edgetl")]) == 0
    assert built(tmp_path / "tiny.edgetl", tmp_path / "m.engine").variant == "fp32"


def test_a_bundle_for_other_runtimes_alone_says_what_it_has(bundle: Path, tmp_path: Path) -> None:
    edit_manifest(bundle, "variants", 0, "target", value="x86-vnni")
    with pytest.raises(EdgetlError, match="has no variant for TensorRT and no portable one; it has fp32"):
        built(bundle, tmp_path / "m.engine")


def test_an_altered_graph_is_refused_as_the_runtime_does(bundle: Path, tmp_path: Path) -> None:
    graph = bytearray(make_graph())
    graph[-1] ^= 1
    (bundle / "fp32.onnx").write_bytes(graph)
    with pytest.raises(BundleError, match=r"fp32\.onnx was altered"):
        built(bundle, tmp_path / "m.engine")
    assert not (tmp_path / "m.engine").exists()


@needs_rtx
def test_a_precision_that_is_not_there_writes_nothing(bundle: Path, tmp_path: Path) -> None:
    add_variant(bundle, "tensorrt.fp16", make_graph())
    with pytest.raises(GateFailed, match="computes in 100 % fp32"):
        built(bundle, tmp_path / "m.engine")
    assert not (tmp_path / "m.engine").exists()


# ------------------------------------------------------------------------------------------------ of a graph in ONNX


@needs_rtx
@pytest.mark.parametrize(("graph", "precision"), [(make_graph, "fp32"), (half_graph, "fp16"),
                                                  (lambda: half_graph("BFLOAT16"), "bf16"), (quantized_graph, "int8")])
def test_the_precision_of_a_file_is_what_its_graph_says(tmp_path: Path, graph: Any, precision: str) -> None:
    (tmp_path / "m.onnx").write_bytes(graph())
    made = built(tmp_path / "m.onnx", tmp_path / "m.engine")
    assert (made.precision, made.variant, made.timing_cache) == (precision, None, "none")


@needs_rtx
def test_free_sizes_of_a_file_are_asked_for(tmp_path: Path) -> None:
    from onnx import ModelProto

    model = ModelProto.FromString(make_graph())
    for place, name in ((2, "H"), (3, "W")):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EdgetlError, match=r"'image' of .*m\.onnx has the shape \[N, 3, H, W\]: its size is free"):
        built(tmp_path / "m.onnx", tmp_path / "m.engine")
    assert built(tmp_path / "m.onnx", tmp_path / "m.engine", input_size="24x32").batches == (1, 1, 32)


@needs_rtx
def test_a_file_with_a_fixed_batch_and_an_unnamed_output_shape(tmp_path: Path) -> None:
    from onnx import ModelProto

    model = ModelProto.FromString(make_graph())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    model.graph.output[0].type.tensor_type.shape.dim[0].Clear()
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    model.graph.output[0].type.tensor_type.shape.dim[1].Clear()
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert built(tmp_path / "m.onnx", tmp_path / "m.engine").batches is None


@pytest.mark.parametrize(("data", "said"), [
    (b"no graph at all", "neither a bundle nor a graph in ONNX"),
    (b"", "neither a bundle nor a graph in ONNX"),
    (onnx_bytes([], image=("DOUBLE", ["N", 3])), "'image' of .* is of DOUBLE; expected FLOAT, FLOAT16, UINT8, INT64"),
])
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(EdgetlError, match=said):
        built(tmp_path / "m.onnx", tmp_path / "m.engine")


def test_what_is_for_the_other_kind_of_source_is_refused(bundle: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgetlError, match="--variant is for bundles"):
        built(model, tmp_path / "m.engine", variant="fp32")
    with pytest.raises(EdgetlError, match="--input-size is for graphs in ONNX"):
        built(bundle, tmp_path / "m.engine", input_size="224")
    with pytest.raises(EdgetlError, match=r"nowhere does not exist: expected a bundle or an \.onnx file"):
        built(Path("nowhere"), tmp_path / "m.engine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BundleError, match="is an empty folder, so it is no bundle"):
        built(tmp_path / "folder", tmp_path / "m.engine")


# ------------------------------------------------------------------------------------------------------- where it goes


@pytest.mark.parametrize("name", ["m.engine", "m.engine.json"])
def test_an_existing_file_is_kept_before_anything_is_built(model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=f"{name} exists already") as caught:
        built(model, tmp_path / "m.engine")
    assert caught.value.hint == "Choose another --out, or give --overwrite."
    assert (tmp_path / name).read_text() == "mine"


def test_a_folder_is_no_place_for_an_engine(model: Path, tmp_path: Path) -> None:
    (tmp_path / "m.engine").mkdir()
    with pytest.raises(OutputError, match=r"exists already") as caught:
        built(model, tmp_path / "m.engine", overwrite=True)
    assert caught.value.hint == "Choose another --out."


@needs_rtx
def test_a_build_that_fails_leaves_the_old_engine(model: Path, tmp_path: Path) -> None:
    old = built(model, tmp_path / "m.engine")
    model.write_bytes(quantized_graph(np.int8(3)))
    with pytest.raises(BundleError, match="zero point"):
        built(model, tmp_path / "m.engine", overwrite=True)
    assert hashlib.sha256((tmp_path / "m.engine").read_bytes()).hexdigest() == old.sha256


@needs_rtx
def test_ctrl_c_leaves_nothing(model: Path, tmp_path: Path) -> None:
    def listen(event: Event) -> None:
        if event.kind == "advance":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(model, tmp_path / "new/m.engine", listener=listen)
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]


KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
import edgetl
from edgetl.cli import app, progress
from edgetl.events import Event
import contextlib

def listen(event):
    if event.kind == "advance":
        os.kill(os.getpid(), signal.{signal})

@contextlib.contextmanager
def shown():
    yield listen

progress.shown = shown
sys.exit(app.main(["engine", {model!r}, "--out", {out!r}, "--compute-capability", "8.9"]))
"""


@needs_rtx
@pytest.mark.parametrize(("signal", "code"), [("SIGKILL", -9), ("SIGINT", 130)])
def test_a_build_that_is_ended_leaves_nothing_half_written(model: Path, tmp_path: Path, signal: str, code: int) -> None:
    source = KILLED.format(path=[str(Path(__file__).parents[1])], signal=signal, model=str(model),
                           out=str(tmp_path / "new/m.engine"))
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == code, done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]


# ------------------------------------------------------------------- the card that is here, and timing caches (made up)


class Here:
    """A CUDA runtime with a card."""

    def card(self) -> _cuda.Card:
        return _cuda.Card("Made-up 4090", "8.9", "580.1", 1 << 34, 1 << 33)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> str:
    """TensorRT 11, made up, on a card, made up; its version."""
    flavor = made_up("11.4.0.106")
    absent = _tensorrt_flavor.Absent("TensorRT for RTX is not installed.", "Install it.")
    monkeypatch.setattr(_tensorrt_flavor, "look", lambda name: flavor if name == "tensorrt" else absent)
    monkeypatch.setattr(_cuda, "find", Here)
    return flavor.version


def test_the_card_that_is_here_stands_in_the_sidecar(tensorrt: str, model: Path, tmp_path: Path) -> None:
    made = built(model, tmp_path / "m.engine", compute_capability=[])
    assert (made.flavor, made.version, made.title) == ("tensorrt", tensorrt, "TensorRT 11.4")
    assert (made.compute_capabilities, made.device, made.driver) == (("8.9",), "Made-up 4090", "580.1")
    assert made.timing_cache == "not kept"
    found = json.loads((tmp_path / "m.engine.json").read_text())["fingerprint"]
    assert (found["device"], found["driver"], found["flags"]["compute_capabilities"]) == ("Made-up 4090", "580.1", [])


def test_timing_caches_are_kept_reused_and_refused(tensorrt: str, model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "caches/timing.cache"
    told: list[Event] = []

    def again(name: str) -> Any:
        return built(model, tmp_path / name, compute_capability=[], timing_cache=cache, listener=told.append)

    assert again("1.engine").timing_cache == "new"
    assert cache.read_bytes() == b"cache+kernels"
    assert again("2.engine").timing_cache == "reused"
    assert cache.read_bytes() == b"cache+kernels+kernels"
    cache.write_bytes(b"other card")
    assert again("3.engine").timing_cache == "refused"
    assert cache.read_bytes() == b"cache+kernels"
    assert [one.values["text"][:20] for one in told if one.kind == "warning"] == ["The timing cache is "]


def test_cards_that_are_named_ask_for_the_flavor_that_builds_for_them(tensorrt: str, model: Path,
                                                                      tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="TensorRT for RTX is not installed"):
        built(model, tmp_path / "m.engine")
    with pytest.raises(BackendUnavailable, match=r"TensorRT 11\.4 builds for the card of this machine only"):
        built(model, tmp_path / "m.engine", flavor="tensorrt")


@needs_rtx
def test_without_a_card_the_sentence_says_how_to_build_for_others(model: Path, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise BackendUnavailable("There is no NVIDIA driver.", hint="Install it.")

    monkeypatch.setattr(_cuda, "find", absent)
    with pytest.raises(BackendUnavailable, match=r"no card here to build for: There is no NVIDIA driver\.") as caught:
        built(model, tmp_path / "m.engine", compute_capability=[])
    assert caught.value.hint == ("Install it. Or name the cards, for which TensorRT for RTX builds without one: "
                                 "--compute-capability 8.9")


# ------------------------------------------------------------------------------------------------------- the command


@needs_rtx
def test_the_command_prints_what_was_built(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.engine"
    assert app.main(["engine", str(bundle), "--out", str(out), "--compute-capability", "12.0,8.6", *ADA]) == 0
    said, err = capsys.readouterr()
    lines = dict(line.split("  ", 1) for line in said.splitlines())
    assert {key.strip(): value.strip() for key, value in lines.items()}["for cards"] == (
        "compute capability 8.6, 8.9, 12.0, ahead of time, for any driver")
    assert "TensorRT for RTX" in said and "fp32 100 % of the layers that multiply" in said
    assert "no timing cache: this flavor keeps none" in said and "1 to 32, best at 1" in said
    assert "engine: variant fp32: none is made for TensorRT" in err
    assert app.main(["engine", str(bundle), "--out", str(out), *ADA]) == 1
    assert "exists already" in capsys.readouterr().err
    assert app.main(["engine", str(bundle), "--out", str(out), *ADA, "--overwrite", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["compute_capabilities"] == ["8.9"] and made["precisions"] == {"fp32": 1.0}
    assert made["size_bytes"] == out.stat().st_size


@needs_rtx
def test_exit_codes(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["engine", str(bundle), "--out", str(tmp_path / "m.engine")]
    assert app.main([*words, "--compute-capability", "9.0"]) == 1
    assert "9.0 was asked for" in capsys.readouterr().err
    assert app.main([*words, *ADA, "--version-compatible"]) == 1
    for wrong in (["--compute-capability", "sm89"], ["--batches", "1,2"], ["--batches", "0,1,2"], ["--workspace", "1"],
                  ["--optimization-level", "6"], ["--hardware-compatible", "all"], ["--flavor", "tensorrt-rtx"]):
        assert app.main([*words, *wrong]) == 2, wrong
    assert app.main([*words, *ADA, "--batches", "8,1,2"]) == 1
    assert "batches are 8, 1, 2" in capsys.readouterr().err
    add_variant(bundle, "tensorrt.int8", make_graph(), precision="int8")
    assert app.main([*words, *ADA]) == 3
    assert "int8 was asked for, but the graph" in capsys.readouterr().err
    assert not (tmp_path / "m.engine").exists()


# ------------------------------------------------------------------------------------------------------------- the bar


def test_phases_within_phases_make_one_bar_that_never_runs_backwards() -> None:
    told: list[Event] = []
    with _Bar(told.append) as bar:
        for phase, done, total in (("a", 0, 2), ("b", 0, 4), ("b", 1, 4), ("b", 4, 4), ("b", 4, 4), ("a", 1, 2),
                                   ("b", 0, 2), ("b", 1, 2), ("a", 2, 2), ("a", 2, 2)):
            bar(phase, done, total)
    assert [one.values["done"] for one in told if one.kind == "advance"] == [12, 50, 75, 100]
    assert (told[0].kind, told[-1].kind) == ("begin", "end")
    unused: list[Event] = []
    with _Bar(unused.append):
        pass
    assert unused == []


def test_the_backend_offers_what_the_command_needs() -> None:
    backend = plugins.load("backends", "tensorrt")
    assert backend.build_ahead.__module__ == "edgetl.backends._tensorrt_ahead" and backend.How
