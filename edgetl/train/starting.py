"""The network before fine-tuning: published weights, a file of weights, or an earlier RUN with a head that fits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from edgetl import heads, models, weights
from edgetl.errors import EdgetlError
from edgetl.heads import Head
from edgetl.models import Network
from edgetl.recipe import Finetune
from edgetl.train.setting import Setting


def start(options: Finetune, place: Setting) -> Network:
    """The network before training: published weights, a file of weights, or an earlier RUN with a head that fits.

    Raises:
        UnknownName: no such model.
        EdgetlError: the weights cannot be had or do not fit.
    """
    labels = place.data.labels
    folder = Path(options.teacher)
    if weights.is_run(folder):
        found = network_of_run(folder, labels, options.image_size, place.data.heads, channels=options.in_channels)
        if place.aim is not None and f"{found.head}.weight" in found.weights.matched:
            place.aim.begin(found)
        return found
    if folder.is_dir():
        weights.read_record(folder)  # says that it is no RUN
    network = models.create(
        options.teacher,
        classes=len(labels),
        pretrained=options.pretrained,
        weights=Path(options.weights) if options.weights else None,
        image_size=options.image_size,
        channels=options.in_channels,
    )
    if f"{network.head}.weight" not in network.weights.matched:
        quiet_head(network)
    place.note(f"{network.model}: weights from {network.weights.source}" + described_misfits(network))
    return network


def quiet_head(network: Network) -> None:
    """Starts a new head near zero: what a library draws may be large enough to shake the pretrained features."""
    head = network.module.get_submodule(network.head)
    if isinstance(head, nn.Linear | nn.Conv2d):
        nn.init.normal_(head.weight, std=0.01)
        if head.bias is not None:
            nn.init.zeros_(head.bias)


def described_misfits(network: Network) -> str:
    """What a file of weights lacked or had too much, and why, in words; empty where all fitted but the head."""
    report = network.weights
    found = {
        "missing": report.missing,
        "unexpected": report.unexpected,
        "of another shape": tuple(name for name in report.mismatched if not name.startswith(network.head)),
    }
    counted = [f"{len(names)} {what} (e.g. {names[0]})" for what, names in found.items() if names]
    return "".join(f"; {one}" for one in (*counted, *(r for r in report.reasons if not r.startswith(network.head))))


def network_of_run(
    folder: Path, labels: tuple[str, ...], image_size: int | None, asked: tuple[Head, ...] = (),
    *, channels: int | None = None,
) -> Network:  # fmt: skip
    """The model of an earlier RUN; with the same classes and heads it keeps its last layer, else it gets a new one.

    Raises:
        EdgetlError: no RUN there, or its architecture does not take images of that size or of so many channels.
    """
    run = weights.load(folder, any_task=True)
    network = models.resized(run.network, image_size or run.network.preprocess.size_hw[0])
    network = models.rechanneled(network, channels)
    same = (run.labels, heads.of_record(run.record)) == (labels, asked)
    return network if same else with_new_head(network, len(labels))


def with_new_head(network: Network, classes: int) -> Network:
    """The network with a fresh last layer of `classes` outputs.

    Raises:
        EdgetlError: its head is neither a linear layer nor a convolution of single pixels.
    """
    head = network.module.get_submodule(network.head)
    fresh: nn.Module
    if isinstance(head, nn.Linear):
        fresh = nn.Linear(head.in_features, classes, bias=head.bias is not None)
    elif isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1):
        fresh = nn.Conv2d(head.in_channels, classes, 1, bias=head.bias is not None)
    else:
        raise EdgetlError(
            f"The head of {network.model} is {type(head).__name__}, expected a linear layer or a "
            "convolution of single pixels to replace."
        )
    network.module.set_submodule(network.head, fresh)
    body = tuple(name for name in network.weights.matched if not name.startswith(f"{network.head}."))
    return dataclasses.replace(network, weights=dataclasses.replace(network.weights, matched=body))
