"""The part of edgetl that measures on a device: found by its import statements, packed as one archive."""

from __future__ import annotations

import ast
import functools
import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import edgetl
from edgetl import plugins

WORKER = "edgetl.bench.remote_worker"
# What the worker's modules name inside functions and a device has no use for: data sets and evaluation stay here, and
# a RUN needs PyTorch. `edgetl.pipeline` is what the verbs of the Python API are.
LEFT = ("edgetl.backends.torch", "edgetl.cli", "edgetl.datasets", "edgetl.evaluate", "edgetl.heads",
        "edgetl.pipeline", "edgetl.runtime.__main__", "edgetl.weights")
ASKED = ("tensorrt",)  # backends that go along only where they are asked for: few devices have a use for their size
EPOCH = (1980, 1, 1, 0, 0, 0)  # of files in the archive, which is the same for the same sources


def backends(asked: Sequence[str] = ()) -> tuple[str, ...]:
    """Public names of the backends that are packed where those of `asked` shall run."""
    return tuple(name for name in plugins.names("backends")
                 if not _left(_backend(name)) and (name not in ASKED or name in asked))


def _backend(name: str) -> str:
    return f"edgetl.backends.{name.replace('-', '_')}"


def modules(asked: Sequence[str] = ()) -> tuple[str, ...]:
    """Dotted names of the modules that the worker may import, and of the packages that they lie in."""
    return _modules(backends(asked))


@functools.cache
def _modules(packed: tuple[str, ...]) -> tuple[str, ...]:
    open_ends, found = [WORKER, *map(_backend, packed)], set[str]()
    while open_ends:
        name = open_ends.pop()
        if name not in found:
            found.add(name)
            open_ends += [one for one in (*_packages(name), *_imported(name)) if not _left(one)]
    return tuple(sorted(found))


def packed(asked: Sequence[str] = ()) -> bytes:
    """The zip archive of `modules`, whose root is to be on the device's path."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in modules(asked):
            source = _source(name)
            assert source is not None  # `modules` holds nothing else
            inner = source.relative_to(_root().parent).as_posix()
            archive.writestr(zipfile.ZipInfo(inner, EPOCH), source.read_bytes(), zipfile.ZIP_DEFLATED)
    return target.getvalue()


def unpacked_bytes(asked: Sequence[str] = ()) -> int:
    """Size of the sources, without their compiled form."""
    return sum(source.stat().st_size for source in map(_source, modules(asked)) if source is not None)


def _root() -> Path:
    return Path(edgetl.__file__).resolve().parent


def _source(name: str) -> Path | None:
    """The file of a module or package; None where the dotted name is something else."""
    place = _root().parent.joinpath(*name.split("."))
    return next((one for one in (place / "__init__.py", place.with_suffix(".py")) if one.is_file()), None)


def _left(name: str) -> bool:
    return any(name == one or name.startswith(one + ".") for one in LEFT)


def _packages(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:length]) for length in range(1, len(parts)))


def _imported(name: str) -> Iterator[str]:
    """Modules of edgetl that a module names in import statements, be it in functions; not those for type checking."""
    source = _source(name)
    assert source is not None
    for node in _walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            named = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (one for one in named if one.split(".")[0] == "edgetl" and _source(one) is not None)


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield node
            yield from _walk(node)
