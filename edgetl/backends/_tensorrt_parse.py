"""A network from an ONNX graph, or one sentence that names the node, its operator and what to do about it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from edgetl.backends import _tensorrt_log
from edgetl.backends._tensorrt_flavor import Flavor
from edgetl.backends._tensorrt_log import Message
from edgetl.errors import BundleError
from edgetl.runtime.external import BYTES, field_at, refuse_external_data
from edgetl.runtime.session import GraphSpec, TensorSpec, check_graph

GRAPH_OF_MODEL, OUTPUT_OF_NODE = (7, 1), 2  # fields of onnx.proto: ModelProto.graph, GraphProto.node; NodeProto.output
DTYPES = {"float32": "FLOAT", "uint8": "UINT8", "int64": "INT64", "float16": "HALF"}
CLIPPED = "Defaulting to INT8 instead"  # what the parser does to UINT8 quantization, with a warning
FOR_TENSORRT = ("Quantize it for the target tensorrt: int8 alone, zero points of 0, and biases left in floating point "
                "(`edgetl export --target tensorrt`, `edgetl quantize --target tensorrt`).")
ANOTHER = "Export the model without that operation, or run this variant on another backend, e.g. cuda or cpu."
WHOLE = "The file is damaged or is no ONNX graph: copy or export it again."
# What is found in the parser's description -> what was found, in words, and what to do. The first that fits counts.
KNOWN: tuple[tuple[str, str, str], ...] = (
    (r"Failed to parse the ONNX model", "it is no ONNX graph, or is damaged", WHOLE),
    (r"zero point", "it has a zero point other than 0, and TensorRT computes symmetric INT8 only", FOR_TENSORRT),
    (r"type Int32 but must have type", "it dequantizes int32, and TensorRT takes int8 alone", FOR_TENSORRT),
    (r"must have same input types|same data ?types?|type mismatch",
     "its inputs are of different types, and TensorRT converts none by itself",
     "Put casts into the graph, e.g. with `edgetl export --precision fp16`."),
    (r"Plugin not found|not found in plugin registry", "TensorRT has no such operator", ANOTHER),
    (r"data.?dependent|isInFlight|shape tensor|must be a (?:build.?time )?constant|must be an initializer",
     "the shape of a tensor depends on values that are known only when it runs",
     "Export the model with fixed sizes, the batch apart: reshape by constants, not by what was computed."),
    (r"was not registered", "it takes a tensor that no node gives", WHOLE),
)
UNSUPPORTED = ("UNSUPPORTED_NODE", "UNSUPPORTED_GRAPH")
ABOUT_NODE = re.compile(r'While parsing node number (\d+) \[(\S+)(?: -> "(.*)")?\]')


class ParsedNetwork(NamedTuple):
    """A network and what must live as long as it."""

    network: Any
    parser: Any


def parse(graph: bytes, spec: GraphSpec, flavor: Flavor, builder: Any) -> ParsedNetwork:
    """The strongly typed network of an ONNX graph, with the inputs and outputs of `spec`.

    Raises:
        BundleError: it cannot be parsed; names the first node that TensorRT refuses, its operator and what to do.
    """
    refuse_external_data(graph)
    if not _nodes_give(graph, GRAPH_OF_MODEL):
        raise BundleError("The graph is no ONNX graph, or is damaged: it has a node without outputs.", hint=WHOLE)
    network = builder.create_network(strongly_typed(flavor))
    parser = flavor.module.OnnxParser(network, _tensorrt_log.logger(flavor.module))
    with _tensorrt_log.collected(flavor.module) as heard:
        parsed = parser.parse(graph)
    if not parsed:
        _refuse(parser, heard, flavor)
    if any(CLIPPED in one.text for one in heard):
        # It would saturate at 127 what uint8 holds up to 255, and no error would tell.
        raise BundleError(f"{flavor.title} cannot parse the graph: it is quantized to uint8, which TensorRT would "
                          "compute as int8, with wrong answers.", hint=FOR_TENSORRT)
    _require_ports(network, spec, flavor)
    return ParsedNetwork(network, parser)


def _nodes_give(graph: bytes, path: tuple[int, ...]) -> bool:
    """Whether each node has an output, as far as the bytes can be read: those that have none end TensorRT 1.7's parser,
    and the process with it. Graphs within graphs are left to it."""
    try:
        return all(_gives(graph, *node) for node in _messages(graph, 0, len(graph), path))
    except (IndexError, ValueError):  # TensorRT says of these that they are no graph
        return True


def _messages(data: bytes, place: int, end: int, path: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Where the messages begin and end in data[place:end] to which these fields lead."""
    while place < end:
        field, kind, value, place = field_at(data, place)
        if field == path[0] and kind == BYTES:
            if path[1:]:
                yield from _messages(data, value, place, path[1:])
            else:
                yield value, place


