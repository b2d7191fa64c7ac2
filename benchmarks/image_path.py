"""From the file of a camera to its label: the usual way, edgetl's exact path and its fast one.

    python benchmarks/image_path.py BUNDLE [--data FOLDER] [--megapixels 1 12] [--agreement 372] [--timed 12]
                                    [--rounds 5] [--quality 92] [--variant NAME] [--decode turbojpeg ...]
                                    [--out FILE.json]

The photos of FOLDER (any depth) are enlarged to cameras' sizes, given a sensor's noise, sharpened and stored as JPEG
(4:2:0) as a camera does; without FOLDER they are drawn. Everything runs on one thread.

time        every photo goes through every path, in random order, round by round: medians, and the median and the 10 %
            and 90 % quantiles of the ratio on the same photo in the same round. The mean is given too: of the fast
            path some photos are decoded once more, exactly, which a median does not show.
stages      the same photos, stage by stage: decoding, resizing (what is left of making pixels), normalising, the graph
agreement   top-1 answers of each path against the exact one's, with Wilson's 95 % interval; for the fast path also
            without the second look at close calls, and how many photos had one

"usual" is PIL.Image.open -> convert("RGB") -> resize -> crop -> numpy -> normalise -> InferenceSession.run.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from edgetl import metrics, rundir, timing
from edgetl.bench.environment import load_average
from edgetl.runtime import fast_decode, load
from edgetl.runtime.bundle import open_bundle
from edgetl.runtime.classifier import Classifier
from edgetl.runtime.geometry import fit
from edgetl.runtime.manifest import Variant
from edgetl.runtime.preprocess import Preprocess, normalize, prepare_pixels

NOISE = 3.0  # standard deviation in grey levels, before sharpening
PATCH = 1024  # noise is drawn once and laid over the photo at random places
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

Path_ = Callable[[Path], int]  # from a file to the number of its label


# ------------------------------------------------------------------------------------------------------------- photos


def drawn(rng: np.random.Generator) -> Image.Image:
    """A picture with details of every size, as photos have: noise of octaves, and a few hard edges."""
    height, width = 480, 360
    layers = np.zeros((height, width, 3))
    for octave in range(2, 9):
        side = 2**octave
        blocks = rng.integers(0, 256, (side * 4 // 3 + 1, side, 3), dtype=np.uint8)
        smooth = Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)
        layers += np.asarray(smooth, float) / 1.6**octave
    picture = Image.fromarray(np.uint8(255 * (layers - layers.min()) / np.ptp(layers)))
    for _ in range(6):
        left, top, across, down = (int(rng.integers(10, side)) for side in (width - 60, height - 60, 90, 120))
        picture.paste(tuple(int(one) for one in rng.integers(0, 256, 3)), (left, top, left + across, top + down))
    return picture


class Camera:
    """Makes the file that a camera of so many megapixels would have written."""

    def __init__(self, megapixels: float, quality: int) -> None:
        self.pixels, self.quality = megapixels * 1e6, quality
        self.rng = np.random.default_rng(int(10 * megapixels))
        self.patch = np.rint(self.rng.normal(0, NOISE, (PATCH, PATCH, 3))).astype(np.int16)

    def photo(self, picture: Image.Image) -> bytes:
        """The picture enlarged, with noise, and sharpened, as JPEG."""
        factor = (self.pixels / (picture.width * picture.height)) ** 0.5
        size = (round(picture.width * factor), round(picture.height * factor))
        pixels = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)).astype(np.int16)
        for top, left in itertools.product(range(0, size[1], PATCH // 2), range(0, size[0], PATCH // 2)):
            part = pixels[top:top + PATCH // 2, left:left + PATCH // 2]
            down, across = self.rng.integers(0, PATCH // 2, 2)
            part += self.patch[down:down + part.shape[0], across:across + part.shape[1]]
        sharpening = ImageFilter.UnsharpMask(radius=2, percent=60, threshold=2)
        buffer = io.BytesIO()
        noisy = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        noisy.filter(sharpening).save(buffer, "JPEG", quality=self.quality)
        return buffer.getvalue()


def pictures(folder: Path | None, count: int) -> Iterator[Image.Image]:
    """So many of the folder's photos, in random order (all where there are fewer), or drawn ones."""
    rng = np.random.default_rng(0)
    if folder is None:
        yield from (drawn(rng) for _ in range(count))
        return
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    for place in rng.permutation(len(files))[:count]:
        yield Image.open(files[place])


# -------------------------------------------------------------------------------------------------------------- paths


