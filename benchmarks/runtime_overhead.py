"""What edgetl.runtime adds to the bare ONNX Runtime in a call, a load and a start; what batches and streams give.

python benchmarks/runtime_overhead.py [--bundle DIR] [--parts call,load,start,throughput,spin]
    [--tflite FILE] [--rounds 40] [--out benchmarks/results/runtime_overhead.json]

call        `Classifier.predict` on a prepared array against `session.run` on the same array, in blocks of 260 calls in
            random order; the difference of the medians with a two-level bootstrap interval. The graphs do next to
            nothing, so that they do not hide it. IO binding stands beside it.
load        `edgetl.runtime.load` against reading the file and making a session of its bytes; one after the other in one
            process that has imported both. What the SHA-256 of the graph takes of it stands beside.
start       from the first import to the first answer, in fresh processes in random order: edgetl and the bare runtimes,
            and the most memory that a process had until then. With --tflite, the bundle's model in LiteRT's format
            (benchmarks/to_tflite.py writes it), all of them run it in float32; LiteRT is imported only without it.
throughput  JPEG files to labels: a plain loop over predict, against predict_batch, predict_stream and submit.
spin        the option spin=on|off: latency and processor time of a call, back to back and every 33 ms.

One thread, except where it says otherwise. With --bundle, load to spin are measured with that bundle.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import import_time
import numpy as np
import small_bundle
from PIL import Image

from edgetl import evaluate, rundir, timing
from edgetl.bench import stats
from edgetl.bench.environment import load_average
from edgetl.runtime import load
from edgetl.runtime.batching import Batching
from edgetl.runtime.bundle import open_bundle
from edgetl.runtime.choice import refusal
from edgetl.runtime.manifest import Variant
from edgetl.runtime.preprocess import prepare
from edgetl.runtime.session import usable_threads

CLASSES, SIZES = (2, 10, 1000), (32, 128, 224)
BLOCK = 250 + timing.DROPPED
PHOTOS = 48
PACE_S = 0.033


def bare_session(graph: bytes, threads: int = 1) -> Any:
    """A session as one makes it without edgetl."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])


def per_round(calls: dict[str, Callable[[], Any]], rounds: int, block: int = BLOCK) -> dict[str, np.ndarray]:
    """Seconds [rounds, calls] of every case, the blocks interleaved."""
    return {name: np.reshape(kept, (rounds, -1))
            for name, kept in evaluate.latencies(calls, rounds=rounds, block=block).items()}


def difference(reference: np.ndarray, case: np.ndarray, draws: int = 1000) -> dict[str, float]:
    """Median(case) - median(reference) in seconds with a 95 % interval; rounds are drawn first, then calls within."""
    generator, found = np.random.default_rng(0), np.empty(draws)

    def redrawn(samples: np.ndarray) -> np.ndarray:
        return np.take_along_axis(samples, generator.integers(0, samples.shape[1], samples.shape), axis=1)

    for draw in range(draws):
        chosen = generator.integers(0, len(reference), len(reference))
        found[draw] = np.median(redrawn(case[chosen])) - np.median(redrawn(reference[chosen]))
    low, high = np.quantile(found, [0.025, 0.975])
    return {"added_s": float(np.median(case) - np.median(reference)), "low_s": float(low), "high_s": float(high)}


def ratio(reference: list[float], case: list[float]) -> dict[str, float | None]:
    """Median(case) / median(reference) with its interval."""
    found = stats.speedup(np.array(case)[:, None], np.array(reference)[:, None], seed=0)
    return {"ratio": found.value, "ratio_low": found.low, "ratio_high": found.high}


# ------------------------------------------------------------------------------------------------------------- a call


def bound(session: Any, image: np.ndarray, classes: int) -> Callable[[], Any]:
    """A call by IO binding into an output that is there already; the answer is copied out, as another call follows."""
    out, binding = np.empty((1, classes), np.float32), session.io_binding()
    binding.bind_output("logits", "cpu", 0, np.float32, out.shape, out.ctypes.data)

    def call() -> np.ndarray:
        binding.bind_cpu_input("image", image)
        session.run_with_iobinding(binding)
        return out.copy()

    return call


