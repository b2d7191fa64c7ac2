"""What an engine really computes in: from the parsed network without a driver, from the engine's inspector with one.

Only layers that multiply count (convolutions, matrix products): they are what costs, and what fp16 and INT8 are for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from edgetl.errors import GateFailed

COMPUTE = frozenset({"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM", "RECURRENCE", "ATTENTION_OUTPUT",
                     "MOE"})
# What only moves or reinterprets numbers, and may stand between DequantizeLinear and the layer that it feeds.
MOVING = frozenset({"SHUFFLE", "IDENTITY", "SLICE", "CONCATENATION", "SQUEEZE", "UNSQUEEZE", "GATHER", "PADDING"})
NAMES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8", "INT4": "int4", "FP4": "fp4"}
REDUCED = ("fp16", "bf16", "int8")


def of_network(network: Any) -> dict[str, float]:
    """Shares of a parsed network's compute layers by precision, the greatest first; empty where it has none.

    A layer is INT8 where all that goes into it comes out of DequantizeLinear of int8: that is what TensorRT makes an
    integer kernel of.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {out.name: layer for layer in layers for index in range(layer.num_outputs)
              if (out := layer.get_output(index)) is not None}
    return _shares(_precision(layer, makers) for layer in layers if layer.type.name in COMPUTE)


def _precision(layer: Any, makers: Mapping[str, Any]) -> str:
    into = [one for index in range(layer.num_inputs) if (one := layer.get_input(index)) is not None]
    quantized = {_dequantized(one, makers) for one in into[:2]}  # the image and the weights; a bias is no factor
    if len(quantized) == 1 and (only := quantized.pop()) is not None:
        return only
    name = str(into[0].dtype.name)
    return NAMES.get(name, name.lower())


def _dequantized(tensor: Any, makers: Mapping[str, Any]) -> str | None:
    """What the tensor was dequantized from; None where it was not."""
    maker = makers.get(tensor.name)
    while maker is not None and maker.type.name in MOVING:
        maker = makers.get(maker.get_input(0).name)
    if maker is None or maker.type.name != "DEQUANTIZE":
        return None
    return NAMES.get(maker.get_input(0).dtype.name)


def _shares(precisions: Iterable[str]) -> dict[str, float]:
    counts = Counter(precisions)
    return {name: count / counts.total() for name, count in counts.most_common()}


def insist(asked: str, shares: Mapping[str, float], who: str) -> None:
    """Returns where the layers compute in what was asked for.

    Args:
        asked: the precision of the graph, as its bundle says.
        shares: of `of_network` or of the inspector.
        who: tells the shares, for the sentence.

    Raises:
        GateFailed: a reduced precision was asked for, and none of the layers has it, or more are fp32.
    """
    if asked not in REDUCED or (shares.get(asked, 0.0) > 0 and shares.get(asked, 0.0) >= shares.get("fp32", 0.0)):
        return
    raise GateFailed(f"{asked} was asked for, but {who} computes in {words(shares)}.",
                     hint="Precision comes from the graph alone: export it for the target tensorrt in "
                          f"{asked}, so that its casts or Q/DQ nodes say so.")


def words(shares: Mapping[str, float]) -> str:
    """`94 % int8, 6 % fp16`, of the layers that multiply."""
    if not shares:
        return "no layers that multiply"
    return ", ".join(f"{100 * share:.0f} % {name}" for name, share in shares.items())
