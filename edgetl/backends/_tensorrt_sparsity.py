"""2:4 sparsity in a parsed network, and what the builder says that it made of it.

Sparse tensor cores (Ampere and later) multiply weights of which at most two in each four along the inputs are not zero.
TensorRT looks for such weights where `BuilderFlag.SPARSE_WEIGHTS` is set, times sparse kernels beside the dense ones,
and takes whichever is faster: wide layers win, narrow ones do not (NVIDIA/TensorRT issue 3849).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backends._tensorrt_log import Message

GROUP, KEPT = 4, 2
CONVERTING = frozenset({"DEQUANTIZE", "QUANTIZE", "CAST", "IDENTITY"})  # what keeps zeros zero and weights in place
# How TensorRT 8 says which layers got sparse kernels, and how later ones do.
CHOSEN = re.compile(r"\(Sparsity\) (?:TRT inference plan picked sparse implementation for layers|"
                    r"Chose \d+ layer\(s\) using sparse tactics):\s*(.*)", re.DOTALL)


def layers(network: Any, module: Any) -> tuple[str, ...]:
    """Names of the layers of a parsed network whose weights are 2:4 sparse; grouped convolutions have no such kernels.

    Args:
        network: as the parser left it.
        module: of its TensorRT.
    """
    found = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {out.name: layer for layer in found for index in range(layer.num_outputs)
              if (out := layer.get_output(index)) is not None}
    readers = {"CONVOLUTION": _of_convolution, "MATRIX_MULTIPLY": _of_product}
    return tuple(str(layer.name) for layer in found if (reader := readers.get(layer.type.name)) is not None
                 and follows(reader(layer, makers, module)))


def follows(weights: NDArray[Any] | None) -> bool:
    """Whether weights [inputs, ...] have at most two that are not zero in each four along the inputs."""
    if weights is None or not weights.size or weights.shape[0] % GROUP:
        return False
    fours = weights.reshape(weights.shape[0] // GROUP, GROUP, -1)
    return bool(((fours != 0).sum(axis=1) <= KEPT).all())


def _of_convolution(layer: Any, makers: Mapping[str, Any], module: Any) -> NDArray[Any] | None:
    """Weights [inputs, ...] of a convolution; None where they are not known, or it is grouped."""
    layer.__class__ = module.IConvolutionLayer  # pybind11 gives layers as their base class
    if layer.num_groups != 1:
        return None
    if layer.num_inputs > 1 and layer.get_input(1) is not None:
        constant = _constant(layer.get_input(1), makers, module)
        return None if constant is None else np.moveaxis(constant, 1, 0)
    kernel, outputs, size = layer.kernel, int(layer.num_output_maps), tuple(layer.kernel_size_nd)
    if not isinstance(kernel, np.ndarray) or kernel.size % (outputs * int(np.prod(size))):  # numpy has no bfloat16
        return None
    return np.moveaxis(kernel.reshape(outputs, -1, *size), 1, 0)


def _of_product(layer: Any, makers: Mapping[str, Any], module: Any) -> NDArray[Any] | None:
    """Weights [inputs, outputs] of a product whose second factor is constant; None where that is not known."""
    constant = _constant(layer.get_input(1), makers, module)
    if constant is None or constant.ndim < 2 or constant.size != constant.shape[-1] * constant.shape[-2]:
        return None
    layer.__class__ = module.IMatrixMultiplyLayer
    matrix = constant.reshape(constant.shape[-2:])
    return matrix.T if layer.op1.name == "TRANSPOSE" else matrix


def _constant(tensor: Any, makers: Mapping[str, Any], module: Any) -> NDArray[Any] | None:
    """The constant that a tensor is, or that it was dequantized from."""
    maker = makers.get(tensor.name)
    while maker is not None and maker.type.name in CONVERTING:
        maker = makers.get(maker.get_input(0).name)
    if maker is None or maker.type.name != "CONSTANT":
        return None
    maker.__class__ = module.IConstantLayer
    values, shape = maker.weights, tuple(maker.shape)
    return values.reshape(shape) if isinstance(values, np.ndarray) and values.size == np.prod(shape) else None


def note(sparse: tuple[str, ...], heard: Iterable[Message], title: str) -> str:
    """What became of the sparse layers, a sentence.

    Args:
        sparse: those of `layers`.
        heard: what the builder said.
        title: of the TensorRT.
    """
    known = f"{len(sparse)} layer{'s have' if len(sparse) > 1 else ' has'} 2:4 sparse weights"
    said = [found[1].strip() for one in heard if (found := CHOSEN.search(one.text)) is not None]
    if not said:
        return (f"{known}; sparse kernels were allowed, and {title} does not say while it builds which it took: the "
                "layers of the engine show it on the card.")
    names = [name for name in (one.strip() for one in said[-1].split(", ")) if name]
    taken = f"{len(names)} got sparse kernels ({', '.join(names)})" if names else "none of them got a sparse kernel"
    return f"{known}; {taken}{'; the dense ones were faster there' if len(names) < len(sparse) else ''}."