def overhead(rounds: int) -> list[dict]:
    """One row for each number of classes and input size."""
    rows = []
    for classes in CLASSES:
        for size in SIZES:
            with tempfile.TemporaryDirectory() as place:
                folder = small_bundle.make_bundle(Path(place, "bundle"), classes, size)
                session = bare_session((folder / small_bundle.FILE).read_bytes())
                image = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
                feeds, prepared = {"image": image}, image[0]
                with load(folder, "cpu", threads=1) as classifier:
                    assert classifier.predict(prepared).index == int(session.run(None, feeds)[0].argmax())
                    calls = {
                        "session.run": lambda session=session, feeds=feeds: session.run(None, feeds),
                        "IO binding": bound(session, image, classes),
                        "predict": lambda one=classifier, image=prepared: one.predict(image),
                        "predict, top=1": lambda one=classifier, image=prepared: one.predict(image, top=1),
                    }
                    found = per_round(calls, rounds)
            rows += [{"classes": classes, "size": size, "case": name, "p50_s": float(np.median(seconds)),
                      **difference(found["session.run"], seconds)} for name, seconds in found.items()]
    return rows


# ------------------------------------------------------------------------------------------------------------- a load


def loads(bundle: Path, rounds: int) -> list[dict]:
    """One row for each variant that the CPU backend opens here."""
    variants = [one for one in open_bundle(bundle).manifest.variants if refusal(one, "cpu", asked=True) is None]
    return [one_load(bundle, variant, rounds) for variant in variants if "cpu" in variant.backends]


def one_load(bundle: Path, variant: Variant, rounds: int) -> dict:
    """Seconds of a load and of a bare session, alternating in this process."""
    file = bundle / variant.file
    cases = {"session": lambda: bare_session(file.read_bytes()), "load": lambda: load(bundle, "cpu", variant.name, 1)}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    order = np.random.default_rng(0)
    for turn in range(rounds + 1):
        for place in order.permutation(len(cases)):
            name = list(cases)[place]
            made, taken = timing.timed(cases[name])
            if name == "load":
                made.close()
            del made
            if turn:  # the first fills the caches
                seconds[name].append(taken)
    graph = file.read_bytes()
    digest = [timing.timed(lambda: hashlib.sha256(graph).digest())[1] for _ in range(rounds)]
    return {"variant": variant.name, "size_bytes": len(graph), "how": "alternating in one process",
            **{f"{name}_p50_s": float(np.median(values)) for name, values in seconds.items()},
            "sha256_p50_s": float(np.median(digest)), **ratio(seconds["session"], seconds["load"])}


# ------------------------------------------------------------------------------------------------------------ a start

# VmHWM and not ru_maxrss: that one keeps what the parent had when it made the process.
START = """
import os, sys, time
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
answer = None
begin = time.perf_counter()
{}
seconds = time.perf_counter() - begin
with open("/proc/self/status") as status:
    (peak,) = [line.split()[1] for line in status if line.startswith("VmHWM:")]
print(seconds, peak, answer)
"""
STARTS = {
    "edgetl.runtime": ("edgetl", """
import numpy as np
from edgetl.runtime import load
answer = load({bundle!r}, "cpu", {variant!r}, 1).predict(np.zeros({shape}, np.float32)).index"""),
    "onnxruntime": ("onnxruntime", """
import numpy as np
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession({file!r}, options, providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {{session.get_inputs()[0].name: np.zeros((1, *{shape}), np.float32)}})
answer = logits.argmax()"""),
    "openvino": ("openvino", """
import numpy as np
import openvino
core = openvino.Core()
model = core.read_model({file!r})
model.reshape([1, *{shape}])
answer = core.compile_model(model, "CPU", {settings})(np.zeros((1, *{shape}), np.float32))[0].argmax()"""),
}
LITERT_IMPORTED = {"ai-edge-litert, import only": ("ai_edge_litert", """
import numpy as np
from ai_edge_litert.interpreter import Interpreter""")}
LITERT_ANSWERS = {"ai-edge-litert": ("ai_edge_litert", """
import numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter({tflite!r}, num_threads=1)
interpreter.allocate_tensors()
(wants,), (gives,) = interpreter.get_input_details(), interpreter.get_output_details()
interpreter.set_tensor(wants["index"], np.zeros(wants["shape"], np.float32))
interpreter.invoke()
answer = interpreter.get_tensor(gives["index"]).argmax()""")}
NO_TFLITE = "no --tflite was given, so LiteRT is imported only"


