"""A classifier in ONNX that edgetl did not make: what it takes, what it gives, and a graph that can be worked with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import ports
from edgetl.errors import EdgetlError
from edgetl.recipe_graph import GraphFields
from edgetl.runtime import preprocess as preprocessing
from edgetl.runtime import telemetry
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.session import GraphSpec, TensorSpec, open_session

LEAST_OPSET, MOST_OPSET = 13, 20  # rounding a channel with a scale of its own begins with 13; runtimes end at 20
CHANNELS = (1, 3)
INTEGER = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
                     "ConvInteger", "MatMulInteger"})
SAME = 1e-3  # of the greatest answer: how far the rewritten graph may be from the given one
Spell = Callable[[str, str], str]  # how a field and its value are written by who must say them
DEFAULTS = {"interpolation": "bilinear", "resize_mode": "shortest", "crop_fraction": 0.875, "scale": 1 / 255}


@dataclass(frozen=True)
class Foreign:
    """A classifier ready to be quantized."""

    graph: bytes
    spec: GraphSpec
    preprocess: Preprocess
    labels: tuple[str, ...] | None  # of its classes, in its order; None where nobody says


def as_flag(name: str, value: str) -> str:
    """`--name value`, the form of `edgetl quantize`."""
    return f"--{name.replace('_', '-')} {value}".rstrip()


def read(path: Path, said: GraphFields, *, spell: Spell = as_flag, answers: bool = False) -> Foreign:
    """The classifier in a file, rewritten for quantizer and runtimes where it must be.

    Args:
        path: the ONNX file.
        said: what is known of it besides.
        spell: how messages write what must be said.
        answers: whether it is only to answer, so that a quantized graph, and one in uint8, float16 or float64, will do.

    Raises:
        EdgetlError: it cannot be read, is no image classifier, or something must be said that is not; names it.
    """
    model = _loaded(path, answers)
    inside = ports.PIXELS if ports.takes_pixels(model) else {}  # such a graph normalises for itself
    if answers:
        ports.as_float32(model)
    metadata = {one.key: one.value for one in model.metadata_props}
    image = _image(model, path)
    written = _written(metadata, path)
    channels = {*CHANNELS, len(said.mean or written.get("mean", ())) or CHANNELS[0]}
    layout, size = _layout(image, said, path, spell, channels)
    _fix_size(model, image, layout, size)
    wanted = _preprocess(said, {**DEFAULTS, **written, **inside}, layout, size, path, spell)
    given = model.SerializeToString()
    model = _converted(model, path)
    graph = model.SerializeToString()
    spec = _spec(model, image.name, wanted, path)
    _require_same(given, graph, spec, path)
    return Foreign(graph, spec, wanted, _labels(said, metadata, int(spec.outputs[0].shape[1]), path, spell))


def _loaded(path: Path, answers: bool) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise EdgetlError(f"{path} does not exist: expected an .onnx file.")
    try:
        model = onnx.load(path)  # weights in files beside it come along
        onnx.checker.check_model(model)
    except (OSError, ValueError, onnx.checker.ValidationError) as problem:
        raise EdgetlError(f"{path} cannot be read as an ONNX graph: {_first_line(problem)}") from problem
    except DecodeError as problem:
        raise EdgetlError(f"{path} is no ONNX graph, or is damaged.") from problem
    integer = next((node.op_type for node in model.graph.node if node.op_type in INTEGER), None)
    if integer is not None and not answers:
        raise EdgetlError(f"{path} is quantized already: it has {integer} nodes. Expected a float32 graph.",
                          hint="Give the graph that it was made of.")
    # Files of ONNX's first years name constants among the inputs.
    constants = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 8)
    return model


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0][:300]


def _image(model: Any, path: Path) -> Any:
    from onnx import TensorProto

    inputs = list(model.graph.input)
    if len(inputs) != 1:
        raise EdgetlError(f"{path} has {len(inputs)} inputs; expected one, the image.")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise EdgetlError(f"The input '{inputs[0].name}' of {path} is of {kind}; expected FLOAT.",
                          hint="Give the graph as it was before pixels or half floats were put in front.")
    if len(tensor.shape.dim) != 4:
        raise EdgetlError(f"The input '{inputs[0].name}' of {path} has {len(tensor.shape.dim)} dimensions; expected "
                          "4, a batch of images.")
    return inputs[0]


def _layout(
    image: Any, said: GraphFields, path: Path, spell: Spell, channels: Collection[int]
) -> tuple[str, tuple[int, int]]:
    """The layout of the input, and its height and width."""
    sizes = [one.dim_value for one in image.type.tensor_type.shape.dim]  # 0 where it is free
    fits = [layout for layout, place in (("NCHW", 1), ("NHWC", 3)) if sizes[place] in channels]
    layout = said.layout or (fits[0] if len(fits) == 1 else None)
    if layout is None:
        raise EdgetlError(f"The input '{image.name}' of {path} has the shape {_shape(image)}: where its channels are "
                          "cannot be told.", hint=f"Say it: {spell('layout', 'NCHW')} or {spell('layout', 'NHWC')}.")
    own = (sizes[2], sizes[3]) if layout == "NCHW" else (sizes[1], sizes[2])
    asked = None
    if said.input_size is not None:
        height, _, width = said.input_size.partition("x")
        asked = (int(height), int(width or height))
    if asked is None and not all(own):
        raise EdgetlError(f"The input '{image.name}' of {path} has the shape {_shape(image)}: its size is free.",
                          hint=f"Say one: {spell('input_size', '224')}, or HEIGHTxWIDTH.")
    if asked is not None and any(mine not in (0, said) for mine, said in zip(own, asked, strict=True)):
        raise EdgetlError(f"{spell('input_size', str(said.input_size))}: the input '{image.name}' of {path} has the "
                          f"shape {_shape(image)}.", hint="Leave the size out.")
    return layout, asked or own


def _shape(image: Any) -> str:
    return f"[{', '.join(str(one.dim_value or one.dim_param or '?') for one in image.type.tensor_type.shape.dim)}]"


def _fix_size(model: Any, image: Any, layout: str, size: tuple[int, int]) -> None:
    """Writes height and width into the input; a free batch gets the name N."""
    dims = image.type.tensor_type.shape.dim
    for place, value in zip((2, 3) if layout == "NCHW" else (1, 2), size, strict=True):
        dims[place].dim_value = value
    if not dims[0].dim_value > 0:
        dims[0].dim_param = "N"
    del model.graph.value_info[:]  # what was said of free sizes


def _written(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The preprocessing that edgetl wrote into the graph's metadata; empty where it is not edgetl's."""
    written = _json(metadata.get("edgetl.preprocess"))
    return {} if written is None else preprocessing.to_dict(
        preprocessing.from_dict(written, where=f"edgetl.preprocess of {path}"))


