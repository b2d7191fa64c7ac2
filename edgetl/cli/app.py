"""The commands, and the one place that turns failures into sentences and exit codes."""

from __future__ import annotations

import errno
import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from edgetl import __version__, launch, recipe
from edgetl.cli import (
    bench,
    compare,
    compare_strategies,
    demo,
    distill,
    doctor,
    engine,
    export,
    finetune,
    gate,
    init,
    inspect,
    interrupt,
    options,
    pack,
    predict,
    prune,
    quantize,
    report,
    run,
    sign,
    tune,
    verify,
)
from edgetl.cli import list as listing
from edgetl.errors import DiskFull, EdgetlError
from edgetl.recipe_compare import Compare
from edgetl.recipe_compare_strategies import CompareStrategies
from edgetl.recipe_engine import Engine
from edgetl.recipe_gate import RegressionGate
from edgetl.recipe_prune import Prune
from edgetl.recipe_quantize import Quantize
from edgetl.recipe_report import Report as Gallery
from edgetl.recipe_tune import Tune

INTERRUPTED = 130
RESUMABLE = ("finetune", "distill", "prune", "compare-strategies", "run", "demo")

# Plain help: examples stay copyable, and the text is there in half the time that rich's takes to import.
app = typer.Typer(name="edgetl", rich_markup_mode=None, pretty_exceptions_enable=False,
                  help="From a folder of labelled images and a large teacher to a small verified bundle on a device.",
                  epilog="\b\nExample:\n  edgetl init photos > recipe.toml\n  edgetl run recipe.toml --out runs/photos")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"edgetl {__version__}")
        raise typer.Exit


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True,
                                                help="Print the version and exit.")] = False) -> None:
    pass


def _add(body: Callable[..., None], name: str, example: str) -> None:
    indented = "".join(f"\n  {line}" for line in example.strip().splitlines())
    app.command(name, epilog=f"\b\nExample:{indented}")(body)


_add(options.command(recipe.Finetune, finetune.finetune), "finetune", finetune.EXAMPLE)
_add(options.command(CompareStrategies, compare_strategies.compare_strategies), "compare-strategies",
     compare_strategies.EXAMPLE)
_add(options.command(recipe.Distill, distill.distill), "distill", distill.EXAMPLE)
_add(options.command(Prune, prune.prune), "prune", prune.EXAMPLE)
_add(options.command(recipe.Export, export.export), "export", export.EXAMPLE)
_add(options.command(Quantize, quantize.quantize), "quantize", quantize.EXAMPLE)
_add(options.command(Engine, engine.engine), "engine", engine.EXAMPLE)
_add(options.command(recipe.Bench, bench.bench), "bench", bench.EXAMPLE)
_add(options.command(Tune, tune.tune), "tune", tune.EXAMPLE)
_add(options.command(Compare, compare.compare), "compare", compare.EXAMPLE)
_add(options.command(RegressionGate, gate.gate), "gate", gate.EXAMPLE)
_add(options.command(Gallery, report.report), "report", report.EXAMPLE)
_add(run.run, "run", run.EXAMPLE)
_add(init.init, "init", init.EXAMPLE)
_add(demo.demo, "demo", demo.EXAMPLE)
_add(verify.verify, "verify", verify.EXAMPLE)
_add(predict.predict, "predict", predict.EXAMPLE)
_add(inspect.inspect, "inspect", inspect.EXAMPLE)
_add(pack.pack, "pack", pack.EXAMPLE)
_add(sign.sign, "sign", sign.EXAMPLE)
_add(sign.keygen, "keygen", sign.EXAMPLE_KEYGEN)
_add(listing.list_names, "list", listing.EXAMPLE)
_add(doctor.doctor, "doctor", doctor.EXAMPLE)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a command line.

    0 done, 1 expected failure, 2 wrong usage, 3 a gate said no, 4 a gate could not decide, 130 interrupted.
    """
    arguments = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # labels may hold what this terminal's encoding lacks
    try:
        with interrupt.heard(), launch.one_voice(arguments[0]):
            code = _invoke(arguments)
    except DiskFull as problem:
        _release_stdout()
        return _complain(problem.message, _resume_hint(arguments, "Make room, then continue") or problem.hint, 1)
    except EdgetlError as problem:
        if problem.told:
            return problem.exit_code
        return _complain(problem.message, problem.hint, problem.exit_code)
    except typer.TyperException as problem:
        return _complain(*_usage(problem), getattr(problem, "exit_code", 2))
    except typer.Abort:
        code = 1
    except BrokenPipeError:
        _release_stdout()  # whoever read our output has gone (`edgetl list models | head`)
        return 1
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        _complain("Interrupted.", _resume_hint(arguments, "Continue"), code)
    return code


def _invoke(arguments: Sequence[str]) -> int:
    # Not standalone: typer would print and exit by itself. It returns the code of typer.Exit, and 130 for Ctrl-C.
    try:
        code: Any = typer.main.get_command(app).main(args=[*arguments], prog_name="edgetl", standalone_mode=False)
        print(end="", flush=True)
    except OSError as problem:
        from edgetl import rundir

        if problem.errno == errno.ENAMETOOLONG:  # of a path that was typed; edgetl's own names are short
            raise EdgetlError(f"{problem.filename} does not exist: {problem.strerror}.") from problem
        with rundir.room_for(problem.filename or "A file or the output"):  # a full disk is no bug, whoever was writing
            raise
    return code if isinstance(code, int) else 0


def _release_stdout() -> None:
    """Lets go of output that nobody can take, lest Python flush it once more at exit."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(problem: typer.TyperException) -> tuple[str, str | None]:
    context = getattr(problem, "ctx", None)
    hint = f"`{context.command_path} --help` shows what it takes." if context is not None else None
    return problem.format_message(), hint


def _resume_hint(arguments: Sequence[str], what: str) -> str | None:
    if arguments[0] not in RESUMABLE:
        return None
    again = [one for one in arguments if one not in ("--resume", "--overwrite")]
    flag = [] if arguments[0] == "demo" else ["--resume"]  # the demo always continues what it finds
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"{what} with the same torchrun line and --resume."
    return f"{what} with: {shlex.join(['edgetl', *again, *flag])}"


def _complain(message: str, hint: str | None, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return code
