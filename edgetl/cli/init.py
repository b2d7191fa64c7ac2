"""`edgetl init`."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgetl.datasets import DataSet

EXAMPLE = "edgetl init photos > recipe.toml"

TEACHER = "efficientnet-lite/efficientnet_lite0"
LOOKED_AT = 200  # images whose size is read
SIZES = (32, 64, 96, 128, 160)  # beyond 160 px a CPU trains for hours; the comment says that larger can be better
VIEWS = 30_000  # training images shown to the teacher: what fine-tuning a few thousand photos was seen to need


def init(
    data: Annotated[str, typer.Argument(help="Folder, csv:FILE, shards:SPEC, or a data set's name.", metavar="DATA")],
) -> None:
    """Print a commented recipe fitted to the data."""
    from edgetl.datasets import guess, open_data

    print(recipe_for(open_data(data, asked=guess(data)), data), end="")


def recipe_for(data: DataSet, spec: str) -> str:
    """A recipe with every key explained, and those set that the data decides.

    Args:
        data: the opened data set.
        spec: what the user called it.
    """
    from edgetl.dataspec import absolute
    from edgetl.recipe_file import commented

    sides, unreadable = _short_sides(data)
    size = _image_size(sides)
    training = sum(item.split in (None, "train") for item in data.items)
    epochs = min(30, max(3, round(VIEWS / training)))
    stages: dict[str, dict[str, Any]] = {
        "finetune": {"teacher": TEACHER, "epochs": epochs, **_task(data)},
        # A student that was cut needs longer to recover than the teacher needed to learn.
        "distill": {"student": "slim:0.4", "epochs": 2 * epochs},
        "export": {"precision": ("fp32", "int8")},
        "bench": {"backend": _backends()},
    }
    head = _head(data, spec, sides, unreadable)
    return commented(stages, {"data": absolute(spec), "image_size": size}, head=head)


def _task(data: DataSet) -> dict[str, Any]:
    """What says which task the columns of a table are; nothing of one class an image."""
    if not data.heads:
        return {}
    from edgetl.heads import asked_again, to_json

    asked = asked_again({"heads": to_json(data.heads)})
    return {"task": asked.task, **({"label_columns": asked.columns} if asked.columns else {})}


def _head(data: DataSet, spec: str, sides: list[int], unreadable: int) -> str:
    splits = Counter(item.split for item in data.items if item.split is not None)
    lines = [
        f"A recipe for {spec}: {len(data.items)} images {_said(data)}.",
        f"Splits of its own: {', '.join(f'{name} {count}' for name, count in splits.items()) or 'none; made by seed'}.",
    ]
    if sides:
        lines.append(f"The short side of {len(sides)} images looked at: {min(sides)} to {max(sides)} px, "
                     f"median {_middle(sides)}.")
    if unreadable:
        lines.append(f"{unreadable} of the images looked at could not be read or are too large.")
    lines += [*data.notes, "Larger images can be more accurate; the time grows with the square of image_size.", "",
              "Run it with: edgetl run THIS_FILE --out runs/NAME", "A key behind '#' has the value shown (...: none)."]
    return "\n".join(lines)


def _said(data: DataSet) -> str:
    """What is known of the images, in words."""
    if data.heads:
        from edgetl.heads import words

        return (f"with {words(data.heads)}; the task is what the cells of the table look like, change it where that is "
                "not what they mean")
    counts = Counter(item.label for item in data.items)
    least = min(counts, key=lambda label: counts[label])
    return f"in {len(data.labels)} classes; the smallest class is '{data.labels[least]}' with {counts[least]}"


def _short_sides(data: DataSet) -> tuple[list[int], int]:
    """Short sides in pixels of images spread over the data set, and how many could not be read."""
    from edgetl import extras

    extras.require("PIL", extra="cpu", purpose="Looking at images")
    from PIL import Image, UnidentifiedImageError

    from edgetl.errors import InputError
    from edgetl.runtime.decode import is_array_file, read_array

    sides, unreadable = [], 0
    for item in data.items[:: max(1, len(data.items) // LOOKED_AT)]:
        file = data.read(item)
        try:
            if is_array_file(file):
                sides.append(min(read_array(file, item.key).shape[:2]))
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # nothing is decoded here
                with Image.open(io.BytesIO(file)) as image:
                    sides.append(min(image.size))
        except (UnidentifiedImageError, Image.DecompressionBombError, InputError):
            unreadable += 1
    return sides, unreadable


def _image_size(sides: list[int]) -> int:
    """The largest of SIZES that does not enlarge the median image, at least the smallest."""
    middle = _middle(sides) if sides else SIZES[-1]
    return max((size for size in SIZES if size <= middle), default=SIZES[0])


def _middle(sides: list[int]) -> int:
    return sorted(sides)[len(sides) // 2]


def _backends() -> tuple[str, ...]:
    """The default backends that are usable here."""
    from edgetl import plugins
    from edgetl.recipe import Bench, fields_of

    asked: Any = fields_of(Bench)["backend"].default
    return tuple(name for name in asked if plugins.load("backends", name).probe().usable)
