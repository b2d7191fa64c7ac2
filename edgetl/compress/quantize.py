"""INT8 graphs: written by ONNX Runtime's Q/DQ quantizer with our ranges, then checked for what an engine makes of them.

A Q/DQ graph says where values may be rounded; whether integer kernels run is the engine's decision. A graph that is not
fused is slower than float, so `fused` reads the graph that the engine really runs.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.compress import pairs, ranges, rounding
from edgetl.compress.calibrate import Reader
from edgetl.compress.correct import correct
from edgetl.compress.observe import Observed, observe
from edgetl.compress.placement import Placement, place
from edgetl.compress.surgery import drop_unused, keep_outputs_float, shape_arithmetic, spell_einsums
from edgetl.errors import GateFailed, MissingDependency
from edgetl.runtime import layers, telemetry
from edgetl.runtime.preprocess import Preprocess


@dataclass(frozen=True)
class Source:
    """A float32 graph, what calibration images showed of it, and so all that INT8 graphs are made from."""

    graph: bytes  # as it was given
    ready: Any  # ModelProto: simplified, with types and shapes
    sizes: tuple[str, ...]  # nodes that compute with sizes
    seen: Observed
    rounded: dict[Any, NDArray[np.int8]] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Quantized:
    """An INT8 graph and what was done to its weights."""

    graph: bytes
    rounding: Mapping[str, Any]  # {method, layers, layers_left}: the latter keep the nearest step


def quantize(graph: bytes, scheme: Mapping[str, Any], reader: Reader, *, method: str,
             known: Mapping[str, tuple[float, int]] | None = None) -> Quantized:
    """`study` and `write` in one."""
    ranges.parse(method)
    return write(study(graph, reader, opset=scheme.get("opset", 0)), scheme, method=method, known=known)


def study(graph: bytes, reader: Reader, *, opset: int = 0) -> Source:
    """Looks at a float32 graph while it answers the calibration images.

    Args:
        graph: float32 ONNX file.
        reader: training images.
        opset: the operator set that INT8 graphs made of it need at least.

    Raises:
        MissingDependency: onnxruntime or onnx is absent.
        EdgetlError: an activation has values that are no numbers.
    """
    telemetry.off()
    try:
        import onnx
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ModuleNotFoundError as problem:
        raise MissingDependency(problem.name or "onnxruntime", extra="cpu", purpose="Quantization") from problem
    with tempfile.TemporaryDirectory() as folder:
        given, prepared = (Path(folder) / f"{name}.onnx" for name in ("fp32", "prepared"))
        onnx.save(of_opset(onnx.load_from_string(graph), opset), given)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        sizes = shape_arithmetic(model := onnx.load(prepared))
        onnx.save(model, prepared)  # now every node has the name by which it can be left out
        ready = load_model_with_shape_infer(prepared)
    return Source(graph, ready, tuple(sizes), observe(ready, reader, _activations(ready)))


def _activations(model: Any) -> list[str]:
    """The float values that go into or come out of the kinds of nodes that ONNX Runtime quantizes."""
    from onnx import TensorProto

    typed = [*model.graph.value_info, *model.graph.output, *model.graph.input]
    floats = {one.name for one in typed if one.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats -= {one.name for one in model.graph.initializer}
    kinds = set(_quantized_kinds())
    touched = {name for node in model.graph.node if node.op_type in kinds for name in (*node.input, *node.output)}
    return sorted(floats & touched)


def _quantized_kinds() -> list[str]:
    telemetry.off()
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QDQRegistry, *QLinearOpsRegistry})


def nodes_of(source: Source) -> list[str]:
    """Names of the nodes that may be quantized."""
    kinds, sizes = set(_quantized_kinds()), set(source.sizes)
    return [node.name for node in source.ready.graph.node if node.op_type in kinds and node.name not in sizes]


def layers_of(source: Source, scheme: Mapping[str, Any]) -> list[str]:
    """Names of those that have weights, and that the scheme rounds."""
    if _is_placed(scheme):
        return list(_placement(source).layers)
    constants, allowed = {one.name for one in source.ready.graph.initializer}, set(nodes_of(source))
    return [node.name for node in source.ready.graph.node if node.op_type in rounding.KINDS and node.name in allowed
            and node.input[1] in constants]


def write(source: Source, scheme: Mapping[str, Any], *, method: str,
          known: Mapping[str, tuple[float, int]] | None = None, floats: Sequence[str] = (),
          steps: Mapping[str, NDArray[np.int8]] | None = None) -> Quantized:
    """The INT8 graph of a float32 one: same inputs, outputs and metadata.

    Args:
        source: see `study`.
        scheme: `Target.quantize`; its "rounding" of weights is "nearest" or "compensated" (see `compress.rounding`);
            where its "bias" is "corrected", biases make up for it (see `compress.correct`).
        method: how the range of an activation is chosen, see `compress.ranges`.
        known: scale and zero point of activations, by name, that need no range.
        floats: nodes that stay in float.
        steps: what weights are rounded to, by name, where that is known better.

    Raises:
        RecipeError: no such method.
        GateFailed: nothing would be rounded.
    """
    model = (_placed if _is_placed(scheme) else _written)(source, scheme, method, known or {}, floats)
    rounded: dict[str, Any] = {"method": scheme["rounding"]}
    if scheme["rounding"] == "compensated":
        greatest = rounding.GREATEST_REDUCED if scheme["reduce_range"] else rounding.GREATEST
        rounded |= rounding.compensate(source.ready, model, source.seen.moments, greatest=greatest,
                                        done=source.rounded)
    if steps:
        rounded["layers_given"] = rounding.put(model, steps)
    if scheme.get("bias") == "corrected":
        rounded["biases_corrected"] = correct(source.ready, model, source.seen.means)
    import onnx

    return Quantized(finished(model, onnx.load_from_string(source.graph)), rounded)


def _written(source: Source, scheme: Mapping[str, Any], method: str, known: Mapping[str, tuple[float, int]],
             floats: Sequence[str] = ()) -> Any:
    """What ONNX Runtime's quantizer makes of the graph with our ranges, which `quantize_static` would calibrate."""
    telemetry.off()
    import onnx
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    chosen = {name: tuple(map(np.float32, ends)) for name, ends in source.seen.ranges(method).items()}
    copy = onnx.ModelProto()
    copy.CopyFrom(source.ready)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # stdout is for results
        quantizer = QDQQuantizer(
            copy, scheme["per_channel"], scheme["reduce_range"], _type(scheme["weights"]), _type(scheme["activations"]),
            TensorsData(CalibrationMethod.MinMax, chosen), [], [*source.sizes, *floats], _quantized_kinds(),
            {"TensorQuantOverrides": _overrides(known, scheme)})
        quantizer.quantize_model()
        path = Path(folder) / "int8.onnx"
        quantizer.model.save_model_to_file(str(path))
        return onnx.load(path)


