"""Changes of bytes, of JSON and of ONNX graphs for the fuzzers: absurd on purpose, the same for the same generator."""

from __future__ import annotations

import copy
import functools
import json
import struct
from typing import Any

import numpy as np

Random = np.random.Generator

DEEP: Any = functools.reduce(lambda inner, _: [inner], range(200), 0)
ABSURD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30, 10**4000, -(2**63), 0.5, 1e-320,
    1e-300, 1e300, -1e308, 1.7976931348623157e308, "", " ", "a", "N", "M", "..", "../x", "/etc/passwd", "C:\\x", "a\0b",
    "\x1b[2J", "a\nb", "\ud800", "caf\udce9", "漢字", "x" * 300, "x" * 100_000, "cpu", "openvino", "torch", "auto",
    "os.path", "fp32", "int8", "NHWC", "NCHW", "NC", "logits", "features", "probabilities", "image", "uint8", "float32",
    "int64", "manifest.json", "golden.npz", "vnni", "neon", "gray", "bgr", "letterbox", "squash", "nearest", "lanczos",
    "photos", "0" * 64, "g" * 64, [], {}, [None], [[]], [{}], {"": {}}, {"a": 1}, ["N"], ["N", 3], [1, 3, 16, 16],
    [0] * 1000, ["a", "a"], [1.5, "x", None], [1e300, 1e300, 1e300], [8192, 8192], [4096, 4096], [1, 1], [16, 17], DEEP,
    [f"l{number}" for number in range(20_000)], {f"k{number}": number for number in range(5_000)},
)
PLAIN: tuple[Any, ...] = (None, True, 0, -1, 1, 1.5, "", "a", [], {}, [0], [None])
RAW = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "01", "+1", "'a'", "1" * 5000, "[" * 3000 + "]" * 3000,
       "{" * 500, '"\\ud800"', '"\\u0000"', "\ufeff1", "//", "tru", "")
PLACEHOLDER = "@RAW@"
OPERATORS = ("Loop", "If", "Scan", "Resize", "Conv", "ConvTranspose", "MaxPool", "AveragePool", "Gather", "Reshape",
             "Expand", "Tile", "Pad", "Slice", "Split", "Concat", "TopK", "Softmax", "Einsum", "LSTM", "NonZero",
             "Range", "ConstantOfShape", "DequantizeLinear", "QLinearConv", "MatMulInteger", "Cast", "RoiAlign",
             "Nope", "")


def change_bytes(random: Random, data: bytes, *, near: bytes | None = None) -> bytes:
    """One to six changes of bytes; half of them near a mark, where there is one."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 7))):
        if not changed:
            break
        place = _place(random, changed, near)
        kind = int(random.integers(0, 8))
        if kind <= 1:
            changed[place] ^= 1 << int(random.integers(0, 8))
        elif kind == 2:
            changed[place] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == 3:
            value = int(random.choice([0, 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, len(changed), len(changed) + 1]))
            changed[place:place + 4] = struct.pack("<L", value)
        elif kind == 4:
            changed[place:place] = random.bytes(int(random.integers(1, 20)))
        elif kind == 5:
            del changed[place:place + int(random.integers(1, 60))]
        elif kind == 6:
            other = int(random.integers(0, len(changed)))
            size = int(random.integers(1, 60))
            changed[place:place + size] = changed[other:other + size]
        else:
            del changed[place if random.random() < 0.3 else len(changed):]
    return bytes(changed)


def _place(random: Random, data: bytearray, near: bytes | None) -> int:
    if near is not None and random.random() < 0.5:
        marks = [place for place in range(len(data)) if data.startswith(near, place)]
        if marks:
            return min(len(data) - 1, int(random.choice(marks)) + int(random.integers(0, 64)))
    return int(random.integers(0, len(data)))


def change_json(random: Random, text: str) -> str:
    """One to three changes of a JSON text's structure; what comes out may be no JSON."""
    values = json.loads(text)
    for _ in range(int(random.choice([1, 1, 1, 2, 3]))):
        _change_value(random, values)
    made = json.dumps(values, ensure_ascii=bool(random.random() < 0.5))
    if PLACEHOLDER in made:
        made = made.replace(f'"{PLACEHOLDER}"', str(random.choice(RAW)))
    if random.random() < 0.05:  # a key that is there twice
        keys = [f'"{key}": ' for key in ("schema", "sha256", "file", "labels", "name", "size_bytes")]
        made = made.replace(key := str(random.choice(keys)), f"{key}1, {key}", 1)
    return made