def _gives(data: bytes, place: int, end: int) -> bool:
    return next(_messages(data, place, end, (OUTPUT_OF_NODE,)), None) is not None


def strongly_typed(flavor: Flavor) -> int:
    """The flags of a network whose precisions are the graph's: to be asked for in TensorRT 10, the only kind since."""
    if flavor.name == "rtx" or flavor.major > 10:
        return 0
    return 1 << int(flavor.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _require_ports(network: Any, spec: GraphSpec, flavor: Flavor) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    if not inputs or not outputs:  # what the parser makes of bytes that are no graph, without a word
        raise BundleError(f"{flavor.title} finds no inputs or outputs in the graph.", hint=WHOLE)
    check_graph("tensorrt", [one.name for one in inputs], [one.name for one in outputs], spec)
    wanted = {one.name: one for one in (*spec.inputs, *spec.outputs)}
    for tensor in (*inputs, *outputs):
        _require_port(tensor, wanted[tensor.name], flavor)


def _require_port(tensor: Any, wanted: TensorSpec, flavor: Flavor) -> None:
    shape = tuple(tensor.shape)
    fits = len(shape) == len(wanted.shape) and all(
        size in (-1, want) or (isinstance(want, str) and want != "N")
        for size, want in zip(shape, wanted.shape, strict=True))
    if tensor.dtype.name == DTYPES.get(wanted.dtype) and fits:
        return
    expected = f"{wanted.dtype} [{', '.join(map(str, wanted.shape))}]"
    raise BundleError(f"'{tensor.name}' of the graph is {tensor.dtype.name} {_words(shape)} to {flavor.title}; "
                      f"expected {expected}.",
                      hint="The graph and what describes it do not belong together.")


def _words(shape: tuple[int, ...]) -> str:
    return f"[{', '.join('free' if size == -1 else str(size) for size in shape)}]"


def _refuse(parser: Any, heard: deque[Message], flavor: Flavor) -> NoReturn:
    if not parser.num_errors:
        said = next(iter(_tensorrt_log.errors(heard)), "it does not say why")
        raise BundleError(f"{flavor.title} cannot parse the graph: {said}.", hint=WHOLE)
    problem = parser.get_error(0)
    node = _node(problem, heard)
    said = _tensorrt_log.plain(str(problem.desc()))
    what, hint = _explained(said, str(problem.code().name), _shown(problem.node_operator()), flavor)
    more = "" if parser.num_errors == 1 else f" ({parser.num_errors - 1} more after it.)"
    raise BundleError(f"{flavor.title} cannot parse the graph: {node}: {what}.{more}", hint=hint)


def _node(problem: Any, heard: deque[Message]) -> str:
    """`the node 'dq0' (DequantizeLinear, number 3)`; a node without a name goes by its first output."""
    operator, number = _shown(problem.node_operator()), int(problem.node())
    if not operator and number < 0:
        return "the graph as a whole"
    name = _shown(problem.node_name())
    told = next((found for one in heard if (found := ABOUT_NODE.search(one.text)) and int(found[1]) == number), None)
    output = _shown(told[3]) if told is not None and told[3] else ""
    called = f"the node '{name}'" if name else f"the node that gives '{output}'" if output else "a node"
    functions = list(problem.local_function_stack())
    inside = f", in the function {' > '.join(map(_shown, functions))}" if functions else ""
    return f"{called} ({operator or 'of an unknown operator'}, number {number}{inside})"


def _shown(name: Any) -> str:
    """A name out of the graph, which may be anything, as a part of a sentence."""
    return "".join(one if one.isprintable() else "?" for one in str(name))[:120]


def _explained(said: str, code: str, operator: str, flavor: Flavor) -> tuple[str, str]:
    """What is wrong in words, and what to do about it."""
    for pattern, what, hint in KNOWN:
        if re.search(pattern, said, re.IGNORECASE):
            return what, hint
    if code in UNSUPPORTED:
        detail = "" if said in ("", "false") else f" as it is used here ({said})"
        return f"TensorRT does not have the operator {operator}{detail}", ANOTHER
    return (said or f"error {code}", f"If the graph is newer than {flavor.title}, export it with an older operator set "
                                     "(17 is known to all of them).")
