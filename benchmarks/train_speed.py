"""Images a second of `edgetl finetune` and of the usual loop, epoch by epoch in turn, and the accuracy of both.

    python benchmarks/train_speed.py --data FOLDER [--epochs 10] [--seeds 0] [--models NAME,...] [--threads N]
                                     [--out results/train_speed.json]

FOLDER holds train, val and test with class folders. The usual loop is torchvision's ImageFolder and transforms with a
DataLoader of two workers, which stay for the whole training; it is run as people write it and with channels-last
tensors, and each counts (edgetl always uses channels-last ones). Both sides train the same network from the same
weights with the same crops, mirrors and colours, batch, AdamW, rate of every step, label smoothing, threads and
allocator; edgetl averages no weights and clips no gradients here, since the loop does neither. Both look at the
validation images after every epoch and keep the best weights.

In each round edgetl trains one epoch, then each loop one, all in one process. An epoch's time is end to end: waiting
for images, training, validation and, for edgetl, the checkpoint. What edgetl does before its first step (looking for
copies, decoding all photos once) is told by itself, and counted in the ratio over the whole training.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.transforms import InterpolationMode

import edgetl
from edgetl import metrics, models, predictions, rundir, timing
from edgetl.allocator import set_allocator
from edgetl.bench import stats
from edgetl.bench.environment import load_average
from edgetl.events import Event
from edgetl.models import Network
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.session import usable_threads
from edgetl.train.starting import quiet_head

# Model -> whether it starts from published weights, which must be at hand.
MODELS = {"timm/mobilenetv4_conv_small_050": False, "efficientnet-lite/efficientnet_lite0": True}
GOALS = {"timm/mobilenetv4_conv_small_050": 2.0, "efficientnet-lite/efficientnet_lite0": 1.2}
SIZE, BATCH, LR, DECAY, SMOOTHING, CROP, JITTER, WARMUP = 128, 32, 1e-3, 0.05, 0.1, 0.35, 0.2, 1.0
LOOPS = {"loop": torch.contiguous_format, "loop channels-last": torch.channels_last}
WORKERS = 2
OURS = "edgetl"


def main() -> None:
    """Measures, prints and writes."""
    options = parsed()
    set_allocator()
    busy = load_average()
    rows = [case(options, model, seed) for model in options.models for seed in options.seeds]
    if options.out is not None:
        rundir.write_json(options.out, {
            "size": SIZE, "batch": BATCH, "threads": options.threads, "loader_workers": WORKERS, "cases": rows,
            "load_average": busy, "environment": rundir.environment(),
        })  # fmt: skip


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=lambda text: [int(one) for one in text.split(",")], default=[0])
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS))
    parser.add_argument("--scratch", action="store_true", help="start no model from published weights")
    parser.add_argument("--threads", type=int, default=usable_threads())
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def case(options: argparse.Namespace, model: str, seed: int) -> dict[str, Any]:
    """One model with one seed: edgetl's training, in whose pauses the loops train theirs."""
    torch.set_num_threads(options.threads)
    pretrained = MODELS.get(model, True) and not options.scratch
    loops = [Loop(name, options, model, pretrained, seed) for name in LOOPS]
    clock = Clock(loops)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGETL_CACHE"] = folder  # photos that an earlier run has decoded would be no fair start
        clock.start()
        run = edgetl.finetune(
            data=str(options.data), teacher=model, out=str(Path(folder) / "run"), image_size=SIZE,
            epochs=options.epochs, batch_size=str(BATCH), lr=LR, weight_decay=DECAY, label_smoothing=SMOOTHING,
            crop_scale=CROP, color_jitter=JITTER, warmup_epochs=WARMUP, ema=0.0, clip_norm=0.0, pretrained=pretrained,
            threads=options.threads, seed=seed, listener=clock,
        )  # fmt: skip
        found = predictions.read(Path(run))["test"]
    own = dict(zip((key.removeprefix("test/") for key in found.keys.tolist()), found.right.tolist(), strict=True))
    row = {"model": model, "seed": seed, "pretrained": pretrained, "epochs": options.epochs,
           "images": loops[0].images, "goal": GOALS.get(model), "prepare_s": clock.prepare_s,
           OURS: told(clock.seconds, loops[0].images, own),
           **{loop.name: told(loop.seconds, loop.images, loop.tested()) for loop in loops}}  # fmt: skip
    row["against"] = {loop.name: against(clock, loop, own) for loop in loops}
    say(row)
    return row


class Clock:
    """Listens to edgetl: times its epochs and lets the loops train theirs between them."""

    def __init__(self, loops: list[Loop]) -> None:
        self.loops, self.seconds, self.prepare_s, self.since_s = loops, list[float](), 0.0, 0.0

    def start(self) -> None:
        """Nothing is done yet."""
        self.since_s = timing.now_s()

    def __call__(self, event: Event) -> None:
        """Takes the time of what has ended."""
        if event.kind == "begin" and event.values.get("what") == "train":
            self.prepare_s = timing.now_s() - self.since_s
            self.start()
        if event.kind == "epoch":
            self.seconds.append(timing.now_s() - self.since_s)
            for loop in self.loops:
                loop.epoch()
            self.start()


