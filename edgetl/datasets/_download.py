"""Fetching the files of public data sets, checked against their published digests."""

from __future__ import annotations

import os
from pathlib import Path

from edgetl.errors import DataError, MissingDependency
from edgetl.runtime.tuned import cache_root


def data_folder() -> Path | None:
    """Where the user keeps data sets (`EDGETL_DATA`), None where that is not set."""
    value = os.environ.get("EDGETL_DATA")
    return Path(value).expanduser() if value else None


def cache_folder(name: str) -> Path:
    """Where a data set that has to be downloaded is kept."""
    return cache_root() / "datasets" / name


def fetch(url: str, folder: Path, *, md5: str, what: str, offline_hint: str) -> Path:
    """The file of `url` in `folder`; downloaded with torchvision unless it is there with the right digest.

    Raises:
        DataError: it cannot be reached, or the digest differs.
        MissingDependency: torchvision is not installed.
    """
    try:
        from torchvision.datasets.utils import download_url
    except ImportError as problem:
        raise MissingDependency("torchvision", extra="train", purpose=f"Downloading the data set '{what}'") from problem
    try:
        download_url(url, str(folder), md5=md5)
    except (OSError, RuntimeError) as problem:  # URLError is an OSError; RuntimeError says that the digest differs
        raise DataError(f"The data set '{what}' is not on this machine and {url} cannot be fetched: {problem}.",
                        hint=offline_hint) from problem
    return folder / url.rpartition("/")[2]
