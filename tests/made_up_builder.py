"""TensorRT 10 and 11 made up: as much of the module as a builder uses, with the names that the real bindings have.

The real ones need libraries of a gigabyte and a card. `tests/backends/tensorrt_api.json` holds what the bindings
10.13.3.9 and 11.4.0.106 list; a test compares. What a class here does not have raises AttributeError, as there.
"""

from __future__ import annotations

import enum
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tiny_bundle import LABELS, SIZE

from edgetl.backends._tensorrt_flavor import Flavor

RECORDED = json.loads((Path(__file__).parent / "backends/tensorrt_api.json").read_text(encoding="utf-8"))
VERSIONS = tuple(RECORDED)


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class IProgressMonitor:
    """What the monitor of edgetl derives from."""


class ITensor:
    def __init__(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape


class ILayer:
    def __init__(self, kind: Any, into: list[ITensor], out: list[ITensor], name: str = "layer") -> None:
        self.type, self._into, self._out, self.name = kind, into, out, name
        self.num_inputs, self.num_outputs = len(into), len(out)

    def get_input(self, index: int) -> ITensor:
        return self._into[index]

    def get_output(self, index: int) -> ITensor:
        return self._out[index]


class IConvolutionLayer(ILayer):
    """A dense one of eight inputs, or a sparse one where the graph says so."""

    num_groups, num_output_maps, kernel_size_nd = 1, 4, (1, 1)

    @property
    def kernel(self) -> np.ndarray:
        return np.tile(np.array([1, 0, 0, 1 if "sparse" in self.name else 0.5], np.float32), 8) + (
            0 if "sparse" in self.name else 1)


class IMatrixMultiplyLayer(ILayer):
    """A product of two tensors that are computed."""


class IConstantLayer(ILayer):
    """There is none in the graph."""


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self._layers: list[ILayer] = []
        self._ports: list[ITensor] = []

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    num_inputs = num_outputs = property(lambda self: min(1, len(self._ports)))

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]

    def get_input(self, index: int) -> ITensor:
        return self._ports[0]

    def get_output(self, index: int) -> ITensor:
        return self._ports[1]


class IHostMemory(bytes):
    """Bytes that the builder owns."""


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> IHostMemory:
        return IHostMemory(self.data)

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if not input_cache.data.startswith(b"cache"):
            return False
        self.data += b"+" + input_cache.data
        return True


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.shapes[input] = (min, opt, max)


class IBuilderConfig:
    def __init__(self, module: Any) -> None:
        self._module = module
        self.cleared: list[str] = []
        self.flags_set: list[str] = []
        self.pools: dict[str, int] = {}
        self.profiles: list[IOptimizationProfile] = []
        self.timing_cache: ITimingCache | None = None
        self.profiling_verbosity: Any = None
        self.builder_optimization_level: int | None = None
        self.hardware_compatibility_level: Any = None
        self.progress_monitor: Any = None

    def clear_flag(self, flag: Any) -> None:
        self.cleared.append(flag.name)

    def set_flag(self, flag: Any) -> None:
        self.flags_set.append(flag.name)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self.pools[pool.name] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        if serialized_timing_cache.startswith(b"damaged"):
            self._module.say("WARNING", "Failed to deserialize timing cache. Returning an empty timing cache.")
            return ITimingCache(b"cache")
        return ITimingCache(bytes(serialized_timing_cache) or b"cache")

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache.data.startswith(b"other card") and not ignore_mismatch:
            return False
        self.timing_cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self.timing_cache


