"""AdaRound for the layers of an INT8 graph, one after the other: see `compress.adaround` for one of them.

A layer is given what the quantized layers before it hand out, those that were rounded anew among them, so that it makes
up for their errors too. It keeps the steps it has where the learned ones answer no better on images that the search did
not see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.compress import adaround, rounding
from edgetl.compress.adaround import Problem
from edgetl.compress.observe import opened
from edgetl.compress.rounding import INT8, Layer

IMAGES = 96  # calibration images, those held out among them
HELD_OUT = 0.25
STEPS = (200, 1000)  # of the search for a layer: at least, at most
WORK = 4e12  # multiplications and additions for all layers together that more steps than the least may take
Batch = Mapping[str, NDArray[Any]]  # what a graph is fed


@dataclass(frozen=True)
class Adapted:
    """What weights are rounded to."""

    steps: Mapping[str, NDArray[np.int8]]  # by weight, of the layers whose steps changed
    layers: tuple[Mapping[str, Any], ...]  # {layer, before, after, kept}: mean square errors on the images held out


def adapt(fp32: Any, int8: Any, batches: Sequence[Batch], *, greatest: int, seed: int,
          note: Callable[[str], None]) -> Adapted:
    """The weights of an INT8 graph rounded anew, which `int8` then has.

    Args:
        fp32: the float graph.
        int8: the Q/DQ graph made of it, its nodes with the same names; changes.
        batches: training images by the name of the graphs' input; at least two images.
        greatest: step of either sign.
        seed: of the images held out, the positions looked at and the samples drawn.
        note: hears of the progress.
    """
    tensors = {tensor.name: tensor for tensor in int8.graph.initializer}
    makers = {name: node for node in fp32.graph.node for name in node.output}
    nodes = {node.input[1]: node.name for node in makers.values() if node.op_type in rounding.KINDS}
    layers = [one for one in rounding.find_layers(fp32) if f"{one.weight}{INT8}" in tensors]
    most = _steps(sum(int(np.prod(tensors[f"{one.weight}{INT8}"].dims)) for one in layers))
    found: dict[str, NDArray[np.int8]] = {}
    rows = []
    for place, layer in enumerate(layers):
        chance = np.random.default_rng([seed, place])
        fit, held = _problems(fp32, int8, layer, batches, greatest, chance)
        row, steps = _rounded(fit, held, tensors[f"{layer.weight}{INT8}"], most, chance)
        rows.append({"layer": nodes[layer.weight], **row})
        if not row["kept"]:
            found[layer.weight] = steps
            rounding.put(int8, {layer.weight: steps})
        if (place + 1) % 10 == 0 or place + 1 == len(layers):
            note(f"AdaRound: {place + 1} of {len(layers)} layers, {len(found)} of them rounded anew.")
    return Adapted(found, tuple(rows))


def _steps(weights: int) -> int:
    return int(np.clip(WORK / (4 * adaround.BATCH * max(weights, 1)), *STEPS))


def _rounded(fit: Problem, held: Problem, tensor: Any, most: int,
             chance: np.random.Generator) -> tuple[dict[str, Any], NDArray[np.int8]]:
    """The row of a layer and its learned steps."""
    from onnx import numpy_helper

    own = numpy_helper.to_array(tensor)
    start = own.reshape(fit.weight.shape)
    steps = adaround.solve(fit, start, steps=most, chance=chance)
    wanted = held.wanted()
    before, after = held.error(start, wanted), held.error(steps, wanted)
    return {"before": before, "after": after, "kept": bool(after >= before)}, steps.reshape(own.shape)


def _problems(fp32: Any, int8: Any, layer: Layer, batches: Sequence[Batch], greatest: int,
              chance: np.random.Generator) -> tuple[Problem, Problem]:
    """A layer with the samples that the search sees, and with those held out."""
    node = next(one for one in fp32.graph.node if layer.weight in list(one.input)[1:2])
    ours = next(one for one in int8.graph.node if one.name == node.name)
    weight, scale, bias = _constants(fp32, int8, node, ours)
    seed = int(chance.integers(2**32))  # both graphs are looked at in the same places
    floats, rounded = (_samples(model, name, weight.shape, layer, batches, np.random.default_rng(seed))
                       for model, name in ((fp32, node.input[0]), (int8, ours.input[0])))
    low, high = _activation(fp32, node)
    groups, count = layer.groups, sum(len(next(iter(batch.values()))) for batch in batches)
    held = np.zeros(count, bool)
    held[chance.permutation(count)[:max(1, int(HELD_OUT * count))]] = True
    of_sample = np.repeat(held, floats.shape[1] // count)

    def part(which: NDArray[np.bool_]) -> Problem:
        return Problem(weight.reshape(groups, -1, floats.shape[2]), scale.reshape(groups, -1), bias.reshape(groups, -1),
                       floats[:, which], rounded[:, which], low, high, greatest)

    return part(~of_sample), part(of_sample)


def _constants(fp32: Any, int8: Any, node: Any, ours: Any) -> tuple[NDArray[np.float32], ...]:
    """Weights, the step of each output channel, and biases of a layer."""
    from onnx import numpy_helper

    floats = {one.name: one for one in fp32.graph.initializer if one.name in node.input}
    weight = numpy_helper.to_array(floats[node.input[1]])
    restored = next(one for one in int8.graph.node if one.output[0] == ours.input[1])
    scale = next(numpy_helper.to_array(one) for one in int8.graph.initializer if one.name == restored.input[1])
    bias = floats.get(node.input[2]) if len(node.input) > 2 else None
    biases = np.zeros(len(weight), np.float32) if bias is None else numpy_helper.to_array(bias)
    return weight, np.broadcast_to(scale.ravel(), weight.shape[:1]), np.broadcast_to(biases.ravel(), weight.shape[:1])


def _samples(model: Any, name: str, shape: tuple[int, ...], layer: Layer, batches: Sequence[Batch],
             chance: np.random.Generator) -> NDArray[np.float32]:
    """What a layer meets in a graph [G, images x positions, D]."""
    inputs = {one.name for one in model.graph.input}
    session = None if name in inputs else opened(model, [name])
    values = (batch[name] if session is None else session.run([name], dict(batch))[0] for batch in batches)
    return np.concatenate([rounding.sampled(one, shape, layer, chance) for one in values], axis=1)


def _activation(fp32: Any, node: Any) -> tuple[float, float]:
    """Between which ends the function behind a layer clips; infinite ones where there is another, or none."""
    from onnx import numpy_helper

    readers = [one for one in fp32.graph.node if node.output[0] in one.input]
    constants = {one.name: one for one in fp32.graph.initializer}
    if len(readers) != 1 or readers[0].op_type not in ("Relu", "Clip"):
        return -np.inf, np.inf
    if readers[0].op_type == "Relu":
        return 0.0, np.inf
    names = [*readers[0].input[1:], "", ""][:2]
    low, high = (float(numpy_helper.to_array(constants[name])) if name in constants else None for name in names)
    return -np.inf if low is None else low, np.inf if high is None else high
