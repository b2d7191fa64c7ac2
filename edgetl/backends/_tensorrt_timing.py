"""Timing caches: what a builder measured of kernels on a card, so that the next build need not measure it again.

They belong to one version of TensorRT and one kind of card. TensorRT for RTX has none: it compiles when it builds, and
its methods of that name do nothing but warn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetl.backends import _tensorrt_log
from edgetl.backends._tensorrt_flavor import Flavor
from edgetl.errors import BundleError, EdgetlError
from edgetl.runtime import durable
from edgetl.runtime.storage import open_regular, read_at_most

MOST_BYTES = 256 << 20  # thousands of layers take a few MB
COMPLAINT = "timing cache"  # in what TensorRT says of one that it cannot use


def kept_by(flavor: Flavor) -> bool:
    """Whether the flavor has timing caches."""
    return flavor.name != "rtx"


def give(config: Any, flavor: Flavor, data: bytes | None) -> tuple[str, ...]:
    """Gives the builder what an earlier build learned; returns what is to be said of that, sentences.

    Args:
        config: of the builder.
        flavor: which TensorRT.
        data: a cache; None begins an empty one. One that does not fit is left aside.
    """
    if not kept_by(flavor):
        return () if data is None else (f"{flavor.title} keeps no timing cache: it times nothing when it builds.",)
    if _attached(config, flavor, data or b""):
        return ()
    _attached(config, flavor, b"")
    return (f"The timing cache is not of {flavor.version} and this card, or is damaged; the engine was built without "
            "it.",)


def _attached(config: Any, flavor: Flavor, data: bytes) -> bool:
    with _tensorrt_log.collected(flavor.module) as heard:
        cache = config.create_timing_cache(data)
        taken = cache is not None and config.set_timing_cache(cache, False)
    return bool(taken) and not (data and any(COMPLAINT in one.text for one in heard))


def take(config: Any, flavor: Flavor) -> bytes | None:
    """What the builder knows after a build; None where the flavor has no such thing."""
    if not kept_by(flavor):
        return None
    cache = config.get_timing_cache()
    return None if cache is None else bytes(cache.serialize())


def merged(flavor: Flavor, first: bytes, second: bytes) -> bytes:
    """What two caches know together; the first alone where they do not go together."""
    builder = flavor.module.Builder(_tensorrt_log.logger(flavor.module))
    config = builder.create_builder_config()
    with _tensorrt_log.collected(flavor.module):
        ours, others = config.create_timing_cache(first), config.create_timing_cache(second)
        if ours is None or others is None or not ours.combine(others, False):
            return first
    return bytes(ours.serialize())


class CacheFile:
    """A timing cache in a file of the user's choice, which several builds may add to."""

    def __init__(self, path: Path, flavor: Flavor) -> None:
        self._path, self._flavor = path, flavor
        self.before = self._read() if kept_by(flavor) else None

    def keep(self, learned: bytes | None) -> None:
        """Writes what the file knew and what was learned, whole or not at all; nothing for a flavor without caches.

        Raises:
            OutputError: it cannot be written; DiskFull where there is no room.
        """
        if learned is None:
            return
        now = self._read()  # somebody else may have added to it since
        if now is not None and now != self.before:
            learned = merged(self._flavor, learned, now)
        durable.make_folder(self._path.parent)
        durable.write(self._path, learned)

    def _read(self) -> bytes | None:
        if not self._path.exists():
            return None
        try:
            with open_regular(self._path, str(self._path), hint="Name another file.") as (opened, size):
                if size > MOST_BYTES:
                    raise EdgetlError(f"The timing cache {self._path} has {size} bytes; expected at most {MOST_BYTES}.")
                return read_at_most(opened, size, size, str(self._path))
        except BundleError as problem:
            raise EdgetlError(f"The timing cache cannot be read: {problem.message}", hint=problem.hint) from problem
