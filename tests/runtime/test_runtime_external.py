"""Weights in other files are refused, wherever in a graph they hide, although the engine would fetch them."""

from __future__ import annotations

import contextlib
import hashlib

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import edit_manifest, make_bundle, make_graph, parameters

from edgetl.errors import BundleError, EdgetlError
from edgetl.runtime import load
from edgetl.runtime.external import _says_location, refuse_external_data

SECRET = np.arange(4, dtype=np.float32)


def external(name: str, location: str, **entries: str) -> TensorProto:
    """A float tensor [4] that says it lies elsewhere."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "length": "16", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(nodes=(), initializers=(), **more):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    graph = helper.make_graph(list(nodes), "g", [value], [value], list(initializers))
    return helper.make_model(graph, **more)


def branch(tensor: TensorProto):
    """A node whose branch holds a constant."""
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    inner = helper.make_graph([constant], "inner", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [4])])
    return helper.make_node("If", ["b"], ["y"], then_branch=inner, else_branch=inner)


TENSOR = external("hidden", "secret.bin")
PLACES = {
    "an initializer": model(initializers=[TENSOR]),
    "a constant": model([helper.make_node("Constant", [], ["c"], value=TENSOR)]),
    "a list of tensors": model([helper.make_node("X", [], ["c"], values=[TENSOR])]),
    "a branch": model([branch(TENSOR)]),
    "a function": model(functions=[helper.make_function("d", "f", [], ["c"], [
        helper.make_node("Constant", [], ["c"], value=TENSOR)], [helper.make_opsetid("", 17)])]),
    "a sparse tensor": model([helper.make_node("Constant", [], ["c"], sparse_value=helper.make_sparse_tensor(
        TENSOR, numpy_helper.from_array(np.arange(4), "i"), [9]))]),
}


@pytest.mark.parametrize("place", PLACES)
def test_wherever_they_hide(place):
    with pytest.raises(BundleError, match="'hidden' in another file"):
        refuse_external_data(PLACES[place].SerializeToString())


def test_a_training_graph():
    made = model()
    made.training_info.add().algorithm.initializer.append(TENSOR)
    with pytest.raises(BundleError, match="in another file"):
        refuse_external_data(made.SerializeToString())


def test_a_length_written_longer_than_needed_hides_nothing():
    plain = PLACES["an initializer"].SerializeToString()
    key = b"\x0a\x08location"
    assert key in plain
    # The same message with the key's length as two bytes; the lengths around it grow by one.
    entry = TENSOR.external_data[0].SerializeToString()
    tensor = TENSOR.SerializeToString()
    longer = tensor.replace(b"\x6a" + _length(entry) + entry,
                            b"\x6a" + _length(entry + b"+") + entry.replace(key, b"\x0a\x88\x00location"))
    assert TensorProto.FromString(longer) == TENSOR
    data = b"\x2a" + _length(longer) + longer  # GraphProto.initializer
    with pytest.raises(BundleError, match="'hidden' in another file"):
        refuse_external_data(b"\x3a" + _length(data) + data)


def test_the_word_alone_is_no_reason():
    tensor = numpy_helper.from_array(SECRET, "location")
    refuse_external_data(model([helper.make_node("Identity", ["location"], ["x"], name="location")],
                               [tensor], doc_string="location").SerializeToString())
    refuse_external_data(make_graph())


@pytest.mark.parametrize("data", [b"location", b"\x0a\xff\xff\xff\xff\x0flocation", b"\x3a\x09location",
                                  b"\xff" * 12 + b"location", b"\x0b\x0alocation"])
def test_what_is_no_graph(data):
    with pytest.raises(BundleError, match="no ONNX graph"):
        refuse_external_data(data)


def test_graphs_within_graphs_without_end():
    data = b"location"
    for _ in range(300):
        data = b"\x32" + _length(data) + data  # AttributeProto.g
        data = b"\x2a" + _length(data) + data  # NodeProto.attribute
        data = b"\x0a" + _length(data) + data  # GraphProto.node
    with pytest.raises(BundleError, match="no ONNX graph"):
        refuse_external_data(b"\x3a" + _length(data) + data)


def _length(data: bytes) -> bytes:
    size, out = len(data), b""
    while size >= 0x80:
        out, size = out + bytes([size & 0x7F | 0x80]), size >> 7
    return out + bytes([size])


def test_the_numbers_of_large_weights_are_not_searched():
    numbers = np.frombuffer(b"location" * 1000, np.float32)
    made = model(initializers=[numpy_helper.from_array(numbers, "w")]).SerializeToString()
    assert b"location" in made and not _says_location(made)
    assert _says_location(model(initializers=[numpy_helper.from_array(numbers[:20], "w")]).SerializeToString())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("before", [True, False])
def test_nothing_hides_behind_large_weights(place, before):
    made, large = PLACES[place], numpy_helper.from_array(np.zeros(5000, np.float32), "large")
    changed = onnx.ModelProto.FromString(made.SerializeToString())
    kept = list(changed.graph.initializer)
    del changed.graph.initializer[:]
    changed.graph.initializer.extend([large, *kept] if before else [*kept, large])
    with pytest.raises(BundleError, match="'hidden' in another file"):
        refuse_external_data(changed.SerializeToString())


def test_a_large_external_tensor_is_found():
    tensor = external("hidden", "secret.bin", checksum="0" * 5000)
    with pytest.raises(BundleError, match="'hidden' in another file"):
        refuse_external_data(model(initializers=[tensor]).SerializeToString())


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60), st.integers(0, 30000), st.integers(0, 30000))
def test_damage_never_makes_an_engine_see_more(noise, at, then):
    """What protobuf's own parser reads as an external tensor is refused, whatever was done to the bytes."""
    weights = [numpy_helper.from_array(np.arange(2000, dtype=np.float32), name) for name in "ab"]
    data = bytearray(model(initializers=[weights[0], TENSOR, weights[1]]).SerializeToString())
    data[at % len(data):at % len(data) + len(noise)] = noise
    data[then % len(data)] ^= 0x7F
    try:
        made = onnx.ModelProto.FromString(bytes(data))
    except DecodeError:
        return
    if any(one.data_location == TensorProto.EXTERNAL and one.external_data for one in made.graph.initializer) \
            and any(entry.key == "location" for one in made.graph.initializer for entry in one.external_data):
        with pytest.raises(BundleError):
            refuse_external_data(bytes(data))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_are_a_sentence_or_fine(data, place):
    with contextlib.suppress(BundleError):
        refuse_external_data(data[:place] + b"location" + data[place:])


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
@pytest.mark.parametrize("location", ["fc_w.bin", "../fc_w.bin", "{folder}/fc_w.bin", "fc_link.bin"])
def test_no_backend_fetches_them(tmp_path, monkeypatch, backend, location):
    """The file is there, where the process stands, above it and at its absolute path; still it is not read."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    for folder in (tmp_path, cwd):
        (folder / "fc_w.bin").write_bytes(parameters()["fc_w"].tobytes())
    (cwd / "fc_link.bin").symlink_to("../fc_w.bin")
    monkeypatch.chdir(cwd)
    bundle = make_bundle(tmp_path / "bundle")
    made = onnx.load_from_string((bundle / "fp32.onnx").read_bytes())
    weight = next(one for one in made.graph.initializer if one.name == "fc_w")
    kept = external("fc_w", location.format(folder=tmp_path), length="48")
    kept.dims[:] = weight.dims
    weight.CopyFrom(kept)
    graph = made.SerializeToString()
    (bundle / "fp32.onnx").write_bytes(graph)
    edit_manifest(bundle, "variants", 0, "sha256", value=hashlib.sha256(graph).hexdigest())
    edit_manifest(bundle, "variants", 0, "size_bytes", value=len(graph))
    with pytest.raises(EdgetlError, match="the tensor 'fc_w' in another file"):
        load(bundle, backend=backend, threads=1)


def test_an_engine_would_have_fetched_them(tmp_path, monkeypatch):
    """Why the graph is looked at: OpenVINO reads what lies in the folder the process happens to stand in."""
    openvino = pytest.importorskip("openvino")
    (tmp_path / "w.bin").write_bytes(SECRET.tobytes())
    monkeypatch.chdir(tmp_path)
    made = model([helper.make_node("Add", ["x", "w"], ["y"])], [external("w", "w.bin")],
                 opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    made.graph.output[0].name = "y"
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(made.SerializeToString()), "CPU")
    assert np.array_equal(compiled(np.zeros(4, np.float32))[0], SECRET)