class ParserError:
    def __init__(self, code: Any) -> None:
        self._code = code

    def code(self) -> Any:
        return self._code

    def desc(self) -> str:
        return "Assertion failed: false: unsupported"

    def node(self) -> int:
        return 4

    def node_name(self) -> str:
        return ""

    def node_operator(self) -> str:
        return "Odd"

    def local_function_stack(self) -> list[str]:
        return ["outer", "inner"]


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self._network, self._logger = network, logger
        self.num_errors = 0

    def parse(self, model: bytes) -> bool:
        module = self._logger.module
        if model == b"odd":
            module.say("ERROR", 'ModelImporter.cpp:140: While parsing node number 4 [Odd -> "logits"]:')
            self.num_errors = 2
            return False
        kind = module.DataType.HALF if model == b"fp16" else module.DataType.FLOAT
        image = ITensor("image", module.DataType.FLOAT, (-1, 3, SIZE, SIZE))
        inner, logits = ITensor("inner", kind, (-1, 4)), ITensor("logits", module.DataType.FLOAT, (-1, len(LABELS)))
        cast = ITensor("cast", kind, image.shape)
        self._network._ports = [image, logits]
        self._network._layers = [ILayer(module.LayerType.CAST, [image], [cast]),
                                 ILayer(module.LayerType.CONVOLUTION, [cast], [inner],
                                        "sparse conv" if model == b"sparse" else "conv"),
                                 ILayer(module.LayerType.MATRIX_MULTIPLY, [inner, inner], [logits])]
        return True

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._logger.module.ErrorCode.UNSUPPORTED_NODE)


class Builder:
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._module = logger.module
        self._module.builders += 1
        if self._module.refuses == "driver":
            self._module.say("ERROR", "CUDA initialization failure with error: 35. Please check your CUDA installation")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        self._module.network = INetworkDefinition(flags)
        return self._module.network

    def create_builder_config(self) -> IBuilderConfig:
        self._module.config = IBuilderConfig(self._module)
        return self._module.config

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building Engine", None, 2)
        for step in range(2):
            if not monitor.step_complete("Building Engine", step):
                return None
        monitor.phase_finish("Building Engine")
        if self._module.refuses:
            self._module.say("ERROR", self._module.refuses)
            return None
        if "SPARSE_WEIGHTS" in config.flags_set:
            self._module.say("INFO", "(Sparsity) Found 1 layer(s) eligible to use sparse tactics: sparse conv")
            self._module.say("INFO", f"(Sparsity) {self._module.chose}")
        assert config.timing_cache is not None
        config.timing_cache.data += b"+kernels"
        return IHostMemory(b"a plan of " + self._module.__version__.encode())


CLASSES = (Builder, IBuilderConfig, INetworkDefinition, OnnxParser, ParserError, ITimingCache, IOptimizationProfile)
ENUMS = ("BuilderFlag", "NetworkDefinitionCreationFlag", "HardwareCompatibilityLevel", "ProfilingVerbosity",
         "MemoryPoolType", "LayerType", "DataType", "ErrorCode")
NUMBERS = itertools.count()
OWN = {"cleared", "flags_set", "pools", "profiles", "timing_cache", "shapes", "data"}  # for the tests


def made_up(version: str, *, refuses: str = "") -> Flavor:
    """A flavor whose module is made up.

    Args:
        version: one of VERSIONS.
        refuses: what the builder says instead of building; "driver": there is none, and so no builder.
    """
    module: Any = SimpleNamespace(__name__=f"made_up_builder_{next(NUMBERS)}", __version__=version, refuses=refuses,
                                  builders=0, IProgressMonitor=IProgressMonitor,
                                  IConvolutionLayer=IConvolutionLayer, IMatrixMultiplyLayer=IMatrixMultiplyLayer,
                                  IConstantLayer=IConstantLayer,
                                  chose="Chose 1 layer(s) using sparse tactics: sparse conv",
                                  **{one.__name__: one for one in CLASSES})
    module.ILogger = type("ILogger", (), {"module": module})
    for name in ENUMS:
        setattr(module, name, enum.IntEnum(name, RECORDED[version][name], start=0))

    def say(severity: str, text: str) -> None:
        from edgetl.backends import _tensorrt_log

        _tensorrt_log.logger(module).log(Severity[severity], text)

    module.say = say
    return Flavor("tensorrt", module, version, "tensorrt")
