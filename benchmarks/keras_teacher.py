"""A Keras model, trained on a folder of photos and written as ONNX: a teacher from the other side of the fence.

    python benchmarks/keras_teacher.py --data FOLDER --out FILE.onnx [--image-size 96] [--epochs 20]

Keras wants packages that edgetl has not, so this runs in an environment of its own, without edgetl:

    python -m venv keras
    keras/bin/pip install tensorflow-cpu==2.21.0 keras==3.15.1 tf2onnx==1.17.0
    keras/bin/python benchmarks/keras_teacher.py --data clothing-small --out keras.onnx
    python benchmarks/foreign_teacher.py --data clothing-small --teacher keras.onnx --work work \\
        --described keras.onnx.json --out result.json \\
        --teacher-options "scale=1;mean=0,0,0;std=1,1,1;resize-mode=squash;labels=keras.onnx.names"

The model is a plain convolutional one with batch norms, NHWC, its normalisation inside it and a softmax at its end.
FILE.onnx.names gets its classes in its order, FILE.onnx.json the versions and its accuracy in Keras on the test photos,
which edgetl must find again: that is the proof that nothing was lost on the way.
"""

from __future__ import annotations

import argparse
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx.reference
import tensorflow as tf
import tf2onnx

PACKAGES = ("keras", "tensorflow-cpu", "tf2onnx", "onnx", "numpy")
WIDTHS = (32, 64, 128, 192)
TOLERANCE = 1e-4  # of a probability, between Keras and the reference evaluator of ONNX


def main() -> None:
    """Trains, judges, converts, compares and writes."""
    options = parsed()
    keras.utils.set_random_seed(options.seed)
    train, val, test = (photos(options, split) for split in ("train", "val", "test"))
    model = built(options.image_size, len(train.class_names))
    steps = options.epochs * len(train)
    model.compile(
        keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(2e-3, steps), weight_decay=0.02),
        keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"],
    )  # fmt: skip
    turned = keras.Sequential([keras.layers.RandomFlip("horizontal"), keras.layers.RandomTranslation(0.1, 0.1)])
    seen = train.map(lambda images, labels: (turned(images, training=True), labels))
    model.fit(seen, validation_data=val, epochs=options.epochs, verbose=2)
    accuracy = model.evaluate(test, verbose=0)[1]
    write(options, model, train.class_names, float(accuracy))
    print(f"{100 * accuracy:.2f} % of the test photos")


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train, val and test")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def photos(options: argparse.Namespace, split: str) -> Any:
    """Batches of photos, squashed to the size, as pixels in 0..255."""
    return keras.utils.image_dataset_from_directory(
        options.data / split, image_size=(options.image_size,) * 2, batch_size=32, shuffle=split == "train",
        seed=options.seed, verbose=False,
    )  # fmt: skip


def built(size: int, classes: int) -> Any:
    """The model: pixels uint8 or float [N, H, W, 3] in 0..255 to probabilities."""
    layers: list[Any] = [keras.Input((size, size, 3), name="photo"), keras.layers.Rescaling(1 / 127.5, offset=-1)]
    for width in WIDTHS:
        layers += [
            keras.layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(width, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dropout(0.2)]
    return keras.Sequential([*layers, keras.layers.Dense(classes, activation="softmax", name="scores")])


def write(options: argparse.Namespace, model: Any, classes: list[str], accuracy: float) -> None:
    """The graph, the names of its classes and its record; only where ONNX's own evaluator agrees with Keras."""
    size = options.image_size
    wants = (tf.TensorSpec((None, size, size, 3), tf.float32, name="photo"),)
    answer = tf.function(lambda photo: model(photo, training=False), input_signature=wants)
    graph, _ = tf2onnx.convert.from_function(answer, wants, opset=15)
    images = np.random.default_rng(options.seed).uniform(0, 255, (2, size, size, 3)).astype(np.float32)
    evaluator = onnx.reference.ReferenceEvaluator(graph)
    (found,) = evaluator.run(None, {graph.graph.input[0].name: images})
    apart = float(np.abs(found - model.predict(images, verbose=0)).max())
    if apart > TOLERANCE:
        raise SystemExit(f"the graph answers otherwise than Keras: by {apart:.2g}")
    onnx.save(graph, options.out)
    options.out.with_name(options.out.name + ".names").write_text("\n".join(classes) + "\n", encoding="utf-8")
    record = {"versions": {name: metadata.version(name) for name in PACKAGES}, "test_accuracy": accuracy,
              "epochs": options.epochs, "image_size": size, "seed": options.seed, "apart": apart}  # fmt: skip
    options.out.with_name(options.out.name + ".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
