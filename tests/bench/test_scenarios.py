"""MLPerf's scenarios on a session that only remembers what it was asked."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from edgetl import timing
from edgetl.bench import mlperf, scenarios
from edgetl.runtime.preprocess import Preprocess, to_dict
from edgetl.runtime.session import GraphSpec, TensorSpec

SPEC = GraphSpec((TensorSpec("x", "image", "float32", ("N", 3, 4, 4), "NCHW"),),
                 (TensorSpec("y", "logits", "float32", ("N", 2)),))


class Clock:
    """Moves on by 10 ms a call of the session, and never by itself."""

    def __init__(self) -> None:
        self.now_ns = 0

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def perf_counter(self) -> float:
        return self.now_ns / 1e9


class Session:
    def __init__(self, clock) -> None:
        self.clock, self.sizes, self.first = clock, [], []

    def run(self, feeds):
        self.clock.now_ns += 10_000_000
        self.sizes.append(len(feeds["x"]))
        self.first.append(float(feeds["x"].flat[0]))


@pytest.fixture
def session(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return Session(clock)


def ask(session, scenario, batch=1, min_duration_s=2.0, **more):
    spec = dataclasses.asdict(dataclasses.replace(SPEC, extra={}))
    return scenarios.run(session, scenario=scenario, spec=spec, batch=batch, min_duration_s=min_duration_s, seed=0,
                         **more)


def test_single_stream_asks_one_sample_at_a_time_for_as_long_as_it_takes(session):
    found = ask(session, "single-stream")
    assert set(session.sizes) == {1}
    # The 201st query is the first to begin after 2 s.
    assert found["latencies_ns"] == [10_000_000] * 201 and found["samples"] == 201
    assert found["duration_s"] == 2.0 and found["inputs"] == "64 made-up inputs"
    assert len(session.sizes) == 201 + timing.DROPPED
    assert len(set(session.first)) > 40  # in random order, not one and the same


def test_multi_stream_asks_eight_side_by_side_in_calls_of_the_batch(session):
    found = ask(session, "multi-stream", batch=3)
    assert session.sizes[:3] == [3, 3, 2] and len(session.sizes) == 3 * (662 + timing.DROPPED)
    assert found["latencies_ns"] == [30_000_000] * 662 and found["samples"] == 8 * 662
    assert set(ask(session, "multi-stream", batch=16) and session.sizes[-600:]) == {8}


def test_offline_asks_all_samples_at_once_in_full_batches(session):
    found = ask(session, "offline", batch=16, min_duration_s=600.0)
    # A call of 16 takes 10 ms: 600 s and a tenth more are 66,000 calls, or one more by rounding up.
    calls = len(session.sizes) - 2 * timing.DROPPED
    assert set(session.sizes) == {16} and calls in (66_000, 66_001)
    assert found["samples"] == calls * 16 and found["duration_s"] == pytest.approx(calls / 100)
    assert found["latencies_ns"] == []
    judged = mlperf.judge("offline", found, min_duration_s=600.0, images=None)
    assert judged.valid and judged.samples_per_s == pytest.approx(1600.0)


def test_offline_asks_at_least_for_the_samples_that_mlperf_does(session):
    assert ask(session, "offline", batch=100, min_duration_s=0.1)["samples"] == 24_600


def test_an_offline_query_that_was_too_short_is_asked_again_at_the_rate_it_showed(session):
    """The calls that told the expected rate were held up: ten times as long as all the others."""
    plain = session.run

    def held_up(feeds):
        plain(feeds)
        session.clock.now_ns += 90_000_000 * (len(session.sizes) <= 2 * timing.DROPPED)

    session.run = held_up
    found = ask(session, "offline", batch=100, min_duration_s=60.0)
    # First 660 calls, 6.6 s; then, at 100 calls a second, the 6,600 that fill 60 s; each one more by rounding up.
    assert found["samples"] in (660_000, 660_100) and 60.0 < found["duration_s"] < 67.0
    assert len(session.sizes) - 2 * timing.DROPPED - found["samples"] // 100 in (660, 661)
    assert mlperf.judge("offline", found, min_duration_s=60.0, images=None).valid


def test_calls_larger_than_the_samples_that_are_there_repeat_them(session):
    found = ask(session, "offline", batch=150, min_duration_s=0.1)
    assert set(session.sizes) == {150} and found["samples"] == 150 * 164


def test_queries_lie_side_by_side_and_share_the_memory_of_the_samples():
    samples = {"x": np.arange(20.0), "mask": np.arange(20)}
    found = scenarios.queries(samples, 8, 5)
    assert [[call["x"].tolist() for call in query] for query in found] == [
        [[0, 1, 2, 3, 4], [5, 6, 7]], [[8, 9, 10, 11, 12], [13, 14, 15]]]
    assert all(np.shares_memory(call["x"], samples["x"]) for query in found for call in query)


def photos(folder, count, encode):
    for label in ("cat", "dog"):
        for split in ("train", "test"):
            place = folder / split / label
            place.mkdir(parents=True)
            for number in range(count):
                pixels = np.full((6, 6, 3), 20 * number + (100 if label == "dog" else 0), np.uint8)
                (place / f"{number}.png").write_bytes(encode(pixels))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_samples_are_the_test_images_prepared_for_the_graph(tmp_path, dtype):
    from edgetl import datasets
    from tests.tiny_bundle import encode

    data = str(photos(tmp_path / "photos", 3, encode))
    items = [item for item in datasets.open_data(data).items if item.split == "test"]
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps([item.key for item in items]))
    spec = GraphSpec((dataclasses.replace(SPEC.inputs[0], dtype=dtype),), SPEC.outputs)
    samples, told = scenarios.loaded(spec, data, str(keys), to_dict(Preprocess(size_hw=(4, 4))))
    assert told == "6 test images" and samples["x"].dtype == dtype
    assert samples["x"].shape == ((6, 3, 4, 4) if dtype == "float32" else (6, 4, 4, 3))
    assert len(np.unique(samples["x"].reshape(6, -1)[:, 0])) == 6