def _change_value(random: Random, values: Any) -> None:
    places = [place for place in _places(values) if place]
    place = places[int(random.integers(0, len(places)))]
    holder = functools.reduce(lambda inner, key: inner[key], place[:-1], values)
    key, kind = place[-1], int(random.integers(0, 10))
    if kind <= 5:
        # Now and then something of the same type, which gets further, or something plain.
        alike = [one for one in ABSURD if type(one) is type(holder[key])]
        choices: tuple[Any, ...] = (tuple(alike) or ABSURD, PLAIN, ABSURD)[int(random.integers(0, 3))]
        holder[key] = copy.deepcopy(choices[int(random.integers(0, len(choices)))])
    elif kind == 6:
        del holder[key]
    elif kind == 7:
        holder[key] = PLACEHOLDER
    elif kind == 8 and isinstance(holder, dict):
        holder[f"{key}{random.choice(['', '_', ' ', 's'])}x"] = holder.pop(key)
    else:
        other = places[int(random.integers(0, len(places)))]
        holder[key] = copy.deepcopy(functools.reduce(lambda inner, one: inner[one], other, values))
        if isinstance(holder, list) and len(holder) < 200:
            holder *= int(random.integers(1, 30))


def _places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found, waiting = [], [(node, path)]
    while waiting:
        node, path = waiting.pop()
        found.append(path)
        if isinstance(node, dict) and len(node) < 500:
            waiting += [(value, (*path, key)) for key, value in node.items()]
        elif isinstance(node, list) and len(node) < 500:
            waiting += [(value, (*path, key)) for key, value in enumerate(node)]
    return found


def change_graph(random: Random, graph: bytes) -> bytes:
    """One to three changes of a graph that remains one: other operators, attributes, shapes, weights, connections."""
    import onnx

    model = onnx.load_from_string(graph)
    for _ in range(int(random.integers(1, 4))):
        _change_graph(random, model.graph)
    return bytes(model.SerializeToString())


def _change_graph(random: Random, graph: Any) -> None:
    from onnx import helper

    node = graph.node[int(random.integers(0, len(graph.node)))]
    size = int(random.choice([-(2**63), -1, 0, 1, 2, 3, 7, 2**16, 2**20, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1]))
    names = [*(name for one in graph.node for name in (*one.input, *one.output)), "", "nowhere"]
    kind = int(random.integers(0, 9))
    if kind == 0:
        node.op_type = str(random.choice(OPERATORS))
    elif kind == 1:
        name = str(random.choice(["pads", "strides", "dilations", "kernel_shape", "axis", "group", "transB", "axes"]))
        values = [size] * int(random.choice([0, 1, 2, 4, 8, 1000]))
        node.attribute.append(helper.make_attribute(name, values or size, attr_type=7 if values else 2))
    elif kind == 2:
        weight = graph.initializer[int(random.integers(0, len(graph.initializer)))]
        weight.dims[:] = [size] * int(random.integers(0, 6))
    elif kind == 3:
        weight = graph.initializer[int(random.integers(0, len(graph.initializer)))]
        weight.raw_data = change_bytes(random, weight.raw_data)
        weight.data_type = int(random.integers(0, 25))
    elif kind == 4 and node.input:
        node.input[int(random.integers(0, len(node.input)))] = str(random.choice(names))
    elif kind == 5 and node.output:
        node.output[int(random.integers(0, len(node.output)))] = str(random.choice(names))
    elif kind == 6:
        value = (graph.input, graph.output)[int(random.integers(0, 2))][0]
        value.type.tensor_type.shape.dim.add().dim_value = size
    elif kind == 7:
        graph.node.extend([copy.deepcopy(node) for _ in range(int(random.choice([1, 10, 300])))])
    else:
        grown = helper.make_node("Expand", [node.input[0] if node.input else "image", "grown"], [f"e{size}"])
        graph.initializer.append(helper.make_tensor("grown", 7, [2], [abs(size) % 2**40, 2**20]))
        graph.node.insert(0, grown)
        node.input[:] = [f"e{size}", *node.input[1:]]
