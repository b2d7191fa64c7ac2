"""The rules of the house. Each is a function from a module to its violations; each is shown a violation it must see."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

import edgetl
from edgetl import plugins

ROOT = Path(edgetl.__file__).parent
CATALOGUES = tuple(plugins.KINDS)
STAGES = ("train", "compress", "export", "bench")
PICKLERS = ("pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
GATHERERS = ("edgetl", "edgetl.__main__", "edgetl.pipeline", "edgetl.verbs")  # the only ones above the stages, with cli
TORCH_IN_COMPRESS = tuple(
    f"edgetl.compress.{name}"
    for name in ("cost", "fakequant", "onnx_ops", "onnx_torch", "prune", "qat", "qat_graph", "sparsity")
)
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "typer",
    "rich",
    "PIL",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "tensorrt",
    "matplotlib",
    "safetensors",
    "scipy",
    "sklearn",
    "cryptography",
)


@dataclass(frozen=True)
class Module:
    """One source file of the package."""

    name: str  # dotted; a package's __init__ is the package
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def room(self) -> str:
        """First name below edgetl; empty for edgetl itself."""
        return [*self.name.split("."), ""][1]

    def imports(self, *, at_import: bool = False) -> Iterator[tuple[int, str]]:
        """Line and dotted name of what is imported; `at_import` leaves out functions and `if TYPE_CHECKING`."""
        for node in _walk(self.tree, at_import=at_import):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}:{node.lineno}: relative import"
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _walk(tree: ast.AST, *, at_import: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _walk(node, at_import=at_import)


def _dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain of names, else an empty text."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def _below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def _calls(module: Module) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            yield node, _dotted(node.func)


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the package."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("edgetl", *path.relative_to(ROOT).with_suffix("").parts)
        found.append(Module(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path.read_text()))
    return tuple(found)


# ------------------------------------------------------------------------------------------------ who imports whom


def stages_meet_through_files(module: Module) -> Iterator[str]:
    """`train`, `export` and `bench` never import one another; `compress` imports only `train.loop` of train."""
    apart = ("train", "export", "bench")
    for line, name in module.imports():
        target = [*name.split("."), ""][1] if _below(name, "edgetl") else ""
        if module.room in apart and target in apart and target != module.room:
            yield f"{line}: {module.room} imports {name}"
        if module.room == "compress" and (
            target in ("export", "bench") or (target == "train" and not _below(name, "edgetl.train.loop"))
        ):
            yield f"{line}: compress imports {name}"


def shared_modules_stand_below_the_stages(module: Module) -> Iterator[str]:
    """Only cli, pipeline and the Python API know the stages and the command line; nothing below imports them."""
    if module.room in (*STAGES, "cli") or module.name in GATHERERS:
        return
    for line, name in module.imports():
        if _below(name, *(f"edgetl.{stage}" for stage in STAGES), "edgetl.cli", "edgetl.pipeline"):
            yield f"{line}: {module.name} imports {name}"


def stages_do_not_know_the_gatherers(module: Module) -> Iterator[str]:
    """A stage imports neither the pipeline nor the command line."""
    if module.room in STAGES:
        for line, name in module.imports():
            if _below(name, "edgetl.cli", "edgetl.pipeline"):
                yield f"{line}: {module.name} imports {name}"


def runtime_imports_errors_and_plugins_only(module: Module) -> Iterator[str]:
    """`runtime` imports errors, plugins and itself; `backends` may import runtime too."""
    allowed = {
        "runtime": ("edgetl.errors", "edgetl.plugins", "edgetl.runtime", "edgetl.__version__"),
        "backends": ("edgetl.errors", "edgetl.plugins", "edgetl.runtime", "edgetl.backends", "edgetl.__version__"),
    }
    if module.room not in allowed or module.name == "edgetl.backends.torch":
        return
    for line, name in module.imports():
        if _below(name, "edgetl") and not _below(name, *allowed[module.room]):
            yield f"{line}: {module.room} imports {name}"


def runtime_needs_numpy_only(module: Module) -> Iterator[str]:
    """Imported at module level by runtime and backends: the standard library, numpy, errors, plugins, runtime."""
    if module.room not in ("runtime", "backends") or module.name == "edgetl.backends.torch":
        return
    for line, name in module.imports(at_import=True):
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "edgetl", "__future__"):
            yield f"{line}: {name} at module level"


def heavy_imports_stay_in_functions(module: Module) -> Iterator[str]:
    """Heavy packages are imported in functions, except in files whose subject they are."""
    torch_is_the_subject = module.name == "edgetl.backends.torch" or module.name in TORCH_IN_COMPRESS
    if module.room in ("train", "models", "losses", "cli") or torch_is_the_subject:
        return
    for line, name in module.imports(at_import=True):
        if name.split(".")[0] in HEAVY:
            yield f"{line}: {name} at module level"


def catalogues_are_reached_by_name(module: Module) -> Iterator[str]:
    """No import statement names a file of a catalogue; its `_private` files belong to the catalogue alone."""
    for line, name in module.imports():
        parts = name.split(".")
        if len(parts) < 3 or parts[0] != "edgetl" or parts[1] not in CATALOGUES:
            continue
        if parts[2].startswith("_") and module.room == parts[1]:
            continue
        if _is_file(parts[1], parts[2]):
            yield f"{line}: imports the catalogue file {'.'.join(parts[:3])}"


def _is_file(catalogue: str, name: str) -> bool:
    return (ROOT / catalogue / f"{name}.py").is_file()


def catalogues_know_no_other(module: Module) -> Iterator[str]:
    """A file of a catalogue imports no other catalogue, except by name through plugins."""
    if module.room in CATALOGUES:
        for line, name in module.imports():
            others = [f"edgetl.{one}" for one in CATALOGUES if one != module.room]
            if _below(name, *others):
                yield f"{line}: {module.room} imports {name}"


# ----------------------------------------------------------------------------------------------- what stands where


def printing_only_in_the_command_line(module: Module) -> Iterator[str]:
    """`print` and its likes stand only in cli, `__main__` and `runtime.__main__`."""
    if module.room == "cli" or module.name in ("edgetl.__main__", "edgetl.runtime.__main__"):
        return
    for node, name in _calls(module):
        if name in ("print", "pprint.pprint", "typer.echo", "click.echo", "sys.stdout.write", "sys.stderr.write"):
            yield f"{node.lineno}: {name}"


def seeding_only_in_train_seed(module: Module) -> Iterator[str]:
    """The global generators are seeded only in train/seed.py; objects of their own may be made anywhere."""
    seeds = (
        "torch.manual_seed",
        "torch.seed",
        "torch.random.manual_seed",
        "torch.cuda.manual_seed",
        "torch.cuda.manual_seed_all",
        "torch.set_rng_state",
        "np.random.seed",
        "numpy.random.seed",
        "np.random.set_state",
        "random.seed",
        "random.setstate",
    )
    if module.name != "edgetl.train.seed":
        yield from (f"{node.lineno}: {name}" for node, name in _calls(module) if name in seeds)


def one_stopwatch(module: Module) -> Iterator[str]:
    """`perf_counter` stands only in timing.py."""
    if module.name == "edgetl.timing":
        return
    for node in ast.walk(module.tree):
        word = getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "name", None)
        if isinstance(word, str) and word.startswith("perf_counter"):
            yield f"{getattr(node, 'lineno', 0)}: {word}"


def nothing_is_pickled(module: Module) -> Iterator[str]:
    """No pickle is imported or loaded: torch.load with weights_only=True, numpy without allow_pickle."""
    for line, name in module.imports():
        # UnpicklingError is what torch.load(weights_only=True) raises when it refuses.
        if name.split(".")[0] in PICKLERS and name != "pickle.UnpicklingError":
            yield f"{line}: imports {name}"
        if name == "torch.load":
            yield f"{line}: imports torch.load, where its calls are not seen"
    for node, name in _calls(module):
        given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        if name == "torch.load" and given.get("weights_only") is not True:
            yield f"{node.lineno}: torch.load without weights_only=True"
        if given.get("allow_pickle", False) is not False:
            yield f"{node.lineno}: allow_pickle"


def names_say_something(module: Module) -> Iterator[str]:
    """No module is called utils, helpers, common or misc."""
    for part in module.name.split("."):
        if part.strip("_") in ("util", "utils", "helper", "helpers", "common", "misc"):
            yield f"1: a module called {part}"


def functions_and_modules_are_short(module: Module) -> Iterator[str]:
    """Without its docstring a function body has at most 50 lines; a module has at most 400."""
    lines = len(module.source.splitlines())
    if lines > 400:
        yield f"1: {lines} lines, at most 400"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            if length > 50:
                yield f"{node.lineno}: {node.name} has {length} lines, at most 50"


Rule = Callable[[Module], Iterator[str]]
LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 51

# Rule -> (module, source) pairs that break it, each in one place, and pairs that do not.
RULES: dict[Rule, tuple[list[tuple[str, str]], list[tuple[str, str]]]] = {
    stages_meet_through_files: (
        [
            ("edgetl.train.teacher", "from edgetl.export import graph"),
            ("edgetl.bench.runner", "import edgetl.train.loop"),
            ("edgetl.export.graph", "def f():\n    from edgetl.bench import stats"),
            ("edgetl.compress.qat", "from edgetl.train import teacher"),
            ("edgetl.compress.qat", "import edgetl.export.graph"),
        ],
        [
            ("edgetl.compress.qat", "from edgetl.train.loop import fit"),
            ("edgetl.compress.qat", "from edgetl.train import loop"),
            ("edgetl.export.bundle", "from edgetl.compress import quantize"),
            ("edgetl.train.loop", "from edgetl.train import optim"),
            ("edgetl.trainer", "from edgetl.export import graph"),
        ],
    ),
    shared_modules_stand_below_the_stages: (
        [
            ("edgetl.metrics", "from edgetl.bench import stats"),
            ("edgetl.runtime.classifier", "import edgetl.pipeline"),
            ("edgetl.losses.kd", "from edgetl import cli"),
        ],
        [("edgetl.pipeline", "from edgetl.bench import runner"), ("edgetl.cli.app", "from edgetl import pipeline")],
    ),
    stages_do_not_know_the_gatherers: (
        [
            ("edgetl.train.loop", "from edgetl.cli import progress"),
            ("edgetl.bench.runner", "from edgetl import pipeline"),
        ],
        [("edgetl.train.loop", "from edgetl import events")],
    ),
    runtime_imports_errors_and_plugins_only: (
        [
            ("edgetl.runtime.classifier", "def f():\n    from edgetl import metrics"),
            ("edgetl.backends.cpu", "from edgetl.timing import now_s"),
            ("edgetl.runtime", "import edgetl.datasets"),
        ],
        [
            ("edgetl.runtime.session", "from edgetl import plugins"),
            ("edgetl.backends.cpu", "from edgetl.runtime import session"),
            ("edgetl.backends.torch", "from edgetl import weights"),
            ("edgetl.metrics", "from edgetl import timing"),
        ],
    ),
    runtime_needs_numpy_only: (
        [
            ("edgetl.runtime.preprocess", "from PIL import Image"),
            ("edgetl.backends.cpu", "import onnxruntime as ort"),
            ("edgetl.backends.cpu", "try:\n    import onnxruntime\nexcept ImportError:\n    pass"),
            ("edgetl.runtime.session", "class A:\n    import torch"),
        ],
        [
            ("edgetl.backends.cpu", "def f():\n    import onnxruntime"),
            ("edgetl.backends.torch", "import torch"),
            ("edgetl.runtime.session", "import json\nimport numpy as np\nfrom edgetl import errors"),
            ("edgetl.runtime.session", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import onnxruntime"),
        ],
    ),
    heavy_imports_stay_in_functions: (
        [
            ("edgetl.weights", "import safetensors"),
            ("edgetl.export.graph", "from torch import nn"),
            ("edgetl.datasets.digits", "from sklearn.datasets import load_digits"),
        ],
        [("edgetl.train.loop", "import torch"), ("edgetl.export.graph", "def f():\n    import torch")],
    ),
    catalogues_are_reached_by_name: (
        [
            ("edgetl.splits", "from edgetl.datasets import folder"),
            ("edgetl.datasets.cifar10", "import edgetl.datasets.folder"),
            ("edgetl.splits", "from edgetl.datasets.folder import load"),
            ("edgetl.splits", "from edgetl.datasets import _png"),
        ],
        [
            ("edgetl.splits", "from edgetl.datasets import DataSet, open_data"),
            ("edgetl.datasets.digits", "from edgetl.datasets._arrays import from_arrays"),
        ],
    ),
    catalogues_know_no_other: (
        [
            ("edgetl.losses.kd", "from edgetl.models import Network"),
            ("edgetl.targets.arm", "def f():\n    import edgetl.backends"),
        ],
        [("edgetl.losses.kd", "from edgetl import plugins"), ("edgetl.weights", "from edgetl.models import Network")],
    ),
    printing_only_in_the_command_line: (
        [("edgetl.metrics", "print(1)"),
         ("edgetl.runtime.verifying", "import sys\ndef f():\n    sys.stdout.write('')")],
        [("edgetl.cli.app", "print(1)"), ("edgetl.runtime.__main__", "print(1)"), ("edgetl.metrics", "'print(1)'")],
    ),
    seeding_only_in_train_seed: (
        [
            ("edgetl.train.loop", "import torch\ntorch.manual_seed(0)"),
            ("edgetl.bench.stats", "import random\nrandom.seed(1)"),
            ("edgetl.splits", "import numpy as np\nnp.random.seed(1)"),
        ],
        [
            ("edgetl.train.seed", "import torch\ntorch.manual_seed(0)"),
            ("edgetl.metrics", "np.random.default_rng(0)"),
            ("edgetl.train.loader", "torch.Generator().manual_seed(0)"),
        ],
    ),
    one_stopwatch: (
        [
            ("edgetl.bench.runner", "import time\ntime.perf_counter()"),
            ("edgetl.metrics", "from time import perf_counter_ns"),
        ],
        [("edgetl.timing", "import time\ntime.perf_counter()"), ("edgetl.metrics", "from edgetl.timing import now_s")],
    ),
    nothing_is_pickled: (
        [
            ("edgetl.weights", "import pickle"),
            ("edgetl.weights", "from torch import load"),
            ("edgetl.weights", "def f():\n    from cloudpickle import dumps"),
            ("edgetl.models.timm", "torch.load(f)"),
            ("edgetl.models.timm", "torch.load(f, weights_only=False)"),
            ("edgetl.bench.report", "np.load(f, allow_pickle=True)"),
            ("edgetl.bench.report", "np.load(f, allow_pickle=flag)"),
        ],
        [
            ("edgetl.models.timm", "torch.load(f, weights_only=True)"),
            ("edgetl.models.timm", "from pickle import UnpicklingError"),
            ("edgetl.bench.report", "np.load(f, allow_pickle=False)"),
        ],
    ),
    names_say_something: (
        [
            ("edgetl.utils", ""),
            ("edgetl.train.helpers", ""),
            ("edgetl.runtime._common", ""),
            ("edgetl.misc.things", ""),
        ],
        [("edgetl.metrics", "")],
    ),
    functions_and_modules_are_short: (
        [
            ("edgetl.metrics", LONG_FUNCTION),
            ("edgetl.metrics", "x = 1\n" * 401),
            ("edgetl.metrics", textwrap.indent(LONG_FUNCTION, "    ").join(["class A:\n", ""])),
        ],
        [
            ("edgetl.metrics", LONG_FUNCTION.rpartition("    x")[0]),
            ("edgetl.metrics", "x = 1\n" * 400),
            ("edgetl.metrics", 'def f():\n    """One.\n' + "\n" * 60 + '    """\n    return 1\n'),
        ],
    ),
}
NAMES = [rule.__name__ for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_the_package_keeps(rule: Rule) -> None:
    found = [f"{module.name}:{violation}" for module in modules() for violation in rule(module)]
    assert not found, f"{rule.__doc__}\n" + "\n".join(found)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_planted_violation_is_seen(rule: Rule) -> None:
    for name, source in RULES[rule][0]:
        assert len(list(rule(Module(name, source)))) == 1, f"not seen once: {name}: {source[:200]}"


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_what_is_allowed_is_let_through(rule: Rule) -> None:
    for name, source in RULES[rule][1]:
        assert list(rule(Module(name, source))) == [], f"{name}: {source[:200]}"


def test_the_whole_package_is_looked_at() -> None:
    names = {module.name for module in modules()}
    assert {"edgetl", "edgetl.errors", "edgetl.datasets.folder", "edgetl.runtime.session"} <= names
    assert {module.room for module in modules()} >= {*CATALOGUES, "runtime"}


# --------------------------------------------------------------------------------------------- fresh interpreters

HOOK = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused!r}:
            raise AssertionError("imported " + name)

sys.meta_path.insert(0, Refuse())
"""


