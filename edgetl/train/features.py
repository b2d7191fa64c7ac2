"""What layers of a network give, heard with hooks while it answers, and which layers a loss looks at by default."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgetl import losses
from edgetl.errors import EdgetlError
from edgetl.models import Network
from edgetl.recipe_values import nearest


@dataclass(frozen=True)
class Layer:
    """A layer and the shape of what it gives for one image: [C, H, W], or [D]."""

    path: str  # of the module; its input is meant where `before`
    shape: torch.Size
    before: bool = False


def as_map(value: Any) -> torch.Tensor | None:
    """A layer's output as [N, C, H, W] or [N, D]; tokens [N, T, D] become [N, D, T, 1]; None where it is none of them.

    Maps with the channels last, as Swin has them, are told by their sides: images are square here.
    """
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dim() not in (2, 3, 4):
        return None
    if value.dim() == 3:
        return value.transpose(1, 2)[:, :, :, None]
    if value.dim() == 4 and value.shape[1] == value.shape[2] != value.shape[3]:
        return value.permute(0, 3, 1, 2)
    return value


class Layers:
    """All layers of a network, found by running it once on a black image."""

    def __init__(self, network: Network, who: str) -> None:
        self._network, self._who = network, who
        self._shapes: dict[str, torch.Size] = {}  # in the order in which they finish
        self._head: torch.Size | None = None
        module, modes = network.module, {one: one.training for one in network.module.modules()}
        device = next(module.parameters()).device
        with _hooked(module, self._hear, network.head, self._hear_head), torch.no_grad():
            module.eval()
            # Two images, since one can hide the batch.
            module(torch.zeros((2, *network.preprocess.input_shape), device=device))
        for one, training in modes.items():
            one.training = training

    def _hear(self, path: str, value: Any) -> None:
        found = as_map(value)
        if found is not None and len(found) == 2:
            self._shapes.pop(path, None)  # a module that runs twice counts where it ran last
            self._shapes[path] = found.shape[1:]

    def _hear_head(self, value: Any) -> None:
        found = as_map(value)
        self._head = None if found is None else found.shape[1:]

    def named(self, paths: str) -> tuple[Layer, ...]:
        """The layers of paths joined with `+`.

        Raises:
            EdgetlError: no such layer, or it gives no features; the nearest is suggested.
        """
        for path in (names := [one.strip() for one in paths.split("+")]):
            if path not in self._shapes:
                known = path in dict(self._network.module.named_modules())
                found = "gives no features" if known else "does not exist"
                raise EdgetlError(
                    f"--loss: the {self._who}'s layer '{path}' {found}{nearest(path, list(self._shapes)) or '.'}",
                    hint=f"Layers of {self._network.model} are for example: {', '.join(self.defaults_in_words())}.",
                )
        return tuple(Layer(path, self._shapes[path]) for path in names)

    def defaults_in_words(self) -> list[str]:
        """Paths of the last map of each resolution."""
        return [one.path for one in self.stages()]

    def embedding(self) -> Layer:
        """What goes into the last layer.

        Raises:
            EdgetlError: the last layer takes no plain features.
        """
        if self._head is None:
            raise EdgetlError(
                f"--loss: what goes into the last layer of the {self._who} ({self._network.model}) is no plain tensor.",
                hint="Name a layer with the loss's options student and teacher.",
            )
        return Layer(self._network.head, self._head, before=True)

    def stages(self) -> tuple[Layer, ...]:
        """The last map of each resolution, from fine to coarse; the inner layers of a block that shrinks do not count.

        Raises:
            EdgetlError: the network has no maps.
        """
        last: dict[int, Layer] = {}
        for path, shape in self._shapes.items():
            if len(shape) == 3 and shape[1] * shape[2] > 1 and not self._within_shrinking(path, shape):
                last[shape[1] * shape[2]] = Layer(path, shape)
        if not last:
            raise EdgetlError(
                f"--loss: the {self._who} ({self._network.model}) has no feature maps.",
                hint="Take a loss on logits, or name a layer with the loss's options student and teacher.",
            )
        return tuple(last[places] for places in sorted(last, reverse=True))

    def _within_shrinking(self, path: str, shape: torch.Size) -> bool:
        """Whether a block around the layer gives another resolution; sequences are no blocks."""
        parts = path.split(".")
        above = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        return any(
            other in self._shapes
            and self._shapes[other][1:] != shape[1:]
            and not isinstance(self._network.module.get_submodule(other), nn.Sequential | nn.ModuleList)
            for other in above
        )


def chosen(loss: nn.Module, student: Layers, teacher: Layers) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
    """The layers of student and teacher that a loss on features looks at, pair by pair.

    Raises:
        EdgetlError: no such layer, another number of them, or a kind of features that is unknown.
    """
    kind = str(loss.features)
    if kind not in losses.KINDS:
        raise EdgetlError(f"A loss has features = '{kind}', expected one of {', '.join(losses.KINDS)}.")
    both = [_one_side(found, str(getattr(loss, who, "")), kind) for who, found in
            (("student", student), ("teacher", teacher))]  # fmt: skip
    ours, theirs = both
    if kind == losses.STAGES and not (loss.student or loss.teacher):
        pairs = min(len(ours), len(theirs))  # counted from the coarsest: an input of another size has more fine ones
        return ours[-pairs:], theirs[-pairs:]
    if len(ours) != len(theirs):
        raise EdgetlError(
            f"--loss: {len(ours)} layers of the student ({_words(ours)}) and {len(theirs)} of the teacher "
            f"({_words(theirs)}), expected as many of each.",
            hint="Give both options, student and teacher, with as many paths.",
        )
    return ours, theirs


def _one_side(layers: Layers, paths: str, kind: str) -> tuple[Layer, ...]:
    if paths:
        return layers.named(paths)
    if kind == losses.EMBEDDING:
        return (layers.embedding(),)
    return layers.stages() if kind == losses.STAGES else layers.stages()[-1:]


def _words(layers: Sequence[Layer]) -> str:
    return ", ".join(one.path for one in layers)


def shapes(layers: Sequence[Layer], kind: str) -> tuple[torch.Size, ...]:
    """What a loss of that kind will be given of the layers, for one image."""
    return tuple(one.shape[:1] if kind == losses.EMBEDDING else one.shape for one in layers)


class Tap:
    """Hears what some layers of a network give."""

    def __init__(self, module: nn.Module, layers: Sequence[Layer]) -> None:
        self._module, self._layers = module, tuple(dict.fromkeys(layers))
        self._heard: dict[Layer, torch.Tensor] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Listens while the network answers; what was heard before is forgotten."""
        self._heard = {}
        with contextlib.ExitStack() as hooks:
            for layer in self._layers:
                hooks.enter_context(self._hook(layer))
            yield

    def _hook(self, layer: Layer) -> contextlib.AbstractContextManager[Any]:
        module = self._module.get_submodule(layer.path)
        if layer.before:
            return _removing(module.register_forward_pre_hook(lambda _, given: self._hear(layer, given[0])))
        return _removing(module.register_forward_hook(lambda _, given, made: self._hear(layer, made)))

    def _hear(self, layer: Layer, value: Any) -> None:
        found = as_map(value)
        assert found is not None  # it was when the layer was chosen
        self._heard[layer] = found

    def features(self, layers: Sequence[Layer], kind: str) -> tuple[torch.Tensor, ...]:
        """What was heard of these layers, as a loss of that kind takes it, in float32."""
        heard = [self._heard[layer].float() for layer in layers]
        return tuple(one.flatten(2).mean(2) if kind == losses.EMBEDDING and one.dim() > 2 else one for one in heard)


@contextlib.contextmanager
def _removing(hook: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def _hooked(module: nn.Module, hear: Any, head: str, hear_head: Any) -> Iterator[None]:
    with contextlib.ExitStack() as hooks:
        for path, one in module.named_modules():
            if path:
                hook = one.register_forward_hook(lambda _, given, made, path=path: hear(path, made))
                hooks.enter_context(_removing(hook))
        before = module.get_submodule(head).register_forward_pre_hook(lambda _, given: hear_head(given[0]))
        hooks.enter_context(_removing(before))
        yield
