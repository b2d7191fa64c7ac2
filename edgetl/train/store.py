"""Training images decoded once into one memory-mapped file of uint8 pixels, kept in the cache for the next run."""

from __future__ import annotations

import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl import rundir
from edgetl.datasets import DataSet, Item
from edgetl.errors import DataError, InputError, OutputError
from edgetl.evaluate import pixels_of
from edgetl.events import Event, Listener
from edgetl.runtime import planes
from edgetl.runtime import preprocess as pre
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import channels, image_room, shelf
from edgetl.train.resident import Resident, map_of
from edgetl.train.room import estimated_bytes, require_room

VERSION = 1  # of the layout and of what was done to the pixels
ELSEWHERE = "EDGETL_CACHE=FOLDER names another place for prepared images."
HEADROOM = 2  # stored short side over the input side: small crops keep their detail


@dataclass(frozen=True)
class ImageStore:
    """Pixels of every training image, in the order of `items`."""

    folder: Path
    shapes: NDArray[np.int64]  # [N, 2] height and width
    offsets: NDArray[np.int64]  # [N] first byte
    pixels: NDArray[np.uint8]  # memory-mapped
    channels: int = 3
    _resident: Resident = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_resident", Resident(self.pixels))  # how a frozen dataclass derives a field

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """uint8 [H, W, C] of one image; a copy, so that torch may own it."""
        height, width = self.shapes[index].tolist()
        start = int(self.offsets[index])
        copy = np.array(self.pixels[start : start + height * width * self.channels]).reshape(height, width, -1)
        self._resident.read(copy.nbytes)
        return copy


def open_store(
    data: DataSet, items: Sequence[Item], fingerprint: str, preprocess: Preprocess, listener: Listener, stage: str
) -> ImageStore:
    """The store of `items`, built if the cache does not hold it.

    Args:
        data: reads the images.
        items: which images, in the order of the store.
        fingerprint: digest of the data's contents; part of the key.
        preprocess: decoding options and input size.
        listener: told of the progress of a build.
        stage: name of the stage in those events.

    Raises:
        DataError: images that cannot be decoded; names them.
        OutputError: the cache cannot be written, or is full.
    """
    side = HEADROOM * max(preprocess.size_hw)
    decoding = [preprocess.alpha_background, preprocess.exif, preprocess.interpolation]
    kept = channels.kept(preprocess)
    decoding += [] if kept.color == "rgb" else [kept.color, kept.channels]
    key = rundir.sha256(json.dumps([VERSION, fingerprint, side, decoding, [item.key for item in items]]).encode())[:24]
    folder = image_room.root() / key
    was_there = folder.exists()  # asked first: what another process puts there meanwhile is whole
    held = shelf.found(folder)
    found = _opened(folder)
    if found is None:
        if was_there:
            text = f"{folder} is damaged; the images are prepared again."
            listener(Event(stage, "note", {"text": text}))
            shutil.rmtree(folder, ignore_errors=True)
        held = _build(folder, data, items, side, kept, listener, stage)
        found = _opened(folder)
    if found is None:
        raise OutputError(f"{folder} cannot be read back.", hint=ELSEWHERE)
    shelf.hold_while_mapped(map_of(found.pixels), held)
    return found


def _opened(folder: Path) -> ImageStore | None:
    """The store in a folder, None where it is not there or not whole (a power cut may leave empty files)."""
    try:
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            shapes, offsets = index["shapes"], index["offsets"]
            count = int(index["channels"]) if "channels" in index else 3  # older ones do not say
        pixels = np.memmap(folder / "pixels.bin", np.uint8, "r")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    whole = len(pixels) == shapes.prod(axis=1).sum() * count
    return ImageStore(folder, shapes, offsets, pixels, count) if whole else None


def _build(
    folder: Path,
    data: DataSet,
    items: Sequence[Item],
    side: int,
    preprocess: Preprocess,
    listener: Listener,
    stage: str,
) -> shelf.Held | None:
    """Writes the store beside its place and renames it; of two processes at once the second finds it there."""
    with rundir.explained(folder, elsewhere=ELSEWHERE), shelf.beginning(folder) as (temporary, held):
        decoded = _shrinker(data, side, preprocess)
        needed = estimated_bytes(items, decoded)
        over = image_room.make_room(needed)
        require_room(temporary, needed, "prepared training images")
        if over:
            text = (f"prepared images take {over / 1e9:.1f} GB more than {image_room.NAME} allows, "
                    f"{image_room.limit_bytes() / 1e9:g} GB, because they are in use")  # fmt: skip
            listener(Event(stage, "note", {"text": text}))
        listener(Event(stage, "begin", {"what": "decode", "total": len(items), "unit": "images"}))
        _write_pixels(temporary, data, items, decoded, preprocess.channels, listener, stage)
        listener(Event(stage, "end", {"what": "decode"}))
        return held if _put(temporary, folder) else shelf.found(folder)


def _put(temporary: Path, folder: Path) -> bool:
    """Gives a store that is whole its name; False where another process was faster."""
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        return False
    return True


