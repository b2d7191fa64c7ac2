"""Graphs that normalise by themselves: they take resized pixels, uint8 [N, H, W, C], as `prepare_pixels` makes them.

The prefix computes what `preprocess.normalize` does, in the same order and in float32, so that the network behind it
meets the same bits. Where an INT8 graph begins by rounding its input back to the very pixels, both steps are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import judging, rundir
from edgetl.compress.surgery import drop_unused
from edgetl.errors import GateFailed
from edgetl.export import variants
from edgetl.export.metadata import metadata_of
from edgetl.export.parity import greatest_difference
from edgetl.export.variants import PORTABLE, Built, Stock
from edgetl.runtime.heads import Head
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.session import GraphSpec

NO_BYTES = "tensorrt"  # its parser takes bytes for a Cast only, and so no portable graph that transposes them
PREFIX = "normalize_"  # of the names of what is put in front


def embedded(stock: Stock, built: Sequence[Built]) -> tuple[Built, ...]:
    """The same variants taking pixels, shown to answer as they did; `built[0]` is fp32.

    Raises:
        GateFailed: one does not.
    """
    made = [_embedded(stock, one) for one in built]
    reference = made[0].val
    return tuple(one if one is made[0] or one.val is None or reference is None else
                 dataclasses.replace(one, val=judging.with_reference(one.val, reference),
                                     against_fp32=judging.compare(one.val, reference)) for one in made)


def _embedded(stock: Stock, one: Built) -> Built:
    own = one.variant.target != PORTABLE
    graph, collapsed = with_normalization(one.graph, stock.network.preprocess, stock.data.labels,
                                          heads=stock.heads, bytes_move=not (own and NO_BYTES in one.variant.backends))
    spec = spec_of_pixels(one.spec, stock.network.preprocess)
    apart = _golden_difference(stock, one, graph, spec)
    val = one.val and variants.evaluation(stock, graph, spec, "val", one.judge)
    if val is not None and one.val is not None:
        apart = max(apart, greatest_difference(one.val.logits, val.logits))
    name, allowed = one.variant.name, one.variant.tolerance
    if not apart <= allowed:
        raise GateFailed(f"{name} with the normalisation in it gives logits that differ by {apart:.3g} from those "
                         f"without; allowed are {allowed:.3g}.", hint="Export without --embed-normalize.")
    how = "its first rounding gives back the pixels and is left out" if collapsed else "normalised in float32 first"
    stock.note(f"{name} takes pixels ({how}); logits differ from those of prepared images by at most {apart:.2g}.")
    backends = one.variant.backends if own else tuple(each for each in one.variant.backends if each != NO_BYTES)
    variant = dataclasses.replace(one.variant, embeds_preprocess=True, inputs=spec.inputs, backends=backends,
                                  sha256=rundir.sha256(graph), size_bytes=len(graph))
    return dataclasses.replace(one, variant=variant, graph=graph, spec=spec, val=val)


def _golden_difference(stock: Stock, one: Built, graph: bytes, spec: GraphSpec) -> float:
    """The greatest difference of a logit to the graph that takes prepared images, on the golden ones."""
    answers = [variants.outputs_on_golden(stock, *pair, one.judge)["logits"]
               for pair in ((one.graph, one.spec), (graph, spec))]
    return greatest_difference(*answers)


def spec_of_pixels(spec: GraphSpec, preprocess: Preprocess) -> GraphSpec:
    """The spec of a graph that takes pixels in place of prepared images."""
    shape = (spec.inputs[0].shape[0], *preprocess.size_hw, preprocess.channels)
    image = dataclasses.replace(spec.inputs[0], dtype="uint8", shape=shape, layout="NHWC")
    return dataclasses.replace(spec, inputs=(image, *spec.inputs[1:]))


def with_normalization(graph: bytes, preprocess: Preprocess, labels: Sequence[str], *,
                       heads: Sequence[Head] = (), bytes_move: bool = True) -> tuple[bytes, bool]:
    """The graph with the normalisation in front, and whether that fell together with its first rounding.

    Args:
        graph: takes prepared images, as its only input.
        preprocess: how they are prepared.
        labels: for the graph's metadata.
        heads: for the graph's metadata.
        bytes_move: whether the engine can transpose bytes, which is quicker than to transpose floats.
    """
    import onnx

    model = onnx.load_from_string(graph)
    image = model.graph.input[0]
    collapsed = _first_rounding(model, preprocess)
    nodes, prepared = _prefix(image.name, preprocess, collapsed is not None, bytes_move)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == (image.name if collapsed is None else collapsed.output[0]):
                node.input[place] = prepared
    if collapsed is not None:
        model.graph.node.remove(collapsed)
    else:
        model.graph.initializer.extend(_constants(preprocess))
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *kept])
    batch = image.type.tensor_type.shape.dim[0].dim_param
    shape = [batch, *preprocess.size_hw, preprocess.channels]
    image.CopyFrom(onnx.helper.make_tensor_value_info(image.name, onnx.TensorProto.UINT8, shape))
    del model.graph.value_info[:]  # the engines infer them again; those of what is gone would be wrong
    drop_unused(model)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata_of(preprocess, labels, heads=heads, embeds_preprocess=True))
    onnx.checker.check_model(model, full_check=True)
    written: bytes = model.SerializeToString(deterministic=True)
    return written, collapsed is not None


def _prefix(image: str, preprocess: Preprocess, collapsed: bool, bytes_move: bool) -> tuple[list[Any], str]:
    """The nodes from pixels to what the network takes, and the name of their result."""
    from onnx import TensorProto, helper

    nodes, name = [], image

    def then(kind: str, *constants: str, **attributes: Any) -> None:
        nonlocal name
        result = f"{PREFIX}{kind.lower()}"
        nodes.append(helper.make_node(kind, [name, *constants], [result], name=result, **attributes))
        name = result

    moves = preprocess.layout == "NCHW"
    if moves and (bytes_move or collapsed):
        then("Transpose", perm=[0, 3, 1, 2])
    if not collapsed:
        then("Cast", to=TensorProto.FLOAT)
        if moves and not bytes_move:
            then("Transpose", perm=[0, 3, 1, 2])
        then("Mul", f"{PREFIX}factor")
        then("Add", f"{PREFIX}offset")
    return nodes, name


def _constants(preprocess: Preprocess) -> list[Any]:
    from onnx import numpy_helper

    return [numpy_helper.from_array(value, f"{PREFIX}{name}")
            for name, value in zip(("factor", "offset"), preprocess.factors, strict=True)]


def _first_rounding(model: Any, preprocess: Preprocess) -> Any:
    """The QuantizeLinear that alone reads the image and makes of every normalised pixel that pixel; else None."""
    from onnx import numpy_helper

    readers = [node for node in model.graph.node if model.graph.input[0].name in node.input]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    if len(readers) != 1 or readers[0].op_type != "QuantizeLinear" or set(readers[0].input[1:]) - set(constants):
        return None
    if len(readers[0].input) != 3:
        return None
    scale, zero = (numpy_helper.to_array(constants[name]) for name in readers[0].input[1:])
    if scale.size != 1 or zero.dtype != np.uint8:
        return None
    pixels = np.arange(256, dtype=np.uint8)
    return readers[0] if (_rounded(pixels, preprocess, scale, zero) == pixels[:, None]).all() else None


def _rounded(pixels: NDArray[np.uint8], preprocess: Preprocess, scale: NDArray[np.float32],
             zero: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What QuantizeLinear makes of each pixel value in each channel [256, C]: halves to even, then the zero point."""
    factor, offset = (one.reshape(1, -1) for one in preprocess.factors)
    normal = pixels[:, None].astype(np.float32) * factor + offset
    steps: NDArray[np.float32] = np.rint(normal / scale.reshape(())) + zero.reshape(()).astype(np.float32)
    return np.clip(steps, 0, 255)
