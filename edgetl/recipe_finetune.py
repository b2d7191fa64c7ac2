"""The options of `edgetl finetune`, which are the keys of `[finetune]` in a recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from edgetl.recipe_fields import REQUIRED, TrainFields, opt


@dataclass(frozen=True)
class Strategy:
    """What --strategy says of one: the code is `edgetl.train.strategies.<name>`."""

    summary: str
    reads: tuple[str, ...] = ()  # of the options that only some strategies read


IN_STEPS = ("loss", "balance")  # options of all strategies that train step by step
FROM_WEIGHTS = (*IN_STEPS, "l2_sp", "wise_ft")  # and of those among them that start from pretrained weights
STRATEGIES = {
    "scratch": Strategy("no pretrained weights: the baseline that shows what transfer is worth", IN_STEPS),
    "probe": Strategy("the backbone stays, a linear head is fitted on its features", ("balance",)),
    "partial": Strategy("what --freeze names stays, the rest moves", ("freeze", *FROM_WEIGHTS)),
    "full": Strategy("all weights move", FROM_WEIGHTS),
    "lp-ft": Strategy("the head as probe fits it, then all weights", ("freeze", *FROM_WEIGHTS)),
    "gradual": Strategy("the head first, then stage by stage down to the input", ("freeze", *FROM_WEIGHTS)),
    "joint": Strategy("together with a labelled source data set: a shared backbone, two heads",
                      ("source", "source_ratio", "source_weight", "freeze", *FROM_WEIGHTS)),
    "feature-copy": Strategy("features of one or several frozen networks, concatenated into a new small head",
                             ("features_from", "head_width")),
}
TASKS = ("classify", "multilabel", "regress")  # those of `edgetl.heads`, which brings numpy
OWN_OPTIONS = tuple(dict.fromkeys(name for one in STRATEGIES.values() for name in one.reads))


@dataclass(frozen=True, kw_only=True)
class FinetuneFields(TrainFields):
    """What `edgetl finetune` and `edgetl compare-strategies` share: everything but the strategy."""

    teacher: str = opt(
        REQUIRED, "FAMILY/VARIANT, e.g. efficientnet-lite/efficientnet_lite0, or a RUN folder.", path=True)
    pretrained: bool = opt(True, "Start from the family's published weights.")
    weights: str | None = opt(
        None, "File of weights (safetensors or a state dict) in place of the published ones.", path=True)
    loss: tuple[str, ...] = opt(
        ("labels",), "name[:weight][,name[:weight]...][;key=value...] of losses on labels: labels, or "
        "focal;gamma=2, which looks away from what is easy; may be repeated.")
    balance: str = opt(
        "none", "Against classes of unequal size: show the rare ones more often (sampler), count them more (loss), or "
        "learn logits without the classes' shares (logit-adjust).",
        choices=("none", "sampler", "loss", "logit-adjust"))
    l2_sp: float = opt(
        0.0, "Decay towards the pretrained weights, in place of --weight-decay, of all but the head; 0 is off.", low=0,
        high=1000)
    wise_ft: bool = opt(
        False, "Afterwards keep those weights between the pretrained and the fine-tuned ones that validate best.")
    tta: str = opt(
        "none", "Also report the accuracy of answers averaged over views of each image; the model stays as it is.",
        choices=("none", "hflip", "five-crop"))
    freeze: tuple[str, ...] = opt(
        (), "What stays as it is, where the strategy reads it: globs over names of modules and parameters, or stages:N "
        "for the first N stages.", split=True)
    source: str | None = opt(
        None, "Labelled data set, named as --data is, that --strategy joint trains together with it.", path=True,
        result=False)
    source_ratio: float = opt(0.5, "Share of each step's images that are of --source.", low=0.01, high=0.95)
    source_weight: float = opt(1.0, "Weight of the source's loss beside that of --data.", low=0, high=1000)
    features_from: str | None = opt(
        None, "MODEL[,MODEL...], FAMILY/VARIANT or RUN folders, whose features --strategy feature-copy joins with the "
        "--teacher's.", result=False)
    head_width: int = opt(
        0, "Width of a hidden layer between the features and the head of --strategy feature-copy; 0 is none.", low=0,
        high=100_000)
    task: str = opt(
        "classify", "What an image has: one class, labels of which it may have several or none, or values; the last "
        "two need --data csv:FILE, see docs/tasks.md.", choices=TASKS)
    label_columns: tuple[str, ...] = opt(
        (), "Columns of csv:FILE that are learned: with --task classify a head each (default: the column label), else "
        "labels or values (default: all that are there).", split=True)


@dataclass(frozen=True, kw_only=True)
class Finetune(FinetuneFields):
    """`edgetl finetune`."""

    strategy: str = opt(
        "full", "What moves, and in which order; `edgetl list strategies` says what each does.",
        choices=tuple(STRATEGIES))


def unread(options: Finetune) -> list[str]:
    """Names of the options that are not at their defaults and that the strategy does not read."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    return [name for name in OWN_OPTIONS
            if name not in STRATEGIES[options.strategy].reads and getattr(options, name) != defaults[name]]


def named_models(models: str | None) -> tuple[str, ...]:
    """The models of a text that separates them by commas."""
    return tuple(one.strip() for one in (models or "").split(",") if one.strip())
