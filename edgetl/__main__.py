"""`python -m edgetl` and the console script."""

from __future__ import annotations

import importlib.util
import sys


def main() -> int:
    """The exit code of the command line; says what to install where the command line's packages are absent."""
    if importlib.util.find_spec("typer") is None:
        print("error: The command line needs the package 'typer', which is not installed.\n"
              'hint: Install it with: pip install "edgetl[cli]" '
              "(on a device, `python -m edgetl.runtime` does without).", file=sys.stderr)
        return 1
    from edgetl.cli import app

    return app.main()


if __name__ == "__main__":
    sys.exit(main())
