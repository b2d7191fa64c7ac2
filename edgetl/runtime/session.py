"""What an opened graph can do, whichever backend opened it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl import plugins
from edgetl.errors import BackendUnavailable, BundleError, EdgetlError, InputError
from edgetl.runtime.storage import read_text

if TYPE_CHECKING:
    from pathlib import Path

CGROUPS = "/sys/fs/cgroup"
MEMBERSHIP = "/proc/self/cgroup"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    role: str  # "image" | "logits" | "probabilities" | "features"
    dtype: str  # "float32" | "uint8" | "int64"
    shape: tuple[int | str, ...]  # "N" stands for the batch
    layout: str | None = None  # "NCHW" | "NHWC" | "NC" | None


@dataclass(frozen=True)
class GraphSpec:
    """Names, dtypes and shapes that a session must honour."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str = "fp32"
    extra: Mapping[str, Any] = field(default_factory=dict)  # what one backend alone needs, e.g. torch's run.json


class Session(Protocol):
    """An opened graph: arrays in, arrays out, finished on return. Safe to call from several threads."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Outputs by name for inputs by name, in host memory and finished.

        Raises:
            InputError: a name, dtype or shape differs from the spec; says which, found and expected.
            BackendUnavailable: the session is closed or a forked child's, or the device ran out of memory.
        """
        ...

    def close(self) -> None:
        """Releases the session; a second call does nothing."""
        ...

    def info(self) -> Mapping[str, Any]:
        """What really runs: backend, provider, precision, threads, versions."""
        ...


def open_session(backend: str, graph: bytes, spec: GraphSpec, *, threads: int = 0, cache_dir: Path | None = None,
                 options: Mapping[str, str] | None = None) -> Session:
    """A session of the named backend; `threads=0` takes what the cgroup quota and the affinity allow.

    Raises:
        UnknownName: no such backend.
        BackendUnavailable: it cannot run here; carries the reason and the fix.
        BundleError: the graph is damaged, or has other inputs or outputs than the spec.
        EdgetlError: `threads` is negative, or an option is unknown to the backend.
    """
    if threads < 0:
        raise EdgetlError(f"threads is {threads}; expected 0 (what the machine allows) or more.")
    module = plugins.load("backends", backend)
    available = module.probe()
    if not available.usable:
        raise BackendUnavailable(f"The backend '{backend}' cannot run here: {available.reason}", hint=available.fix)
    session: Session = module.open(graph, spec, threads=threads or usable_threads(), cache_dir=cache_dir,
                                   options=dict(options or {}))
    return session


def survives_damage(backend: str) -> bool:
    """Whether the named backend says of itself that damaged bytes neither end nor hold up the process."""
    return getattr(plugins.load("backends", backend), "SURVIVES_DAMAGE", False) is True