def usual(variant: Variant, graph: bytes, preprocess: Preprocess) -> Path_:
    """What one writes without edgetl, by the same preprocessing."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    mean, std = (np.asarray(one, np.float32) for one in (preprocess.mean, preprocess.std))
    filtering = Image.Resampling[preprocess.interpolation.upper()]

    def path(file: Path) -> int:
        image = Image.open(file).convert("RGB")
        into = fit(image.height, image.width, preprocess)
        (top, left), (height, width) = into.cut_at, into.cut_hw
        image = image.resize(into.inner_hw[::-1], filtering).crop((left, top, left + width, top + height))
        pixels = np.asarray(image)
        if not variant.embeds_preprocess:
            prepared = (np.asarray(pixels, np.float32) * np.float32(preprocess.scale) - mean) / std
            pixels = np.ascontiguousarray(prepared.transpose(2, 0, 1))
        logits = session.run([variant.outputs[0].name], {variant.inputs[0].name: pixels[None]})[0]
        return int(logits.argmax())

    return path


def of_classifier(classifier: Classifier) -> Path_:
    """What one writes with edgetl."""
    return lambda file: classifier.predict(file).index


# -------------------------------------------------------------------------------------------------------------- parts


def measure(paths: Mapping[str, Path_], files: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Seconds of every path on every photo, and the ratios to the usual way on the same photo in the same round."""
    rng = np.random.default_rng(1)
    seconds: dict[str, list[float]] = defaultdict(list)
    for file in files[:2]:
        for path in paths.values():
            path(file)  # caches and lazily loaded modules
    for _ in range(rounds):
        for file in files:
            for name in rng.permutation(list(paths)):
                seconds[name].append(timing.timed(lambda name=name, file=file: paths[name](file))[1])
    rows = {}
    for name, own in seconds.items():
        ratios = np.asarray(seconds["usual"]) / own
        low, middle, high = (float(one) for one in np.quantile(ratios, (0.1, 0.5, 0.9)))
        rows[name] = {"median_s": statistics.median(own), "mean_s": statistics.fmean(own),
                      "faster_than_usual": middle, "faster_10_percent": low, "faster_90_percent": high,
                      "faster_than_usual_mean": statistics.fmean(seconds["usual"]) / statistics.fmean(own),
                      "samples_s": own}
    return rows


