"""TensorRT's runtime without a card: a plan holds an ONNX graph, which ONNX Runtime's CPU computes.

It computes when the stream is waited for, on the addresses that were set, in the memory of `made_up_cuda`. As with the
real thing a refusal is a False or None and a word to the logger, and what the real thing leaves undefined (one context
used by two threads at once, a context that is changed while a CUDA graph of it is still launched) is an error.
"""

from __future__ import annotations

import enum
import json
import threading
import types
import weakref
from dataclasses import dataclass

import numpy as np
from made_up_cuda import Error, Op

from edgetl.backends._tensorrt_flavor import Flavor

MAGIC = b"made-up plan\n"
IMAGE_S = 2.0  # that the card takes for one image
WEIGHTS, WORKSPACE = 4096, 2048  # bytes of an engine and of a context


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class DataType(enum.IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    UINT8 = 5
    INT64 = 8


NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT8: np.int8, DataType.INT32: np.int32,
         DataType.UINT8: np.uint8, DataType.INT64: np.int64}
ONNX = {1: DataType.FLOAT, 10: DataType.HALF, 3: DataType.INT8, 6: DataType.INT32, 2: DataType.UINT8, 7: DataType.INT64}
Mode = enum.Enum("Mode", "NONE INPUT OUTPUT")
Location = enum.Enum("Location", "DEVICE HOST")
Format = enum.Enum("Format", "LINEAR CHW32")
Strategy = enum.Enum("Strategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED")
GraphStrategy = enum.Enum("GraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
Specialization = enum.Enum("Specialization", "LAZY EAGER NONE")


class ILogger:
    """The base class that a binding wants to be initialised by name."""

    def __init__(self):
        self.ready = True


class IProfiler:
    """As `ILogger`."""

    def __init__(self):
        self.ready = True


def make_plan(graph, batches=((1, 1, 32),), version="11.4", **changes):
    """The plan of an ONNX graph.

    Args:
        graph: its bytes.
        batches: least, best and greatest of each optimisation profile.
        version: of the TensorRT that may open it.
        changes: `location`, `form` of the tensors, `capturable`.
    """
    head = json.dumps({"batches": batches, "version": version, **changes}).encode()
    return MAGIC + head + b"\n" + graph


def flavor(card, name="tensorrt", version="11.4", package="tensorrt-cu13-bindings"):
    """A made-up TensorRT on a made-up card."""
    members = {"Runtime": lambda logger: Runtime(card, logger, module), "ILogger": ILogger, "IProfiler": IProfiler,
               "TensorIOMode": Mode, "TensorLocation": Location, "TensorFormat": Format, "DataType": DataType,
               "ExecutionContextAllocationStrategy": Strategy, "LayerInformationFormat": types.SimpleNamespace(JSON=1),
               "__version__": version}
    if name == "rtx":
        members |= {"CudaGraphStrategy": GraphStrategy, "DynamicShapesKernelSpecializationStrategy": Specialization}
    module = types.ModuleType(f"made_up_{name}_{id(card)}")
    module.__dict__.update(members)
    return Flavor(name, module, version, package)


class Runtime:
    """IRuntime."""

    def __init__(self, card, logger, module):
        assert logger.ready
        self.card, self.logger, self.module = card, logger, module

    def error(self, text):
        self.logger.log(Severity.ERROR, text)

    def deserialize_cuda_engine(self, plan):
        if not plan.startswith(MAGIC):
            self.error("IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion "
                       "magicTagRead == kMAGIC_TAG failed.Magic tag does not match)")
            return None
        head, _, graph = plan.removeprefix(MAGIC).partition(b"\n")
        about = json.loads(head)
        if about["version"] != self.module.__version__:
            self.error("IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion "
                       "stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match)")
            return None
        if self.card.used + WEIGHTS > self.card.capacity:
            self.error(f"Requested amount of GPU memory ({WEIGHTS} bytes) could not be allocated: OutOfMemory")
            return None
        return Engine(self, graph, about)


class Engine:
    """ICudaEngine."""

    def __init__(self, runtime, graph, about):
        import onnx
        import onnxruntime

        self.card, self.module, self.error, self.about = runtime.card, runtime.module, runtime.error, about
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.model = onnx.load_from_string(graph)
        constants = {one.name for one in self.model.graph.initializer}
        ends = ((Mode.INPUT, self.model.graph.input), (Mode.OUTPUT, self.model.graph.output))
        self.ports = {one.name: (mode, one.type.tensor_type) for mode, several in ends for one in several
                      if one.name not in constants}
        self.names = list(self.ports)
        self.num_io_tensors, self.num_optimization_profiles = len(self.names), len(about["batches"])
        self.device_memory_size_v2 = WORKSPACE
        self.contexts = weakref.WeakSet()

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return self.ports[name][0]

    def get_tensor_dtype(self, name):
        return ONNX[self.ports[name][1].elem_type]

    def get_tensor_shape(self, name):
        return [one.dim_value or -1 for one in self.ports[name][1].shape.dim]

    def get_tensor_location(self, name):
        return Location[self.about.get("location", "DEVICE")]

    def get_tensor_format(self, name):
        return Format[self.about.get("form", "LINEAR")]

    def get_tensor_profile_shape(self, name, index):
        assert self.get_tensor_mode(name) is Mode.INPUT
        return [[batch if size == -1 else size for size in self.get_tensor_shape(name)]
                for batch in self.about["batches"][index]]

    def create_runtime_config(self):
        assert hasattr(self.module, "CudaGraphStrategy"), "only TensorRT for RTX has what it is for"
        return RuntimeConfig()

    def create_execution_context(self, how):
        own = isinstance(how, RuntimeConfig)
        assert own == hasattr(self.module, "CudaGraphStrategy")
        assert own or how is Strategy.USER_MANAGED
        if own and self.card.used + WORKSPACE > self.card.capacity:
            self.error("[checkMacros.cpp::catchCudaError::226] Error Code 1: Cuda Runtime (out of memory)")
            return None
        context = Context(self, how)
        self.contexts.add(context)
        return context

    def create_engine_inspector(self):
        return types.SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": layers(self.model)}))


class RuntimeConfig:
    """IRuntimeConfig of TensorRT for RTX."""

    def __init__(self):
        self.cuda_graph_strategy = self.dynamic_shapes_kernel_specialization_strategy = None
        self.cache = None

    def create_runtime_cache(self):
        return RuntimeCache()

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class RuntimeCache:
    """IRuntimeCache of TensorRT for RTX."""

    HEAD = b"compiled by made-up TensorRT\n"

    def __init__(self):
        self.content = self.HEAD

    def deserialize(self, blob):
        fits = blob.startswith(self.HEAD)
        self.content = blob if fits else self.content
        return fits

    def serialize(self):
        return self.content


@dataclass
class Enqueued:
    """What one call of `execute_async_v3` computes, as it stood when it was queued."""

    context: Context
    state: int
    shapes: dict
    addresses: dict

    def __call__(self):
        context, engine = self.context, self.context.engine
        if context.state != self.state:
            engine.card.violation("a context was changed while its work was queued or recorded")
        feeds = {}
        for name, shape in self.shapes.items():
            dtype = np.dtype(NUMPY[engine.get_tensor_dtype(name)])
            array = engine.card.device[self.addresses[name]].array
            feeds[name] = array[:int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape).copy()
        names = [name for name in engine.names if engine.get_tensor_mode(name) is Mode.OUTPUT]
        for name, value in zip(names, engine.session.run(names, feeds), strict=True):
            raw = np.ascontiguousarray(value).view(np.uint8).reshape(-1)
            engine.card.device[self.addresses[name]].array[:raw.size] = raw
        context.user = None


class Context:
    """IExecutionContext."""

    def __init__(self, engine, how):
        self.engine, self.how, self.workspace = engine, how, None
        self.active_optimization_profile = 0
        self.shapes, self.addresses = {}, {}
        self.profiler, self.user, self.state, self.clean = None, None, 0, False

    def _changed(self):
        me = threading.get_ident()
        if self.user not in (None, me):
            self.engine.card.violation("two threads use one context at once")
        self.state += 1
        self.clean = False

    def set_device_memory(self, memory, size):
        self._changed()
        assert size >= WORKSPACE
        self.workspace = memory

    def set_optimization_profile_async(self, profile_index, stream_handle):
        self._changed()
        self.shapes, self.active_optimization_profile = {}, profile_index
        return profile_index < self.engine.num_optimization_profiles

    def set_input_shape(self, name, shape):
        self._changed()
        least, _, greatest = self.engine.get_tensor_profile_shape(name, self.active_optimization_profile)
        if not all(low <= size <= high for low, size, high in zip(least, shape, greatest, strict=True)):
            self.engine.error(f"IExecutionContext::setInputShape: Error Code 3: API Usage Error (Parameter check "
                              f"failed, condition: engineDims {shape} are out of the profile)")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, memory):
        self._changed()
        self.addresses[name] = memory
        return name in self.engine.ports

    def get_tensor_shape(self, name):
        batch = next(iter(self.shapes.values()))[0]
        return [batch if size == -1 else size for size in self.engine.get_tensor_shape(name)]

    def execute_async_v3(self, stream_handle):
        card, me = self.engine.card, threading.get_ident()
        recording = card.streams[stream_handle].recording is not None
        if self.user not in (None, me):
            card.violation("two threads use one context at once")
        if self.how is Strategy.USER_MANAGED and self.workspace is None:
            self.engine.error("Error Code 3: API Usage Error (no device memory was set)")
            return False
        if recording and (not self.clean or not self.engine.about.get("capturable", True)):
            self.engine.error("Error Code 1: Cuda Runtime (operation not permitted when stream is capturing)")
            return False
        # A recording may be launched for as long as it is there; its context then counts as used by nobody.
        self.user = None if recording else me
        self.clean = True
        images = next(iter(self.shapes.values()))[0]
        work = Enqueued(self, self.state, dict(self.shapes), dict(self.addresses))
        touches = (*self.addresses.values(), *([self.workspace] if self.workspace is not None else []))
        error = card.push(stream_handle, Op(work, IMAGE_S * images, touches, self.workspace))
        if self.profiler is not None:
            assert not recording
            for layer in layers(self.engine.model):
                self.profiler.report_layer_time(layer["Name"], 0.25)
        if error is not Error.cudaSuccess:
            self.engine.error(f"Error Code 1: Cuda Runtime ({error.name})")
        return error is Error.cudaSuccess


KINDS = {"Conv": "CaskConvolution", "Gemm": "gemm", "MatMul": "gemm", "QuantizeLinear": "Reformat",
         "GlobalAveragePool": "CaskPooling", "Flatten": "Shuffle", "Transpose": "Shuffle", "Cast": "Reformat"}


def layers(model):
    """What the inspector tells of each node; DequantizeLinear is part of the layer behind it."""
    dequantized = {out for node in model.graph.node if node.op_type == "DequantizeLinear" for out in node.output}
    types_of = {one.name: one.data_type for one in model.graph.initializer}
    made = []
    for index, node in enumerate(model.graph.node):
        if node.op_type == "DequantizeLinear":
            continue
        half = any(types_of.get(name) == 10 for name in node.input)
        plain = "Row major linear FP16 format" if half else "Row major linear FP32"
        into = "Int8" if node.input[0] in dequantized else plain
        out = "Int8" if node.op_type == "QuantizeLinear" else plain
        made.append({"Name": node.name or f"{node.op_type}_{index}", "LayerType": KINDS.get(node.op_type, "kgen"),
                     "Inputs": [{"Format/Datatype": into}], "Outputs": [{"Format/Datatype": out}],
                     "TacticName": f"made_up_{node.op_type.lower()}"})
    return made