def _is_placed(scheme: Mapping[str, Any]) -> bool:
    return scheme.get("placement") == "inputs"


def _placement(source: Source, floats: Sequence[str] = ()) -> Placement:
    return place(source.ready, source.seen.shapes, source.seen.images, [*source.sizes, *floats])


def _placed(source: Source, scheme: Mapping[str, Any], method: str, known: Mapping[str, tuple[float, int]],
            floats: Sequence[str]) -> Any:
    """The graph with the inputs of its layers rounded, see `compress.placement`; nothing is known beforehand there."""
    import onnx

    placement = _placement(source, floats)
    if not placement.layers:
        raise GateFailed("This graph has no layer that TensorRT would compute faster in INT8: each is too narrow, or "
                         "multiplies one vector an image, or stays in float.", hint="Use fp16.")
    model = onnx.ModelProto()
    model.CopyFrom(source.ready)
    del model.graph.value_info[:]
    spell_einsums(model)
    pairs.insert(model, placement, source.seen.ranges(method, symmetric=True), scheme["scales"])
    return model


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


def of_opset(model: Any, least: int) -> Any:
    """The graph in an operator set of at least `least`."""
    from onnx import version_converter

    own = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    return model if own >= least else version_converter.convert_version(model, least)


def _type(name: str) -> Any:
    telemetry.off()
    from onnxruntime.quantization import QuantType

    return {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}[name]


def finished(model: Any, source: Any) -> bytes:
    """A rounded graph as a file: logits in float, the metadata of the source graph, no unused operator sets."""
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