def _shrinker(data: DataSet, side: int, preprocess: Preprocess) -> Callable[[Item], NDArray[np.uint8] | str]:
    """Decodes an item and shrinks its short side to `side`; what cannot be decoded gives its sentence instead."""
    from PIL import Image

    how = getattr(Image.Resampling, preprocess.interpolation.upper())

    def decoded(item: Item) -> NDArray[np.uint8] | str:
        try:
            pixels = pre.decode(data.read(item), preprocess, name=item.key)
        except (InputError, DataError) as problem:
            return str(problem)
        height, width = pixels.shape[:2]
        if min(height, width) <= side:
            return pixels
        ratio = side / min(height, width)
        size = round(width * ratio), round(height * ratio)
        if pixels.shape[2] == 3:
            return np.asarray(Image.fromarray(pixels).resize(size, how))
        return planes.by_plane(pixels, lambda one: one.resize(size, how))

    return decoded


def _write_pixels(
    folder: Path,
    data: DataSet,
    items: Sequence[Item],
    decoded: Callable[[Item], NDArray[np.uint8] | str],
    count: int,
    listener: Listener,
    stage: str,
) -> None:
    shapes, bad = [], []
    with (folder / "pixels.bin").open("wb") as file, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # In slices, so that a data set larger than the memory is never held in the pool's queue.
        for start in range(0, len(items), 256):
            for pixels in pool.map(decoded, items[start : start + 256]):
                if isinstance(pixels, str):
                    bad.append(pixels)
                    continue
                file.write(pixels.tobytes())
                shapes.append(pixels.shape[:2])
            listener(Event(stage, "advance", {"done": min(start + 256, len(items))}))
    _require_none(bad, len(items), "training", data)
    sizes = np.array(shapes, np.int64).reshape(-1, 2)
    lengths = sizes.prod(axis=1) * count
    np.savez(folder / "index.npz", shapes=sizes, offsets=np.cumsum(lengths) - lengths, channels=count)


def _require_none(bad: Sequence[str], images: int, split: str, data: DataSet) -> None:
    if bad:
        raise DataError(
            f"{len(bad)} of {images} {split} images in {data.name} cannot be decoded: " + "; ".join(bad[:3]),
            hint="Remove or repair those files, leave some out with --max-bad, or give the --in-channels they have.",
        )


def require_readable(
    data: DataSet, items: Sequence[Item], split: str, preprocess: Preprocess, listener: Listener, stage: str
) -> None:
    """Returns when every image of a split that is needed after the training only can be decoded.

    Args:
        data: reads the images.
        items: the images of the split.
        split: its name.
        preprocess: decoding options and input size.
        listener: told of the progress.
        stage: name of the stage in those events.

    Raises:
        DataError: images that cannot be decoded; names them.
    """

    def flaw(item: Item) -> str | None:
        try:
            pixels_of(item, data.read, preprocess)
        except DataError as problem:
            return str(problem)
        return None

    listener(Event(stage, "begin", {"what": f"check {split}", "total": len(items), "unit": "images"}))
    bad: list[str] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(items), 256):
            bad += filter(None, pool.map(flaw, items[start : start + 256]))
            listener(Event(stage, "advance", {"done": min(start + 256, len(items))}))
    listener(Event(stage, "end", {"what": f"check {split}"}))
    _require_none(bad, len(items), split, data)


def evaluation_pixels(
    data: DataSet, items: Sequence[Item], fingerprint: str, preprocess: Preprocess
) -> NDArray[np.uint8]:
    """uint8 [N, H, W, C], memory-mapped: what evaluation looks at, kept in the cache so that epochs need not decode.

    Raises:
        DataError: an image cannot be decoded; names it.
        OutputError: the cache cannot be written, or is full.
    """
    shape = (len(items), *preprocess.size_hw, preprocess.channels)
    wanted = [VERSION, "evaluation", fingerprint, pre.to_dict(preprocess), [item.key for item in items]]
    folder = image_room.root() / rundir.sha256(json.dumps(wanted).encode())[:24]
    path = folder / "evaluation.bin"
    held = shelf.found(folder)
    if not path.is_file() or path.stat().st_size != math.prod(shape):
        with rundir.explained(path, elsewhere=ELSEWHERE), shelf.beginning(folder) as (temporary, new):
            image_room.make_room(math.prod(shape))
            require_room(temporary, math.prod(shape), "prepared images for evaluation")
            _write_evaluation(temporary / path.name, data, items, preprocess)
            held = new if _put(temporary, folder) else _replaced(temporary / path.name, path)
    pixels = np.memmap(path, np.uint8, "r", shape=shape)
    shelf.hold_while_mapped(map_of(pixels), held)
    return pixels


def _replaced(written: Path, path: Path) -> shelf.Held | None:
    """Puts a file in the place of one that another process has made meanwhile, or that is damaged."""
    held = shelf.found(path.parent)
    written.replace(path)
    return held


def _write_evaluation(path: Path, data: DataSet, items: Sequence[Item], preprocess: Preprocess) -> None:
    with path.open("wb") as file, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(items), 256):
            for pixels in pool.map(lambda item: pixels_of(item, data.read, preprocess), items[start : start + 256]):
                file.write(pixels.tobytes())