class Start(NamedTuple):
    """What a fresh process told."""

    seconds: float
    peak_bytes: int
    answer: int | None  # the class of an image of zeros


def starts(bundle: Path, rounds: int, tflite: Path | None = None) -> list[dict]:
    """Seconds from the first import to the first answer, one row a runtime; with what could not be measured and why."""
    opened = open_bundle(bundle)
    variant = next((one for one in opened.manifest.variants if "cpu" in one.backends and not one.embeds_preprocess
                    and (tflite is None or one.precision == "fp32")), None)
    if variant is None:
        raise SystemExit(f"{bundle} has no variant to start: none {'in fp32 ' if tflite else ''}for the backend cpu.")
    # By itself OpenVINO computes in bfloat16 where the processor can.
    settings = {"INFERENCE_NUM_THREADS": "1"} | ({} if tflite is None else {"INFERENCE_PRECISION_HINT": "f32"})
    words = {"bundle": str(bundle), "variant": variant.name, "file": str(bundle / variant.file), "settings": settings,
             "shape": opened.manifest.preprocess.input_shape, "tflite": str(tflite)}
    cases = STARTS | (LITERT_IMPORTED if tflite is None else LITERT_ANSWERS)
    found = started({name: START.format(code.format(**words)) for name, (module, code) in cases.items()
                     if importlib.util.find_spec(module) is not None}, rounds)
    if tflite is not None:
        require_one_model(found, tflite)
    rows: list[dict] = []
    for name, (module, _) in cases.items():
        if name not in found:
            rows.append({"case": name, "p50_s": None, "note": f"{module} is not installed"})
            continue
        seconds = [one.seconds for one in found[name]]
        rows.append({"case": name, "p50_s": float(np.median(seconds)), "note": start_note(name, variant, tflite),
                     **ratio([one.seconds for one in found["onnxruntime"]], seconds),
                     "peak_bytes": int(np.median([one.peak_bytes for one in found[name]])),
                     **({} if tflite is None else {"installed_bytes": import_time.installed_size(name)})})
    return rows


def started(codes: dict[str, str], rounds: int) -> dict[str, list[Start]]:
    """What fresh processes told, case by case; in every round each runs once, after a round that fills the caches."""
    found: dict[str, list[Start]] = {name: [] for name in codes}
    order = np.random.default_rng(0)
    # pip compiles what it installs; a shell that forbids Python to keep what it compiled would have it done every time.
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for turn in range(rounds + 1):
        for place in order.permutation(len(codes)):
            name = list(codes)[place]
            done = subprocess.run([sys.executable, "-c", codes[name]], capture_output=True, text=True, check=True,
                                  env=compiled)
            if turn:
                seconds, peak_kib, answer = done.stdout.split()
                found[name].append(Start(float(seconds), int(peak_kib) * 1024,
                                         None if answer == "None" else int(answer)))
    return found


def require_one_model(found: dict[str, list[Start]], tflite: Path) -> None:
    """Returns when all gave an image of zeros the same class; the logits are compared by benchmarks/to_tflite.py."""
    answers = {name: sorted({one.answer for one in told}) for name, told in found.items()}
    if len({tuple(classes) for classes in answers.values()}) != 1:
        raise SystemExit(f"{tflite} is not the bundle's model: the classes of an image of zeros are {answers}.")


def start_note(name: str, variant: Variant, tflite: Path | None) -> str:
    """What a case ran."""
    if not name.startswith("ai-edge-litert"):
        return f"variant {variant.name}, one thread"
    if tflite is None:
        return NO_TFLITE
    return (f"{tflite.name}, float32, {tflite.stat().st_size} bytes, one thread, "
            f"ai-edge-litert {metadata.version('ai-edge-litert')}")


# --------------------------------------------------------------------------------------------------------- throughput


def photos(count: int) -> list[bytes]:
    """JPEG files of 640 x 480 pixels with edges and some noise."""
    made = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:480, :640]
        picture = np.stack([y * 255 / 480, x * 255 / 640, np.full_like(x, 40 + seed)], axis=2)
        picture[120:240, 128:320] = rng.integers(0, 256, 3)
        buffer = io.BytesIO()
        noisy = np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
        made.append(buffer.getvalue())
    return made


