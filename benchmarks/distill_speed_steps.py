"""One measurement of distill_speed.py, in a process of its own: `distill_speed_steps.py STEP PLAN OUT.json`."""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgetl import datasets, models, pipeline, rundir, splits, timing, weights
from edgetl.allocator import set_allocator
from edgetl.events import Event
from edgetl.models import Network
from edgetl.recipe import Distill, build
from edgetl.runtime.session import open_session
from edgetl.runtime.tuned import cache_root
from edgetl.train.task import Normalized

Plan = Mapping[str, Any]
BATCHES = 12  # of the teacher alone, of which the first two are not counted
ENGINES = {"cpu": {"spin": "off"}, "openvino": dict[str, str]()}  # as edgetl opens them


def teacher_alone(plan: Plan) -> dict[str, Any]:
    """Makes the teacher's RUN, and times it on batches of the student's views: torch and each engine, interleaved."""
    run = teacher_run(plan)
    normalized = Normalized(run.network.module, run.network.preprocess).eval()
    asks: dict[str, Callable[[torch.Tensor], Any]] = {"torch": normalized}
    from edgetl.export import graph

    made = graph.export(run.network, run.labels)
    for name, options in ENGINES.items():
        session = open_session(name, made.graph, made.spec, threads=plan["threads"], options=options)
        asks[name] = lambda images, session=session: session.run({"image": normalized.prepared(images).numpy()})
    size = plan["student_size"]
    images = torch.rand((plan["batch"], 3, size, size), generator=torch.Generator().manual_seed(0)) * 255
    seconds: dict[str, list[float]] = {name: [] for name in asks}
    with torch.no_grad():
        for _ in range(BATCHES):
            for name, ask in asks.items():
                seconds[name].append(timing.timed(lambda ask=ask: ask(images))[1])
    found = {name: statistics.median(values[2:]) / plan["batch"] for name, values in seconds.items()}
    return {"seconds_an_image": found, "parameters": weights.parameter_count(run.network.module)}


