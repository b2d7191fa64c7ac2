"""What all tests share: one thread, a home of their own, and small photos made on the spot. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np
    import torch

    from edgetl.runtime.session import GraphSpec

PhotoFolder = Callable[..., Path]


CANNOT_RUN = pytest.StashKey[dict[type, str]]()  # contract classes that cannot run here, and why
UNVERIFIED = pytest.StashKey[dict[str, str]]()  # the names of those that were asked for, and why
MOST_WORKERS = 4  # each takes more than 1 GB for what the tests import; the longest file is the limit beyond that


def pytest_configure() -> None:
    """One thread each, set before any test imports numpy, torch or onnxruntime: they would disturb one another."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    with contextlib.suppress(ImportError):  # a device's tests may do without
        from hypothesis import HealthCheck, settings

        # The same examples in every run, and no limit of time on any of them.
        settings.register_profile("edgetl", deadline=None, derandomize=True, database=None, print_blob=True,
                                  suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("edgetl")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `make test &`: what tests start would ignore it too
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Workers of `-n auto`: one per core that this process may use; none where there is one core.

    xdist's own answer counts cores without hyper-threads and those of the whole machine, whatever a container may use.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS) if cores > 1 else 0


@pytest.hookimpl(tryfirst=True)  # before -m leaves any out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Contract classes of backends that cannot run here are skipped in words; none is left out in silence by -m."""
    reasons: dict[type, str | None] = {}
    for item in items:
        contract = getattr(item, "cls", None)
        if not hasattr(contract, "missing"):
            continue
        if contract not in reasons:
            reasons[contract] = contract.missing()
        reason = reasons[contract]
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"{contract.__name__}: {reason}"))
            _show_in_any_run(item, config)
    config.stash[CANNOT_RUN] = {one: reason for one, reason in reasons.items() if reason is not None}


def _show_in_any_run(item: pytest.Item, config: pytest.Config) -> None:
    """Takes the mark `gpu` off what is skipped anyway, where the run is the ordinary one, which leaves `gpu` out."""
    if config.option.markexpr in config.getini("addopts"):
        for node in item.listchain():
            node.own_markers[:] = [mark for mark in node.own_markers if mark.name != "gpu"]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keeps what is said at the end to what was asked for: -k, -m and names on the command line."""
    gc.freeze()  # what was imported stays: to look through all of torch took most of the time of many measuring tests
    asked = {getattr(item, "cls", None) for item in session.items}
    found = session.config.stash.get(CANNOT_RUN, {})
    session.config.stash[UNVERIFIED] = told = {one.__name__: why for one, why in found.items() if one in asked}
    if hasattr(session.config, "workeroutput"):  # a worker of xdist, whose words come to pytest_testnodedown
        session.config.workeroutput["unverified"] = told


def pytest_unconfigure() -> None:
    """Lets go of what pytest_collection_finish held: else extensions report it as leaked when the interpreter ends."""
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes over what a worker has found; each of them collects everything. One that was killed tells nothing."""
    if "unverified" in getattr(node, "workeroutput", ()):
        node.config.stash[UNVERIFIED] = node.workeroutput["unverified"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Names the contract classes that did not run, where a reader of CI's output finds them."""
    unverified = config.stash.get(UNVERIFIED, {})
    if unverified:
        terminalreporter.section("backends whose contract was not verified here")
        for name, reason in unverified.items():
            terminalreporter.line(f"{name}: {reason}")


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home: no test reads or writes the user's caches."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.delenv("EDGETL_DATA", raising=False)
    return home


_WRITTEN: dict[object, bytes] = {}  # by network and form, see `written_once`


@pytest.fixture(scope="module")
def written_once() -> Iterator[None]:
    """The exporter, which takes seconds for the smallest network, writes each one once in a run of the tests.

    For tests of what is done with a graph: `pytestmark = pytest.mark.usefixtures("written_once")`. Tests of the
    exporter itself do without.
    """
    from edgetl.export import graph

    write = graph._dynamo

    def known(module: torch.nn.Module, spec: GraphSpec, opset: int) -> bytes:
        weights = tuple((name, value.numpy().tobytes()) for name, value in module.state_dict().items())
        key = (repr(module), weights, repr(spec), opset)
        if key not in _WRITTEN:
            _WRITTEN[key] = write(module, spec, opset)
        return _WRITTEN[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "_dynamo", known)
        yield


def _picture(kind: int, size: int, random: np.random.Generator) -> np.ndarray:
    """Pixels uint8 [size, size, 3] that a small network tells apart: each kind has its own colour and stripes."""
    import numpy as np

    rows, columns = np.mgrid[0:size, 0:size]
    across = (columns, rows, rows + columns)[kind % 3]
    stripes = ((across + random.integers(0, 4)) // 4 % 2)[..., None] * 60
    color = np.roll([170, 90, 30], kind) + random.integers(-15, 16, 3)
    noise = random.integers(-20, 21, (size, size, 3))
    return np.clip(color + stripes + noise, 0, 255).astype(np.uint8)


def write_photos(root: Path, *, classes: int = 3, images: int = 10, size: int = 32, splits: tuple[str, ...] = (),
                 seed: int = 0) -> Path:
    """`images` photos a class (and split), JPEG and PNG in turn, in class folders below `root`."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(seed)
    for part in splits or (".",):
        for kind in range(classes):
            folder = root / part / ("amber", "beryl", "coral", "dusk", "ebony")[kind]
            folder.mkdir(parents=True)
            for number in range(images):
                name = f"{number:03d}.{'jpg' if number % 2 else 'png'}"
                Image.fromarray(_picture(kind, size, random)).save(folder / name)
    return root


@pytest.fixture
def photo_folder(tmp_path: Path) -> PhotoFolder:
    """Makes a folder of photos: `photo_folder(classes=3, images=10, size=32, splits=(), seed=0) -> Path`."""
    def make(name: str = "photos", **options: object) -> Path:
        return write_photos(tmp_path / name, **options)  # type: ignore[arg-type]
    return make