def fresh(code: str, *, refused: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that runs `code` and fails when a refused package is imported."""
    script = HOOK.format(refused=set(refused)) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_the_import_hook_refuses() -> None:
    assert "imported torch" in fresh("import torch", refused=("torch",)).stderr


def test_the_runtime_imports_numpy_only() -> None:
    assert_works(fresh("import edgetl.runtime", refused=HEAVY))


@pytest.mark.parametrize("name", [one for one in plugins.names("backends") if one != "torch"])
def test_a_backend_imports_numpy_only(name: str) -> None:
    assert_works(fresh(f"from edgetl import plugins; plugins.load('backends', {name!r})", refused=HEAVY))


def test_importing_edgetl_imports_nothing_heavy() -> None:
    assert_works(fresh("import edgetl", refused=(*HEAVY, "numpy")))


def test_every_help_has_an_example_and_imports_nothing_heavy() -> None:
    """`edgetl --help` and each command's --help, in one interpreter that refuses what is heavy."""
    code = """
        import contextlib, io
        import typer
        from edgetl.cli.app import app, main
        commands = typer.main.get_command(app).commands
        assert {"finetune", "distill", "export", "bench", "run", "predict", "verify"} <= set(commands)
        for command in ([], *([one] for one in commands)):
            with contextlib.redirect_stdout(io.StringIO()) as shown:
                assert main([*command, "--help"]) == 0, command
            assert "Example:" in shown.getvalue(), command
    """
    assert_works(fresh(code, refused=tuple(name for name in HEAVY if name not in ("typer", "rich"))))


def assert_works(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stderr
