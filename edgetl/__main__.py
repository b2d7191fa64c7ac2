"""`python -m edgetl` and the console script."""

from __future__ import annotations

import importlib.util
import sys

INTERRUPTED = 130


def main() -> int:
    """The exit code of the command line; says what to install where the command line's packages are absent."""
    try:
        code = _main()
    except KeyboardInterrupt:  # while the command line was being imported
        print("error: Interrupted.", file=sys.stderr)
        code = INTERRUPTED
    # CPython notes an interrupt that passed through exec(text), as imports often use it, and in the end dies of SIGINT
    # although it was caught; the next exec(text) clears the note.
    exec("")
    return code


def _main() -> int:
    if importlib.util.find_spec("typer") is None:
        from edgetl.errors import install_hint

        print("error: The command line needs the package 'typer', which is not installed.\n"
              f"hint: {install_hint('cli')} (on a device, `python -m edgetl.runtime` does without).", file=sys.stderr)
        return 1
    from edgetl.cli import app

    return app.main()


if __name__ == "__main__":
    sys.exit(main())
