"""Micro-batching: right answers to the right callers, bounded, and nobody is left waiting."""

import asyncio
import threading
import time
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest
from tiny_bundle import make_bundle, make_photo

from edgetl.errors import BackendUnavailable, InputError, Overloaded
from edgetl.runtime import load
from edgetl.runtime.batching import Batcher, Batching

PHOTOS = [make_photo(seed, 20 + seed % 5, 24) for seed in range(12)]
LATEST_S = 300  # a future that is not answered by then never is


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def classifier(bundle):
    with load(bundle, threads=1) as loaded:
        yield loaded


class Engine:
    """Stands for the graph: answers with what it is given, remembers batches, and can be held."""

    def __init__(self):
        self.batches = []
        self.go = threading.Event()
        self.begun = threading.Event()
        self.go.set()

    def run(self, images, tops):
        self.begun.set()
        assert self.go.wait(LATEST_S)
        self.batches.append(len(images))
        return [(image, top) for image, top in zip(images, tops, strict=True)]


@pytest.fixture
def engine():
    return Engine()


def batcher(engine, **options):
    return Batcher(lambda source: source, engine.run, Batching(**options))


def closed(made):
    made.close(BackendUnavailable("closed"))


def test_futures_hold_what_predict_returns(classifier):
    expected = [classifier.predict(photo, top=2) for photo in PHOTOS]
    found = [future.result(LATEST_S) for future in [classifier.submit(photo, top=2) for photo in PHOTOS]]
    assert [one.label for one in found] == [one.label for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)


def test_every_caller_has_its_own_top(classifier):
    futures = [classifier.submit(PHOTOS[0], top=top) for top in (1, 2, 3)]
    assert [len(future.result(LATEST_S).top) for future in futures] == [1, 2, 3]


def test_an_image_that_cannot_be_used_fails_alone(classifier):
    infinite = np.full((3, 16, 16), np.inf, np.float32)
    futures = [classifier.submit(one) for one in (PHOTOS[0], b"junk", infinite, PHOTOS[1])]
    wait(futures, LATEST_S)
    assert [type(future.exception()) for future in futures] == [type(None), InputError, InputError, type(None)]
    assert "not an image" in str(futures[1].exception())


def test_what_waits_while_a_batch_runs_makes_the_next_one(engine):
    made = batcher(engine, max_batch=4)
    engine.go.clear()
    futures = [made.submit("first", 1)]
    assert engine.begun.wait(LATEST_S)
    futures += [made.submit(number, 1) for number in range(6)]
    while len(made._ready) < 6:
        time.sleep(0.001)
    engine.go.set()
    assert [future.result(LATEST_S)[0] for future in futures] == ["first", 0, 1, 2, 3, 4, 5]
    assert engine.batches == [1, 4, 2]
    closed(made)


def test_a_deadline_gathers_and_a_full_batch_does_not_wait_for_it(engine):
    made = batcher(engine, max_batch=3, max_delay_s=10 * LATEST_S)
    futures = [made.submit(number, 1) for number in range(3)]
    assert [future.result(LATEST_S)[0] for future in futures] == [0, 1, 2]
    assert engine.batches == [3]
    closed(made)
    patient = batcher(engine, max_batch=3, max_delay_s=0.02)
    assert patient.submit("alone", 1).result(LATEST_S)[0] == "alone"
    closed(patient)


def test_more_than_may_wait_is_refused_and_there_is_room_again(engine):
    made = batcher(engine, max_waiting=3)
    engine.go.clear()
    futures = [made.submit(number, 1) for number in range(3)]
    with pytest.raises(Overloaded, match="3 images are waiting already") as caught:
        made.submit("more", 1)
    assert "max_waiting=3" in caught.value.message
    engine.go.set()
    wait(futures, LATEST_S)
    assert made.submit("more", 1).result(LATEST_S)[0] == "more"
    closed(made)


