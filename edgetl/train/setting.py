"""What fine-tuning and distillation set up alike: data, device, precision, batch size, and the record at the end."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from edgetl import datasets, evaluate, heads, predictions, rundir, scorecard, splits, weights
from edgetl.allocator import set_allocator
from edgetl.compress import cost
from edgetl.datasets import DataSet, Item
from edgetl.dataspec import absolute as absolute
from edgetl.errors import DataError, TrainingError
from edgetl.events import Event, Listener, ignore
from edgetl.heads import SCORES, Asked
from edgetl.models import Network
from edgetl.recipe import Distill, decisive, to_toml
from edgetl.recipe_fields import TrainFields
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.session import usable_threads
from edgetl.splits import Splits
from edgetl.train import (
    choosing,
    damaged,
    distributed,
    shared_norm,
    softlabels,
    sparse,
    store,
    task_record,
    teachers,
    ways,
)
from edgetl.train.aim import Aim
from edgetl.train.balance import rows_of
from edgetl.train.cells import Cells
from edgetl.train.choosing import CPU_BATCH as CPU_BATCH
from edgetl.train.course import Course
from edgetl.train.eventfiles import EventFiles
from edgetl.train.loader import TrainLoader
from edgetl.train.loop import BEST, Fit, Precision, Score
from edgetl.train.lr_range import settled
from edgetl.train.reading import inputs
from edgetl.train.salvage import salvaging
from edgetl.train.sameness import require_same
from edgetl.train.schedules import require_rates
from edgetl.train.task import ClassifierTask
from edgetl.train.unlabelled import NONE, Unlabelled, gather
from edgetl.train.validation import Validation as Validation
from edgetl.train.validation import answers as answers
from edgetl.train.validation import torch_predict as torch_predict

CHOICES = "choices.json"
FEATURES = "features.safetensors"
CUT = "cut.safetensors"  # the student as it was cut out of its teacher, before it is taught
STEPS = "steps"  # folder of the students that are cut again
NAMING = ("teacher", "student", "weights", "inherit")  # options that may name a file or a RUN
LEFTOVERS = (rundir.CHECKPOINT, rundir.PREVIOUS, BEST, CHOICES, FEATURES, CUT)  # of a finished run
Arranged = Callable[[Splits], Splits]


@dataclass(frozen=True)
class Setting:
    """Everything around a network in training."""

    options: TrainFields
    data: DataSet
    parts: Splits
    folder: Path  # being written
    device: torch.device
    precision: Precision
    choices: dict[str, Any]  # what was found out or tried, recorded and used again on --resume
    identity: Mapping[str, Any]  # what decides the result; must be the same on --resume
    listener: Listener
    stage: str
    unlabelled: Unlabelled = NONE  # images that join the training without a label
    aim: Aim | None = None  # None: one class an image
    told: dict[str, Any] = field(default_factory=dict)  # what the record says of the training that was last

    @property
    def shown(self) -> tuple[Item, ...]:
        """The images that are trained on; those without a label come last."""
        return (*self.parts.train, *self.unlabelled.items)

    @property
    def shown_fingerprint(self) -> str:
        """Digest of the contents of what is trained on."""
        return self.parts.fingerprint + (self.unlabelled.fingerprint or "")

    def labelled_only(self) -> Setting:
        """The training on the labelled images alone, with about as many steps: for a control that has no teacher."""
        if not self.unlabelled.items:
            return dataclasses.replace(self, told={})
        longer = len(self.shown) / len(self.parts.train)
        options = dataclasses.replace(
            self.options,
            epochs=round(self.options.epochs * longer),
            warmup_epochs=self.options.warmup_epochs * longer,
            patience=round(self.options.patience * longer),
            plateau_epochs=max(1, round(self.options.plateau_epochs * longer)),
        )
        if isinstance(options, Distill):
            options = dataclasses.replace(options, slim_epochs=round(options.slim_epochs * longer))
        return dataclasses.replace(self, options=options, unlabelled=NONE, told={})

    def scored(self, score: Score) -> str:
        """A validation score in words."""
        if self.aim is None:
            return f"validation accuracy {100 * score.accuracy:.1f} %"
        return f"validation {SCORES[self.aim.kind]} {score.accuracy:.3f}"

    def note(self, text: str) -> None:
        """Tells the listener something worth knowing."""
        self.listener(Event(self.stage, "note", {"text": text}))

    def require_test_images(self, preprocess: Preprocess) -> None:
        """Returns when the images that are looked at last, after hours of training, can be decoded.

        Raises:
            DataError: some cannot; names them.
        """
        if self.parts.test:
            store.require_readable(self.data, self.parts.test, "test", preprocess, self.listener, self.stage)


def prepare(
    options: TrainFields, folder: Path, stage: str, listener: Listener, *, recorded: Mapping[str, Any] | None = None,
    arranged: Arranged | None = None
) -> Setting:
    """Data, split, device and precision of a training; also writes the recipe and the split first.

    Args:
        options: the recipe.
        folder: where the run is being written.
        stage: name of the stage in events.
        listener: told of notes and warnings.
        recorded: rule of the split that an earlier stage used.
        arranged: makes other splits of the data's own; a comparison withholds the test split so, or deals out folds.

    Raises:
        DataError: the data cannot be used.
        BackendUnavailable: the device is not there.
    """
    require_rates(options)
    allocator, world = set_allocator(), distributed.current()
    with world.by_node():  # which may fetch the data
        data = datasets.open_data(options.data, listener=listener, asked=asked_of(options))
    parts = splits.resolve(data, options, recorded=recorded, listener=listener)
    extra = gather(getattr(options, "unlabeled", None), data, parts, stage, listener)
    with world.by_node():  # the others find in the cache what cannot be decoded
        parts, extra = damaged.left_out(options.max_bad, data, parts, extra, folder, listener, stage)
    parts = parts if arranged is None else arranged(parts)
    device = choosing.choose_device(options.device)
    path = folder / CHOICES
    choices: dict[str, Any] = (
        rundir.read_json(path, TrainingError)
        if path.is_file()
        else {
            "threads": options.threads or world.share_of_threads(usable_threads()),
            "processes": world.size,
            "device": str(device),
            "amp": choosing.choose_amp(options.amp, device),
            "allocator": allocator,
        }
    )
    if choices["device"] != str(device):
        raise TrainingError(
            f"The interrupted run in {folder} was on {choices['device']}; --device {options.device} is {device} here.",
            hint="Resume it where it ran, or start again with --overwrite.",
        )
    if not parts.val:
        raise DataError(
            f"{options.data} leaves no validation image, and training chooses its best weights on them.",
            hint="Give a val split or a --val-fraction above 0.",
        )
    _other_processes(choices, options, world, listener, stage)
    torch.set_num_threads(choices["threads"])
    rundir.write_text(folder / rundir.RECIPE, to_toml(options))
    rundir.write_json(folder / rundir.SPLIT, splits.to_json(parts))
    dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[choices["amp"]]
    precision = Precision(device, dtype)
    same = {**identity(options, parts.fingerprint), **extra.identity}
    return Setting(
        options, extra.beside(data), parts, folder, device, precision, choices, same, listener, stage, extra,
        Aim.of(data, parts),
    )


def identity(options: TrainFields, fingerprint: str) -> dict[str, Any]:
    """Everything that decides the result: options, and the contents of the data and of the files that options name."""
    named = {name: Path(str(getattr(options, name, None) or "")) for name in NAMING}
    files = {name: path / rundir.MODEL if weights.is_run(path) else path for name, path in named.items()}
    digests = {f"{name} sha256": rundir.sha256(path.read_bytes()) for name, path in files.items() if path.is_file()}
    taught_by = teachers.identity(options) if isinstance(options, Distill) else {}
    return {**decisive(options), "data fingerprint": fingerprint, **digests, **taught_by, **inputs(options)}


def fit(setting: Setting, task: ClassifierTask, network: Network, folder: Path, stage: str) -> Score:
    """Trains a task in `folder` and leaves the best weights in the network.

    Raises:
        EdgetlError, TrainingError: see `Course.of` and `settled`.
    """
    world = distributed.current()
    task.to(setting.device)
    network.module.to(memory_format=torch.channels_last)
    with world.by_node():  # the others find the images prepared
        images = store.open_store(
            setting.data, setting.shown, setting.shown_fingerprint, task.shown, setting.listener, stage
        )
        validate = Validation(setting, network)
    with world.agreeing(setting.choices):
        if "batch_size" not in setting.choices:
            setting.choices["batch_size"] = choosing.choose_batch(setting, task, task.shown)
    cells = Cells(world.size, world.rank, setting.options.accumulate)
    loader = TrainLoader(
        images,
        setting.shown,
        len(setting.data.labels),
        task.shown,
        setting.options,
        task.own_images(setting.choices["batch_size"] * setting.options.accumulate),
        setting.device,
        getattr(setting.options, "views", 0),
        getattr(setting.options, "refresh_views", 0),
        cells,
        rows_of(getattr(setting.options, "balance", "none"), setting.shown),
        setting.aim.targets(setting.shown, setting.options.label_smoothing) if setting.aim is not None else None,
    )
    loader = task.loading(loader)
    choosing.require_pairs(loader, network, setting)
    course = Course.of(network, setting.options, sparse.settled(setting, network))
    options = settled(setting, task, loader, course, stage)
    way = ways.settled(setting, task, network, loader, stage)
    rundir.write_json(setting.folder / CHOICES, setting.choices)
    choosing.tell_of_parts(setting, task, network)
    hearing = setting.listener if setting.aim is None else setting.aim.naming(setting.listener)
    curves = EventFiles(folder, hearing) if world.first else hearing
    training = Fit(
        task, loader, validate, options, folder, way.precision(setting.device), curves, stage, setting.identity, course
    )  # fmt: skip
    with salvaging(setting.options, folder), shared_norm.shared(network.module, world), way.over(task, network):
        score = training.run()
    setting.told.pop("softlabels", None)  # of a training before this one
    if task.told():
        setting.told["softlabels"] = softlabels.summed(task.told())
        setting.note(softlabels.sentence(setting.told["softlabels"]))
    return score


def _other_processes(
    choices: dict[str, Any], options: TrainFields, world: distributed.World, listener: Listener, stage: str
) -> None:
    """Lets a training go on with another number of processes than it had, and says so."""
    before = choices.get("processes", 1)
    if before != world.size:
        choices |= {
            "threads": options.threads or world.share_of_threads(usable_threads()), "processes": world.size
        }  # fmt: skip
        text = f"{before} processes trained until here and {world.size} go on: the same steps, up to rounding."
        listener(Event(stage, "note", {"text": text}))


def measured(setting: Setting, network: Network, folder: Path) -> dict[str, dict[str, Any]]:
    """The `scorecard` of validation and test, from the encoded files on, in fp32 as export wants it.

    What was said to each image is written into `folder`.
    """
    if setting.aim is not None:
        return task_record.measured(setting, setting.aim, network, folder)
    network.module.eval()
    predict = torch_predict(network.module, setting, Precision(setting.device, None))
    named = {"val": setting.parts.val, "test": setting.parts.test}
    found = {
        name: evaluate.evaluate(
            predict, items, setting.data.read, network.preprocess, classes=len(setting.data.labels)
        )
        for name, items in named.items()
        if items
    }
    predictions.write(folder, {name: predictions.of(one.logits, one.labels, one.keys) for name, one in found.items()})
    return scorecard.of_splits(found)


def save(setting: Setting, network: Network, folder: Path, **more: Any) -> None:
    """Writes the finished model and its record, and removes what only a resume needs."""
    record = {
        "stage": setting.stage,
        "labels": list(setting.data.labels),
        "data": {
            "source": absolute(setting.options.data),
            "name": setting.data.name,
            "fingerprint": setting.parts.fingerprint,
            "rule": dict(setting.parts.rule),
            "notes": list(setting.data.notes),
            **({"unlabelled": setting.unlabelled.to_json()} if setting.unlabelled.items else {}),
        },
        "options": json.loads(json.dumps(dataclasses.asdict(setting.options))),
        "identity": dict(setting.identity),
        "choices": setting.choices,
        "environment": rundir.environment(),
        **setting.told,
        **_task(setting),
        "macs": cost.image_macs(
            copy.deepcopy(network.module).cpu(), network.preprocess.size_hw, network.preprocess.channels
        ),
        **more,
    }
    weights.save(folder, network, record)
    tidy(folder)


def _task(setting: Setting) -> dict[str, Any]:
    """What the record says of another task than one class an image."""
    if setting.aim is None:
        return {}
    return task_record.described(setting, setting.aim, asked_of(setting.options).columns)


def asked_of(options: TrainFields) -> Asked:
    """What a training asks of its data: as it is told, or what its teachers answer."""
    return teachers.asked(options) if isinstance(options, Distill) else heads.asked(options)


def finished(options: TrainFields, listener: Listener, stage: str) -> bool:
    """Whether --resume finds the run complete already, and nothing newer begun beside it.

    Raises:
        OutputError: no folder can be made there.
        TrainingError: it is complete, and was made with other options or from other inputs.
    """
    out = Path(options.out)
    rundir.require_place(out)
    if not options.resume or not weights.is_run(out) or rundir.resumable(rundir.partial(out)):
        return False
    record = weights.read_record(out)
    data = datasets.open_data(options.data, asked=asked_of(options))
    parts = splits.resolve(data, options, recorded=record["data"]["rule"])
    extra = gather(getattr(options, "unlabeled", None), data, parts, stage, ignore)
    same = {**identity(options, parts.fingerprint), **extra.identity}
    require_same(record["identity"], same, f"{out} is finished, and", type(options))
    listener(Event(stage, "note", {"text": f"{out} is finished already; nothing was done."}))
    return True


def complete(setting: Setting) -> bool:
    """Whether the folder holds the finished model already, because the process died before the last rename.

    Raises:
        TrainingError: it was made with other options or from other inputs.
    """
    if not weights.is_run(setting.folder):
        return False
    then = weights.read_record(setting.folder)["identity"]
    require_same(then, setting.identity, f"The run in {setting.folder}", type(setting.options))
    tidy(setting.folder)
    return True


def tidy(folder: Path) -> None:
    """Removes what only a resume needs."""
    for name in LEFTOVERS:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / STEPS, ignore_errors=True)


def adjusted(network: Network, options: TrainFields) -> Network:
    """The network with the recipe's crop laid over its own preprocessing."""
    if options.crop_fraction is None:
        return network
    wants = dataclasses.replace(network.preprocess, crop_fraction=options.crop_fraction)
    return dataclasses.replace(network, preprocess=wants)
