"""What the recipes of several commands share: how a field is documented, and the fields of data and of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

REQUIRED: Any = dataclasses.MISSING
AS_BY_DEFAULT: Any = object()

# No part may begin with "-", which ssh takes for an option, or hold what a shell or ssh's own file gives a meaning.
DEVICE = (r"ssh://(?:(?P<user>[A-Za-z0-9_.][A-Za-z0-9_.+-]*)@)?"
          r"(?:(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*)|\[(?P<six>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\])"
          r"(?::(?P<port>[0-9]{1,5}))?/?", "ssh://[USER@]HOST[:PORT], an IPv6 address in brackets, and no password")
MOST_SEED = 2**32 - 1  # what every generator takes
MOST_THREADS = 1024  # with many more, libraries hang or crash
THREAD_COUNTS = ("0*([0-9]{1,3}|10[01][0-9]|102[0-4])", f"whole numbers up to {MOST_THREADS}")


def opt(default: Any, help: str, *, choices: Sequence[str] = (), low: float | None = None, high: float | None = None,
        positional: bool = False, split: bool = False, given: bool = False, path: bool = False,
        result: bool = True, form: tuple[str, str] | None = None, words: Sequence[str] = (),
        before: Any = AS_BY_DEFAULT) -> Any:
    """A field with its documentation and its limits.

    Args:
        default: `REQUIRED` where the user must say it.
        help: one sentence; shown by --help and written above the key by `edgetl init`.
        choices: the values allowed.
        low: least value allowed.
        high: greatest value allowed.
        positional: an argument of the command, not a flag.
        split: a list that a flag writes with commas.
        given: decided by `edgetl run` (or asked for by the person at the shell), never by a recipe.
        path: a relative path in a recipe counts from the recipe's own folder.
        result: whether the stage's result depends on it, see `decisive`.
        form: regular expression that the text, or each of a list, must match whole, and the same in words.
        words: what may stand in place of a number.
        before: what versions did that had no such field yet, where it is not what the default does; see
            `edgetl.recipe.unsaid`.
    """
    metadata = {"help": help, "choices": tuple(choices), "low": low, "high": high, "positional": positional,
                "split": split, "given": given, "path": path, "result": result,
                "form": form, "words": tuple(words), "before": default if before is AS_BY_DEFAULT else before}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class DataFields:
    """Which images, and how they are split."""

    data: str = opt(
        REQUIRED, "Folder (train/val/test inside, or class folders), csv:FILE, shards:SPEC, or a data set's name.",
        path=True, result=False)
    val_fraction: float = opt(
        0.1, "Share of the training images held out for validation where the data has no val split.", low=0, high=0.9)
    test_fraction: float = opt(
        0.2, "Share of all images held out for the test where the data has no test split.", low=0, high=0.9)
    split_seed: int = opt(0, "Seed of the automatic split.", low=0, high=MOST_SEED)
    strict_splits: bool = opt(
        False, "Exit 1 when the same image is in two of the data's own splits (otherwise a warning).")


@dataclass(frozen=True, kw_only=True)
class TrainFields(DataFields):
    """What fine-tuning and distillation share."""

    out: str = opt(REQUIRED, "Folder to write the RUN to.", given=True)
    max_bad: str = opt(
        "0", "Images that may be damaged, of all splits together: N, or P% of them; they are listed and left out.",
        form=("[0-9]+|[0-9]+([.][0-9]+)?%|[.][0-9]+%", "a whole number, or a percentage like 0.5%"))
    image_size: int | None = opt(
        None, "Side of the square input in pixels (default: the model's own).", low=8, high=4096)
    in_channels: int | None = opt(
        None, "Channels of the images: 1 is grey, 3 RGB, 4 RGBA, others arrays (.npy); the first layer is adapted "
        "(default: the model's own, a student's its teacher's).", low=1, high=64)
    crop_fraction: float | None = opt(
        None, "Evaluation's centre crop as a share of the short side (default: the model's own; 1 keeps all).",
        low=0.1, high=1)
    epochs: int = opt(10, "Passes over the training images.", low=1)
    batch_size: str = opt(
        "auto", "Images a step, of all processes together; 'auto' is 32 on a CPU, on a GPU what fits, up to 256.",
        form=("auto|0*[1-9][0-9]*", "'auto' or a whole number above 0"))
    accumulate: int = opt(
        1, "Batches whose gradients are added up for one step of the optimizer, as if --batch-size were so many times "
        "larger.", low=1, high=1024)
    lr: float | str = opt(
        1e-3, "Peak learning rate of AdamW; 'find' takes one that a short trial on training images finds.",
        low=0, high=1000, words=("find",))
    schedule: str = opt(
        "cosine", "How the learning rate goes on after the warm-up: along a cosine, up and down (one-cycle, which has "
        "no other warm-up), to a tenth wherever validation stops becoming better (plateau), or as it is.",
        choices=("cosine", "one-cycle", "plateau", "constant"))
    min_lr: float = opt(
        0.0, "Learning rate at the end of cosine and one-cycle, and the least of plateau.", low=0, high=1000)
    plateau_epochs: int = opt(
        3, "Epochs without a better validation accuracy after which plateau goes to a tenth.", low=1)
    layer_decay: float = opt(
        1.0, "Learning rate of a block of the network as a share of that of the block behind it; the head has the "
        "whole rate. 1 is off.", low=0.01, high=1)
    weight_decay: float = opt(0.05, "Weight decay of AdamW; norms and biases have none.", low=0, high=1000)
    warmup_epochs: float = opt(1.0, "Epochs of linear warm-up.", low=0)
    label_smoothing: float = opt(0.1, "Share of each label spread over all classes.", low=0, high=0.99)
    ema: float = opt(
        0.99,
        "Greatest decay per step of the averaged weights that are evaluated and kept; 0 is off.", low=0, high=0.99999)
    clip_norm: float = opt(5.0, "Greatest gradient norm; 0 is off.", low=0)
    patience: int = opt(0, "Stop after so many epochs without a better validation accuracy; 0 is off.", low=0)
    crop_scale: float = opt(0.35, "Least area share of the random resized crop; 1 is no crop.", low=0.01, high=1)
    hflip: bool = opt(True, "Mirror left-right at random.")
    vflip: bool = opt(False, "Mirror top-bottom at random.")
    color_jitter: float = opt(
        0.2, "Greatest relative change of brightness, contrast and saturation; 0 is off.", low=0, high=1)
    auto_augment: str = opt(
        "none", "Random changes of each view, after torchvision's RandAugment or TrivialAugment (wide); timm gives up "
        "colour jitter with them, which is --color-jitter 0.", choices=("none", "randaugment", "trivialaugment"))
    randaugment_ops: int = opt(2, "Changes that RandAugment makes, one after the other.", low=1, high=14)
    randaugment_magnitude: int = opt(
        9, "How strong RandAugment's changes are, of 30 (timm counts to 10: its m9 is 27).", low=0, high=30)
    random_erasing: float = opt(
        0.0, "Chance that a box of a view is filled with the network's mean colour.", low=0, high=1)
    mixup: float = opt(0.0, "Alpha of mixup's Beta distribution; 0 is off.", low=0)
    cutmix: float = opt(
        0.0, "Alpha of cutmix's Beta distribution; 0 is off. With mixup each batch gets one of the two.", low=0)
    device: str = opt("auto", "'auto', 'cpu', 'cuda' or 'cuda:N'.",
                      form=("auto|cpu|cuda(:[0-9]+)?", "'auto', 'cpu', 'cuda' or 'cuda:N'"))
    amp: str = opt(
        "auto", "Mixed precision; 'auto' is bf16 (or fp16) on CUDA and off on a CPU, or the other one where the trial "
        "of a longer training finds that clearly quicker.", choices=("auto", "off", "bf16", "fp16"))
    compile: str = opt(
        "auto", "Compile the network with torch.compile; 'auto' where a trial finds that the training earns what it "
        "costs.", choices=("auto", "off", "on"), before="off")
    workers: int = opt(
        1, "Threads that prepare batches ahead; 0 prepares them in the training thread.", low=0, high=MOST_THREADS,
        result=False)
    threads: int = opt(0, "Threads of the training itself; 0 takes what the machine allows.", low=0,
                       high=MOST_THREADS, result=False)
    seed: int = opt(0, "Seed of everything that is random.", low=0, high=MOST_SEED)
    checkpoint_minutes: float = opt(
        5.0, "Also checkpoint within an epoch, every so many minutes.", low=0, result=False)
    resume: bool = opt(False, "Continue an interrupted run; a finished one is left as it is.", given=True)
    overwrite: bool = opt(False, "Replace --out if it exists.", given=True)
