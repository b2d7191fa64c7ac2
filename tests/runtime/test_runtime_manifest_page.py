"""docs/manifest.md is enough to write a reader: every field is there, the example is true, the steps are right."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_bundle import make_photo

from edgetl import evaluate
from edgetl.export import metadata, rejection
from edgetl.runtime import drift
from edgetl.runtime.manifest import Manifest, Variant, from_json
from edgetl.runtime.preprocess import Preprocess, prepare
from edgetl.runtime.session import TensorSpec

PAGE = (Path(__file__).parents[2] / "docs/manifest.md").read_text()


def section(title: str) -> str:
    """The text below a heading, up to the next."""
    return re.split(r"^## ", PAGE.split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def fields(title: str) -> list[str]:
    """First column of a section's table."""
    return re.findall(r"^\| `([\w.]+)`", section(title), re.MULTILINE)


def evaluation() -> evaluate.Evaluation:
    logits = np.random.default_rng(0).normal(0, 3, (200, 2)).astype(np.float32)
    return evaluate.summarize(logits, logits.argmax(axis=1), tuple(map(str, range(200))))


@pytest.mark.parametrize(
    "title, kind",
    [("manifest.json", Manifest), ("preprocess", Preprocess), ("variants", Variant), ("tensors", TensorSpec)],
)
def test_every_field_is_described_and_no_other(title, kind):
    assert fields(title) == [one.name for one in dataclasses.fields(kind)]


def test_every_field_of_what_an_export_records_is_described():
    found = rejection.search(evaluation(), 0.9, variant="fp32")
    record = rejection.checked(found, [("fp32", "val", evaluation())])
    assert record is not None
    assert fields("rejection") == list(record) and fields("rejection checks") == list(record["checks"][0])
    counted = drift.Drift(2)
    counted.update(np.array([[0.1, 0.9]]))
    assert fields("drift_reference") == ["variant", "split", *drift.reference_of(np.array([[0.1, 0.9]]))]
    assert fields("Statistics of drift") == list(counted.snapshot())
    recent = section("Statistics of drift").split("`recent`")[-1]
    assert all(f"`{name}`" in recent for name in counted.snapshot()["recent"])
    scaled = ["ece_scaled", "nll_scaled", "brier_scaled"]
    measured = ["latency_s", "latency_arrival", "latency_threads", "machine"]
    assert set(fields("evaluations")) == {"backend", "simulates", "split", *evaluation().to_json(), *scaled, *measured}
    assert set(re.findall(r"`([\w.]+)`", section("Metadata of the graphs"))) >= set(
        metadata.metadata_of(Preprocess((8, 8)), ("a", "b"))
    )


def test_the_example_is_a_manifest():
    text = section("A minimal example").split("```json\n")[1].split("```")[0]
    made = from_json(text, where="the example")
    assert made.labels == ("apple", "pear") and made.reject_below is None and made.drift_reference is None
    assert made.preprocess == Preprocess((224, 224))
    for name in json.loads(text):  # it is minimal: nothing of it may be absent
        rest = {key: value for key, value in json.loads(text).items() if key != name}
        with pytest.raises(Exception, match=f"'{name}' is missing"):
            from_json(json.dumps(rest), where="the example")


def by_the_page(pixels: np.ndarray, wants: Preprocess) -> np.ndarray:
    """Steps 2 and 3 of the page, word by word; the filter is Pillow's."""
    (high, wide), (h, w) = wants.size_hw, pixels.shape[:2]
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

    def become(height: int, width: int) -> np.ndarray:
        return np.asarray(Image.fromarray(pixels).resize((width, height), filters[wants.interpolation]))

    if wants.resize_mode == "shortest":
        a, b = round(high / wants.crop_fraction), round(wide / wants.crop_fraction)
        size = (a, max(b, a * w // h)) if a * w >= b * h else (max(a, b * h // w), b)
        top, left = round((size[0] - high) / 2), round((size[1] - wide) / 2)
        seen = become(*size)[top : top + high, left : left + wide]
    elif wants.resize_mode == "squash":
        seen = become(high, wide)
    else:
        f = min(high / h, wide / w)
        inner = become(round(h * f), round(w * f))
        seen = np.broadcast_to(np.rint(np.array(wants.mean) / wants.scale), (high, wide, 3)).astype(np.uint8)
        top, left = (high - len(inner)) // 2, (wide - inner.shape[1]) // 2
        seen[top : top + len(inner), left : left + inner.shape[1]] = inner
    return ((seen * wants.scale - np.array(wants.mean)) / np.array(wants.std)).transpose(2, 0, 1)


@pytest.mark.parametrize("mode", ["shortest", "squash", "letterbox"])
@pytest.mark.parametrize("shape", [(61, 97), (97, 61), (20, 20), (33, 70)])
def test_the_steps_of_the_page_give_what_the_runtime_gives(mode, shape):
    wants = Preprocess((24, 32), resize_mode=mode, interpolation="bilinear")
    pixels = make_photo(1, *shape)
    assert np.abs(by_the_page(pixels, wants) - prepare(pixels, wants)).max() < 1e-5
