"""An engine from a graph, with TensorRT 11 or 10 or TensorRT for RTX.

Precision is the graph's: networks are strongly typed, and TF32 is off, which would round the factors of fp32 to ten
bits. Where its weights are 2:4 sparse, sparse kernels are allowed. TensorRT for RTX builds for cards that need not be
there; the others build for the card of this machine.
"""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from edgetl.backends import (
    _tensorrt_log,
    _tensorrt_monitor,
    _tensorrt_parse,
    _tensorrt_precision,
    _tensorrt_sparsity,
    _tensorrt_timing,
)
from edgetl.backends._tensorrt_flavor import Flavor
from edgetl.backends._tensorrt_log import Message
from edgetl.backends._tensorrt_parse import ParsedNetwork
from edgetl.errors import BackendUnavailable, BundleError, EdgetlError
from edgetl.runtime.session import GraphSpec

ANY = "none"  # hardware_compatible: the kind of card that it was built for
COMPATIBLE = (ANY, "ampere-plus", "same-compute-capability")
LEVELS = (0, 5)  # of the builder's optimization
CARD = re.compile(r"(\d+)\.(\d)")
DRIVER = ("Install NVIDIA's driver, or start the container with the card (docker run --gpus all). TensorRT for RTX "
          "builds without one for the cards that are named: edgetl engine --flavor rtx --compute-capability 8.9")
# What the builder says when it gives up -> what to do.
REASONS = (
    (r"within workspace limit|insufficient workspace", "Allow it more: --workspace 2GiB."),
    (r"out of memory|OutOfMemory|FAILED_ALLOCATION",
     "Free memory of the card, lower the greatest batch or the workspace."),
    (r"libnvinfer_lean|lean runtime", "Install the lean runtime (pip install tensorrt-lean), or build for this version "
                                      "alone."),
    (r"Could not find any implementation|no tactics", "Allow it more workspace, or export the model in another "
                                                      "precision."),
)
_BUILDING = threading.Lock()  # builders of one process share its logger, and would disturb one another's timings