def _preprocess(said: GraphFields, base: Mapping[str, Any], layout: str, size: tuple[int, int],
                path: Path, spell: Spell) -> Preprocess:
    """What is known or assumed of the graph, and what is said over that."""
    wishes = {name: getattr(said, name) for name in ("color", "resize_mode", "crop_fraction", "interpolation",
                                                       "scale")}
    wishes |= {name: tuple(map(float, getattr(said, name))) or None for name in ("mean", "std")}
    values = {**base, **{name: value for name, value in wishes.items() if value is not None},
              "layout": layout, "size_hw": list(size)}
    missing = [spell(name, "") for name in ("mean", "std") if name not in values]
    if missing:
        raise EdgetlError(f"{path} does not say how its images are normalised: {' and '.join(missing)} must be given.",
                          hint="A pixel p becomes (p * scale - mean) / std, scale is 1/255. ImageNet: "
                               f"{spell('mean', '0.485,0.456,0.406')}, {spell('std', '0.229,0.224,0.225')}; none: "
                               f"{spell('mean', '0,0,0')}, {spell('std', '1,1,1')}.")
    full = {**preprocessing.to_dict(Preprocess(size_hw=size)), **values}
    return preprocessing.from_dict({name: list(value) if isinstance(value, tuple) else value
                                    for name, value in full.items()}, where="the flags")


