"""Whether memory grows with the number of predictions: resident memory while a classifier predicts.

python benchmarks/runtime_soak.py [--count 1000000] [--every 50000] [--bundle DIR] [--photos] [--out FILE.json]

Exits 1 where the resident memory grew by 5 MB or more after the first --every predictions, which fill what is kept for
reuse. With --photos every prediction decodes a JPEG file, else it takes a prepared array.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import small_bundle
from PIL import Image

from edgetl import rundir, timing
from edgetl.runtime import load
from edgetl.runtime.preprocess import prepare

LIMIT_BYTES = 5_000_000


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def photo(place: Path) -> bytes:
    """A JPEG file of 320 x 240 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    Image.fromarray(pixels).save(place / "photo.jpg")
    return (place / "photo.jpg").read_bytes()


def soak(bundle: Path, source: bytes | None, count: int, every: int) -> dict:
    """Resident bytes after every `every` predictions."""
    rows, begin = [], timing.now_s()
    with load(bundle, "cpu", threads=1) as classifier:
        height, width = classifier.manifest.preprocess.size_hw
        taken = source or prepare(np.zeros((height, width, 3), np.uint8), classifier.manifest.preprocess)
        expected = classifier.predict(taken)
        for number in range(1, count + 1):
            found = classifier.predict(taken)
            if number % every == 0:
                assert found == expected
                rows.append({"predictions": number, "resident_bytes": resident_bytes()})
    grown = rows[-1]["resident_bytes"] - rows[0]["resident_bytes"]
    return {"predictions": count, "source": "JPEG" if source else "prepared array", "grown_bytes": grown,
            "limit_bytes": LIMIT_BYTES, "seconds": timing.now_s() - begin, "rows": rows}


def main() -> None:
    """Prints and writes the figures; the exit code says whether memory stayed within the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--every", type=int, default=50_000)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--photos", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.count < 2 * options.every:
        parser.error("--count must be at least twice --every: the first stretch is what the others are compared with")
    with tempfile.TemporaryDirectory() as place:
        bundle = options.bundle or small_bundle.make_bundle(Path(place, "bundle"), 10, 32)
        found = soak(bundle, photo(Path(place)) if options.photos else None, options.count, options.every)
    print(json.dumps({name: value for name, value in found.items() if name != "rows"}, indent=1))
    if options.out is not None:
        rundir.write_json(options.out, {**found, "environment": rundir.environment()})
    sys.exit(found["grown_bytes"] >= LIMIT_BYTES)


if __name__ == "__main__":
    main()
