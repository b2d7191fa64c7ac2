"""The options of `edgetl finetune`, which are the keys of `[finetune]` in a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.recipe_fields import REQUIRED, TrainFields, opt


@dataclass(frozen=True, kw_only=True)
class FinetuneFields(TrainFields):
    """What `edgetl finetune` and `edgetl compare-strategies` share: everything but the strategy."""

    teacher: str = opt(
        REQUIRED, "FAMILY/VARIANT, e.g. efficientnet-lite/efficientnet_lite0, or a RUN folder.", path=True)
    pretrained: bool = opt(True, "Start from the family's published weights.")
    weights: str | None = opt(
        None, "File of weights (safetensors or a state dict) in place of the published ones.", path=True)


@dataclass(frozen=True, kw_only=True)
class Finetune(FinetuneFields):
    """`edgetl finetune`."""

    strategy: str = opt(
        "full", "What moves: all weights, a linear head only, or the head first and then all.",
        choices=("full", "probe", "lp-ft"))
