"""The linear probe: features of the frozen backbone once, then the best linear head on them.

Multinomial logistic regression by L-BFGS; its L2 penalty is chosen on the validation split (Kornblith, Shlens and Le,
"Do better ImageNet models transfer better?", CVPR 2019, arXiv:1805.08974, fit their probes so). So `probe` is the
read-out by logistic regression; beside it, `edgetl.train.readouts` tells how right the nearest neighbours are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from edgetl.errors import EdgetlError
from edgetl.events import Event
from edgetl.models import Network
from edgetl.train import balance, checkpoint, readouts, store
from edgetl.train.aim import total
from edgetl.train.loop import Score
from edgetl.train.objective import asked, judge, terms
from edgetl.train.setting import FEATURES, Setting, answers

HEADROOM = 1.25  # other images may go somewhat below the lowest value of the training images
Fit = Callable[[torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]
Judge = Callable[[torch.Tensor], Score]
PENALTIES = tuple(10.0**power for power in range(-6, 1))  # on standardised features


def probe(setting: Setting, network: Network) -> Score:
    """Gives the network the best linear head on its own features, and returns its validation score.

    Raises:
        EdgetlError: the network's head is neither a linear layer nor a convolution of single pixels, or has no bias.
    """
    head = fitting_head(network)
    train, val = cached_features(setting, network)
    mean, scale = train.mean(0), train.std(0).clamp_min(1e-6)
    fit, scored = _subject(setting)
    best: tuple[Score, torch.Tensor, torch.Tensor] | None = None
    for penalty in PENALTIES:
        weight, bias = fit((train - mean) / scale, penalty)
        score = scored(((val - mean) / scale) @ weight.T + bias)
        if score.better_than(best[0] if best else None):
            best = score, weight, bias
    assert best is not None and head.bias is not None
    score, weight, bias = best
    with torch.no_grad():  # the standardisation becomes part of the layer
        head.weight.copy_((weight / scale).view_as(head.weight))
        head.bias.copy_(bias - (weight / scale) @ mean)
    if isinstance(head, nn.Conv2d):
        lift(setting, network, head)
    setting.note(f"linear probe: {setting.scored(score)}")
    if setting.aim is None:
        of_train, of_val = _labels(setting)
        beside = readouts.nearest_neighbours(train, of_train, val, of_val, len(setting.data.labels))
        setting.told["readouts"] = {"linear": dataclasses.asdict(score), "neighbours": beside.to_json()}
        setting.note(f"beside it, {beside.sentence()}")
    return score


def _subject(setting: Setting) -> tuple[Fit, Judge]:
    """What fits a head to standardised features [N, F] under a penalty, and what scores its validation logits."""
    outputs, labels = len(setting.data.labels), _labels(setting)
    if setting.aim is not None:
        losses, targets = terms(setting), setting.aim.targets(setting.parts.train)
        judged = judge(setting, setting.parts.val)
        assert judged is not None
        return lambda features, penalty: minimised(
            features, outputs, penalty, lambda logits: total(losses, logits, targets)), judged  # fmt: skip
    balanced = balance.of_probe(asked(setting.options).balance, balance.counts_of(setting.parts.train, outputs))

    def score(logits: torch.Tensor) -> Score:
        return Score(float((logits.argmax(1) == labels[1]).float().mean()), float(F.cross_entropy(logits, labels[1])))

    return lambda features, penalty: logistic_regression(features, labels[0], outputs, penalty, **balanced), score


def _labels(setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes of the training and of the validation images."""
    train, val = (torch.tensor([item.label for item in items]) for items in (setting.parts.train, setting.parts.val))
    return train, val


def fitting_head(network: Network) -> nn.Linear | nn.Conv2d:
    """The network's head, where a linear model of the features fits in.

    Raises:
        EdgetlError: it is neither a linear layer nor a convolution of single pixels, or it has no bias.
    """
    head = network.module.get_submodule(network.head)
    linear = isinstance(head, nn.Linear) or (isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1))
    if linear and isinstance(head, nn.Linear | nn.Conv2d) and head.bias is not None:
        return head
    raise EdgetlError(
        f"The head of {network.model} is {type(head).__name__}; a linear probe needs a linear layer with a bias.",
        hint="Use --strategy full.",
    )


