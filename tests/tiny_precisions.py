"""The tiny graph of tiny_bundle in the other precisions, with float32 ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from tiny_bundle import LABELS, SIZE, parameters

ZERO = np.int8(0)


def onnx_bytes(nodes: list[Any], weights: dict[str, np.ndarray] | None = None, *,
               image: tuple[str, list[Any]] = ("FLOAT", ["N", 3, SIZE, SIZE]),
               logits: tuple[str, list[Any]] = ("FLOAT", ["N", len(LABELS)]), opset: int = 19) -> bytes:
    """A graph from `image` to `logits`."""
    from onnx import TensorProto, helper, numpy_helper

    kept = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    ports = [helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)
             for name, (kind, shape) in (("image", image), ("logits", logits))]
    graph = helper.make_graph(nodes, "tiny", ports[:1], ports[1:], kept)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("my.own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def half_graph(dtype: str = "FLOAT16") -> bytes:
    """The tiny graph in fp16 or bf16, with float32 ends."""
    from onnx import TensorProto, helper

    kind = getattr(TensorProto, dtype)
    names = ("conv_w", "conv_b", "fc_w", "fc_b")
    nodes = [helper.make_node("Cast", [name], [f"{name}_half"], to=kind) for name in ("image", *names)]
    nodes += [
        helper.make_node("Conv", ["image_half", "conv_w_half", "conv_b_half"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc_w_half", "fc_b_half"], ["half"], transB=1),
        helper.make_node("Cast", ["half"], ["logits"], to=TensorProto.FLOAT)]
    return onnx_bytes(nodes, parameters())


def quantized_graph(zero_point: np.generic = ZERO, *, gemm: bool = True, bias_int32: bool = False) -> bytes:
    """The tiny graph with Q/DQ around the convolution, and the gemm if asked."""
    from onnx import helper

    float_of = parameters()
    weights = {"scale": np.array(0.05, np.float32), "zero": np.array(zero_point), "small": np.array(0, np.int8),
               "conv_q": (float_of["conv_w"] / 0.05).round().clip(-127, 127).astype(np.int8),
               "fc_q": (float_of["fc_w"] / 0.05).round().clip(-127, 127).astype(np.int8),
               "bias_q": (float_of["conv_b"] / 0.0025).round().astype(np.int32),
               "bias_scale": np.array(0.0025, np.float32), **float_of}
    bias = "bias_dq" if bias_int32 else "conv_b"
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["image_q"], name="q_image"),
        helper.make_node("DequantizeLinear", ["image_q", "scale", "zero"], ["image_dq"], name="dq_image"),
        helper.make_node("DequantizeLinear", ["conv_q", "scale", "small"], ["conv_dq"], name="dq_conv"),
        *([helper.make_node("DequantizeLinear", ["bias_q", "bias_scale"], ["bias_dq"], name="dq_bias")] * bias_int32),
        helper.make_node("Conv", ["image_dq", "conv_dq", bias], ["conv"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"])]
    if gemm:
        nodes += [
            helper.make_node("QuantizeLinear", ["flat", "scale", "small"], ["flat_q"], name="q_flat"),
            helper.make_node("DequantizeLinear", ["flat_q", "scale", "small"], ["flat_dq"], name="dq_flat"),
            helper.make_node("DequantizeLinear", ["fc_q", "scale", "small"], ["fc_dq"], name="dq_fc")]
    factors = ["flat_dq", "fc_dq"] if gemm else ["flat", "fc_w"]
    nodes.append(helper.make_node("Gemm", [*factors, "fc_b"], ["logits"], transB=1, name="fc"))
    used = {name for node in nodes for name in node.input}
    return onnx_bytes(nodes, {name: value for name, value in weights.items() if name in used})
