"""Features of one or several frozen networks, concatenated, and a small head on them: linear, or with a hidden layer.

Features that were learned on another task as they are, for a classifier of one's own: Donahue et al., "DeCAF: A deep
convolutional activation feature for generic visual recognition", ICML 2014, arXiv:1310.1531; Razavian et al., "CNN
features off-the-shelf", CVPRW 2014, arXiv:1403.6382. Networks that learned differently see different things, so that
their features together may tell classes apart that those of each alone do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetl import models, plugins, weights
from edgetl.models import Network
from edgetl.recipe import Finetune
from edgetl.recipe_finetune import named_models
from edgetl.train import probe, small_head
from edgetl.train.setting import Setting
from edgetl.train.starting import network_of_run
from edgetl.train.starting import start as first_network
from edgetl.train.steps import described


def start(options: Finetune, place: Setting) -> Network:
    """--teacher and what --features-from names, without their heads, and with one new head.

    Raises:
        UnknownName: no such model.
        EdgetlError: weights cannot be had, or the networks cannot be joined.
    """
    first = first_network(options, place)
    others = [_member(name, options, place, first) for name in named_models(options.features_from)]
    joined = plugins.load("models", "joined")
    network: Network = joined.assembled([first, *others], classes=len(place.data.labels), hidden=options.head_width)
    kept = first.preprocess
    unlike = [one.model for one in others if (one.preprocess.interpolation, one.preprocess.crop_fraction)
              != (kept.interpolation, kept.crop_fraction)]  # fmt: skip
    if unlike:
        place.note(f"{', '.join(unlike)}: sees images scaled and cropped as {first.model} wants them")
    return network


def _member(name: str, options: Finetune, place: Setting, first: Network) -> Network:
    side = first.preprocess.size_hw[0]
    if weights.is_run(Path(name)):
        return network_of_run(Path(name), place.data.labels, side, channels=first.preprocess.channels)
    network = models.create(
        name, classes=len(place.data.labels), pretrained=options.pretrained, image_size=side,
        channels=first.preprocess.channels,
    )
    place.note(f"{network.model}: weights from {network.weights.source}")
    return network


def fit(options: Finetune, place: Setting, network: Network) -> Mapping[str, Any]:
    """Fits the head on features that are computed once."""
    if options.head_width:
        small_head.fit(place, network)
    else:
        probe.probe(place, network)
    moved = [name for name, _ in network.module.named_parameters() if name.startswith(small_head.PARTS)]
    return described(place, network, moved)