def teacher_run(plan: Plan) -> weights.Run:
    """A RUN of the teacher with ImageNet's weights and a new head, which is as heavy as a trained one."""
    folder = Path(plan["teacher"])
    if not weights.is_run(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        data = datasets.open_data(plan["data"])
        values = build(Distill, {"data": plan["data"], "teacher": "teacher", "out": "out"}, where="benchmark")
        parts = splits.resolve(data, values)
        network = models.create(plan["teacher_model"], classes=len(data.labels))
        about = {"source": plan["data"], "fingerprint": parts.fingerprint, "rule": dict(parts.rule)}
        weights.save(folder, network, {"labels": list(data.labels), "data": about, "metrics": {}})
    return weights.load(folder)


class Timed:
    """Hears edgetl's events, and knows when what came before the first step and each epoch ended."""

    def __init__(self) -> None:
        self.begin_s = timing.now_s()
        self.setup_s = 0.0
        self.epochs_s: list[float] = []

    def __call__(self, event: Event) -> None:
        now = timing.now_s()
        if event.kind == "begin" and event.values["what"] == "train":
            self.setup_s, self.begin_s = now - self.begin_s, now
        elif event.kind == "epoch":
            self.epochs_s.append(now - self.begin_s)
            self.begin_s = now


def edgetl_epochs(plan: Plan, epochs: int, loss: str, **options: Any) -> dict[str, Any]:
    """Seconds before the first step, and of each epoch with its validation and checkpoint."""
    out = Path(plan["teacher"]).parent / "student"
    clock = Timed()
    pipeline.distill(
        data=plan["data"],
        teacher=plan["teacher"],
        student=plan["student"],
        out=out,
        pretrained=False,
        image_size=plan["student_size"],
        epochs=epochs,
        loss=[loss],
        batch_size=str(plan["batch"]),
        lr=plan["lr"],
        weight_decay=plan["weight_decay"],
        clip_norm=plan["clip_norm"],
        crop_scale=plan["crop_scale"],
        color_jitter=0.0,
        threads=plan["threads"],
        teacher_engine=plan["engine"],
        control=False,
        overwrite=True,
        listener=clock,
        **options,
    )
    return {"setup_s": clock.setup_s, "epochs_s": clock.epochs_s}


def loss_of(plan: Plan) -> str:
    """Labels and kd as torchdistill's KDLoss weights them."""
    own = plan["label_weight"]
    return f"labels:{own},kd:{1 - own};temperature={plan['temperature']}"


def live(plan: Plan) -> dict[str, Any]:
    """The teacher answers in every epoch."""
    return edgetl_epochs(plan, 1, loss_of(plan))


def student_alone(plan: Plan) -> dict[str, Any]:
    """No teacher; two epochs, because in the first one torch makes its kernels."""
    return edgetl_epochs(plan, 2, "labels")


def stored(plan: Plan) -> dict[str, Any]:
    """One view: an epoch that builds the store, and two that read it."""
    found = edgetl_epochs(plan, 3, loss_of(plan), views=1)
    store = {kind: disk_bytes(cache_root() / kind) for kind in ("softlabels", "images")}
    return {**found, "store": {"views": 1, "photos": plan["photos"], "disk_bytes": store}}


def disk_bytes(folder: Path) -> int:
    """What all files under a folder take."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class FromUnit(nn.Module):
    """A network that takes pixels in 0..1, as torchvision's ToTensor gives them."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = Normalized(network.module, network.preprocess)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, K] of RGB images [N, 3, H, W]; resized as edgetl does where the network wants another size."""
        logits: torch.Tensor = self.network(images * 255)
        return logits


def torchdistill(plan: Plan, channels_last: bool = False) -> dict[str, Any]:
    """One epoch of torchdistill's DistillationBox, as its example for image classification runs it."""
    sys.path.insert(0, plan["torchdistill"])
    from torchdistill.core.distillation import get_distillation_box

    student = models.create(plan["student"], classes=10, pretrained=False, image_size=plan["student_size"])
    networks = [FromUnit(teacher_run(plan).network).eval(), FromUnit(student)]
    if channels_last:
        for network in networks:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    datasets_by_name = {"train": peer_photos(plan, student.preprocess.interpolation)}
    box = get_distillation_box(*networks, datasets_by_name, peer_config(plan), torch.device("cpu"), None, False, 1)

    def epoch() -> None:
        box.pre_epoch_process(epoch=0)
        for images, targets, more in box.train_data_loader:
            ready = images.contiguous(memory_format=torch.channels_last) if channels_last else images
            loss = box.forward_process(ready, targets, more)
            box.post_forward_process(loss=loss)
            if not np.isfinite(loss.item()):
                raise ValueError("the loss is not finite")

    return {"setup_s": 0.0, "epochs_s": [timing.timed(epoch)[1]]}


def peer_photos(plan: Plan, interpolation: str) -> Any:
    """The training photos with the same crops and flips, resized with the same filter."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    views = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                plan["student_size"],
                scale=(plan["crop_scale"], 1.0),
                interpolation=transforms.InterpolationMode(interpolation),
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )
    return ImageFolder(str(Path(plan["data"]) / "train"), views)


def peer_config(plan: Plan) -> dict[str, Any]:
    """torchdistill's `train` section for kd, after configs/sample/ilsvrc2012/kd of its repository."""
    logits = {"student_module_path": ".", "student_module_io": "output",
              "teacher_module_path": ".", "teacher_module_io": "output"}  # fmt: skip
    kd = {**logits, "temperature": plan["temperature"], "alpha": plan["label_weight"], "reduction": "batchmean"}
    terms = {"kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}}
    sampler = {"class_or_func": torch.utils.data.RandomSampler, "kwargs": {}}
    loading = {"batch_size": plan["batch"], "num_workers": plan["workers"], "drop_last": False}
    optimizer = {"lr": plan["lr"], "weight_decay": plan["weight_decay"]}
    return {
        "num_epochs": 1,
        "train_data_loader": {"dataset_id": "train", "sampler": sampler, "kwargs": loading},
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "AdamW", "kwargs": optimizer, "max_grad_norm": plan["clip_norm"], "grad_accum_step": 1},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }


STEPS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "teacher": teacher_alone,
    "live": live,
    "student": student_alone,
    "stored": stored,
    "torchdistill": torchdistill,
    "torchdistill channels-last": lambda plan: torchdistill(plan, channels_last=True),
}


def main() -> None:
    """Runs the step with the allocator and the threads that all have, and writes what it found."""
    name, plan, out = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    set_allocator()
    torch.set_num_threads(plan["threads"])
    found = STEPS[name](plan)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rundir.write_json(out, {**found, "peak_memory_bytes": peak})


if __name__ == "__main__":
    main()