def test_a_callback_may_submit_the_next_image(engine):
    made = batcher(engine, max_waiting=1)
    answers = []
    made.submit("a", 1).add_done_callback(lambda _: answers.append(made.submit("b", 1)))
    while not answers:
        time.sleep(0.001)
    assert answers[0].result(LATEST_S)[0] == "b"
    closed(made)


def test_a_cancelled_image_is_not_run(engine):
    made = batcher(engine, workers=1)
    engine.go.clear()
    first = made.submit("first", 1)
    assert engine.begun.wait(LATEST_S)
    second, third = made.submit("second", 1), made.submit("third", 1)
    assert second.cancel()
    engine.go.set()
    assert (first.result(LATEST_S)[0], third.result(LATEST_S)[0]) == ("first", "third")
    assert sum(engine.batches) == 2
    with pytest.raises(CancelledError):
        second.result()
    assert made._jobs == set()
    closed(made)


def test_a_failure_of_the_graph_reaches_everybody(engine):
    def fails(images, tops):
        raise BackendUnavailable("out of memory")

    made = Batcher(lambda source: source, fails, Batching())
    for future in [made.submit(number, 1) for number in range(3)]:
        with pytest.raises(BackendUnavailable, match="out of memory"):
            future.result(LATEST_S)
    closed(made)


def test_closing_tells_those_who_wait(engine):
    made = batcher(engine, max_batch=1, workers=1)  # one worker: the first is ready first
    engine.go.clear()
    futures = [made.submit(number, 1) for number in range(4)]
    assert engine.begun.wait(LATEST_S)
    closing = threading.Thread(target=closed, args=[made])
    closing.start()
    while made._closed is None:
        time.sleep(0.001)
    engine.go.set()
    closing.join(LATEST_S)
    assert futures[0].result(LATEST_S)[0] == 0  # the batch that was being run
    for future in futures[1:]:
        with pytest.raises(BackendUnavailable, match="closed"):
            future.result(LATEST_S)
    with pytest.raises(BackendUnavailable, match="closed"):
        made.submit("late", 1)


def test_a_callback_may_close(bundle):
    loaded = load(bundle, threads=1)
    done = threading.Event()

    def close(_):
        loaded.close()
        done.set()

    loaded.submit(PHOTOS[0]).add_done_callback(close)
    assert done.wait(LATEST_S)
    with pytest.raises(BackendUnavailable, match="closed"):
        loaded.submit(PHOTOS[0])


def test_callers_from_many_threads_share_one_batcher(bundle):
    with load(bundle, threads=1, batching=Batching(max_waiting=1000)) as loaded:
        expected = [loaded.predict(photo).label for photo in PHOTOS]
        found = [None] * 16
        barrier = threading.Barrier(16)

        def ask(place):
            barrier.wait()
            found[place] = [loaded.submit(photo).result(LATEST_S).label for photo in PHOTOS]

        threads = [threading.Thread(target=ask, args=[place]) for place in range(16)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(LATEST_S)
        assert found == [expected] * 16


def test_asyncio(classifier):
    async def ask():
        return await asyncio.gather(*(classifier.predict_async(photo, top=1) for photo in PHOTOS))

    assert [one.label for one in asyncio.run(ask())] == [classifier.predict(photo).label for photo in PHOTOS]

    async def fails():
        await classifier.predict_async(b"junk")

    with pytest.raises(InputError, match="not an image"):
        asyncio.run(fails())


def test_asyncio_is_not_held_up_and_can_be_cancelled(classifier):
    async def ask():
        waiting = asyncio.ensure_future(classifier.predict_async(PHOTOS[0]))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return await classifier.predict_async(PHOTOS[1])

    assert asyncio.run(ask()).label == classifier.predict(PHOTOS[1]).label


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"max_delay_s": -1.0}, {"max_waiting": 0}, {"workers": -1}])
def test_wrong_options(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"{name} is"):
        Batching(**wrong)


def test_a_delay_that_is_no_number():
    with pytest.raises(InputError, match="max_delay_s is nan"):
        Batching(max_delay_s=float("nan"))
