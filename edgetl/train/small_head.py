"""A head with one hidden layer, fitted on features that are computed once and kept.

The features are standardised, which becomes part of the first layer at the end. AdamW with a cosine over a fixed number
of passes; the pass that validates best is kept.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edgetl.models import Network
from edgetl.train import probe
from edgetl.train.loop import Score
from edgetl.train.setting import Setting

PARTS = ("hidden.", "classifier.")  # of a joined network, see edgetl.models
PASSES, ROWS = 100, 64  # over the features, and how many of them a step sees: both cost little
RATE, DECAY = 3e-3, 1e-2


def fit(setting: Setting, network: Network) -> Score:
    """Gives a joined network the best head of its form on its own features, and returns its validation score."""
    features = probe.cached_features(setting, dataclasses.replace(network, head="hidden"))
    labels = [torch.tensor([item.label for item in items]) for items in (setting.parts.train, setting.parts.val)]
    mean, scale = features[0].mean(0), features[0].std(0).clamp_min(1e-6)
    train, val = ((one - mean) / scale for one in features)
    first = cast(nn.Linear, network.module.get_submodule("hidden.0"))
    head = copy.deepcopy(nn.Sequential(first, nn.ReLU(), network.module.get_submodule("classifier"))).cpu()
    rng = np.random.default_rng([setting.options.seed, len(train)])
    score = trained(head, (train, labels[0]), (val, labels[1]), rng)
    inner, outer = cast(nn.Linear, head[0]), cast(nn.Linear, head[2])
    with torch.no_grad():  # the standardisation becomes part of the layer
        inner.bias.sub_((inner.weight / scale) @ mean)
        inner.weight.div_(scale)
        first.load_state_dict(inner.state_dict())
        network.module.get_submodule("classifier").load_state_dict(outer.state_dict())
    setting.note(f"a head with {first.out_features} hidden units: validation accuracy {100 * score.accuracy:.1f} %")
    return score


def trained(
    head: nn.Sequential,
    train: tuple[torch.Tensor, torch.Tensor],
    val: tuple[torch.Tensor, torch.Tensor],
    rng: np.random.Generator,
) -> Score:
    """The best validation score; the head is left with the weights that had it.

    Args:
        head: what is trained.
        train: features [N, F] and labels [N].
        val: the same of the validation images.
        rng: of the order.
    """
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=DECAY)
    steps = PASSES * -(-len(train[0]) // ROWS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best: tuple[Score, dict[str, torch.Tensor]] | None = None
    for _ in range(PASSES):
        order = torch.from_numpy(rng.permutation(len(train[0])))
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(head(train[0][rows]), train[1][rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            logits = head(val[0])
        found = Score(float((logits.argmax(1) == val[1]).float().mean()), float(F.cross_entropy(logits, val[1])))
        if found.better_than(best[0] if best else None):
            best = found, copy.deepcopy(head.state_dict())
    assert best is not None
    head.load_state_dict(best[1])
    return best[0]
