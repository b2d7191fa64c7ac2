"""What `import edgetl.runtime` brings in: only what every app needs before its first bundle is opened.

The issue allows 20 ms over `import numpy`. A clock on a shared machine cannot hold that; a list of modules can. The
time itself is measured by a script in benchmarks/.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Of the standard library, what takes a millisecond or more and is needed later, seldom or never.
SLOW = {
    "argparse", "asyncio", "bz2", "concurrent", "csv", "ctypes", "decimal", "difflib", "email", "fractions", "gettext",
    "gzip", "hashlib", "html", "http", "importlib.metadata", "locale", "logging", "lzma", "multiprocessing", "optparse",
    "pdb", "pickle", "pkgutil", "platform", "pprint", "pydoc", "queue", "random", "secrets", "selectors", "shutil",
    "signal", "socket", "socketserver", "sqlite3", "ssl", "statistics", "subprocess", "tarfile", "tempfile",
    "tomllib", "unittest", "urllib.request", "uuid", "webbrowser", "xml", "zipfile",
}  # fmt: skip
# Of the runtime, what an app may never need.
SELDOM = {f"edgetl.runtime.{name}" for name in ("archive", "batching", "drift", "durable", "golden", "jpeg_decoders",
                                                "moments", "serve", "shift", "signature", "slot", "stream", "tuned")}

SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import numpy
before = set(sys.modules)
{code}
print(*sorted(set(sys.modules) - before))
"""


def brought_in(code: str) -> set[str]:
    """Modules that `code` imports where numpy is there already."""
    done = subprocess.run([sys.executable, "-I", "-c", SCRIPT.format(root=str(ROOT), code=code)], capture_output=True,
                          text=True, check=True)
    return set(done.stdout.split())


def unwanted(modules: set[str]) -> set[str]:
    return {name for name in modules for bad in SLOW | SELDOM if name == bad or name.startswith(f"{bad}.")}


def test_the_runtime_brings_in_nothing_that_is_slow_or_seldom_needed():
    found = brought_in("import edgetl.runtime")
    assert "edgetl.runtime.classifier" in found
    assert unwanted(found) == set()
    assert {name.split(".")[0] for name in found} <= {*sys.stdlib_module_names, "numpy", "edgetl"}


@pytest.mark.parametrize("code", ["import zipfile", "import edgetl.runtime.tuned", "import http.client"])
def test_what_is_unwanted_is_seen(code):
    assert unwanted(brought_in(code))


def test_the_names_of_seldom_modules_are_right():
    assert {name for name in SELDOM if (ROOT / f"{name.replace('.', '/')}.py").is_file()} == SELDOM
