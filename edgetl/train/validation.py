"""What a network says in evaluation mode, and how good that is on the validation split."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from edgetl import evaluate
from edgetl.models import Network
from edgetl.runtime.preprocess import Preprocess, normalize
from edgetl.train import distributed, objective, store
from edgetl.train.loop import Precision, Score
from edgetl.train.resident import Resident

if TYPE_CHECKING:
    from edgetl.train.setting import Setting

EVALUATION_BATCH = 64


class Validation:
    """Scores a network on the validation split; its pixels are decoded once and kept in the cache."""

    def __init__(self, setting: Setting, network: Network) -> None:
        self.setting, self.preprocess = setting, network.preprocess
        self.labels = torch.tensor([item.label for item in setting.parts.val])
        self.judge = objective.judge(setting, setting.parts.val)
        self.pixels = store.evaluation_pixels(
            setting.data, setting.parts.val, setting.parts.fingerprint, network.preprocess
        )

    def __call__(self, module: nn.Module) -> Score:
        """Accuracy and mean cross-entropy; of another aim than one class an image, its own score and losses."""
        logits = self._logits(module)
        if self.judge is not None:
            return self.judge(logits)
        accuracy = (logits.argmax(1) == self.labels).float().mean()
        return Score(float(accuracy), float(F.cross_entropy(logits, self.labels)))

    def _logits(self, module: nn.Module) -> torch.Tensor:
        """[N, K]; each of several processes looks at some of the batches, which are those of one process."""
        world = distributed.current()
        batches = math.ceil(len(self.pixels) / EVALUATION_BATCH)
        begin, end = (EVALUATION_BATCH * (batches * rank // world.size) for rank in (world.rank, world.rank + 1))
        mine = self.pixels[begin:end]
        if world.size == 1:
            return torch.from_numpy(answers(module, mine, self.preprocess, self.setting))
        kept = answers(module, mine, self.preprocess, self.setting) if len(mine) else None
        found = torch.zeros(0, len(self.setting.data.labels)) if kept is None else torch.from_numpy(kept)
        return world.gathered(found)[0]


def answers(
    module: nn.Module, pixels: NDArray[np.uint8], preprocess: Preprocess, setting: Setting
) -> NDArray[np.float32]:
    """float32 [N, ...]: what a module in evaluation mode says to pixels [N, H, W, C]."""
    predict = torch_predict(module, setting, setting.precision)
    resident, found = Resident(pixels), []
    for start in range(0, len(pixels), EVALUATION_BATCH):
        part = pixels[start : start + EVALUATION_BATCH]
        found.append(predict(normalize(part, preprocess)))
        resident.read(part.nbytes)
    resident.give_back()
    return np.concatenate(found)


def torch_predict(module: nn.Module, setting: Setting, precision: Precision) -> evaluate.Predict:
    """A function from normalised images [n, C, H, W] to float32 logits [n, K] on the device of the training."""

    def predict(batch: NDArray[np.float32]) -> NDArray[Any]:
        images = torch.from_numpy(batch).to(setting.device, memory_format=torch.channels_last)
        with torch.no_grad(), precision.autocast():
            return module(images).float().cpu().numpy()  # type: ignore[no-any-return]

    return predict