@dataclass(frozen=True)
class How:
    """Everything about a build that is part of the engine's fingerprint."""

    batches: tuple[int, int, int] = (1, 1, 32)  # least, best and greatest batch of the optimisation profile
    compute_capabilities: tuple[str, ...] = ()  # ("8.6", "8.9"); () is the card that is there
    workspace_bytes: int | None = None  # None is what TensorRT takes: all of the card's
    optimization_level: int | None = None  # 0 builds fast, 5 searches longest; None is TensorRT's own, 3
    version_compatible: bool = False  # later versions of the same major number may load it
    hardware_compatible: str = ANY  # one of COMPATIBLE

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for the fingerprint."""
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class Engine:
    """What a builder made."""

    plan: bytes
    precisions: Mapping[str, float]  # shares of the parsed network's compute layers by precision
    build_s: float
    timing_cache: bytes | None  # what the builder knows about kernels now; None where the flavor keeps no such thing
    notes: tuple[str, ...] = ()  # what else should be known, a sentence each


def build(graph: bytes, spec: GraphSpec, flavor: Flavor, how: How, *, timing_cache: bytes | None = None,
          progress: Callable[[str, int, int], None] | None = None) -> Engine:
    """The engine of a graph. One build of a process runs at a time.

    Args:
        graph: in ONNX, with its weights inside.
        spec: its inputs and outputs; of a free batch ("N") the engine takes those of `how.batches`.
        flavor: which TensorRT.
        how: for which cards, and under which limits.
        timing_cache: what an earlier build gave; one that does not fit is left aside, which a note says.
        progress: see `edgetl.backends._tensorrt_monitor.run`.

    Raises:
        BundleError: the graph cannot be parsed; names node and operator.
        BackendUnavailable: it cannot be built here, or not for these cards.
        GateFailed: `spec.precision` asks for fp16, bf16 or int8, and the network computes in fp32.
        EdgetlError: `how` holds a value outside its limits.
    """
    check(how)
    cards = _cards(how, flavor)
    with _BUILDING, _tensorrt_log.collected(flavor.module) as heard:
        builder = _builder(flavor)
        parsed, precisions = _parsed(graph, spec, flavor, builder)
        _tensorrt_precision.insist(spec.precision, precisions, "the graph, as it was parsed,")
        heard.clear()
        config = _config(builder, flavor, how, cards)
        sparse = _tensorrt_sparsity.layers(parsed.network, flavor.module)
        if sparse:
            config.set_flag(flavor.module.BuilderFlag.SPARSE_WEIGHTS)
        profile = _profile(builder, parsed.network, spec, how)
        if profile is not None:
            config.add_optimization_profile(profile)
        notes = _tensorrt_timing.give(config, flavor, timing_cache)
        begun_s = time.monotonic()
        # `parsed` has the parser, too, whose weights the network uses: both live until the thread ends.
        plan = _tensorrt_monitor.run(
            flavor.module, config, lambda: builder.build_serialized_network(parsed.network, config), progress)
        build_s = time.monotonic() - begun_s
        if plan is None:
            _give_up(heard, flavor, how)
        if sparse:
            notes = (*notes, _tensorrt_sparsity.note(sparse, heard, flavor.title))
        return Engine(bytes(plan), precisions, build_s, _tensorrt_timing.take(config, flavor), notes)


def _parsed(graph: bytes, spec: GraphSpec, flavor: Flavor, builder: Any) -> tuple[ParsedNetwork, dict[str, float]]:
    """The network of a graph, and the shares of its precisions."""
    try:
        parsed = _tensorrt_parse.parse(graph, spec, flavor, builder)
        return parsed, _tensorrt_precision.of_network(parsed.network)
    except UnicodeDecodeError as problem:  # the bindings decode names when they are asked for
        raise BundleError(f"{flavor.title} cannot parse the graph: it holds names that are no text.",
                          hint=_tensorrt_parse.WHOLE) from problem


def check(how: How) -> None:
    """Returns where every value is within its limits.

    Raises:
        EdgetlError: says which is not, what was found and what is expected.
    """
    least, best, greatest = how.batches
    if not 1 <= least <= best <= greatest:
        raise EdgetlError(f"The batches are {least}, {best}, {greatest}; expected the least, the best and the greatest "
                          "in this order, from 1 upwards.")
    level = how.optimization_level
    if level is not None and not LEVELS[0] <= level <= LEVELS[1]:
        raise EdgetlError(f"The optimization level is {level}; expected {LEVELS[0]} to {LEVELS[1]}.")
    if how.workspace_bytes is not None and how.workspace_bytes < 1:
        raise EdgetlError(f"The workspace is {how.workspace_bytes} bytes; expected 1 or more.")
    if how.hardware_compatible not in COMPATIBLE:
        raise EdgetlError(f"The hardware compatibility is '{how.hardware_compatible}'; expected "
                          f"{', '.join(COMPATIBLE)}.")
    wrong = [card for card in how.compute_capabilities if not CARD.fullmatch(card)]
    if wrong:
        raise EdgetlError(f"The compute capability '{wrong[0]}' cannot be read; expected e.g. 8.9.")


def known_cards(flavor: Flavor) -> tuple[str, ...]:
    """Compute capabilities that the flavor builds for ahead of time; empty where it does so for none."""
    members = getattr(getattr(flavor.module, "ComputeCapability", None), "__members__", {})
    numbers = sorted(int(name[2:]) for name in members if re.fullmatch(r"SM\d+", name))
    return tuple(f"{number // 10}.{number % 10}" for number in numbers)


def _cards(how: How, flavor: Flavor) -> tuple[Any, ...]:
    """The module's own names of the cards to build for; of the one that is there, where the module has such a name."""
    known = known_cards(flavor)
    if not known:
        if how.compute_capabilities:
            raise BackendUnavailable(
                f"{flavor.title} builds for the card of this machine only; compute capability "
                f"{', '.join(how.compute_capabilities)} was asked for.",
                hint="Build on a machine with that card and leave the compute capability out; ahead of time builds "
                     "TensorRT for RTX: --flavor rtx.")
        return ()
    unknown = [one for one in how.compute_capabilities if one not in known]
    if unknown:
        raise BackendUnavailable(f"{flavor.title} builds for the compute capabilities {', '.join(known)}; "
                                 f"{', '.join(unknown)} was asked for.",
                                 hint="Cards of data centres (9.0, 10.0) need TensorRT itself, on the machine.")
    names = [f"SM{one.replace('.', '')}" for one in dict.fromkeys(how.compute_capabilities)] or ["CURRENT"]
    return tuple(getattr(flavor.module.ComputeCapability, name) for name in names)


