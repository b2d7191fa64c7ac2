"""How much of the cache prepared images may take: the sets of images that were used longest ago go first.

All prepared images together take `LIMIT_BYTES` at most, or what the environment's `EDGETL_IMAGES_LIMIT` says, as far as
no running process uses them: what a training needs is prepared whatever the limit, and goes when it is used no more and
the next one wants room.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgetl.errors import EdgetlError
from edgetl.recipe_gate import SIZES
from edgetl.runtime.tuned import cache_root
from edgetl.train import shelf

FOLDER = "images"  # of the cache
LIMIT_BYTES = 64 * 10**9  # 100,000 images at 224 px take 45 GB
NAME = "EDGETL_IMAGES_LIMIT"


def root() -> Path:
    """Where prepared images lie.

    Raises:
        EdgetlError: there is no place for a cache.
    """
    return cache_root() / FOLDER


def limit_bytes() -> int:
    """What all prepared images may take.

    Raises:
        EdgetlError: the environment's word for it is no size.
    """
    said = os.environ.get(NAME)
    if not said:
        return LIMIT_BYTES
    read = re.fullmatch(rf"\s*([0-9]+(?:[.][0-9]+)?)\s*({'|'.join(SIZES)})\s*", said)
    if read is None:
        raise EdgetlError(
            f"{NAME} is '{said}', expected a size with a unit.", hint=f"For example {NAME}=200GB, or unset it."
        )
    return round(float(read[1]) * SIZES[read[2]])


def make_room(needed_bytes: int) -> int:
    """Removes sets of prepared images that nobody uses until so many bytes more fit, as far as that goes.

    Returns:
        By how many bytes the limit will be exceeded, 0 where it is kept.

    Raises:
        EdgetlError: see `limit_bytes`.
        OSError: a folder cannot be looked at or removed.
    """
    limit, place = limit_bytes(), root()
    if not place.is_dir():
        return max(0, needed_bytes - limit)
    for older in place.glob("*.bin"):  # as earlier versions kept what evaluation looks at; nothing reads them any more
        older.unlink(missing_ok=True)
    return max(0, shelf.make_room(place, max(0, limit - needed_bytes)) + needed_bytes - limit)