def logistic_regression(
    features: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    penalty: float,
    weights: torch.Tensor | None = None,
    prior: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [K, F] and bias [K] that minimise mean cross-entropy + penalty / 2 * |weight|^2.

    Args:
        features: [N, F], standardised.
        labels: int64 [N].
        classes: K.
        penalty: of L2; the bias has none.
        weights: [K], how much an image of each class counts; None: all alike.
        prior: [K], what the loss adds to the logits; None: nothing.
    """
    def loss(logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits if prior is None else logits + prior, labels, weight=weights)

    return minimised(features, classes, penalty, loss)


def minimised(features: torch.Tensor, outputs: int, penalty: float, loss_of: Callable[[torch.Tensor], torch.Tensor]
              ) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [K, F] and bias [K] that minimise a convex loss of the logits + penalty / 2 * |weight|^2.

    Args:
        features: [N, F], standardised.
        outputs: K.
        penalty: of L2; the bias has none.
        loss_of: of logits [N, K], scalar.
    """
    weight = torch.zeros((outputs, features.shape[1]), requires_grad=True)
    bias = torch.zeros(outputs, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = loss_of(features @ weight.T + bias) + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def cached_features(setting: Setting, network: Network) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [N, F] of the training and validation images; kept in the run's folder for a resume."""
    path = setting.folder / FEATURES
    if path.is_file():
        state = checkpoint.read(path)
        return state.tensors["train"], state.tensors["val"]
    network.module.eval()
    extractor = BeforeHead(network)
    found = {}
    for name, items in (("train", setting.parts.train), ("val", setting.parts.val)):
        pixels = store.evaluation_pixels(setting.data, items, setting.parts.fingerprint, network.preprocess)
        found[name] = torch.from_numpy(_features(extractor, pixels, network, setting, name))
    checkpoint.write(path, checkpoint.State(found))
    return found["train"], found["val"]


def _features(
    extractor: nn.Module, pixels: NDArray[np.uint8], network: Network, setting: Setting, name: str
) -> NDArray[np.float32]:
    setting.listener(
        Event(setting.stage, "begin", {"what": f"features of {name}", "total": len(pixels), "unit": "images"})
    )
    parts = []
    for start in range(0, len(pixels), 256):
        parts.append(answers(extractor, pixels[start : start + 256], network.preprocess, setting))
        setting.listener(Event(setting.stage, "advance", {"done": min(start + 256, len(pixels))}))
    setting.listener(Event(setting.stage, "end", {"what": f"features of {name}"}))
    return np.concatenate(parts)


def lift(setting: Setting, network: Network, head: nn.Conv2d) -> None:
    """Adds one constant to all biases of a convolution that is a head, so that no training image gives it a negative.

    SqueezeNet cuts negative values off before it takes the mean over the pixels. Softmax does not see a constant that
    all classes share, so with this one the mean is what the probe fitted: linear in the averaged features.
    """
    lowest = [0.0]
    handle = head.register_forward_hook(lambda _, inputs, output: lowest.append(float(output.min())))
    try:
        pixels = store.evaluation_pixels(
            setting.data, setting.parts.train, setting.parts.fingerprint, network.preprocess
        )
        answers(network.module, pixels, network.preprocess, setting)
    finally:
        handle.remove()
    assert head.bias is not None
    with torch.no_grad():
        head.bias.sub_(HEADROOM * min(lowest))


class BeforeHead(nn.Module):
    """What goes into the head of a network: its features, averaged over height and width if they have them."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.module, self.head = network.module, network.head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features [N, F] of normalised images [N, C, H, W]."""
        caught: list[torch.Tensor] = []
        handle = self.module.get_submodule(self.head).register_forward_pre_hook(
            lambda _, inputs: caught.append(inputs[0])
        )
        try:
            self.module(images)
        finally:
            handle.remove()
        return caught[0].mean((2, 3)) if caught[0].ndim == 4 else caught[0]
