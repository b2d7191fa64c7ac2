"""What a RUN said, image by image: written whole, read back, and never a pickle."""

from __future__ import annotations

import numpy as np
import pytest

from edgetl import predictions
from edgetl.errors import EdgetlError

LOGITS = np.log(np.array([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], np.float32))
LABELS = np.array([0, 2, 1, 2])
KEYS = ("a.png", "b\udce9.png", "c.png", "d.png")  # a name that is not UTF-8 too


def test_scores_and_the_hardest_mistakes():
    found = predictions.of(LOGITS, LABELS, KEYS)
    assert found.right.tolist() == [True, False, False, True]
    assert np.allclose(found.score, [0.7, 0.9, 0.6, 0.6]) and np.allclose(found.label_score, [0.7, 0.05, 0.3, 0.6])
    assert found.hardest(5).tolist() == [1, 2] and found.hardest(1).tolist() == [1]


def test_they_come_back_as_they_were(tmp_path):
    made = {"val": predictions.of(LOGITS[:1], LABELS[:1], KEYS[:1]), "test": predictions.of(LOGITS, LABELS, KEYS)}
    predictions.write(tmp_path, made)
    again = predictions.read(tmp_path)
    assert list(again) == ["val", "test"]
    for split, one in made.items():
        for name, array in vars(one).items():
            assert np.array_equal(getattr(again[split], name), array)


def test_a_run_of_an_earlier_version_has_none(tmp_path):
    assert predictions.read(tmp_path) == {}


def test_a_pickle_a_torn_file_and_foreign_arrays_are_refused(tmp_path):
    path = tmp_path / predictions.FILE
    predictions.write(tmp_path, {"test": predictions.of(LOGITS, LABELS, KEYS)})
    whole = path.read_bytes()
    np.savez(path, **{"test.keys": np.array([{}], dtype=object)})
    with pytest.raises(EdgetlError, match="cannot be read as predictions"):
        predictions.read(tmp_path)
    np.save(tmp_path / "single.npy", np.zeros(3))
    for damaged in (whole[: len(whole) // 2], b"", b"no archive", (tmp_path / "single.npy").read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(EdgetlError, match="cannot be read as predictions"):
            predictions.read(tmp_path)
    np.savez(path, **{"test.keys": np.array(["a"])})
    with pytest.raises(EdgetlError, match="cannot be read as predictions"):
        predictions.read(tmp_path)
    arrays = {f"test.{name}": array for name, array in vars(predictions.of(LOGITS, LABELS, KEYS)).items()}
    np.savez(path, **{**arrays, "test.score": np.zeros(3, np.float32)})
    with pytest.raises(EdgetlError, match="different lengths"):
        predictions.read(tmp_path)