def throughput(bundle: Path, rounds: int) -> dict:
    """Images a second of a plain loop and of what does several at once; all give the loop's labels."""
    files = photos(PHOTOS)
    with load(bundle, "cpu", threads=1, batching=Batching(max_waiting=PHOTOS)) as one:
        cases: dict[str, Callable[[], list[Any]]] = {
            "loop over predict": lambda: [one.predict(file) for file in files],
            "predict_batch, 8": lambda: one.predict_batch(files, batch_size=8),
            "predict_stream, 1": lambda: list(one.predict_stream(files)),
            "predict_stream, 8": lambda: list(one.predict_stream(files, batch_size=8)),
            "submit": lambda: [future.result() for future in [one.submit(file) for file in files]],
        }
        expected = [found.label for found in cases["loop over predict"]()]
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        order = np.random.default_rng(0)
        for _ in range(rounds):
            for place in order.permutation(len(cases)):
                name = list(cases)[place]
                answers, taken = timing.timed(cases[name])
                assert [found.label for found in answers] == expected, name
                seconds[name].append(taken)
    return {"photo": "JPEG, 640 x 480", "images": PHOTOS, "usable_threads": usable_threads(), "graph_threads": 1,
            "cases": [{"case": name, "throughput_ips": PHOTOS / float(np.median(values)),
                       **{key.replace("ratio", "time_ratio"): value
                          for key, value in ratio(seconds["loop over predict"], values).items()}}
                      for name, values in seconds.items()]}


# --------------------------------------------------------------------------------------------------------------- spin


def spinning(bundle: Path, rounds: int) -> list[dict]:
    """Latency and processor time of a call with all threads, by the option spin and by how calls arrive."""
    manifest = open_bundle(bundle).manifest
    height, width = manifest.preprocess.size_hw
    image = prepare(np.zeros((height, width, 3), np.uint8), manifest.preprocess)
    rows = []
    for spin in ("on", "off"):
        with load(bundle, "cpu", threads=usable_threads(), options={"spin": spin}) as one:
            variant = one.info()["variant"]
            for name, interval_s, count in (("back to back", None, 40 * rounds), ("every 33 ms", PACE_S, 3 * rounds)):
                time.sleep(2)  # until the threads of the case before have come to rest
                used = time.process_time()
                kept = timing.block(lambda _, one=one: one.predict(image), count + timing.DROPPED,
                                    interval_s=interval_s).seconds
                used = time.process_time() - used
                rows.append({"spin": spin, "arrival": name, "variant": variant, "threads": usable_threads(),
                             "calls": len(kept), "p50_s": float(np.median(kept)),
                             "processor_s": used / (count + timing.DROPPED)})
    return rows


# --------------------------------------------------------------------------------------------------------------- main


def main() -> None:
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--tflite", type=Path, help="the bundle's model for LiteRT, for the part start")
    parser.add_argument("--parts", default="call,load,start,throughput,spin")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.tflite is not None and not options.tflite.is_file():
        parser.error(f"{options.tflite} is no file; benchmarks/to_tflite.py writes one.")
    if options.tflite is not None and options.bundle is None:
        parser.error("--tflite FILE needs --bundle DIR: the bundle whose model the file holds.")
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for the bare sessions too
    busy, rounds, found = load_average(), options.rounds, {}
    with tempfile.TemporaryDirectory() as place:
        bundle = options.bundle or small_bundle.make_bundle(Path(place, "bundle"), 10, 128)
        parts: dict[str, Callable[[], Any]] = {
            "call": lambda: overhead(rounds),
            "load": lambda: loads(bundle, rounds),
            "start": lambda: starts(bundle, max(1, rounds // 2), options.tflite),
            "throughput": lambda: throughput(bundle, max(1, rounds // 2)),
            "spin": lambda: spinning(bundle, rounds),
        }
        for part in options.parts.split(","):
            found[part] = parts[part]()
            print(json.dumps({part: found[part]}, indent=1), flush=True)
    if options.out is not None:
        name = options.bundle.name if options.bundle else "generated"
        rundir.write_json(options.out, {"bundle": name, "rounds": rounds, **found, "load_average": busy,
                                        "environment": rundir.environment()})


if __name__ == "__main__":
    main()