def stages(classifier: Classifier, ways: Sequence[str], files: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Median seconds of each stage; resizing is what making the pixels takes beyond decoding."""
    wants, takes_pixels = classifier.manifest.preprocess, _takes_pixels(classifier)
    found: dict[str, dict[str, list[float]]] = {way: defaultdict(list) for way in ways}
    for _, file, way in itertools.product(range(rounds), files, ways):
        scale = 1 if way == "exact" else _scale(file, wants)
        row = found[way]
        row["decode"].append(timing.timed(lambda file=file, scale=scale: _decoded(file, scale))[1])
        pixels, both = timing.timed(lambda file=file, way=way: prepare_pixels(file, wants, decode=way))
        row["resize"].append(both - row["decode"][-1])
        pixels = np.ascontiguousarray(pixels)[None]
        prepared, normalised = timing.timed(lambda pixels=pixels: normalize(pixels, wants))
        row["normalise"].append(0.0 if takes_pixels else normalised)
        fed = pixels if takes_pixels else prepared
        row["infer"].append(timing.timed(lambda fed=fed: classifier.logits(fed))[1])
    return {way: {f"{stage}_s": statistics.median(own) for stage, own in rows.items()} for way, rows in found.items()}


def _scale(file: Path, wants: Preprocess) -> int:
    """What the fast path has the decoder divide the sides by."""
    asked: list[int] = []
    inner, fast_decode._reduced = fast_decode._reduced, lambda opened, scale, *rest: (
        asked.append(scale), inner(opened, scale, *rest))[1]
    try:
        prepare_pixels(file, wants, decode="fast")
    finally:
        fast_decode._reduced = inner
    return asked[0] if asked else 1


def _decoded(file: Path, scale: int) -> None:
    image = Image.open(io.BytesIO(file.read_bytes()))
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    image.load()


def agreement(classifiers: Mapping[str, Classifier], files: Iterator[bytes]) -> dict[str, Any]:
    """Top-1 answers of every way against the exact ones, with and without the second look."""
    exact = classifiers["exact"]
    tolerance = next(one.tolerance for one in exact.manifest.variants if one.name == exact.info()["variant"])
    same: dict[str, int] = defaultdict(int)
    looked_twice: dict[str, int] = defaultdict(int)
    count = 0
    for data in files:
        count += 1
        expected = exact.predict(data).index
        for way, classifier in classifiers.items():
            if way == "exact":
                continue
            pixels = prepare_pixels(data, exact.manifest.preprocess, decode=way)
            reduced = exact.logits(_fed(pixels, exact))  # an array of the graph's input is run as it is
            same[f"{way}, first look"] += int(reduced.argmax()) == expected
            close = isinstance(pixels, fast_decode.Approximate) and pixels.close + tolerance
            looked_twice[way] += bool(fast_decode.leads(reduced)[0] < close)
            same[way] += classifier.predict(data).index == expected
    rows = {name: {"same": right, "n": count, "agreement": right / count,
                   "low": metrics.wilson_interval(right, count)[0], "high": metrics.wilson_interval(right, count)[1]}
            for name, right in same.items()}
    for way, number in looked_twice.items():
        rows[way]["looked_twice"] = number
    return rows


def _fed(pixels: np.ndarray, classifier: Classifier) -> np.ndarray:
    """The pixels of one image as the graph takes them, [1, ...]."""
    whole = np.ascontiguousarray(pixels)[None]
    return whole if _takes_pixels(classifier) else normalize(whole, classifier.manifest.preprocess)


def _takes_pixels(classifier: Classifier) -> bool:
    chosen = classifier.info()["variant"]
    return next(one.embeds_preprocess for one in classifier.manifest.variants if one.name == chosen)


def _plain_array_is_rgb(preprocess: Preprocess) -> None:
    if preprocess.color != "rgb":
        raise SystemExit("this comparison is written for models that take RGB")


def bench(options: argparse.Namespace, megapixels: float, folder: Path) -> dict[str, Any]:
    """Everything about one size of photos."""
    bundle = open_bundle(options.bundle)
    ways = ["exact", "fast", *options.decode]
    classifiers = {way: load(options.bundle, backend="cpu", variant=options.variant, threads=1, decode=way)
                   for way in ways}
    name = classifiers["exact"].info()["variant"]
    variant = next(one for one in bundle.manifest.variants if one.name == name)
    graph = bundle.read(variant.file, variant.sha256, variant.size_bytes)
    _plain_array_is_rgb(bundle.manifest.preprocess)
    camera = Camera(megapixels, options.quality)
    files = []
    for number, picture in enumerate(pictures(options.data, options.timed)):
        files.append(folder / f"{megapixels:g}-{number}.jpg")
        files[-1].write_bytes(camera.photo(picture))
    paths = {"usual": usual(variant, graph, bundle.manifest.preprocess),
             **{way: of_classifier(one) for way, one in classifiers.items()}}
    row = {"megapixels": megapixels, "variant": name, "load_average": load_average(),
           "file_bytes": statistics.median(one.stat().st_size for one in files),
           "time": measure(paths, files, options.rounds),
           "stages": stages(classifiers["exact"], ways[:2], files, max(1, options.rounds // 2)),
           "agreement": agreement(classifiers, map(camera.photo, pictures(options.data, options.agreement)))}
    for one in classifiers.values():
        one.close()
    return row


def _told(row: Mapping[str, Any]) -> str:
    lines = [f"{row['megapixels']:g} megapixels, {row['variant']}, {row['file_bytes'] / 1e6:.2f} MB a file"]
    for name, one in row["time"].items():
        lines.append(f"  {name:10s} {1e3 * one['median_s']:8.2f} ms (mean {1e3 * one['mean_s']:.2f})  "
                     f"{one['faster_than_usual']:.2f}x (10 to 90 %: {one['faster_10_percent']:.2f} to "
                     f"{one['faster_90_percent']:.2f}; by the means {one['faster_than_usual_mean']:.2f})")
    for name, one in row["stages"].items():
        lines.append(f"  {name:10s} " + ", ".join(f"{stage[:-2]} {1e3 * value:.2f}" for stage, value in one.items()))
    for name, one in row["agreement"].items():
        twice = f", {one['looked_twice']} looked at twice" if "looked_twice" in one else ""
        lines.append(f"  {name}: {one['same']} of {one['n']} as exact, {100 * one['agreement']:.2f} % "
                     f"({100 * one['low']:.2f} to {100 * one['high']:.2f}){twice}")
    return "\n".join(lines)


def main() -> None:
    """Prints and writes a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1.0, 12.0])
    parser.add_argument("--quality", type=int, default=92, help="of the JPEG files")
    parser.add_argument("--agreement", type=int, default=372)
    parser.add_argument("--timed", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variant", default="auto")
    parser.add_argument("--decode", nargs="*", default=[], help="other ways to decode: turbojpeg, opencv")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for megapixels in options.megapixels:
            rows.append(bench(options, megapixels, Path(folder)))
            print(_told(rows[-1]), flush=True)
    if options.out is not None:
        rundir.write_json(options.out, {
            "photos": "drawn" if options.data is None else "/".join(options.data.parts[-2:]), "noise": NOISE,
            "quality": options.quality,
            "scales": fast_decode.SCALES, "close": [fast_decode.CLOSE, fast_decode.CLOSE_OF_LITTLE],
            "rows": json.loads(json.dumps(rows)), "environment": rundir.environment()})


if __name__ == "__main__":
    main()
