"""How far edgetl.runtime's resize and crop are from torchvision's, on a folder of photos, in grey levels.

python benchmarks/preprocess_equality.py FOLDER [--images 500] [--out benchmarks/results/preprocess_equality.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision import transforms

from edgetl import rundir
from edgetl.runtime.preprocess import Preprocess, prepare_pixels

CASES = ((128, 0.875, "bicubic"), (128, 1.0, "bilinear"), (224, 0.95, "bicubic"), (224, 0.875, "lanczos"))


def difference(path: Path, size: int, fraction: float, interpolation: str) -> int:
    """Greatest difference of any pixel between the two, 0 to 255."""
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    mode = transforms.InterpolationMode(interpolation)
    theirs = transforms.Compose([transforms.Resize(round(size / fraction), mode), transforms.CenterCrop(size)])
    ours = prepare_pixels(path, Preprocess(size_hw=(size, size), crop_fraction=fraction, interpolation=interpolation))
    return int(np.abs(ours.astype(int) - np.asarray(theirs(picture)).astype(int)).max())


def main() -> None:
    """Prints and writes the greatest difference of every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = np.random.default_rng(0).permutation(len(found))[: options.images]
    rows = [
        {
            "size": size,
            "crop_fraction": fraction,
            "interpolation": interpolation,
            "greatest_difference": max(difference(found[index], size, fraction, interpolation) for index in chosen),
        }
        for size, fraction, interpolation in CASES
    ]
    result = {"data": options.folder.name, "images": len(chosen), "cases": rows, "environment": rundir.environment()}
    print(json.dumps({"images": len(chosen), "cases": rows}, indent=1))
    if options.out is not None:
        rundir.write_json(options.out, result)


if __name__ == "__main__":
    main()
