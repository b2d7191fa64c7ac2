"""MLPerf's scenarios on an opened session, in the worker's process.

A query of several samples is answered in calls of at most `batch` samples: how to cut it is left to the system that is
measured. Samples lie prepared in memory, as LoadGen has them loaded before the clock starts, and are handed over
without a copy: those of a multi-stream query are contiguous there, and an offline query repeats them in their order
(mlcommons/inference, loadgen/loadgen.cc, GenerateQueries).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.bench import mlperf
from edgetl.bench.worker import POOL, make_feeds, spec_from_json
from edgetl.timing import DROPPED, block, stream

if TYPE_CHECKING:
    from edgetl.runtime.session import GraphSpec, Session

Samples = Mapping[str, NDArray[Any]]  # by name of the input, [N, ...]
Query = Sequence[Samples]  # the calls that answer it

MADE_UP = 64  # samples where there are no images: more than the caches of most processors hold
ORDER = 4096  # queries whose choice of samples is drawn before the clock starts; then the same again
ATTEMPTS = 10  # offline queries at most, each longer than the one before, until one fills the time


def run(session: Session, *, scenario: str, spec: Mapping[str, Any], batch: int, min_duration_s: float, seed: int,
        images: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """`duration_s`, `samples`, `latencies_ns` of every query, and what the `inputs` were.

    Args:
        session: opened, and asked from one thread.
        scenario: a key of `mlperf.RULES`.
        spec: of the graph, as plain JSON.
        batch: samples of a call at most; offline exactly.
        min_duration_s: how long to measure at least.
        seed: of the order in which samples are asked.
        images: `data`, `keys` and `preprocess` as in the worker's "evaluate"; made-up inputs without.

    Raises:
        EdgetlError: inputs of this dtype cannot be made up, or an image cannot be read.
    """
    shape = spec_from_json(spec)
    rule = mlperf.RULES[scenario]
    samples, told = made_up(shape) if images is None else loaded(shape, **images)
    samples = at_least(samples, max(batch, rule.samples or 1))
    if rule.samples is None:
        count = len(json.loads(Path(images["keys"]).read_text())) if images else None
        least = mlperf.least_samples(scenario, count)
        found = offline(session, queries(samples, batch, batch), batch, min_duration_s, least)
    else:
        found = streamed(session, queries(samples, rule.samples, batch), rule, min_duration_s, seed)
    return {**found, "inputs": told}


def streamed(session: Session, asked: Sequence[Query], rule: mlperf.Rule, min_duration_s: float,
             seed: int) -> dict[str, Any]:
    """Queries one after another, each as soon as the one before is answered."""
    order = np.random.default_rng(seed).integers(len(asked), size=ORDER).tolist()
    run = session.run

    def call(number: int) -> None:
        for feeds in asked[order[number % ORDER]]:
            run(feeds)

    block(call, DROPPED)
    found = stream(call, least_calls=rule.min_queries, least_s=min_duration_s)
    count = len(found.latencies_ns)
    return {"latencies_ns": found.latencies_ns.tolist(), "duration_s": found.duration_s,
            "samples": count * (rule.samples or 0)}


def offline(session: Session, asked: Sequence[Query], batch: int, min_duration_s: float, least: int) -> dict[str, Any]:
    """All samples in one query, long enough for the time; its latency is the duration."""
    calls = [feeds for query in asked for feeds in query]
    run = session.run

    def call(number: int) -> None:
        run(calls[number % len(calls)])

    # By the fastest call, so that the query is rather too long than too short. Where all of them were held up it is too
    # short all the same; LoadGen then asks for a greater expected rate, which the query itself has just shown.
    per_s = batch / min(block(call, 2 * DROPPED).seconds)
    for _ in range(ATTEMPTS):
        count = math.ceil(mlperf.offline_samples(min_duration_s, per_s, least) / batch)
        found = stream(call, least_calls=count, least_s=0.0)
        duration_s = found.duration_s + found.latencies_ns[-1] / 1e9
        if duration_s >= min_duration_s:
            break
        per_s = count * batch / duration_s
    return {"latencies_ns": [], "samples": count * batch, "duration_s": duration_s}


def queries(samples: Samples, size: int, batch: int) -> list[Query]:
    """Queries of `size` samples that lie side by side, each cut into calls of at most `batch`."""
    count = len(next(iter(samples.values())))
    return [[{name: array[begin:min(begin + batch, first + size)] for name, array in samples.items()}
             for begin in range(first, first + size, batch)]
            for first in range(0, count - size + 1, size)]


def made_up(spec: GraphSpec) -> tuple[Samples, str]:
    """Inputs as the worker makes them, and what they are in words."""
    feeds = make_feeds(spec, MADE_UP // POOL)
    joined = {name: np.concatenate([one[name] for one in feeds]) for name in feeds[0]}
    return joined, f"{MADE_UP} made-up inputs"


def loaded(spec: GraphSpec, data: str, keys: str, preprocess: Mapping[str, Any]) -> tuple[Samples, str]:
    """The first images that `keys` lists, ready for the graph, and what they are in words.

    Raises:
        DataError: an image cannot be read.
    """
    from edgetl import datasets, evaluate
    from edgetl.runtime.preprocess import from_dict

    opened = datasets.open_data(data)
    by_key = {item.key: item for item in opened.items}
    items = [by_key[key] for key in json.loads(Path(keys).read_text())[:mlperf.MOST_SAMPLES]]
    image = next(one for one in spec.inputs if one.role == "image")
    wants = from_dict(preprocess, where="preprocess")
    if image.dtype == "uint8":
        batches = [pixels for pixels, _, _ in evaluate.pixel_batches(items, opened.read, wants)]
        return {image.name: np.concatenate(batches)}, f"{len(items)} test images"
    tensors = np.concatenate(list(evaluate.images(items, opened.read, wants)))
    return {image.name: tensors.astype(image.dtype, copy=False)}, f"{len(items)} test images"


def at_least(samples: Samples, count: int) -> Samples:
    """The samples, repeated where there are fewer than `count`."""
    present = len(next(iter(samples.values())))
    if present >= count:
        return samples
    return {name: np.concatenate([array] * math.ceil(count / present)) for name, array in samples.items()}
