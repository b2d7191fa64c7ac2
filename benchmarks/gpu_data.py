"""A few hundred labelled images as one small file without pickle, and back again as a folder of JPEG files.

    python benchmarks/gpu_data.py pack FOLDER FILE.npz [--classes 10] [--images 60] [--size 128]
    python benchmarks/gpu_data.py textures FILE.npz [--classes 10] [--images 60] [--size 128]
    python benchmarks/gpu_data.py unpack FILE.npz FOLDER

So a machine without a network has something to train on. FOLDER has a folder for each class. `textures` draws stripes
and blobs instead, a class by its direction, width and colour: easy to tell apart, but not for a linear model.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MOST_BYTES = 8 * 2**20
QUALITY = 88
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def write(file: Path, images: Iterable[tuple[str, bytes]]) -> int:
    """Packs (class, encoded image) pairs into one file; how many there were.

    Raises:
        SystemExit: there are none, or they need more than `MOST_BYTES`.
    """
    pairs = list(images)
    if not pairs:
        raise SystemExit("There is no image to pack.")
    labels = sorted({label for label, _ in pairs})
    packed = io.BytesIO()
    np.savez(packed, data=np.frombuffer(b"".join(image for _, image in pairs), np.uint8),
             sizes=np.array([len(image) for _, image in pairs], np.int64),
             classes=np.array([labels.index(label) for label, _ in pairs], np.int64),
             labels=np.array([label.encode() for label in labels]))
    if packed.tell() > MOST_BYTES:
        raise SystemExit(f"{len(pairs)} images need {packed.tell() / 2**20:.1f} MiB, more than "
                         f"{MOST_BYTES // 2**20}; give fewer --images or a smaller --size.")
    file.write_bytes(packed.getvalue())
    return len(pairs)


def unpack(file: Path, folder: Path) -> Path:
    """The images of a packed file in folders of their classes below `folder`, which is returned."""
    with np.load(file, allow_pickle=False) as packed:
        data, sizes, classes = packed["data"].tobytes(), packed["sizes"], packed["classes"]
        labels = [label.decode() for label in packed["labels"].tolist()]
    ends = np.cumsum(sizes)
    for number, (end, size, label) in enumerate(zip(ends, sizes, classes, strict=True)):
        place = folder / labels[label]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:05d}.jpg").write_bytes(data[end - size:end])
    return folder


def of_folder(folder: Path, classes: int, images: int, size: int) -> Iterator[tuple[str, bytes]]:
    """The first classes of a folder by name, evenly spaced files of each, the short side made `size`."""
    places = sorted(path for path in folder.iterdir() if path.is_dir())[:classes]
    for place in places:
        files = sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
        for index in np.unique(np.linspace(0, len(files) - 1, images).astype(int)) if files else ():
            with Image.open(files[index]) as picture:
                yield place.name, encoded(small(picture.convert("RGB"), size))


def small(picture: Image.Image, size: int) -> Image.Image:
    """The centre square of a picture, `size` pixels a side."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))


def textures(classes: int, images: int, size: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Drawn images, the same ones for the same seed."""
    for kind in range(classes):
        for number in range(images):
            pixels = texture(kind, classes, size, np.random.default_rng([seed, kind, number]))
            yield f"texture_{kind:02d}", encoded(Image.fromarray(pixels))


def texture(kind: int, classes: int, size: int, chance: np.random.Generator) -> NDArray[np.uint8]:
    """Stripes [size, size, 3] whose direction and width tell the kind; phase, contrast, light and noise do not."""
    y, x = np.mgrid[:size, :size] / size
    angle = np.pi * (kind + chance.uniform(-0.25, 0.25)) / classes
    waves = (3 + 3 * (kind % 3)) * chance.uniform(0.9, 1.1)
    wave = np.sin(2 * np.pi * (waves * (x * np.cos(angle) + y * np.sin(angle)) + chance.uniform()))
    bright, dark = chance.uniform(100, 255, 3), chance.uniform(0, 120, 3)
    share = (0.5 + 0.5 * chance.uniform(0.4, 1) * wave)[..., None]
    noise = chance.normal(0, 18, (size, size, 3))
    return np.clip(dark + (bright - dark) * share + noise, 0, 255).astype(np.uint8)


def encoded(picture: Image.Image) -> bytes:
    """The picture as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def main() -> None:
    """Packs, draws or unpacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "textures", "unpack"))
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--images", type=int, default=60, help="a class")
    parser.add_argument("--size", type=int, default=128)
    asked = parser.parse_args()
    if len(asked.paths) != (1 if asked.what == "textures" else 2):
        parser.error("`textures` takes FILE.npz, `pack` FOLDER and FILE.npz, `unpack` FILE.npz and FOLDER.")
    if asked.what == "unpack":
        unpack(*asked.paths)
        return
    sizes = (asked.classes, asked.images, asked.size)
    images = textures(*sizes) if asked.what == "textures" else of_folder(asked.paths[0], *sizes)
    print(f"{write(asked.paths[-1], images)} images, {asked.paths[-1].stat().st_size} bytes")


if __name__ == "__main__":
    main()
