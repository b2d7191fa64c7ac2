"""What sums of 16 bits cost an INT8 graph on x86 without VNNI, and that the graph made for it loses nothing.

python benchmarks/saturation.py BUNDLE --data D [--images 500] [--out benchmarks/results/saturation.json]

BUNDLE holds x86-vnni.int8 and x86-avx2.int8 (`edgetl export RUN --target x86-vnni,x86-avx2`). Both answer the test
images twice, by `emulate_avx2.py`: with sums in 32 bits, which VNNI has, and with saturated ones of 16 bits. ONNX
Runtime's answers on this processor stand beside, to show that the emulation of the former is right.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import emulate_avx2
import numpy as np

from edgetl import datasets, evaluate, metrics, rundir, splits
from edgetl.recipe_fields import DataFields
from edgetl.runtime.bundle import Bundle, open_bundle
from edgetl.runtime.manifest import Variant
from edgetl.runtime.session import GraphSpec, open_session

VARIANTS = ("x86-vnni.int8", "x86-avx2.int8")
BATCH = 4


def answers(bundle: Bundle, variant: Variant, images: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Logits [images, classes] of a variant by who computes them."""
    graph = bundle.read(variant.file, variant.sha256, variant.size_bytes)
    name, output = variant.inputs[0].name, variant.outputs[0].name
    session = open_session("cpu", graph, GraphSpec(variant.inputs, variant.outputs, variant.precision))
    found = {"onnxruntime": np.concatenate([session.run({name: batch})[output] for batch in images])}
    session.close()
    if variant.precision == "int8":
        for how, saturate in (("32 bits", False), ("16 bits", True)):
            runs, _ = emulate_avx2.evaluator(graph, saturate=saturate)
            found[how] = np.concatenate([runs.run([output], {name: batch})[0] for batch in images])
    return found


def row(name: str, how: str, logits: np.ndarray, labels: np.ndarray, fp32: np.ndarray) -> dict[str, Any]:
    """Accuracy with its interval, and agreement with fp32."""
    right = logits.argmax(1) == labels
    low, high = metrics.wilson_interval(int(right.sum()), len(right))
    return {"variant": name, "sums": how, "n": len(right), "accuracy": float(right.mean()), "accuracy_low": low,
            "accuracy_high": high, "agreement": float((logits.argmax(1) == fp32.argmax(1)).mean())}


def main() -> None:
    """Prints and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    bundle, data = open_bundle(asked.bundle), datasets.open_data(asked.data)
    items = splits.resolve(data, DataFields(data=asked.data)).test[:asked.images]
    images = list(evaluate.images(items, data.read, bundle.manifest.preprocess, BATCH))
    labels = np.array([item.label for item in items])
    by_name = {one.name: one for one in bundle.manifest.variants}
    fp32 = answers(bundle, by_name["fp32"], images)["onnxruntime"]
    rows = [row("fp32", "-", fp32, labels, fp32)]
    for name in VARIANTS:
        found = answers(bundle, by_name[name], images)
        apart = float(np.abs(found["32 bits"] - found["onnxruntime"]).max())
        print(f"{name}: emulation and ONNX Runtime differ by at most {apart:.3g} of {np.abs(fp32).max():.3g}")
        rows += [{**row(name, how, logits, labels, fp32), "emulation_apart": apart,
                  "apart_from_32_bits": float(np.abs(logits - found["32 bits"]).max())}
                 for how, logits in found.items()]
    for one in rows:
        print(f"{one['variant']:14} {one['sums']:12} {100 * one['accuracy']:6.2f} % "
              f"({100 * one['accuracy_low']:.2f} to {100 * one['accuracy_high']:.2f}), agreement with fp32 "
              f"{100 * one['agreement']:.2f} %; a logit is at most {one.get('apart_from_32_bits', 0.0):.3g} from what "
              "32 bits give")
    if asked.out is not None:
        rundir.write_json(asked.out, {"bundle": bundle.manifest.name, "data": data.name, "rows": rows,
                                      "environment": rundir.environment()})


if __name__ == "__main__":
    main()
