"""`python -m edgetl.runtime`: predict, serve, info and verify where only numpy, Pillow and a backend are installed."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgetl.errors import EdgetlError, InputError
from edgetl.runtime import Classifier, load

if TYPE_CHECKING:
    import argparse  # takes the time of ten imports: Ctrl-C within it shall be caught by main()

INTERRUPTED = 130
EXAMPLES = """examples:
  python -m edgetl.runtime predict BUNDLE photo.jpg
  python -m edgetl.runtime predict BUNDLE *.jpg --json --top 3
  python -m edgetl.runtime serve BUNDLE --stdin < requests.jsonl > answers.jsonl
  python -m edgetl.runtime info BUNDLE
  python -m edgetl.runtime verify BUNDLE --backend cpu

exit codes: 0 done, 1 expected failure, 2 wrong usage, 3 verify says no, 130 interrupted"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the four verbs."""
    import argparse

    parser = argparse.ArgumentParser("python -m edgetl.runtime", description="Runs a bundle.", epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, run, text in (("predict", _predict, "labels of images"),
                            ("serve", _serve, "labels of images that other programs ask for, line by line"),
                            ("info", _info, "what would run, and why"),
                            ("verify", _verify, "whether this machine gives what training gave")):
        verb = verbs.add_parser(name, help=text, description=text.capitalize() + ".")
        verb.set_defaults(run=run)
        verb.add_argument("bundle", metavar="BUNDLE", help="folder that `edgetl export` wrote, or its packed file")
        if name == "predict":
            verb.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
        if name in ("predict", "serve"):
            verb.add_argument("--top", type=_count, default=1 if name == "predict" else 5,
                              help="labels shown for each image (default: %(default)s)")
        if name != "verify":
            verb.add_argument("--variant", default="auto", help="one of the bundle's graphs (default: auto)")
        verb.add_argument("--backend", default="auto", help="how to open the graph (default: auto)")
        verb.add_argument("--threads", type=int, default=0, help="0 takes what the machine allows (default)")
        if name != "verify":
            verb.add_argument("--decode", default="exact", help="how images are read: exact (default), fast, ...")
            verb.add_argument("--option", type=_option, action="append", default=[], metavar="NAME=VALUE",
                              help="of the backend, e.g. spin=off on a device that waits most of its time")
        if name != "serve":
            verb.add_argument("--json", action="store_true", help="one JSON object a line")
    _add_serve_flags(verbs.choices["serve"])
    return parser


def _add_serve_flags(verb: argparse.ArgumentParser) -> None:
    import argparse

    from edgetl.runtime.serve import MAX_LINE_BYTES
    from edgetl.runtime.serve import __doc__ as protocol

    verb.epilog, verb.formatter_class = protocol, argparse.RawDescriptionHelpFormatter
    verb.add_argument("--stdin", action="store_true", required=True, help="requests come on standard input, JSON lines")
    verb.add_argument("--max-line-bytes", type=_count, default=MAX_LINE_BYTES, metavar="N",
                      help="longer requests are refused (default: %(default)s)")


def _count(text: str) -> int:
    import argparse

    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected at least 1")
    return value


def _option(text: str) -> tuple[str, str]:
    import argparse

    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is no NAME=VALUE")
    return name, value


def _load(arguments: argparse.Namespace) -> Classifier:
    return load(arguments.bundle, arguments.backend, arguments.variant, arguments.threads, dict(arguments.option),
                decode=arguments.decode)


def _predict(arguments: argparse.Namespace) -> int:
    """Every image is tried; one that cannot be used is told on stderr, and the exit code is 1 at the end."""
    from edgetl.runtime.task_prediction import cells  # here: the other verbs print no predictions

    failed = 0
    with _load(arguments) as classifier:
        for image in arguments.images:
            try:
                found = classifier.predict(image, top=arguments.top)
            except InputError as problem:
                failed = _tell(problem)
                continue
            if arguments.json:
                print(json.dumps({"image": image, **dataclasses.asdict(found)}))
            else:
                print("\t".join([image, *cells(found, "{:.4f}".format)]))
    return failed


def _serve(arguments: argparse.Namespace) -> int:
    """Answers until the requests end or SIGTERM comes; both are a good end."""
    from edgetl.runtime import serve

    if sys.stdin is None:
        raise InputError("Standard input is closed; expected requests on it.")
    with serve.Stop() as stop, _load(arguments) as classifier:
        classifier.warmup(1)
        print(f"ready: {json.dumps(classifier.info())}", file=sys.stderr, flush=True)
        for told in serve.answers(classifier, sys.stdin.fileno(), stop, top=arguments.top,
                                  max_line_bytes=arguments.max_line_bytes):
            print(json.dumps(told), flush=True)
    return 0


def _info(arguments: argparse.Namespace) -> int:
    with _load(arguments) as classifier:
        told = classifier.info()
    if arguments.json:
        print(json.dumps(told))
    else:
        _print_table(told)
    return 0


def _print_table(values: dict[str, Any]) -> None:
    for name, value in values.items():
        print(f"{name:12} {json.dumps(value) if isinstance(value, dict | list) else value}")


def _verify(arguments: argparse.Namespace) -> int:
    from edgetl.runtime.verifying import verify  # here: the other verbs need none of it

    report = verify(arguments.bundle, arguments.backend, arguments.threads)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(report)))
        return 0
    for check in report.checks:
        figures = "" if check.measured is None else f" {check.measured:.3g} of {check.limit:.3g} {check.unit};"
        print(f"{check.status:8} {check.name}:{figures} {check.note}")
    return 0


def _tell(problem: EdgetlError) -> int:
    """Prints the sentence and the hint; returns the exit code."""
    print(f"error: {problem.message}", file=sys.stderr)
    if problem.hint:
        print(f"hint: {problem.hint}", file=sys.stderr)
    return problem.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of one call; see `EXAMPLES`."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # labels may hold what this terminal's encoding lacks
    try:
        code = _main(argv)
    except EdgetlError as problem:
        code = _tell(problem)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has had enough. Without this, Python complains when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    # CPython notes an interrupt that passed through exec(text), as imports often use it, and in the end dies of SIGINT
    # although it was caught; the next exec(text) clears the note.
    exec("")
    return code


def _main(argv: Sequence[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    code: int = arguments.run(arguments)
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