def _json(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None  # somebody else's key of that name


def _converted(model: Any, path: Path) -> Any:
    """The graph with an operator set that the quantizer and the runtimes know."""
    from onnx import version_converter

    version = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if LEAST_OPSET <= version <= MOST_OPSET:
        return model
    wanted = 18 if version < LEAST_OPSET else MOST_OPSET
    try:
        return version_converter.convert_version(model, wanted)
    except Exception as problem:  # the converter's own errors share no base class
        raise EdgetlError(f"{path} has operator set {version}, and ONNX cannot convert it to {wanted}: "
                          f"{_first_line(problem)}",
                          hint=f"Export it again with an operator set from {LEAST_OPSET} to {MOST_OPSET}.") from problem


def _spec(model: Any, image: str, wanted: Preprocess, path: Path) -> GraphSpec:
    """Input and outputs, the first matrix among which holds a score for each class."""
    telemetry.off()
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), quiet, providers=["CPUExecutionProvider"])
    except Exception as problem:  # ONNX Runtime's own exceptions share no base class
        raise EdgetlError(f"ONNX Runtime cannot open {path}: {_first_line(problem)}") from problem
    first = session.get_inputs()[0]
    batch = first.shape[0] if isinstance(first.shape[0], int) else "N"
    zeros = np.zeros((batch if isinstance(batch, int) else 1, *wanted.input_shape), np.float32)
    outputs = session.run(None, {image: zeros})
    scores = next((place for place, value in enumerate(outputs) if value.ndim == 2 and value.dtype == np.float32), None)
    if scores is None:
        told = ", ".join(f"'{one.name}' {list(value.shape)}" for one, value in
                         zip(session.get_outputs(), outputs, strict=True))
        raise EdgetlError(f"{path} gives {told}; expected scores of classes, float32 [N, K].")
    named = session.get_outputs()
    specs = [TensorSpec(one.name, "logits" if place == scores else "features", "float32",
                        (batch, *outputs[place].shape[1:])) for place, one in enumerate(named)]
    ordered = [specs[scores], *(one for place, one in enumerate(specs) if place != scores)]
    return GraphSpec((TensorSpec(image, "image", "float32", (batch, *wanted.input_shape), wanted.layout),),
                     tuple(ordered))


def _require_same(given: bytes, graph: bytes, spec: GraphSpec, path: Path) -> None:
    """Returns where the rewritten graph answers as the given one, to random images."""
    if given == graph:
        return
    before, after = (_answers(one, spec) for one in (given, graph))
    apart, reach = float(np.abs(before - after).max()), max(float(np.abs(before).max()), 1e-6)
    if not apart <= SAME * reach:
        raise EdgetlError(f"{path}, converted to a newer operator set, gives answers that differ by {apart:.3g} of "
                          f"{reach:.3g}, so ONNX's conversion is not to be trusted.",
                          hint=f"Export it again with an operator set from {LEAST_OPSET} to {MOST_OPSET}.")


def _answers(graph: bytes, spec: GraphSpec) -> NDArray[Any]:
    image = spec.inputs[0]
    shape = [4 if size == "N" else int(size) for size in image.shape]
    session = open_session("cpu", graph, dataclasses.replace(spec), threads=1)
    try:
        return session.run({image.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)})[
            spec.outputs[0].name]
    finally:
        session.close()


def _labels(said: GraphFields, metadata: Mapping[str, str], classes: int, path: Path,
            spell: Spell) -> tuple[str, ...] | None:
    """Names of the classes in the graph's order."""
    if said.labels is None:
        written = _json(metadata.get("edgetl.labels"))
        return tuple(map(str, written)) if isinstance(written, list) and len(written) == classes else None
    spelled = spell("labels", said.labels)
    names = read_names(Path(said.labels), spelled)
    if len(names) != classes:
        raise EdgetlError(f"{spelled} names {len(names)} classes; {path} has {classes}.")
    return names


def read_names(path: Path, spelled: str) -> tuple[str, ...]:
    """Class names in a file, a line each.

    Args:
        path: the file.
        spelled: how messages call it.

    Raises:
        EdgetlError: it cannot be read, or names a class twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise EdgetlError(f"{spelled} cannot be read: {getattr(problem, 'strerror', None) or problem}.") from problem
    names = tuple(line.strip() for line in lines if line.strip())
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise EdgetlError(f"{spelled} names '{twice}' twice; expected different names.")
    return names
