"""Batch norms that take their statistics over the batch of all processes, as one process would.

On CUDA that is torch's `SyncBatchNorm`. It does not run on a CPU, where the same formula is computed with two sums over
the processes. The layers themselves stay what and where they are: only their way of computing is lent for a while, so
names, weights, hooks and what is exported later do not change.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetl.train.distributed import World, summed_over


@contextlib.contextmanager
def shared(module: nn.Module, world: World) -> Iterator[None]:
    """Has the batch norms of a module share their statistics for the time of the block."""
    layers = [one for one in module.modules() if isinstance(one, _BatchNorm)] if world.size > 1 else []
    for layer in layers:
        on_gpu = layer.running_mean is not None and layer.running_mean.device.type == "cuda"
        normalize = _on_cuda(layer) if on_gpu else functools.partial(_normalized, layer)
        layer.forward = functools.partial(_forward, layer, normalize)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(
    layer: _BatchNorm, normalize: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor
) -> torch.Tensor:
    """What the layer makes of values [N, C, ...]; timm's layers end with an activation of their own."""
    if layer.training:
        found = normalize(values)
    else:
        by_batch = layer.running_mean is None  # a layer that tracks nothing looks at the batch in evaluation, too
        found = F.batch_norm(
            values, layer.running_mean, layer.running_var, layer.weight, layer.bias, by_batch, 0.0, layer.eps
        )
    for name in ("drop", "act"):
        following = getattr(layer, name, None)
        found = following(found) if isinstance(following, nn.Module) else found
    return found


def _on_cuda(layer: _BatchNorm) -> Callable[[torch.Tensor], torch.Tensor]:
    """torch's own layer on the very same weights and statistics."""
    found = nn.SyncBatchNorm(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    )  # fmt: skip
    found.train()

    def normalized(values: torch.Tensor) -> torch.Tensor:
        found.weight, found.bias = layer.weight, layer.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(found, name, getattr(layer, name))  # for a while, others may be lent to the layer
        answer: torch.Tensor = found(values)
        return answer

    return normalized


def _normalized(layer: _BatchNorm, values: torch.Tensor) -> torch.Tensor:
    """Values [N, C, ...] with the mean and variance over all processes; the running statistics move along."""
    over = [0, *range(2, values.dim())]
    shape = [1, -1, *[1] * (values.dim() - 2)]
    exact = values.float()
    count = values.new_tensor([values.numel() / values.shape[1]], dtype=torch.float32)
    sums = summed_over(torch.cat([exact.sum(over), count]))
    total = sums[-1].detach()
    mean = sums[:-1] / total
    centred = exact - mean.view(shape)
    variance = summed_over(centred.square().sum(over)) / total  # in a second pass: squares of raw values lose digits
    _track(layer, mean.detach(), variance.detach(), float(total))
    found = centred * torch.rsqrt(variance + layer.eps).view(shape)
    if layer.affine:
        found = found * layer.weight.view(shape) + layer.bias.view(shape)
    return found.to(values.dtype)


@torch.no_grad()
def _track(layer: _BatchNorm, mean: torch.Tensor, variance: torch.Tensor, count: float) -> None:
    if not layer.track_running_stats or layer.running_mean is None or layer.running_var is None:
        return
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    weight = layer.momentum if layer.momentum is not None else 1 / float(layer.num_batches_tracked)
    layer.running_mean.lerp_(mean, weight)
    layer.running_var.lerp_(variance * (count / max(1.0, count - 1)), weight)
