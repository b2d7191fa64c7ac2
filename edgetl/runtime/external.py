"""Refuses graphs that keep weights in other files.

An ONNX graph may say that a tensor's bytes lie elsewhere, at a path of its choice. Sessions are made from the bytes
whose digest was compared, so such a file would be one that nobody checked. Engines look for it in the folder that the
process happens to stand in (OpenVINO 2026.4 always, ONNX Runtime 1.31 without its optimizations), and what older ones
do is not known, so it is not left to them.

The format is that of protobuf (https://protobuf.dev/programming-guides/encoding) and of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgetl.errors import BundleError
from edgetl.runtime.storage import WHO_MADE_IT

# Every external tensor has an entry whose key is this word, written out as it is.
WORD = b"location"

# Message -> field -> the message in it, as far as tensors can be reached (onnx.proto of onnx 1.23).
TENSOR = "TensorProto"
FIELDS = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: TENSOR, 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {5: TENSOR, 6: "GraphProto", 10: TENSOR, 11: "GraphProto", 22: "SparseTensorProto",
                       23: "SparseTensorProto"},
    "SparseTensorProto": {1: TENSOR, 2: TENSOR},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # fields of TensorProto
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
DEEPEST = 100  # graphs within graphs; protobuf's own parser takes no more messages

# ModelProto.graph, GraphProto.initializer and TensorProto.raw_data lead to the numbers of weights.
WEIGHTS = (7, 5, 9)
LARGE = 4096  # bytes of a message from which on it takes longer to search it than to find what may be left out


def refuse_external_data(graph: bytes) -> None:
    """Returns where every weight lies in the graph itself.

    Raises:
        BundleError: a tensor's bytes lie in another file, or the graph cannot be read.
    """
    if not _says_location(graph):  # nearly always. The walk below takes Python some milliseconds
        return
    try:
        name = next(_external(graph, "ModelProto", 0, len(graph), 0), None)
    except (IndexError, ValueError) as problem:
        raise BundleError("The graph is no ONNX graph, or is damaged.", hint=WHO_MADE_IT) from problem
    if name is not None:
        raise BundleError(f"The graph keeps the tensor {name!r} in another file, whose digest the manifest does not "
                          "have.", hint="Save the graph with its weights inside: onnx.save_model(model, path, "
                                        "save_as_external_data=False).")


def _says_location(graph: bytes) -> bool:
    """Whether WORD stands anywhere but in the numbers of large weights, which are nearly all of a graph."""
    try:
        numbers = [*_weights(graph, 0, len(graph), WEIGHTS), (len(graph), len(graph))]
    except (IndexError, ValueError):  # no graph, or with fields that nobody writes: all of it is searched
        numbers = [(len(graph), len(graph))]
    begin = 0
    for first, end in numbers:
        if graph.rfind(WORD, begin, first) >= 0:  # half the time of `find`
            return True
        begin = end
    return False


def _weights(data: bytes, place: int, end: int, path: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Where the large messages begin and end in data[place:end] to which these fields lead; raises as `_external`."""
    wanted = path[0] << 3 | BYTES
    while place < end:
        tag, size = data[place], data[place + 1]
        if tag < 0x80 and size < 0x80 and tag & 5 == 0:  # VARINT or BYTES; most are short, and not worth a call
            place += 2 + size if tag & 7 else 2
            continue
        field, kind, value, place = field_at(data, place)
        if place > end:
            raise IndexError("a field reaches beyond its message")
        if field << 3 | kind == wanted and place - value >= LARGE:
            if path[1:]:
                yield from _weights(data, value, place, path[1:])
            else:
                yield value, place


def _external(data: bytes, message: str, place: int, end: int, depth: int) -> Iterator[str]:
    """Names of the external tensors in data[place:end].

    Raises:
        ValueError: these bytes are no such message.
        IndexError: they end in the middle of a field.
    """
    if depth > DEEPEST:
        raise ValueError("nested too deep")
    name, external = "", False
    while place < end:
        field, kind, value, place = field_at(data, place)
        if place > end:
            raise IndexError("a field reaches beyond its message")
        if message == TENSOR:
            name = data[value:place].decode(errors="replace") if field == 8 and kind == BYTES else name
            external |= field == EXTERNAL_DATA or (field == DATA_LOCATION and kind == VARINT and value != 0)
        elif kind == BYTES and (inner := FIELDS[message].get(field)):
            yield from _external(data, inner, value, place, depth + 1)
    if external:
        yield name


def field_at(data: bytes, place: int) -> tuple[int, int, int, int]:
    """Number and kind of a field of a protobuf message, its value (of bytes: where they begin), and where it ends.

    Raises:
        ValueError: it is of a kind that ONNX does not have.
        IndexError: the bytes end in the middle of it. That it may end beyond its message is for the caller to see.
    """
    tag = data[place]
    if tag < 0x80:  # nearly always; a call less
        place += 1
    else:
        tag, place = _varint(data, place)
    kind = tag & 7
    if kind == VARINT:
        value, place = _varint(data, place)
        return tag >> 3, kind, value, place
    if kind == BYTES:
        length, place = _varint(data, place)
        return tag >> 3, kind, place, place + length
    if kind in (FIXED32, FIXED64):
        return tag >> 3, kind, place, place + (4 if kind == FIXED32 else 8)
    raise ValueError(f"fields of kind {kind} are not in ONNX")


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
    raise ValueError("a number has more than 10 bytes")