@dataclass
class Loop:
    """The usual loop, an epoch at a time."""

    name: str
    options: argparse.Namespace
    model: str
    pretrained: bool
    seed: int
    seconds: list[float] = field(default_factory=list)
    best: tuple[float, dict[str, torch.Tensor]] | None = None

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.layout = LOOPS[self.name]
        network = self.network()
        self.module = network.module.to(memory_format=self.layout)
        wants = network.preprocess
        folder = self.options.data
        self.train = self.loader(datasets.ImageFolder(folder / "train", views(wants)), shuffle=True)
        self.val = self.loader(datasets.ImageFolder(folder / "val", plain(wants)), shuffle=False)
        self.test = self.loader(datasets.ImageFolder(folder / "test", plain(wants)), shuffle=False)
        self.images = len(self.train.dataset)  # type: ignore[arg-type]
        decayed = [one for one in self.module.parameters() if one.ndim > 1]
        others = [one for one in self.module.parameters() if one.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}], lr=LR)
        total, warmup = self.options.epochs * len(self.train), round(WARMUP * len(self.train))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: rate(step, total, warmup))

    def network(self) -> Network:
        """The same network from the same weights as edgetl's, with a new head like its."""
        classes = sum(one.is_dir() for one in (self.options.data / "train").iterdir())
        network = models.create(self.model, classes=classes, pretrained=self.pretrained, image_size=SIZE)
        quiet_head(network)
        return network

    def loader(self, images: datasets.ImageFolder, shuffle: bool) -> DataLoader[Any]:
        """Two workers, which stay."""
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(images, BATCH, shuffle=shuffle, num_workers=WORKERS, persistent_workers=True, generator=order)

    def epoch(self) -> None:
        """Trains and validates."""
        begin_s = timing.now_s()
        self.module.train()
        for images, labels in self.train:
            answers = self.module(images.contiguous(memory_format=self.layout))
            loss = F.cross_entropy(answers, labels, label_smoothing=SMOOTHING)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
        right = float(np.mean([one for _, one in self.answered(self.val)]))
        if self.best is None or right > self.best[0]:
            self.best = right, {name: value.clone() for name, value in self.module.state_dict().items()}
        self.seconds.append(timing.now_s() - begin_s)

    def answered(self, loader: DataLoader[Any]) -> Iterator[tuple[str, bool]]:
        """Each image by its path below the split, and whether the answer is right."""
        self.module.eval()
        found = []
        with torch.no_grad():
            for images, labels in loader:
                answers = self.module(images.contiguous(memory_format=self.layout))
                found += (answers.argmax(1) == labels).tolist()
        images = loader.dataset
        assert isinstance(images, datasets.ImageFolder)
        names = (Path(path).relative_to(images.root).as_posix() for path, _ in images.samples)
        return zip(names, found, strict=True)

    def tested(self) -> dict[str, bool]:
        """Which test images the best weights are right on."""
        assert self.best is not None
        self.module.load_state_dict(self.best[1])
        return dict(self.answered(self.test))


def rate(step: int, total: int, warmup: int) -> float:
    """Share of the peak rate: linear warm-up, then a cosine, as edgetl's."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def views(wants: Preprocess) -> transforms.Compose:
    """Training transforms."""
    return transforms.Compose([
        transforms.RandomResizedCrop(SIZE, scale=(CROP, 1), interpolation=smooth(wants)),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(JITTER, JITTER, JITTER),
        transforms.ToTensor(),
        normalized(wants),
    ])  # fmt: skip


def plain(wants: Preprocess) -> transforms.Compose:
    """Evaluation transforms."""
    return transforms.Compose([
        transforms.Resize(round(SIZE / wants.crop_fraction), interpolation=smooth(wants)),
        transforms.CenterCrop(SIZE),
        transforms.ToTensor(),
        normalized(wants),
    ])  # fmt: skip


def normalized(wants: Preprocess) -> transforms.Normalize:
    """What the network does to pixels in 0..255, for ToTensor's in 0..1."""
    return transforms.Normalize(*([one / (255 * wants.scale) for one in values] for values in (wants.mean, wants.std)))


def smooth(wants: Preprocess) -> InterpolationMode:
    """How the network wants images resized."""
    return InterpolationMode.BICUBIC if wants.interpolation == "bicubic" else InterpolationMode.BILINEAR


def told(seconds: list[float], images: int, right: dict[str, bool]) -> dict[str, Any]:
    """Speed and test accuracy of one side."""
    low, high = metrics.wilson_interval(sum(right.values()), len(right))
    return {"epoch_s": seconds, "images_per_s": images / statistics.median(seconds), "test_n": len(right),
            "test_correct": sum(right.values()), "accuracy_low": low, "accuracy_high": high}  # fmt: skip


def against(clock: Clock, loop: Loop, own: dict[str, bool]) -> dict[str, Any]:
    """How many times as many images a second edgetl trains, and its accuracy minus the loop's on the same images."""
    epochs = stats.median_interval([theirs / ours for theirs, ours in zip(loop.seconds, clock.seconds, strict=True)])
    theirs = loop.tested()
    gained = sum(own[name] and not theirs[name] for name in theirs)
    lost = sum(theirs[name] and not own[name] for name in theirs)
    low, high = metrics.paired_interval(gained, lost, len(theirs))
    return {"ratio": epochs.value, "ratio_low": epochs.low, "ratio_high": epochs.high,
            "ratio_whole": sum(loop.seconds) / (clock.prepare_s + sum(clock.seconds)),
            "points": 100 * (gained - lost) / len(theirs), "points_low": 100 * low,
            "points_high": 100 * high}  # fmt: skip


def say(row: dict[str, Any]) -> None:
    """One line a loop."""
    print(f"{row['model']}, seed {row['seed']}: edgetl {row[OURS]['images_per_s']:.0f} images/s after "
          f"{row['prepare_s']:.0f} s, test {row[OURS]['test_correct']} of {row[OURS]['test_n']}")
    for name, one in row["against"].items():
        print(f"  {name}: {row[name]['images_per_s']:.0f} images/s; ratio {one['ratio']:.2f} "
              f"({one['ratio_whole']:.2f} over all), {one['points']:+.1f} points "
              f"({one['points_low']:+.1f} to {one['points_high']:+.1f})", flush=True)


if __name__ == "__main__":
    main()
