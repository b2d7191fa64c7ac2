"""What only a real NVIDIA card can show of a TensorRT session: `pytest -m gpu`; skipped in words without one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_bundle import SIZE, graph_spec, make_graph, reference_logits

from edgetl import timing
from edgetl.backends import _cuda, _cuda_python, _cuda_torch, _tensorrt_build, _tensorrt_flavor, tensorrt
from edgetl.backends._tensorrt_session import TensorrtSession
from edgetl.errors import BackendUnavailable

pytestmark = pytest.mark.gpu
MOST = 32


@pytest.fixture(scope="module")
def plan():
    """An engine of the tiny graph, built for the card that is here."""
    available = tensorrt.probe()
    if not available.usable:
        pytest.skip(f"TensorRT cannot run here: {available.reason}")
    how = _tensorrt_build.How(batches=(1, 1, MOST))
    return _tensorrt_build.build(make_graph(), graph_spec(), _tensorrt_flavor.find(), how).plan


@pytest.fixture(params=[_cuda_python, _cuda_torch], ids=["cuda-python", "torch"])
def cuda(request, plan):
    found = request.param.open()
    if found is None:
        pytest.skip("this way to the CUDA runtime is not installed")
    return found


@pytest.fixture(params=[True, False], ids=["graphs", "no graphs"])
def session(request, plan, cuda):
    session = TensorrtSession(plan, _tensorrt_flavor.find(), cuda, graph_spec(), threads=1, cuda_graph=request.param,
                              facts={})
    yield session
    session.close()


def feeds_of(count, seed=0):
    return {"image": np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)}


def right(session, count, seed=0):
    feeds = feeds_of(count, seed)
    return bool(np.abs(session.run(feeds)["logits"] - reference_logits(feeds["image"])).max() < 1e-3)


def test_graphs_are_used_where_asked_for(session, request):
    asked = "no graphs" not in request.node.name
    assert session.info()["cuda_graph"].startswith("on" if asked else "off")


def test_batches_of_many_sizes_and_threads(session):
    assert all(right(session, count, seed) for seed in range(3) for count in (1, 2, 3, 8, 31, MOST, MOST + 7, 1))
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda seed: right(session, 1 + seed % 5, seed), range(200)))


def test_the_device_alone_takes_less_than_the_call(session):
    feeds = feeds_of(MOST)
    for _ in range(3):
        session.run(feeds)
    for _ in range(20):
        alone, whole_s = timing.timed(lambda: session.device_s(feeds))
        assert 0 < alone < whole_s


def test_closing_gives_the_memory_back(plan, cuda):
    def held():
        session = TensorrtSession(plan, _tensorrt_flavor.find(), cuda, graph_spec(), threads=1, cuda_graph=True,
                                  facts={})
        assert right(session, MOST)
        session.close()

    held()  # the first also loads what stays for the process
    before = cuda.card().free_bytes
    for _ in range(20):
        held()
    assert before - cuda.card().free_bytes < 64 * 2**20


def test_more_memory_than_there_is(cuda):
    card = cuda.card()
    assert card.name and float(card.compute_capability) >= 7 and 0 < card.free_bytes <= card.total_bytes
    with cuda.on_card(), pytest.raises(BackendUnavailable, match=r"out of memory: [\d,.]+ MiB is needed for a test"):
        cuda.device_memory(2 * card.total_bytes, "a test")
    cuda.device_memory(2**20, "a test").free()  # and the card goes on


def test_the_driver_is_told(cuda):
    assert _cuda.driver_cuda() >= 12000 and cuda.card().driver_version
