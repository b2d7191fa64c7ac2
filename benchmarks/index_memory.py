"""Memory of a fine-tuning with many images: with 100,000 at most 200 MB more than with 1,000.

python benchmarks/index_memory.py [--images 1000,100000] [--kinds folder,shards]
    [--out benchmarks/results/index_memory.json]

Makes small PNG photos (32 x 32 pixels, noise, no two alike), once as a folder of files, once as tar shards of 10,000,
and runs an epoch of `edgetl finetune` on each with a network of 0.4 million parameters, in a fresh process; the most
memory that the process had is VmHWM, by which pages of mapped files count, too. A process of its own before that says
how long it takes to index the images (of shards: to read them through) and to find the fingerprint and the splits:
`index_s`, `splits_s`, and both in seconds for each 10,000 images. The files were just written, so the system's cache
has most of them; nothing is on the network. Takes 1.3 GB in the temporary folder for 100,000 images.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from edgetl import rundir
from edgetl.bench.environment import load_average
from edgetl.datasets._png import encode

SIDE, CLASSES, PER_SHARD = 32, 10, 10_000
ALLOWED_BYTES = 200 * 10**6
INDEX = """
import json, sys
from edgetl import datasets, splits, timing
from edgetl.recipe_fields import DataFields
data, index_s = timing.timed(lambda: datasets.open_data(sys.argv[1]))
parts, splits_s = timing.timed(lambda: splits.resolve(data, DataFields(data=sys.argv[1])))
print(json.dumps({"images": len(data.items), "index_s": index_s, "splits_s": splits_s}))
"""
TRAIN = """
import json, sys
import edgetl
from edgetl import timing
_, finetune_s = timing.timed(lambda: edgetl.finetune(
    data=sys.argv[1], teacher="timm/test_resnet", pretrained=False, out=sys.argv[2], epochs=1, image_size=32,
    batch_size="128", threads=1, warmup_epochs=0.0))
with open("/proc/self/status") as status:
    (peak,) = [int(line.split()[1]) for line in status if line.startswith("VmHWM:")]
print(json.dumps({"finetune_s": finetune_s, "peak_bytes": 1024 * peak}))
"""


def photos(images: int) -> Iterator[tuple[int, bytes]]:
    """Label and PNG file of each photo."""
    random = np.random.default_rng(0)
    for place in range(images):
        yield place % CLASSES, encode(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def as_folder(root: Path, images: int) -> str:
    """What --data says of the photos in class folders."""
    for label in range(CLASSES):
        (root / f"class-{label}").mkdir(parents=True)
    for place, (label, file) in enumerate(photos(images)):
        (root / f"class-{label}" / f"photo-{place:06d}.png").write_bytes(file)
    return str(root)


def as_shards(root: Path, images: int) -> str:
    """What --data says of the photos in tar files."""
    root.mkdir(parents=True)
    made = enumerate(photos(images))
    for shard in range(math.ceil(images / PER_SHARD)):
        with tarfile.open(root / f"{shard:03d}.tar", "w", format=tarfile.USTAR_FORMAT) as opened:
            for place, (label, file) in islice(made, PER_SHARD):
                add(opened, f"photo-{place:06d}.png", file)
                add(opened, f"photo-{place:06d}.cls", str(label).encode())
    return f"shards:{root}/*.tar"


def add(opened: tarfile.TarFile, name: str, data: bytes) -> None:
    """Writes a member."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    opened.addfile(member, io.BytesIO(data))


MAKERS = {"folder": as_folder, "shards": as_shards}


def child(code: str, folder: Path, *arguments: str) -> dict:
    """What a fresh process says in its last line."""
    variables = {**os.environ, "EDGETL_CACHE": str(folder / "cache")}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=variables)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def row(kind: str, images: int, folder: Path) -> dict:
    """Seconds and memory of one data set, which is deleted afterwards."""
    place = folder / f"{kind}-{images}"
    try:
        data = MAKERS[kind](place / "photos", images)
        found = {"kind": kind, **child(INDEX, place, data), **child(TRAIN, place, data, str(place / "run"))}
    finally:
        shutil.rmtree(place, ignore_errors=True)
    for name in ("index_s", "splits_s"):
        found[f"{name}_per_10000"] = found[name] / images * 10_000
    return found


def growth(rows: list[dict]) -> list[dict]:
    """What more images cost, for each kind from one count to the next."""
    found = []
    for few, many in pairwise(rows):
        if few["kind"] == many["kind"]:
            more = many["peak_bytes"] - few["peak_bytes"]
            found.append({"kind": few["kind"], "from_images": few["images"], "to_images": many["images"],
                          "more_bytes": more, "ratio": many["peak_bytes"] / few["peak_bytes"],
                          "bytes_per_image": more / (many["images"] - few["images"]),
                          "allowed_bytes": ALLOWED_BYTES, "within": more <= ALLOWED_BYTES})
    return found


def main() -> None:
    """Prints and writes a row for each count and kind, and how they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="1000,100000")
    parser.add_argument("--kinds", default="folder,shards")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows, load = [], load_average()
    with tempfile.TemporaryDirectory() as name:
        for kind in asked.kinds.split(","):
            for images in asked.images.split(","):
                rows.append(row(kind, int(images), Path(name)))
                print(f"{kind}, {images} images: at most {rows[-1]['peak_bytes'] / 1e6:.0f} MB; index "
                      f"{rows[-1]['index_s']:.1f} s, fingerprint and splits {rows[-1]['splits_s']:.1f} s, "
                      f"finetune {rows[-1]['finetune_s']:.0f} s", flush=True)
    differences = growth(rows)
    for one in differences:
        print(f"{one['kind']}: {one['more_bytes'] / 1e6:.0f} MB more with {one['to_images']} images than with "
              f"{one['from_images']} ({one['bytes_per_image']:.0f} bytes an image), "
              f"{'within' if one['within'] else 'OVER'} {ALLOWED_BYTES / 1e6:.0f} MB")
    if asked.out is not None:
        rundir.write_json(asked.out, {"rows": rows, "growth": differences, "load_average": load,
                                      "environment": rundir.environment()})


if __name__ == "__main__":
    main()
