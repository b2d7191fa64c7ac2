"""TensorRT's profiler: against a made-up module anywhere, and against the real one where there is a card."""

from __future__ import annotations

import importlib
import json
import types

import numpy as np
import pytest

from edgetl.backends import _tensorrt_profile
from edgetl.runtime.layers import Layer

INT8 = [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}]
FP16 = [{"Format/Datatype": "Row major linear FP16 format"}]
FP32 = [{"DataType": "Float", "Format": "kLINEAR"}]  # version 11
TOLD = {"Layers": [
    {"Name": "reformat", "LayerType": "Reformat", "Inputs": FP32, "Outputs": INT8},
    {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": INT8, "Outputs": INT8, "TacticName": "sm80_xmma_i8i8"},
    {"Name": "fc", "LayerType": "gemm", "Inputs": FP16, "Outputs": FP16},
    {"Name": "shuffle", "LayerType": "Shuffle", "Inputs": FP16, "Outputs": FP16},
    {"Name": "plugin", "LayerType": "PluginV3", "Inputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]},
    "a layer whose name alone is told"]}


class Profiler:
    """The base class that a binding wants to be initialised by name."""


def module_and_engine(told):
    inspector = types.SimpleNamespace(get_engine_information=lambda form: json.dumps(told))
    module = types.SimpleNamespace(IProfiler=Profiler, LayerInformationFormat=types.SimpleNamespace(JSON="json"))
    return module, types.SimpleNamespace(create_engine_inspector=lambda: inspector)


def test_what_the_inspector_tells_of_the_layers():
    module, engine = module_and_engine(TOLD)
    found = _tensorrt_profile.about(engine, module)
    assert {name: kind for name, (_, _, kind) in found.items()} == {
        "reformat": "converting", "conv": "integer", "fc": "float", "shuffle": "moving", "plugin": "unknown"}
    assert found["conv"][1] == "sm80_xmma_i8i8 Thirty-two wide channel vectorized row major Int8 format."
    assert found["reformat"][1] == "Float kLINEAR"


@pytest.mark.parametrize(("layers", "shares"), [
    (TOLD["Layers"], {"int8": 0.5, "fp16": 0.5}),
    ([{"LayerType": "kgen", "Inputs": FP16}, {"LayerType": "kgen", "Inputs": FP32},
      {"LayerType": "Reformat", "Inputs": INT8}, {"LayerType": "kgen", "Inputs": FP16}],
     {"fp16": 2 / 3, "fp32": 1 / 3}),
    ([{"LayerType": "CaskGemmConvolution", "Inputs": [{"DataType": "BFloat16", "Format": "kLINEAR"}]},
      {"LayerType": "MatrixMultiply", "Inputs": [{"Format/Datatype": "Row major linear BF16 format"}]},
      {"LayerType": "kgen", "Inputs": FP32}], {"bf16": 1.0}),
    (["conv1", "conv2"], {})])
def test_the_shares_of_precision(layers, shares):
    module, engine = module_and_engine({"Layers": layers})
    found = _tensorrt_profile.precisions(engine, module)
    assert found == pytest.approx(shares) and list(found) == sorted(found, key=lambda name: -found[name])


def test_every_call_is_told_apart():
    module, engine = module_and_engine(TOLD)
    context = types.SimpleNamespace()

    class Session:
        closed = False

        def run(self, feeds):
            context.profiler.report_layer_time("conv", 2.0)
            context.profiler.report_layer_time("a layer whose name alone is told", 0.5)
            return {"logits": feeds["image"]}

        def info(self):
            return {"provider": "TensorRT"}

        def close(self):
            self.closed = True

    session = Session()
    profiled = _tensorrt_profile.Profiled(session, context, engine, module)
    for value in range(3):
        assert profiled.run({"image": value}) == {"logits": value}
    assert profiled.layers(1) == (
        Layer("conv", "CaskConvolution", "sm80_xmma_i8i8 Thirty-two wide channel vectorized row major Int8 format.",
              "integer", (0.002, 0.002)),
        Layer("a layer whose name alone is told", "layer", "not told", "unknown", (0.0005, 0.0005)))
    assert profiled.info() == {"provider": "TensorRT"}
    profiled.close()
    assert session.closed


def real_tensorrt():
    """TensorRT's module, or a skip that says what is lacking."""
    for name in ("tensorrt", "tensorrt_rtx_bindings"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    pytest.skip("neither tensorrt nor tensorrt_rtx_bindings with its libraries is installed")


def test_the_real_profiler_reports_every_layer_of_a_call():
    trt = real_tensorrt()
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("TensorRT deserialises and runs engines on an NVIDIA card only, and there is none")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    image = network.add_input("image", trt.float32, (1, 3, 16, 16))
    weights = np.ones((4, 3, 3, 3), np.float32)
    conv = network.add_convolution_nd(image, 4, (3, 3), trt.Weights(weights), trt.Weights(np.zeros(4, np.float32)))
    conv.get_output(0).name = "logits"
    network.mark_output(conv.get_output(0))
    engine = trt.Runtime(logger).deserialize_cuda_engine(builder.build_serialized_network(network, config))
    context = engine.create_execution_context()
    given, made = torch.ones(1, 3, 16, 16).cuda(), torch.zeros(1, 4, 14, 14).cuda()
    context.set_tensor_address("image", given.data_ptr())
    context.set_tensor_address("logits", made.data_ptr())

    def run(feeds):
        context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        return {}

    session = types.SimpleNamespace(run=run, info=dict, close=lambda: None)
    profiled = _tensorrt_profile.Profiled(session, context, engine, trt)
    for _ in range(3):
        profiled.run({})
    found = profiled.layers(1)
    profiled.close()
    assert found and all(len(one.seconds) == 2 and one.kind != "integer" for one in found)
    assert float(made[0, 0, 0, 0]) == 27.0
