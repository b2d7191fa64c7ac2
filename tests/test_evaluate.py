"""Evaluation on arrays made here: what is counted, paired, and refused."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from edgetl import evaluate as ev
from edgetl.datasets import Item
from edgetl.errors import DataError, EdgetlError
from edgetl.runtime.preprocess import Preprocess

SQUASH = Preprocess(size_hw=(4, 4), resize_mode="squash", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (value, value, value)).save(buffer, "png")
    return buffer.getvalue()


def items(values, weights=None):
    """Grey pictures: the key is the brightness, the label whether it is bright."""
    weights = weights or [1.0] * len(values)
    return [Item(f"{v}.png", int(v >= 128), weight=w) for v, w in zip(values, weights, strict=True)]


def read(item):
    return png(int(item.key.removesuffix(".png")))


def bright(batch):
    """Right from 128 of 255 on."""
    mean = batch.mean(axis=(1, 2, 3))
    return np.stack([0.5 - mean, mean - 0.5], axis=1)


def test_prepared_counts_every_item_once_and_normalises():
    batches = list(ev.prepared(items([0, 51, 255]), read, SQUASH, 2))
    assert [len(images) for images, _, _ in batches] == [2, 1]
    assert batches[0][0].dtype == np.float32 and batches[0][0].shape == (2, 3, 4, 4)
    assert np.allclose(batches[0][0][1], 0.2) and np.allclose(batches[1][0], 1.0)
    assert np.concatenate([labels for _, labels, _ in batches]).tolist() == [0, 0, 1]


def test_evaluation_of_a_perfect_and_of_a_constant_model():
    pictures = items([0, 10, 200, 250, 255])
    good = ev.evaluate(bright, pictures, read, SQUASH, classes=2, batch=2)
    assert (good.n, good.correct, good.accuracy, good.macro_f1) == (5, 5, 1.0, 1.0)
    assert good.weighted_accuracy is None
    assert good.accuracy_low == pytest.approx(0.5655, abs=1e-4)
    constant = ev.evaluate(lambda x: np.tile([1.0, 0.0], (len(x), 1)), pictures, read, SQUASH, classes=2)
    assert constant.correct == 2 and constant.confusion.tolist() == [[2, 0], [3, 0]]


def test_weights_count_where_there_are_any():
    pictures = items([0, 255], weights=[3.0, 1.0])
    constant = ev.evaluate(lambda x: np.tile([1.0, 0.0], (len(x), 1)), pictures, read, SQUASH, classes=2)
    assert (constant.accuracy, constant.weighted_accuracy) == (0.5, 0.75)


def test_comparison_pairs_the_images():
    pictures = items([0, 10, 200, 250])
    good = ev.evaluate(bright, pictures, read, SQUASH, classes=2)
    constant = ev.evaluate(lambda x: np.tile([1.0, 0.0], (len(x), 1)), pictures, read, SQUASH, classes=2)
    found = ev.compare(constant, good)
    assert (found.lost, found.gained, found.drop_points, found.agreement) == (2, 0, 50.0, 0.5)
    assert found.p_value == 0.5 and found.drop_low < 50 < found.drop_high and found.image_points == 25
    assert "-50.00 points" in found.sentence() and "2 lost and 0 gained of 4" in found.sentence()
    assert ev.with_reference(constant, good).agreement == 0.5


def test_different_images_are_not_paired():
    first = ev.evaluate(bright, items([0, 255]), read, SQUASH, classes=2)
    second = ev.evaluate(bright, items([1, 255]), read, SQUASH, classes=2)
    with pytest.raises(ValueError, match="cannot be paired"):
        ev.compare(first, second)


def test_json_holds_no_row_for_each_image():
    result = ev.evaluate(bright, items([0, 255]), read, SQUASH, classes=2).to_json()
    assert json.loads(json.dumps(result)) == result
    assert {"n", "accuracy", "accuracy_low", "confusion", "agreement"} <= set(result)
    assert not {"logits", "labels", "keys"} & set(result)


@pytest.mark.parametrize("broken", [b"no picture at all", png(3)[:-30]], ids=["text", "cut short"])
def test_a_file_that_is_no_image_is_named(broken):
    with pytest.raises(DataError, match=r"^bad/0\.png (is not an image|cannot be read as an image)"):
        ev.evaluate(bright, [Item("bad/0.png", 0)], lambda item: broken, SQUASH, classes=2)


def test_a_file_that_went_away_is_named():
    def gone(item):
        raise FileNotFoundError(2, "No such file or directory", item.key)
    with pytest.raises(DataError, match=r"'gone\.png' cannot be read: No such file"):
        ev.evaluate(bright, [Item("gone.png", 0)], gone, SQUASH, classes=2)


def test_logits_that_do_not_fit_are_refused():
    with pytest.raises(EdgetlError, match=r"expected logits \[1, 3\]"):
        ev.evaluate(bright, items([0]), read, SQUASH, classes=3)
    with pytest.raises(EdgetlError, match="not finite"):
        ev.evaluate(lambda x: bright(x) * np.nan, items([0]), read, SQUASH, classes=2)
    with pytest.raises(DataError, match="no image to evaluate"):
        ev.evaluate(bright, [], read, SQUASH, classes=2)


def test_latencies_interleave_and_drop_the_first_calls():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    samples = ev.latencies(calls, rounds=3, block=5, dropped=2)
    assert {name: len(kept) for name, kept in samples.items()} == {"a": 9, "b": 9}
    assert len(order) == 30 and all(set(order[10 * r:10 * r + 10]) == {"a", "b"} for r in range(3))
    assert all(sample >= 0 for kept in samples.values() for sample in kept)
