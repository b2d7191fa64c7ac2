"""How much memory calibration takes: with 5,000 images no more than with 100.

python benchmarks/calibration_memory.py BUNDLE [--images 100,1000,5000]
    [--out benchmarks/results/calibration_memory.json]

The bundle's fp32 graph is studied (`edgetl.compress.quantize.study`) on so many drawn images, each count in a fresh
process; the most memory that it had is VmHWM, by which also what ONNX Runtime takes counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from edgetl import rundir

STUDY = """
import io, json, sys
import numpy as np
from PIL import Image
from edgetl import timing
from edgetl.allocator import set_allocator
set_allocator()
from edgetl.compress import calibrate, quantize
from edgetl.datasets import Item
from edgetl.runtime.bundle import open_bundle
bundle = open_bundle(sys.argv[1])
fp32 = next(one for one in bundle.manifest.variants if one.precision == "fp32")
def read(item):
    height, width = bundle.manifest.preprocess.size_hw
    buffer = io.BytesIO()
    pixels = np.random.default_rng(int(item.key)).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "bmp")
    return buffer.getvalue()
items = [Item(str(number), 0) for number in range(int(sys.argv[2]))]
reader = calibrate.Reader(items, read, bundle.manifest.preprocess, name=fp32.inputs[0].name)
source, seconds = timing.timed(lambda: quantize.study(bundle.read(fp32.file, fp32.sha256, fp32.size_bytes), reader))
with open("/proc/self/status") as status:
    (peak,) = [int(line.split()[1]) for line in status if line.startswith("VmHWM:")]
print(json.dumps({"images": len(items), "seconds": seconds, "peak_bytes": 1024 * peak,
                  "activations": len(source.seen.histograms)}))
"""


def main() -> None:
    """Prints and writes a row for each count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", default="100,1000,5000")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = []
    for count in asked.images.split(","):
        done = subprocess.run([sys.executable, "-c", STUDY, str(asked.bundle), count], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        rows.append(json.loads(done.stdout))
        print(f"{count} images: at most {rows[-1]['peak_bytes'] / 1e6:.0f} MB, {rows[-1]['seconds']:.1f} s")
    if asked.out is not None:
        rundir.write_json(asked.out, {"bundle": str(asked.bundle), "rows": rows, "environment": rundir.environment()})


if __name__ == "__main__":
    main()
