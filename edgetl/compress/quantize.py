"""INT8 graphs: calibrated and written by ONNX Runtime's Q/DQ quantizer, then checked for what the engine makes of them.

A Q/DQ graph says where values may be rounded; whether integer kernels run is the engine's decision. A graph that is not
fused is slower than float, so `fused` reads the graph that the engine really runs.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgetl.compress import rounding
from edgetl.compress.calibrate import Reader
from edgetl.compress.surgery import drop_unused, keep_outputs_float, shape_arithmetic
from edgetl.errors import MissingDependency, RecipeError
from edgetl.runtime import layers, telemetry
from edgetl.runtime.preprocess import Preprocess


@dataclass(frozen=True)
class Quantized:
    """An INT8 graph and what was done to its weights."""

    graph: bytes
    rounding: Mapping[str, Any]  # {method, layers, layers_left}: the latter keep the nearest step


def quantize(graph: bytes, scheme: Mapping[str, Any], reader: Reader, *, method: str,
             known: Mapping[str, tuple[float, int]] | None = None) -> Quantized:
    """The INT8 graph of a float32 one: same inputs, outputs and metadata.

    Args:
        graph: float32 ONNX file.
        scheme: `Target.quantize`; its "rounding" of weights is "nearest" or "compensated" (see `compress.rounding`).
        reader: training images.
        method: how the range of an activation is chosen: "min-max", or "percentile-P", which cuts off the share
            1 - P/100 of the values on each side.
        known: scale and zero point of activations, by name, that need no calibration.

    Raises:
        RecipeError: no such method.
        MissingDependency: onnxruntime is absent.
    """
    telemetry.off()
    try:
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ModuleNotFoundError as problem:
        raise MissingDependency(problem.name or "onnxruntime", extra="cpu", purpose="Quantization") from problem
    calibration, options = _calibration(method)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        # ONNX Runtime's histograms print what they do; stdout is for results.
        given, prepared, written = (Path(folder) / f"{name}.onnx" for name in ("fp32", "prepared", "int8"))
        given.write_bytes(graph)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        sizes = shape_arithmetic(ready := onnx.load(prepared))
        onnx.save(ready, prepared)  # now every node has the name by which it can be left out
        quantization.quantize_static(
            prepared, written, reader, quant_format=quantization.QuantFormat.QDQ, calibrate_method=calibration,
            activation_type=_type(scheme["activations"]), weight_type=_type(scheme["weights"]),
            per_channel=scheme["per_channel"], reduce_range=scheme["reduce_range"],
            nodes_to_exclude=sizes,
            # One batch at a time: a histogram of all activations of all images does not fit into memory.
            extra_options={**options, "CalibStridedMinMax": 1, "TensorQuantOverrides": _overrides(known or {}, scheme)})
        model = onnx.load(written)
    rounded: dict[str, Any] = {"method": scheme["rounding"]}
    if scheme["rounding"] == "compensated":
        rounded |= rounding.compensate(ready, model, reader)
    return Quantized(_finished(model, onnx.load_from_string(graph)), rounded)


def _calibration(method: str) -> tuple[Any, dict[str, Any]]:
    telemetry.off()
    from onnxruntime.quantization import CalibrationMethod

    name, _, share = method.partition("-")
    if method == "min-max":
        return CalibrationMethod.MinMax, {}
    if name == "percentile" and share.replace(".", "", 1).isdigit() and 50 < float(share) < 100:
        return CalibrationMethod.Percentile, {"CalibPercentile": float(share), "CalibTensorRangeSymmetric": False}
    raise RecipeError([f"'{method}' is no calibration method; expected 'min-max' or 'percentile-P', 50 < P < 100"],
                      where="the quantization scheme")


def _overrides(known: Mapping[str, tuple[float, int]], scheme: Mapping[str, Any]) -> dict[str, Any]:
    kind = _type(scheme["activations"])
    return {name: [{"quant_type": kind, "scale": np.array(scale, np.float32),
                    "zero_point": np.array(zero, scheme["activations"])}] for name, (scale, zero) in known.items()}


def pixel_steps(preprocess: Preprocess) -> tuple[float, int] | None:
    """Scale and zero point, uint8, by which a normalised pixel is rounded to that very pixel; None where none do.

    One pair must serve all channels, and the pixel that becomes zero must be a whole number.
    """
    means, stds, zero = set(preprocess.mean), set(preprocess.std), preprocess.mean[0] / preprocess.scale
    if len(means) > 1 or len(stds) > 1 or abs(zero - round(zero)) > 1e-6 or not 0 <= zero <= 255:
        return None
    return preprocess.scale / preprocess.std[0], round(zero)


def _type(name: str) -> Any:
    telemetry.off()
    from onnxruntime.quantization import QuantType

    return {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}[name]


def _finished(model: Any, source: Any) -> bytes:
    """Logits left in float, the metadata of the source graph, no unused operator sets."""
    import onnx

    keep_outputs_float(model)
    drop_unused(model)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {one.key: one.value for one in source.metadata_props})
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    onnx.checker.check_model(model)
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def fused(graph: bytes) -> dict[str, Any]:
    """What ONNX Runtime runs on this CPU: numbers of integer, float and converting kernels, and the float ones by name.

    Kernels that only move values or compute with sizes are not counted.
    """
    telemetry.off()
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 3  # it warns that the file is for this machine only, which is what we want to read
        options.intra_op_num_threads = 1
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        model = onnx.load(options.optimized_model_filepath)
    return count_kernels(model)


def count_kernels(model: Any) -> dict[str, Any]:
    """See `fused`; for an optimised graph."""
    sizes = set(shape_arithmetic(model))
    quantized: set[str] = set()
    kinds: Counter[str] = Counter()
    floats: Counter[str] = Counter()
    for node in (one for one in model.graph.node if one.name not in sizes):
        kind = layers.onnxruntime_kind(node.op_type, from_integers=bool(node.input) and node.input[0] in quantized)
        kinds[kind] += 1
        if kind == "float":
            floats[node.op_type] += 1
        if kind == "integer" or node.op_type == "QuantizeLinear" or (kind == "moving" and node.input[0] in quantized):
            quantized |= set(node.output)
    return {"integer_nodes": kinds["integer"], "float_nodes": kinds["float"], "converting_nodes": kinds["converting"],
            "float_kernels": dict(sorted(floats.items()))}
