"""The networks of `quantize_latency.py`, as bundles of edgetl: trained a little, so that their answers mean something.

Any weights compute as fast as good ones, but not any will do for a budget of accuracy: noise grows from layer to layer
of a random network, and rounding moves half of its answers. So each learns for a few epochs, in small, to tell ten
kinds of drawn pictures apart; at the size of the panel its batch norms then see the pictures again, and its last layer
is fitted by least squares.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import edgetl
from edgetl import datasets, evaluate, models, rundir, splits, weights
from edgetl.errors import GateFailed
from edgetl.models import Network
from edgetl.recipe import Export, build

CLASSES, SIDE = 10, 160
TRAIN_PIXELS = 96
COUNTS = {"train": 40, "val": 30, "test": 2}  # pictures a class
RIDGE = 0.1  # of the mean square of the features: what varies little would be blown up, and its rounding with it
SLIM, SLIM_NAME = "slim:0.4", "efficientnet_lite0"
FIXED_SIZE = ("timm/vit_tiny_patch16_224",)  # weights for one size of image alone
PANEL: Mapping[str, str] = {
    "efficientnet_lite0": "efficientnet-lite/efficientnet_lite0",
    "mobilenet_v2": "torchvision/mobilenet_v2",
    "resnet18": "torchvision/resnet18",
    "mobilenet_v3_small": "torchvision/mobilenet_v3_small",
    "mobilenetv4_small": "timm/mobilenetv4_conv_small",
    "slim_lite0": SLIM,
    "mobilenet_v3_large": "torchvision/mobilenet_v3_large",
    "efficientnet_b0": "torchvision/efficientnet_b0",
    "regnet_y_400mf": "torchvision/regnet_y_400mf",
    "resnet50": "torchvision/resnet50",
    "convnext_atto": "timm/convnext_atto",
    "vit_tiny": "timm/vit_tiny_patch16_224",
    "fastvit_t8": "timm/fastvit_t8",
}


def pictures(folder: Path) -> Path:
    """Class folders in train, val and test: a pattern of colours each, under patches and grain of its own."""
    if not folder.exists():
        with rundir.building(folder) as place:
            for split, count in COUNTS.items():
                for kind in range(CLASSES):
                    own = place / split / f"kind-{kind}"
                    own.mkdir(parents=True)
                    for number in range(count):
                        picture(kind, split, number).save(own / f"{number:03d}.png")
    return folder


def picture(kind: int, split: str, number: int) -> Image.Image:
    """One of them."""
    pattern = np.random.default_rng(kind).standard_normal((6, 6, 3))
    chance = np.random.default_rng([kind, number, list(COUNTS).index(split)])
    coarse = chance.uniform(0.6, 1.4) * pattern + 0.4 * chance.standard_normal((6, 6, 3))
    pixels = np.clip(128 + 40 * coarse, 0, 255).astype(np.uint8)
    smooth = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    grain = chance.normal(0, 8, (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))


def bundle(options: argparse.Namespace, name: str, size: int, folder: Path) -> Path:
    """The bundle of a network at a size, made where it is not there."""
    out = folder / "bundle"
    if not out.exists():
        source = str(pictures(options.work / "pictures"))
        run = folder / "run"
        if not weights.is_run(run):
            run.mkdir(parents=True, exist_ok=True)
            save(network(options, name, size, source), source, run)
        try:
            edgetl.export(
                run=run,
                data=source,
                out=out,
                target=options.targets,
                max_drop=options.max_drop,
                min_agreement=options.min_agreement,
                calibration_images=options.calibration_images,
                qat_epochs=options.qat_epochs,
            )
        except GateFailed:  # the bundle is there without what is outside the limits, and its manifest says so
            if not out.exists():
                raise
    return out


def trained(options: argparse.Namespace, name: str, size: int, source: str) -> Path:
    """The RUN of a network that has learned for a few epochs from nothing, on images of that size."""
    run: Path = options.work / "trained" / f"{name}-{size}"
    if not weights.is_run(run):
        run.parent.mkdir(parents=True, exist_ok=True)
        edgetl.finetune(
            data=source,
            teacher=PANEL[name],
            out=run,
            strategy="scratch",
            pretrained=False,
            image_size=size,
            epochs=options.epochs,
            batch_size="32",
            lr=1e-3,
            color_jitter=0.0,
            crop_scale=0.8,
            ema=0.0,
            resume=True,
        )
    return run


def network(options: argparse.Namespace, name: str, size: int, source: str) -> Network:
    """A network for images of that size, fitted to the pictures."""
    import torch

    from edgetl.compress import prune

    base = SLIM_NAME if PANEL[name] == SLIM else name
    learned_at = size if PANEL[base] in FIXED_SIZE else TRAIN_PIXELS
    made = models.create(PANEL[base], classes=CLASSES, pretrained=False, image_size=size)
    made.module.load_state_dict(weights.load(trained(options, base, learned_at, source)).network.module.state_dict())
    if PANEL[name] == SLIM:
        made = prune.slim(made, float(SLIM.removeprefix("slim:"))).network
    data = datasets.open_data(source)
    shown = [one for one in data.items if one.split == "train"]
    images = torch.from_numpy(np.concatenate(list(evaluate.images(shown, data.read, made.preprocess))))
    settle(made.module, images)
    fit(made, images, torch.tensor([one.label for one in shown]))
    return made


def settle(module: Any, images: Any) -> None:
    """Statistics of the batch norms from some of the images, which have another size than those of the training."""
    import torch

    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None
    module.train()
    with torch.no_grad():
        for begin in range(0, 64, 16):
            module(images[begin * len(images) // 64 :: 4][:16])
    module.eval()


def fit(made: Network, images: Any, labels: Any) -> None:
    """The last layer by least squares with a ridge, from the features to +10 for the right class and -10 else."""
    import torch

    head = made.module.get_submodule(made.head)
    kept: list[Any] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].double()))
    with torch.no_grad():
        for begin in range(0, len(images), 16):
            made.module(images[begin : begin + 16])
        hook.remove()
        features = torch.cat(kept)
        wanted = 20 * torch.nn.functional.one_hot(labels, CLASSES).double() - 10
        mean = features.mean(0)
        centred = features - mean
        gram = centred.T @ centred / len(features)
        gram += RIDGE * float(gram.diagonal().mean()) * torch.eye(len(gram), dtype=torch.float64)
        solved = torch.linalg.solve(gram, centred.T @ (wanted - wanted.mean(0)) / len(features))
        head.weight.copy_(solved.T)
        head.bias.copy_(wanted.mean(0) - mean @ solved)


def save(made: Network, source: str, run: Path) -> None:
    """Writes the network as a RUN."""
    data = datasets.open_data(source)
    parts = splits.resolve(data, build(Export, {"run": "run", "data": source, "out": "out"}, where="benchmark"))
    about = {"source": data.source, "name": data.name, "fingerprint": parts.fingerprint, "rule": dict(parts.rule)}
    weights.save(run, made, {"labels": list(data.labels), "data": about, "metrics": {}})
