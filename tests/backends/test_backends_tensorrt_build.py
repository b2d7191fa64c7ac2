"""Real builds of tiny graphs with TensorRT for RTX, which needs no card, and every sentence about what it refuses."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import SIZE, graph_spec, make_graph, parameters
from tiny_precisions import half_graph, onnx_bytes, quantized_graph

from edgetl.backends import _tensorrt_build, _tensorrt_flavor, _tensorrt_log, _tensorrt_precision
from edgetl.backends._tensorrt_build import Engine, How
from edgetl.backends._tensorrt_flavor import Flavor
from edgetl.errors import BackendUnavailable, BundleError, EdgetlError, GateFailed
from edgetl.runtime.session import GraphSpec, TensorSpec

ADA = How(compute_capabilities=("8.9",))
RTX = next((one for one in _tensorrt_flavor.installed() if one.name == "rtx"), None)
pytestmark = pytest.mark.skipif(RTX is None, reason="TensorRT for RTX is not installed")


@pytest.fixture(scope="module")
def flavor() -> Flavor:
    """TensorRT for RTX, as it is installed."""
    return _tensorrt_flavor.find("rtx")


def spec_of(precision: str) -> GraphSpec:
    return dataclasses.replace(graph_spec(), precision=precision)


def build(flavor: Flavor, graph: bytes, precision: str = "fp32", how: How = ADA, **more: Any) -> Engine:
    return _tensorrt_build.build(graph, spec_of(precision), flavor, how, **more)


# ----------------------------------------------------------------------------------------------------------- precisions


@pytest.mark.parametrize(("precision", "graph", "shares"), [
    ("fp32", make_graph, {"fp32": 1.0}),
    ("fp16", half_graph, {"fp16": 1.0}),
    ("bf16", lambda: half_graph("BFLOAT16"), {"bf16": 1.0}),
    ("int8", quantized_graph, {"int8": 1.0}),
    ("int8", lambda: quantized_graph(gemm=False), {"int8": 0.5, "fp32": 0.5}),
])
def test_every_precision_is_built_and_proved(flavor: Flavor, precision: str, graph: Callable[[], bytes],
                                             shares: dict[str, float]) -> None:
    made = build(flavor, graph(), precision)
    assert made.plan.startswith(b"vtrt")  # what plans of TensorRT for RTX begin with
    assert made.precisions == shares
    assert made.build_s > 0 and made.timing_cache is None and made.notes == ()


@pytest.mark.parametrize("asked", ["fp16", "bf16", "int8"])
def test_a_precision_that_the_graph_does_not_have_is_refused(flavor: Flavor, asked: str) -> None:
    with pytest.raises(GateFailed, match=f"{asked} was asked for, but the graph, as it was parsed, computes in 100 % "
                                         "fp32") as caught:
        build(flavor, make_graph(), asked)
    assert caught.value.exit_code == 3 and "casts or Q/DQ" in (caught.value.hint or "")


def test_quantized_weights_alone_are_no_int8(flavor: Flavor) -> None:
    """TensorRT dequantizes them and multiplies in float."""
    from onnx import helper

    weights = parameters() | {"scale": np.array(0.05, np.float32)}
    weights["fc_w"] = weights["fc_w"].round().astype(np.int8)
    nodes = [helper.make_node("DequantizeLinear", ["fc_w", "scale"], ["fc"]),
             helper.make_node("Conv", ["image", "conv_w", "conv_b"], ["conv"], pads=[1, 1, 1, 1]),
             helper.make_node("GlobalAveragePool", ["conv"], ["pool"]), helper.make_node("Flatten", ["pool"], ["flat"]),
             helper.make_node("Gemm", ["flat", "fc", "fc_b"], ["logits"], transB=1)]
    with pytest.raises(GateFailed, match="computes in 100 % fp32"):
        build(flavor, onnx_bytes(nodes, weights), "int8")


def test_int8_within_a_half_remainder_counts_each_layer(flavor: Flavor) -> None:
    shares = {"int8": 0.9, "fp16": 0.1}
    _tensorrt_precision.insist("int8", shares, "it")
    assert _tensorrt_precision.words(shares) == "90 % int8, 10 % fp16"
    with pytest.raises(GateFailed, match="no layers that multiply"):
        _tensorrt_precision.insist("fp16", {}, "it")


# --------------------------------------------------------------------------------------------------- cards and flags


def test_one_engine_for_several_cards_is_larger_than_for_one(flavor: Flavor) -> None:
    several = dataclasses.replace(ADA, compute_capabilities=("8.6", "8.9", "12.0"))
    assert len(build(flavor, make_graph(), how=several).plan) > len(build(flavor, make_graph()).plan)


def test_turing_refuses_fp32_in_one_sentence_and_takes_half_graphs(flavor: Flavor) -> None:
    turing = dataclasses.replace(ADA, compute_capabilities=("7.5", "8.9"))
    with pytest.raises(BackendUnavailable, match=r"cannot build for compute capability 7\.5: it has no FP32 GEMM "
                                                 r"there, which the layer '.+' needs") as caught:
        build(flavor, make_graph(), how=turing)
    assert caught.value.hint == "Build fp16-based graphs for 7.5 separately, and the others without 7.5."
    assert build(flavor, half_graph(), "fp16", How(compute_capabilities=("7.5",))).precisions == {"fp16": 1.0}


def test_the_cards_are_those_that_the_module_knows(flavor: Flavor) -> None:
    known = _tensorrt_build.known_cards(flavor)
    assert {"7.5", "8.6", "8.9", "12.0"} <= set(known) and "9.0" not in known
    with pytest.raises(BackendUnavailable, match=r"builds for the compute capabilities 7\.5, .*; 9\.0 was asked for"):
        build(flavor, make_graph(), how=How(compute_capabilities=("8.9", "9.0")))


def test_without_a_driver_the_card_that_is_here_cannot_be_built_for(flavor: Flavor) -> None:
    if _has_driver():
        pytest.skip("this machine has a card")
    with pytest.raises(BackendUnavailable, match="finds no NVIDIA driver") as caught:
        build(flavor, make_graph(), how=How())
    assert "--compute-capability 8.9" in (caught.value.hint or "")


def _has_driver() -> bool:
    import ctypes.util

    return ctypes.util.find_library("cuda") is not None


@pytest.mark.parametrize("flag", [{"version_compatible": True}, {"hardware_compatible": "ampere-plus"}])
def test_compatibilities_that_the_flavor_lacks_are_refused(flavor: Flavor, flag: dict[str, Any]) -> None:
    with pytest.raises(BackendUnavailable, match=r"TensorRT for RTX \d+\.\d+ builds no engines for other"):
        build(flavor, make_graph(), how=dataclasses.replace(ADA, **flag))


def test_a_workspace_that_is_too_small_says_what_to_do(flavor: Flavor) -> None:
    with pytest.raises(BackendUnavailable, match=r"for 8\.9: Tactic Selection: no tactics .* workspace") as caught:
        build(flavor, make_graph(), how=dataclasses.replace(ADA, workspace_bytes=1 << 10))
    assert caught.value.hint == "Allow it more: --workspace 2GiB."
    assert build(flavor, make_graph(), how=dataclasses.replace(ADA, workspace_bytes=1 << 30, optimization_level=0)).plan


@pytest.mark.parametrize(("wrong", "said"), [
    ({"batches": (2, 1, 8)}, "batches are 2, 1, 8; expected"),
    ({"batches": (0, 1, 8)}, "batches are 0, 1, 8; expected"),
    ({"optimization_level": 6}, "optimization level is 6; expected 0 to 5"),
    ({"workspace_bytes": 0}, "workspace is 0 bytes"),
    ({"hardware_compatible": "all"}, "hardware compatibility is 'all'; expected none, ampere-plus, same"),
    ({"compute_capabilities": ("sm89",)}, "compute capability 'sm89' cannot be read"),
])
def test_values_outside_their_limits_are_refused(flavor: Flavor, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(EdgetlError, match=said):
        build(flavor, make_graph(), how=dataclasses.replace(ADA, **wrong))


def test_how_is_plain_json_with_every_field() -> None:
    told = json.loads(json.dumps(ADA.to_json()))
    assert told["batches"] == [1, 1, 32] and told["compute_capabilities"] == ["8.9"]
    assert set(told) == {one.name for one in dataclasses.fields(How)}


# --------------------------------------------------------------------------------------------- batches and other sizes


def test_a_fixed_batch_needs_no_profile(flavor: Flavor) -> None:
    from onnx import ModelProto

    model = ModelProto.FromString(make_graph())
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = 2
    fixed = GraphSpec(*(tuple(dataclasses.replace(one, shape=(2, *one.shape[1:])) for one in ports)
                        for ports in (graph_spec().inputs, graph_spec().outputs)))
    assert _tensorrt_build.build(model.SerializeToString(), fixed, flavor, ADA).plan
    with pytest.raises(BundleError, match=r"'image' of the graph is FLOAT \[2, 3, 16, 16\] to .*; expected float32"):
        build(flavor, model.SerializeToString())
    # A free graph whose manifest says that it is fixed is built for that batch alone.
    assert _tensorrt_build.build(make_graph(), dataclasses.replace(fixed, outputs=fixed.outputs), flavor, ADA).plan


def test_other_free_sizes_are_refused(flavor: Flavor) -> None:
    from onnx import ModelProto

    model = ModelProto.FromString(make_graph())
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    image = dataclasses.replace(graph_spec().inputs[0], shape=("N", 3, "H", SIZE))
    free = dataclasses.replace(graph_spec(), inputs=(image,))
    with pytest.raises(BundleError, match=r"'image' has the shape \[N, 3, H, 16\]; expected sizes that are fixed"):
        _tensorrt_build.build(model.SerializeToString(), free, flavor, ADA)


def test_pixels_and_features_are_ports_too(flavor: Flavor) -> None:
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
             helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
             helper.make_node("GlobalAveragePool", ["planes"], ["pool"]),
             helper.make_node("Flatten", ["pool"], ["logits"])]
    graph = onnx_bytes(nodes, image=("UINT8", ["N", SIZE, SIZE, 3]))
    pixels = TensorSpec("image", "image", "uint8", ("N", SIZE, SIZE, 3), "NHWC")
    assert _tensorrt_build.build(graph, dataclasses.replace(graph_spec(), inputs=(pixels,)), flavor, ADA).plan
    with pytest.raises(BundleError, match=r"'image' of the graph is UINT8 .* expected float32"):
        build(flavor, graph)


# ------------------------------------------------------------------------------------------- graphs that are refused


def one_node(operator: str, *, shape: Sequence[int | str] = ("N", 3), weights: dict[str, np.ndarray] | None = None,
             name: str = "odd", opset: int = 19, domain: str = "", **attributes: Any) -> bytes:
    from onnx import helper

    node = helper.make_node(operator, ["image", *(weights or {})], ["logits"], name=name, domain=domain, **attributes)
    return onnx_bytes([node], weights, image=("FLOAT", [*shape]), opset=opset)


def mixed_types() -> bytes:
    from onnx import TensorProto, helper

    return onnx_bytes([helper.make_node("Cast", ["image"], ["half"], to=TensorProto.FLOAT16),
                       helper.make_node("MatMul", ["half", "w"], ["logits"], name="mm")],
                      {"w": np.ones((3, 3), np.float32)}, image=("FLOAT", ["N", 3]))


def computed_shape() -> bytes:
    from onnx import TensorProto, helper

    return onnx_bytes([helper.make_node("Cast", ["image"], ["sizes"], to=TensorProto.INT64),
                       helper.make_node("Reshape", ["image", "sizes"], ["logits"], name="rs")], image=("FLOAT", [2]))


def unnamed() -> bytes:
    return one_node("Det", shape=("N", 3, 3), name="")


def nowhere() -> bytes:
    from onnx import helper

    return onnx_bytes([helper.make_node("Relu", ["gone"], ["logits"], name="r")])


@pytest.mark.parametrize(("graph", "said", "hint"), [
    (lambda: one_node("Foo", domain="my.own"), r"the node 'odd' \(Foo, number 0\): TensorRT has no such operator",
     "on another backend"),
    (lambda: one_node("Det", shape=("N", 3, 3)), r"the node 'odd' \(Det, number 0\): TensorRT does not have the "
     "operator Det", "on another backend"),
    (unnamed, r"the node that gives 'logits' \(Det, number 0\)", "on another backend"),
    (lambda: one_node("NonZero"), r"the node 'odd' \(NonZero, number 0\): TensorRT has no such", "on another backend"),
    (lambda: quantized_graph(bias_int32=True), r"'dq_bias' \(DequantizeLinear, number 3\): it dequantizes int32",
     "--target tensorrt"),
    (lambda: quantized_graph(np.int8(3)), r"'q_image' \(QuantizeLinear, number 0\): it has a zero point other than 0",
     "--target tensorrt"),
    (lambda: quantized_graph(np.uint8(3)), r"'q_image' .*: it has a zero point other than 0", "--target tensorrt"),
    (mixed_types, r"'mm' \(MatMul, number 1\): its inputs are of different types", "casts"),
    (computed_shape, r"'rs' \(Reshape, number 1\): the shape of a tensor depends on values", "fixed sizes"),
    (nowhere, r"'r' \(Relu, number 0\): it takes a tensor that no node gives", "damaged"),
    (lambda: one_node("Conv", weights={"w": np.ones((3, 3), np.float32)}), r"'odd' \(Conv, number 0\): .*kernelSize",
     "older operator set"),
    (lambda: b"no graph at all", "the graph as a whole: it is no ONNX graph", "damaged"),
    (lambda: make_graph()[:-40], "the graph as a whole: it is no ONNX graph", "damaged"),
    (lambda: b"", "finds no inputs or outputs in the graph", "damaged"),
])
def test_a_graph_that_cannot_be_parsed_is_refused_in_one_sentence(
        flavor: Flavor, graph: Callable[[], bytes], said: str, hint: str) -> None:
    with pytest.raises(BundleError, match=said) as caught:
        build(flavor, graph())
    assert hint in (caught.value.hint or "")
    assert "\n" not in caught.value.message and ".cpp" not in caught.value.message
    assert "cudaError" not in caught.value.message


def test_uint8_that_the_parser_would_clip_is_refused(flavor: Flavor) -> None:
    """It takes zero points of 0 as if they were int8, with a warning that nobody would see."""
    with pytest.raises(BundleError, match="quantized to uint8, which TensorRT would compute as int8, with wrong"):
        build(flavor, quantized_graph(np.uint8(0)), "int8")


def test_weights_in_other_files_are_refused(flavor: Flavor, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "graph.onnx"
    onnx.save_model(onnx.load_from_string(make_graph()), path, save_as_external_data=True, size_threshold=0)
    with pytest.raises(BundleError, match="in another file"):
        build(flavor, path.read_bytes())


FUZZED = """
import sys
import numpy as np
sys.path[:0] = {path!r}
from tiny_bundle import graph_spec, make_graph
from tiny_precisions import quantized_graph
from edgetl.backends import _tensorrt_build as b, _tensorrt_flavor as f
from edgetl.errors import EdgetlError
rng, refused = np.random.default_rng(11), 0
for index in range(40):
    damaged = bytearray((make_graph, quantized_graph)[index % 2]())
    if index % 4 == 3:
        damaged = damaged[: rng.integers(len(damaged))]
    for place in rng.integers(len(damaged), size=4):
        damaged[place] ^= 1 << int(rng.integers(8))
    try:
        b.build(bytes(damaged), graph_spec(), f.find("rtx"), b.How(compute_capabilities=("8.9",)))
    except EdgetlError as problem:
        refused += 1
        assert problem.message.isprintable()
