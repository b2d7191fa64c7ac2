"""Folders that several processes or threads want at the same moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.errors import OutputError
from edgetl.runtime import durable


@pytest.fixture
def another_is_faster(monkeypatch):
    """Just before this process makes a folder, another one makes it, as two threads that start at once may."""
    make = Path.mkdir

    def late(self, *args, **kwargs):
        make(self)
        make(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", late)


def test_a_folder_that_another_makes_at_the_same_moment_will_do(tmp_path, another_is_faster):
    durable.make_folder(tmp_path / "cache" / "engines")
    assert (tmp_path / "cache" / "engines").is_dir()


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "engines").write_bytes(b"")
    with pytest.raises(OutputError, match="engines cannot be written: File exists"):
        durable.make_folder(tmp_path / "engines")
