"""What a training runs on and in what pieces: device, precision, images a step and how they are dealt out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgetl.errors import BackendUnavailable, EdgetlError
from edgetl.events import Event
from edgetl.models import Network
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import distributed
from edgetl.train.loader import TrainLoader
from edgetl.train.task import ClassifierTask, compares_images

if TYPE_CHECKING:
    from edgetl.train.setting import Setting

CPU_BATCH = 32
GPU_BATCH = 256


def choose_device(name: str) -> torch.device:
    """The device by its name; `auto` is CUDA where torch sees it, else the CPU.

    Raises:
        BackendUnavailable: the device that was asked for is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise EdgetlError(f"--device is '{name}', expected auto, cpu, cuda or cuda:N.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            f"--device {name}: torch {torch.__version__} sees no CUDA device here.",
            hint="Use --device cpu, or check the driver with nvidia-smi.",
        )
    if kind == "cuda" and (torch.device(name).index or 0) >= torch.cuda.device_count():
        raise BackendUnavailable(
            f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0."
        )
    return torch.device(name)


def choose_amp(wish: str, device: torch.device) -> str:
    """Autocast by name (off, bf16, fp16); `auto` is what the CUDA device does well, and off on a CPU."""
    if wish != "auto":
        return wish
    if device.type != "cuda":
        return "off"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def choose_batch(setting: Setting, task: ClassifierTask, preprocess: Preprocess) -> int:
    """Images a step: as asked; `auto` is 32 on a CPU and on a GPU the largest power of two, up to 256, that fits and
    still leaves 20 steps an epoch.

    Raises:
        EdgetlError: not a whole number above 0, or not even one image fits.
    """
    wish = setting.options.batch_size
    if wish != "auto":
        if not wish.isdigit() or int(wish) < 1:
            raise EdgetlError(f"--batch-size is '{wish}', expected 'auto' or a whole number above 0.")
        return int(wish)
    if setting.device.type == "cpu":
        return CPU_BATCH
    size = GPU_BATCH
    while size > CPU_BATCH and len(setting.shown) < 20 * size:
        size //= 2
    parts = distributed.current().size
    while not fits(setting, task, preprocess, math.ceil(size / parts)):
        if size == 1:
            raise EdgetlError(
                "Not even one image a step fits into the GPU's memory.", hint="Use a smaller --image-size."
            )
        size //= 2
    return size


def fits(setting: Setting, task: ClassifierTask, preprocess: Preprocess, size: int) -> bool:
    """Whether a forward and backward pass of `size` images fits; leaves batch statistics as they were."""
    state = {name: value.clone() for name, value in task.network.state_dict().items()}
    images = torch.zeros((size, *preprocess.input_shape), device=setting.device)
    task.train_mode()
    try:
        with setting.precision.autocast():
            answers = task.input(images)
            task.rehearse(images)
        answers.float().sum().backward()
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        task.zero_grad(set_to_none=True)
        task.network.load_state_dict(state)
    return True


def require_pairs(loader: TrainLoader, network: Network, setting: Setting) -> None:
    """Raises EdgetlError where batch norm would have to learn from a single image."""
    parts = loader.cells.ranks * loader.cells.micro
    # Mixup keeps pairs together, so that fewer parts get some.
    if parts > 1 and loader.smallest < 2 * parts:
        raise EdgetlError(
            f"A step of {loader.smallest} images is too small for {loader.cells.ranks} processes and --accumulate "
            f"{loader.cells.micro}, which need at least {2 * parts}.",
            hint="Use a larger --batch-size.",
        )
    if _normalizes(network) and loader.smallest < 2:
        raise EdgetlError(
            f"{len(setting.shown)} training images and --batch-size {setting.choices['batch_size']} make a step "
            f"of one image, from which the batch norms of {network.model} cannot learn.",
            hint="Use a larger --batch-size.",
        )


def _normalizes(network: Network) -> bool:
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.module.modules())


def tell_of_parts(setting: Setting, task: ClassifierTask, network: Network) -> None:
    """Says what looks at a micro-batch and not at the whole step."""
    micro, size = setting.options.accumulate, setting.choices["batch_size"]
    looking = [f"the loss '{term.name}'" for term in task.terms if compares_images(term)]
    looking += ["batch norm"] if _normalizes(network) else []
    if micro > 1 and looking:
        text = f"--accumulate {micro}: {' and '.join(looking)} sees the {size} images of a micro-batch, not a step's "
        setting.listener(Event(setting.stage, "warning", {"text": f"{text}{micro * size}."}))