print(refused > 20)
"""


def test_damaged_graphs_are_refused_or_built_and_nothing_else(flavor: Flavor) -> None:
    """Truncated and with flipped bits, in a process of its own: one of these ended it before nodes were looked at."""
    done = subprocess.run([sys.executable, "-c", FUZZED.format(path=[str(Path(__file__).parents[1])])],
                          capture_output=True, text=True, timeout=600, check=False)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_a_node_without_outputs_never_reaches_the_parser(flavor: Flavor) -> None:
    """It would end the process."""
    from onnx import ModelProto

    model = ModelProto.FromString(make_graph())
    del model.graph.node[1].output[:]
    with pytest.raises(BundleError, match="has a node without outputs"):
        build(flavor, model.SerializeToString())


def test_names_that_are_no_text_are_refused(flavor: Flavor) -> None:
    with pytest.raises(BundleError, match="holds names that are no text"):
        build(flavor, one_node("Det", shape=("N", 3, 3), name="strange").replace(b"strange", b"str\x9f\x99ge"))
    with pytest.raises(BundleError, match=r"the node 'str\?nge' \(Det"):
        build(flavor, one_node("Det", shape=("N", 3, 3), name="str\nnge"))


def test_other_names_than_those_of_the_manifest_are_refused(flavor: Flavor) -> None:
    other = dataclasses.replace(graph_spec().inputs[0], name="pixels")
    with pytest.raises(BundleError, match=r"has the inputs \['image'\]; expected \['pixels'\]"):
        _tensorrt_build.build(make_graph(), dataclasses.replace(graph_spec(), inputs=(other,)), flavor, ADA)


def test_what_only_the_builder_refuses_is_its_last_error(flavor: Flavor) -> None:
    from onnx import helper

    graph = onnx_bytes([helper.make_node("TopK", ["image", "k"], ["logits", "places"], name="tk")],
                       {"k": np.array([5000], np.int64)}, image=("FLOAT", ["N", 6000]), logits=("FLOAT", ["N", 5000]))
    image, logits = (dataclasses.replace(one, shape=("N", size)) for one, size in
                     ((graph_spec().inputs[0], 6000), (graph_spec().outputs[0], 5000)))
    with pytest.raises(BackendUnavailable, match=r"cannot build the engine for 8\.9: .*K exceeds the maximum value"):
        _tensorrt_build.build(graph, GraphSpec((image,), (logits,)), flavor, ADA)


# ------------------------------------------------------------------ progress, Ctrl-C and other builds in a process


def test_phases_are_told_to_the_thread_that_waits(flavor: Flavor) -> None:
    told: list[tuple[str, int, int]] = []
    threads = set()

    def listen(phase: str, done: int, total: int) -> None:
        told.append((phase, done, total))
        threads.add(threading.current_thread())

    build(flavor, make_graph(), progress=listen)
    assert threads == {threading.current_thread()}
    first = told[0]
    assert first[1] == 0 and (first[0], first[2], first[2]) in told  # what begins first is done in the end
    assert all(0 <= done <= total for _, done, total in told) and len({phase for phase, *_ in told}) > 3


@pytest.mark.parametrize("problem", [KeyboardInterrupt, ValueError])
def test_a_listener_that_raises_stops_the_build(flavor: Flavor, problem: type[BaseException]) -> None:
    heard = []

    def listen(phase: str, done: int, total: int) -> None:
        heard.append(phase)
        raise problem("enough")

    with pytest.raises(problem, match="enough"):
        build(flavor, make_graph(), progress=listen)
    assert len(heard) == 1
    assert _ends_soon()
    assert build(flavor, make_graph()).plan  # and the next one is whole


def _ends_soon() -> bool:
    """Whether no build goes on; its thread may have put its last message and be about to end."""
    left = [one for one in threading.enumerate() if one.name == "edgetl-tensorrt-build"]
    for one in left:
        one.join(timeout=300)
    return not any(one.is_alive() for one in left)


INTERRUPTED = """
import os, signal, sys
sys.path[:0] = {path!r}
from tiny_bundle import graph_spec, make_graph
from edgetl.backends import _tensorrt_build as b, _tensorrt_flavor as f
def listen(phase, done, total):
    os.kill(os.getpid(), signal.SIGINT)