def _builder(flavor: Flavor) -> Any:
    with _tensorrt_log.collected(flavor.module) as heard:
        try:
            return flavor.module.Builder(_tensorrt_log.logger(flavor.module))
        except (TypeError, RuntimeError) as problem:  # TypeError: TensorRT 10 and 11 give nothing without a driver
            said = next(iter(_tensorrt_log.errors(heard)), None)
            if said is None or _tensorrt_log.lacks_driver(heard):
                _want_driver(flavor)
            raise BackendUnavailable(f"{flavor.title} cannot begin to build: {said}.") from problem


def _want_driver(flavor: Flavor) -> NoReturn:
    raise BackendUnavailable(f"{flavor.title} finds no NVIDIA driver, or one that is too old, and so cannot build for "
                             "the card of this machine.", hint=DRIVER)


def _config(builder: Any, flavor: Flavor, how: How, cards: tuple[Any, ...]) -> Any:
    module = flavor.module
    config = builder.create_builder_config()
    config.clear_flag(module.BuilderFlag.TF32)
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # or the inspector would tell names alone
    if cards:
        config.num_compute_capabilities = len(cards)
        for index, card in enumerate(cards):
            config.set_compute_capability(card, index)
    if how.workspace_bytes is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, how.workspace_bytes)
    if how.optimization_level is not None:
        config.builder_optimization_level = how.optimization_level
    if flavor.name == "rtx" and (how.version_compatible or how.hardware_compatible != ANY):
        what = "other versions of itself" if how.version_compatible else "other cards than those that are named"
        raise BackendUnavailable(f"{flavor.title} builds no engines for {what}.",
                                 hint="Leave the flag out; name every card with --compute-capability.")
    if how.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if how.hardware_compatible != ANY:
        level = how.hardware_compatible.upper().replace("-", "_")
        if not hasattr(module.HardwareCompatibilityLevel, level):
            raise BackendUnavailable(f"{flavor.title} has no hardware compatibility '{how.hardware_compatible}'.")
        config.hardware_compatibility_level = getattr(module.HardwareCompatibilityLevel, level)
    return config


def _profile(builder: Any, network: Any, spec: GraphSpec, how: How) -> Any | None:
    """The sizes that the engine shall take; None where the graph leaves none free."""
    inputs = {one.name: one for one in spec.inputs}
    free = [tensor for index in range(network.num_inputs) if -1 in (tensor := network.get_input(index)).shape]
    if not free:
        return None
    profile = builder.create_optimization_profile()
    for tensor in free:
        shape = inputs[tensor.name].shape
        if any(isinstance(size, str) for size in shape[1:]):
            raise BundleError(f"The input '{tensor.name}' has the shape [{', '.join(map(str, shape))}]; expected sizes "
                              "that are fixed, the batch apart.", hint="Export the graph for one size of image.")
        batches = how.batches if isinstance(shape[0], str) else (shape[0],) * 3
        profile.set_shape(tensor.name, *((batch, *shape[1:]) for batch in batches))
    return profile


def _give_up(heard: deque[Message], flavor: Flavor, how: How) -> NoReturn:
    """Raises what the builder's messages say."""
    said = _tensorrt_log.errors(heard)
    text = " ".join(said)
    turing = re.search(r"Cannot compile operation '(.*?)' for Turing \(SM75\): (.+?) is not supported", text)
    if turing is not None:
        raise BackendUnavailable(f"{flavor.title} cannot build for compute capability 7.5: it has no {turing[2]} "
                                 f"there, which the layer '{turing[1]}' needs.",
                                 hint="Build fp16-based graphs for 7.5 separately, and the others without 7.5.")
    if not said and _tensorrt_log.lacks_driver(heard):
        _want_driver(flavor)
    cards = ", ".join(how.compute_capabilities) or "the card of this machine"
    hint = next((hint for pattern, hint in REASONS if re.search(pattern, text, re.IGNORECASE)), None)
    raise BackendUnavailable(f"{flavor.title} cannot build the engine for {cards}: "
                             f"{said[-1] if said else 'it does not say why'}.", hint=hint)
