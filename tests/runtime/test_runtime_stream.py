"""A stream gives what `predict` gives, in order, lazily, and leaves no thread behind."""

import itertools
import threading

import numpy as np
import pytest
from tiny_bundle import make_bundle, make_photo

from edgetl.errors import BackendUnavailable, EdgetlError, InputError
from edgetl.runtime import load, stream

LATEST_S = 300  # what has not happened by then never does


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def classifier(bundle):
    with load(bundle, threads=1) as loaded:
        yield loaded


def own_threads():
    return [one.name for one in threading.enumerate() if one.name.startswith("edgetl-")]


PHOTOS = [make_photo(seed, 20 + seed % 5, 24) for seed in range(23)]


@pytest.mark.parametrize("batch_size, workers", [(1, 1), (1, 4), (4, 2), (8, 0), (50, 3)])
def test_a_stream_is_its_images_one_by_one_and_in_order(classifier, batch_size, workers):
    expected = [classifier.predict(photo, top=2) for photo in PHOTOS]
    found = list(classifier.predict_stream(iter(PHOTOS), top=2, batch_size=batch_size, workers=workers))
    assert [one.label for one in found] == [one.label for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)
    assert own_threads() == []


def test_nothing_in_nothing_out(classifier):
    assert list(classifier.predict_stream([])) == []


def test_images_are_asked_for_no_further_ahead_than_said(classifier):
    last = 0

    def camera():
        nonlocal last
        while True:
            last += 1
            yield PHOTOS[0]

    stream = classifier.predict_stream(camera(), batch_size=2, workers=2)
    assert last == 0  # nothing is asked for before the first label is
    for number in range(20):
        next(stream)
        assert last <= number + 1 + 2 * (2 + 2)
    stream.close()


def test_an_answer_that_is_ready_is_handed_out_before_the_next_image_is_asked_for(classifier, monkeypatch):
    asked, answered = [], threading.Event()

    def submit(threads, work, *arguments):
        future = original(threads, work, *arguments)
        if work is stream._answer:
            future.add_done_callback(lambda _: answered.set())
        return future

    def slow_camera():
        for photo in PHOTOS[:6]:
            asked.append(photo)
            if len(asked) == 2:  # the first is on its way
                assert answered.wait(LATEST_S)
            yield photo

    original = stream._Threads.submit
    monkeypatch.setattr(stream._Threads, "submit", submit)
    answers = classifier.predict_stream(slow_camera())
    next(answers)
    assert len(asked) <= 2  # not the four that may be on their way


def test_closing_early_stops_the_threads(classifier):
    stream = classifier.predict_stream(itertools.cycle(PHOTOS), workers=3)
    for _ in range(5):
        next(stream)
    assert own_threads()
    stream.close()
    assert own_threads() == []
    for _ in classifier.predict_stream(itertools.cycle(PHOTOS), batch_size=4):
        break
    assert own_threads() == []  # the loop's generator went with the loop


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_bad_image_raises_in_its_place(classifier, batch_size):
    stream = classifier.predict_stream([*PHOTOS[:4], b"junk", *PHOTOS[4:]], batch_size=batch_size)
    assert len(list(itertools.islice(stream, 4))) == 4
    with pytest.raises(InputError, match="Image 4 of the stream is not an image"):
        next(stream)
    assert own_threads() == []


@pytest.mark.parametrize("batch_size", [1, 3])
def test_or_is_handed_out_in_its_place(classifier, tmp_path, batch_size):
    sources = [PHOTOS[0], b"junk", tmp_path / "gone.jpg", PHOTOS[1], np.full((3, 16, 16), np.nan, np.float32)]
    found = list(classifier.predict_stream(sources, batch_size=batch_size, on_error="yield"))
    assert [isinstance(one, InputError) for one in found] == [False, True, True, False, True]
    assert "gone.jpg" in found[2].message
    assert "not finite" in found[4].message
    assert [found[0].label, found[3].label] == [classifier.predict(photo).label for photo in PHOTOS[:2]]


def test_what_the_iterator_raises_comes_after_what_it_gave(classifier):
    def breaks():
        yield from PHOTOS[:3]
        raise OSError("the camera was unplugged")

    found = []
    with pytest.raises(OSError, match="unplugged"):
        found.extend(iter_into(found, classifier.predict_stream(breaks(), batch_size=2)))
    assert len(found) == 3
    assert own_threads() == []


def iter_into(found, stream):
    for one in stream:
        found.append(one)
    return []


def test_the_iterator_runs_in_the_callers_thread(classifier):
    seen = set()

    def camera():
        for photo in PHOTOS[:5]:
            seen.add(threading.current_thread())
            yield photo

    list(classifier.predict_stream(camera(), workers=3))
    assert seen == {threading.current_thread()}


def test_arguments_are_refused_at_once(classifier):
    for wrong, says in [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"on_error": "ignore"}, "on_error is 'ignore'; expected 'raise' or 'yield'"),
    ]:
        with pytest.raises(InputError, match=says):
            classifier.predict_stream(PHOTOS, **wrong)
    with pytest.raises(InputError, match="expected a list"):
        classifier.predict_stream("photo.jpg")


def test_closing_the_classifier_ends_a_stream_with_an_error(bundle):
    loaded = load(bundle, threads=1)
    stream = loaded.predict_stream(itertools.cycle(PHOTOS))
    next(stream)
    loaded.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        list(itertools.islice(stream, 50))
    with pytest.raises(BackendUnavailable, match="closed"):
        loaded.predict_stream(PHOTOS)
    assert own_threads() == []


def test_steps_overlap(classifier, monkeypatch):
    """While the first image is run, the second is decoded, and the caller may have gone on to the third."""
    prepare, run = classifier._feeder.prepare, classifier._each
    decoding, asked = threading.Semaphore(0), threading.Semaphore(0)

    def camera():
        for photo in PHOTOS[:3]:
            asked.release()
            yield photo

    def noted(*arguments):
        decoding.release()
        return prepare(*arguments)

    def waits(*arguments):
        if classifier._each is waits:  # the first time
            monkeypatch.setattr(classifier, "_each", run)
            for step in (decoding, decoding, asked, asked, asked):
                assert step.acquire(timeout=LATEST_S), "nothing happens while a graph runs"
        return run(*arguments)

    monkeypatch.setattr(classifier._feeder, "prepare", noted)
    monkeypatch.setattr(classifier, "_each", waits)
    assert len(list(classifier.predict_stream(camera(), workers=2))) == 3


def test_a_failure_of_the_graph_is_raised_even_when_bad_images_are_handed_out(classifier, monkeypatch):
    def fails(*_):
        raise EdgetlError("the graph failed")

    monkeypatch.setattr(classifier, "_each", fails)
    with pytest.raises(EdgetlError, match="the graph failed"):
        list(classifier.predict_stream(PHOTOS, on_error="yield"))
    assert own_threads() == []