try:
    b.build(make_graph(), graph_spec(), f.find("rtx"), b.How(compute_capabilities=("8.9",)), progress=listen)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_in_the_middle_of_a_build_does_not_end_the_process_in_cpp(flavor: Flavor) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED.format(path=[str(Path(__file__).parents[1])])],
                          capture_output=True, text=True, timeout=600, check=False)
    assert (done.stdout, done.returncode) == ("interrupted\n", 0), done.stderr


def test_nothing_is_printed(flavor: Flavor, capfd: pytest.CaptureFixture[str]) -> None:
    build(flavor, make_graph())
    with pytest.raises(BundleError):
        build(flavor, unnamed())
    assert capfd.readouterr() == ("", "")


def test_builds_of_one_process_wait_for_one_another(flavor: Flavor) -> None:
    made: list[Engine | BaseException] = []

    def work(graph: bytes) -> None:
        try:
            made.append(build(flavor, graph))
        except BundleError as problem:
            made.append(problem)

    threads = [threading.Thread(target=work, args=(graph,)) for graph in (make_graph(), unnamed(), make_graph())]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(type(one).__name__ for one in made) == ["BundleError", "Engine", "Engine"]


def test_an_old_timing_cache_is_left_aside_with_a_note(flavor: Flavor) -> None:
    made = build(flavor, make_graph(), timing_cache=b"anything")
    assert made.timing_cache is None and "keeps no timing cache" in made.notes[0]


# ------------------------------------------------------------------------------------------------- what TensorRT says


@pytest.mark.parametrize(("said", "plain"), [
    ("IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] No FP32 here. In compileGraph at "
     "/_src/optimizer/codeGenerator.cpp:2012)", "No FP32 here"),
    ("4: [optimizer.cpp::computeCosts::3728] Error Code 4: Internal Error (Could not find any implementation for node "
     "a.)", "Could not find any implementation for node a"),
    ("Invalid Node - mm\nmm: K exceeds the value allowed (3840). In check at /_src/a.cpp:1)", "Invalid Node - mm mm: K "
     "exceeds the value allowed (3840)"),
    ("Error Code 1: Cuda Runtime (In f at /_src/a.cpp:25 (cudaError 35: CUDA driver version is insufficient))", ""),
])
def test_messages_are_shown_without_where_they_came_from(said: str, plain: str) -> None:
    assert _tensorrt_log.plain(said) == plain