def usable_threads(cgroups: str | os.PathLike[str] = CGROUPS,
                   membership: str | os.PathLike[str] = MEMBERSHIP) -> int:
    """Processors this process may use: the smaller of affinity and cgroup quota, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(cgroups, membership)
    # Rounded down: one thread more than the quota pays for is stopped in the middle of every call.
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def cgroup_quota(cgroups: str | os.PathLike[str] = CGROUPS,
                 membership: str | os.PathLike[str] = MEMBERSHIP) -> float | None:
    """Processors that the tightest cgroup (version 1 or 2) of this process or above it pays for; None is no limit."""
    try:
        lines = read_text(membership).splitlines()
    except OSError:
        return None  # not Linux: there are no cgroups
    quotas = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        mounts = ("", "unified") if number == "0" else (controllers, "cpu")
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        inner = path.strip("/").split("/")
        # Inside a container the path is often the host's; then the files stand at the root, which is looked at too.
        quotas += [_quota_of(os.path.join(cgroups, mount, *inner[:depth]))
                   for mount in mounts for depth in range(len(inner) + 1)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: str) -> float | None:
    both = os.path.join(folder, "cpu.max")
    try:
        if os.path.exists(both):
            quota, period = read_text(both).split()
        else:
            quota, period = (read_text(os.path.join(folder, name)).strip()
                             for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    except OSError:
        return None  # this group states no limit
    return None if quota in ("max", "-1") else int(quota) / int(period)


def check_feeds(feeds: Mapping[str, NDArray[Any]], spec: GraphSpec) -> None:
    """Compares names, dtypes and shapes of `feeds` with the spec; every backend calls it first.

    Raises:
        InputError: says which input differs, what was found and what was expected.
    """
    expected = [one.name for one in spec.inputs]
    if sorted(feeds) != sorted(expected):
        raise InputError(f"The graph was fed {sorted(feeds)}; expected {sorted(expected)}.")
    sizes: dict[str, int] = {}
    for one in spec.inputs:
        _check_feed(one, feeds[one.name], sizes)


def _check_feed(one: TensorSpec, found: Any, sizes: dict[str, int]) -> None:
    if not isinstance(found, np.ndarray):
        raise InputError(f"Input '{one.name}' is a {type(found).__name__}; expected a numpy array.")
    if found.dtype != np.dtype(one.dtype):
        raise InputError(f"Input '{one.name}' has dtype {found.dtype}; expected {one.dtype}.")
    same = len(found.shape) == len(one.shape) and all(
        size >= 1 and size == (sizes.setdefault(want, size) if isinstance(want, str) else want)
        for size, want in zip(found.shape, one.shape, strict=True))
    if not same:
        shape = ", ".join(map(str, one.shape))
        raise InputError(f"Input '{one.name}' has shape {list(found.shape)}; expected [{shape}], all at least 1.")


class FeedCheck:
    """`check_feeds` for every call of one session: the spec is read once, and a good feed passes fast."""

    def __init__(self, spec: GraphSpec) -> None:
        self._spec = spec
        one = spec.inputs[0]
        self._name = one.name
        self._dtype = np.dtype(one.dtype)
        self._width = len(one.shape)
        self._tail = one.shape[1:]
        # Only a graph of one input whose batch alone is free is checked the fast way.
        self._plain = len(spec.inputs) == 1 and one.shape[:1] == ("N",) and "N" not in one.shape[1:]

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The feeds as contiguous arrays.

        Raises:
            InputError: says which input differs, what was found and what was expected.
        """
        array = feeds.get(self._name)
        if (self._plain and type(array) is np.ndarray and array.dtype == self._dtype and array.ndim == self._width
                and array.shape[1:] == self._tail and array.shape[0] and array.flags.c_contiguous and len(feeds) == 1):
            return {self._name: array}
        check_feeds(feeds, self._spec)
        return {name: np.ascontiguousarray(value) for name, value in feeds.items()}


def check_graph(backend: str, inputs: list[str], outputs: list[str], spec: GraphSpec) -> None:
    """Compares the names an opened graph has with those of the spec; every backend calls it when it opens.

    Raises:
        BundleError: says which names were found and expected.
    """
    for what, found, wanted in (("inputs", inputs, spec.inputs), ("outputs", outputs, spec.outputs)):
        expected = [one.name for one in wanted]
        if sorted(found) != sorted(expected):
            raise BundleError(f"The graph opened by '{backend}' has the {what} {sorted(found)}; "
                              f"expected {sorted(expected)}.",
                              hint="The graph and the manifest that describes it do not belong together.")


def check_options(backend: str, options: Mapping[str, str], choices: Mapping[str, tuple[str, ...]]) -> None:
    """Refuses options that a backend does not have, and values that an option does not take; () takes any value.

    Raises:
        EdgetlError: names the option, what was found and the choices.
    """
    for name, value in options.items():
        if name not in choices:
            raise EdgetlError(f"The backend '{backend}' has no option '{name}'.",
                              hint=f"Options: {', '.join(choices) or 'none'}.")
        if choices[name] and value not in choices[name]:
            raise EdgetlError(f"Option '{name}' of the backend '{backend}' is '{value}'; "
                              f"expected one of {', '.join(choices[name])}.")


__all__ = ["FeedCheck", "GraphSpec", "Session", "TensorSpec", "cgroup_quota", "check_feeds", "check_graph",
           "check_options", "open_session", "survives_damage", "usable_threads"]
