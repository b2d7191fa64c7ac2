"""`edgetl inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.options import Json
from edgetl.errors import EdgetlError

if TYPE_CHECKING:
    from edgetl.runtime.bundle import Bundle
    from edgetl.runtime.manifest import Manifest

EXAMPLE = "edgetl inspect bundle"


Where = Annotated[Path, typer.Argument(help="A bundle, a RUN folder, a report or an ONNX file.", metavar="PATH")]


def inspect(path: Where, as_json: Json = False) -> None:
    """Say what a bundle, RUN, report or ONNX file holds."""
    from edgetl import rundir
    from edgetl.runtime import manifest
    from edgetl.runtime.bundle import is_bundle

    if not path.exists():
        raise EdgetlError(f"{path} does not exist.", hint="Give a bundle, a RUN folder, a report or an ONNX file.")
    if is_bundle(path):
        _bundle(path, as_json)
    elif (path / rundir.RUN).is_file():
        _run(path, as_json)
    elif (path / rundir.REPORT).is_file() or path.name == rundir.REPORT:
        _report(path, as_json)
    elif path.suffix == ".onnx" and path.is_file():
        _graph(path, as_json)
    else:
        raise EdgetlError(f"{path} is neither a bundle ({manifest.MANIFEST}), a RUN ({rundir.RUN}), a report "
                          f"({rundir.REPORT}) nor an ONNX file (*.onnx).")


def read_bundle(path: Path) -> tuple[dict[str, Any], Manifest]:
    """The manifest of a bundle, folder or packed, as plain JSON and as what it says.

    Raises:
        BundleError: it cannot be read.
    """
    from edgetl.runtime.bundle import open_bundle

    opened = open_bundle(path)
    return json.loads(opened.manifest_bytes()), opened.manifest


def _bundle(path: Path, as_json: bool) -> None:
    from edgetl.cli import present
    from edgetl.runtime.bundle import open_bundle

    opened = open_bundle(path)
    beside = {"digest": opened.digest, "signature": _signature(opened)}
    if as_json:
        present.document({**json.loads(opened.manifest_bytes()), "bundle": str(path), **beside})
        return
    present.pairs({**present.bundle_pairs(path, opened.manifest), **beside})
    present.variants(opened.manifest)


def _signature(opened: Bundle) -> str:
    from edgetl.runtime import signature

    if opened.seal is not None:
        return f"by {opened.seal.key_id}: {opened.seal.comment}"
    return f"not checked, since {signature.VARIABLE} is not set" if opened.store.has(signature.FILE) else "none"


def _run(path: Path, as_json: bool) -> None:
    from edgetl import weights
    from edgetl.cli import present

    record = weights.read_record(path)
    if as_json:
        present.document({"run": str(path), **record})
    else:
        present.pairs(present.run_pairs(path, record))


def _report(path: Path, as_json: bool) -> None:
    from edgetl.bench import report
    from edgetl.cli import present

    made = report.read(path)
    if as_json:
        present.document(report.to_json(made))
    else:
        present.report(made)


def _graph(path: Path, as_json: bool) -> None:
    from edgetl import extras
    from edgetl.cli import present

    extras.require("onnx", extra="train", purpose="Reading an ONNX file")
    found = _describe(path)
    if as_json:
        present.document(found)
        return
    present.pairs({**{name: found[name] for name in ("graph", "producer", "opset", "size_bytes", "parameters")},
                   **{one["name"]: f"{kind[:-1]} {one['dtype']} {one['shape']}" for kind in ("inputs", "outputs")
                      for one in found[kind]}})
    present.table(("operator", "count"), [(name, str(count)) for name, count in found["operators"].items()],
                  numeric=(False, True))


def _describe(path: Path) -> dict[str, Any]:
    """Inputs, outputs, operators and size of a graph, as plain JSON.

    Raises:
        EdgetlError: the file is no ONNX graph.
    """
    from collections import Counter
    from math import prod

    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as problem:
        raise EdgetlError(f"{path} is not an ONNX file: {problem}.") from problem
    graph = model.graph
    if not graph.node:
        raise EdgetlError(f"{path} is not an ONNX file: it has no operators.")
    constants = {tensor.name for tensor in graph.initializer}
    return {
        "graph": str(path),
        "producer": f"{model.producer_name} {model.producer_version}".strip() or None,
        "opset": {one.domain or "ai.onnx": one.version for one in model.opset_import}.get("ai.onnx"),
        "size_bytes": path.stat().st_size,
        "parameters": sum(prod(tensor.dims) for tensor in graph.initializer),
        "inputs": [_tensor(one) for one in graph.input if one.name not in constants],
        "outputs": [_tensor(one) for one in graph.output],
        "operators": dict(Counter(node.op_type for node in graph.node).most_common()),
    }


def _tensor(value: Any) -> dict[str, Any]:
    import onnx

    kind = value.type.tensor_type
    shape = [one.dim_param or one.dim_value for one in kind.shape.dim]
    return {"name": value.name, "dtype": onnx.TensorProto.DataType.Name(kind.elem_type).lower(), "shape": shape}
