"""A picture of a few predictions: what the image is, what the bundle says, and how sure it is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgetl import rundir

if TYPE_CHECKING:
    from PIL import Image

    from edgetl.runtime import Classifier

COUNT = 12
COLUMNS = 4
CELL = 176  # pixels, of a photo
TEXT = 40  # pixels below a photo, two lines
RIGHT, WRONG = (26, 127, 55), (207, 34, 46)


def draw(bundle: Path, run: Path, out: Path, *, seed: int = 0) -> Path:
    """Path of a PNG with test images drawn at random by seed, each with its class, the bundle's answer and its score.

    Args:
        bundle: whose answers.
        run: the RUN that was exported; its record says which images are the test's.
        out: where to.
        seed: of the choice of images.

    Raises:
        BundleError: the bundle cannot be opened.
        DataError: the images of the RUN are not where they were.
    """
    from edgetl import runtime, splits, weights
    from edgetl.datasets import open_data
    from edgetl.recipe_fields import DataFields

    record = weights.read_record(run)
    data = open_data(record["data"]["source"], foreign=False)
    parts = splits.resolve(data, DataFields(data=record["data"]["source"]), recorded=record["data"]["rule"])
    chosen = np.random.default_rng(seed).permutation(len(parts.test))[:COUNT]
    with runtime.load(bundle) as classifier:
        cells = [_cell(data.read(parts.test[i]), data.labels[parts.test[i].label], classifier) for i in chosen]
    picture = io.BytesIO()
    _grid(cells).save(picture, format="PNG")
    rundir.write_bytes(out, picture.getvalue())
    return out


def _cell(photo: bytes, truth: str, classifier: Classifier) -> Image.Image:
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    from edgetl.runtime import planes

    answer = classifier.predict(photo)
    # Decoded as the device decodes: 16-bit, palette, CMYK and rotated images look as the model saw them.
    pixels = planes.colors_of(photo, classifier.manifest.preprocess)
    small = ImageOps.pad(Image.fromarray(pixels), (CELL, CELL), color="white")
    cell = Image.new("RGB", (CELL, CELL + TEXT), "white")
    cell.paste(small)
    pen = ImageDraw.Draw(cell)
    font = ImageFont.load_default(size=13)
    pen.text((4, CELL + 3), f"is {truth}", fill="black", font=font)
    pen.text((4, CELL + 20), f"says {answer.label} {100 * answer.score:.0f} %", font=font,
             fill=RIGHT if answer.label == truth else WRONG)
    return cell


def _grid(cells: list[Image.Image]) -> Image.Image:
    from PIL import Image

    gap = 8
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (CELL + gap) + gap, rows * (CELL + TEXT + gap) + gap), "white")
    for place, cell in enumerate(cells):
        row, column = divmod(place, COLUMNS)
        sheet.paste(cell, (gap + column * (CELL + gap), gap + row * (CELL + TEXT + gap)))
    return sheet
