"""Catalogues: packages whose file names are the public names of exchangeable things.

A new loss, backend, target, data set or model family is one new file in its package; nothing else is edited.

The user's own modules go by their dotted names. Importing runs code, so a dotted name counts only where the user wrote
it, in a command, a recipe or a call; a name that stands in a bundle or a RUN, which may come from anybody, imports
nothing unless `$EDGETL_TRUST` lists it.

A file that stands for many things has `named(rest) -> module`, and its things are called `name:rest`: `ort:xnnpack`.
"""

from __future__ import annotations

import ast
import functools
import importlib
import os
from types import ModuleType

from edgetl.errors import EdgetlError, UnknownName

KINDS = {
    "datasets": "data set",
    "models": "model family",
    "losses": "loss",
    "targets": "target",
    "backends": "backend",
}
TRUST = "EDGETL_TRUST"  # environment variable: dotted names, separated by commas


@functools.cache
def names(package: str) -> tuple[str, ...]:
    """Public names of a catalogue, sorted, with hyphens; files that begin with `_` are no plug-ins.

    Args:
        package: a key of `KINDS`.
    """
    import pkgutil  # here: the device's runtime imports this module and seldom asks for all names

    root = importlib.import_module(f"edgetl.{package}")
    found = (module.name for module in pkgutil.iter_modules(root.__path__))
    return tuple(sorted(name.replace("_", "-") for name in found if not name.startswith("_")))


def require(package: str, name: str) -> None:
    """Returns when a catalogue has that name, without importing its file; dotted names are believed.

    Raises:
        UnknownName: no such file; carries the choices and suggests the nearest.
    """
    first, colon, _ = name.partition(":")
    if "." not in first and first.replace("_", "-") not in names(package):
        raise UnknownName(KINDS[package], name, names(package))
    if colon and "." not in first and not hasattr(_module(package, first), "named"):
        raise UnknownName(KINDS[package], name, names(package))  # `cpu:0` is no `cpu`


def load(package: str, name: str, *, foreign: bool = True) -> ModuleType:
    """The module that carries a public name; both `x86-vnni` and `x86_vnni` are understood.

    A dotted name (`mycompany.losses.special`) loads the user's own module; of `name:rest`, what comes after the colon
    is for the module of that name to understand.

    Args:
        package: a key of `KINDS`.
        name: public or dotted.
        foreign: whether the user wrote the name; False for one that was read from a bundle or a RUN.

    Raises:
        UnknownName: no such file; carries the choices and suggests the nearest.
        EdgetlError: a dotted name from a file, and `$EDGETL_TRUST` does not list it.
    """
    require(package, name)
    first, colon, rest = name.partition(":")
    if "." not in first:
        module = _module(package, first)
    elif foreign or trusted(first):
        module = _load_foreign(package, first)
    else:
        raise EdgetlError(f"A file names the module '{first}' as its {KINDS[package]}; what a file names is not "
                          "imported, since that would run code.",
                          hint=f"If the module is yours, vouch for it: {TRUST}={first}")
    if not colon:
        return module
    if not hasattr(module, "named"):
        raise UnknownName(KINDS[package], name, names(package))
    special: ModuleType = module.named(rest)
    return special


def public(name: str) -> str:
    """The name as manifests and reports write it: `x86-vnni` for `x86_vnni`; dotted names stay as they are."""
    first, colon, rest = name.partition(":")
    return (first if "." in first else first.replace("_", "-")) + colon + rest


def _module(package: str, name: str) -> ModuleType:
    return importlib.import_module(f"edgetl.{package}.{name.replace('-', '_')}")


def trusted(name: str) -> bool:
    """Whether a file may name it: no dotted name, or one that `$EDGETL_TRUST` lists."""
    first = name.partition(":")[0]
    return "." not in first or first in os.environ.get(TRUST, "").split(",")


def _load_foreign(package: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        # A module that the user's own module fails to import is the user's bug and keeps its traceback.
        if problem.name is not None and (name == problem.name or name.startswith(problem.name + ".")):
            raise UnknownName(KINDS[package], name, names(package)) from problem
        raise


def summary(package: str, name: str) -> str:
    """First line of a catalogue file's docstring, read without importing it."""
    from pathlib import Path  # here: the device's runtime imports this module and has no use for it

    root = importlib.import_module(f"edgetl.{package}")
    source = Path(root.__path__[0], f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
