"""Forks, other processes, closed classifiers, no memory, and many threads."""

import copy
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import graph_spec, make_bundle, make_graph, make_photo

from edgetl.errors import BackendUnavailable, EdgetlError
from edgetl.runtime import load
from edgetl.runtime.session import open_session

ROOT = Path(__file__).parents[2]
PHOTO = make_photo(2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def fresh(code, *arguments, timeout_s=600):
    """What a fresh interpreter prints as JSON; warnings of forks beside threads are its own."""
    script = textwrap.dedent(code)
    places = [str(ROOT), str(ROOT / "tests")]
    done = subprocess.run([sys.executable, "-c", f"import sys\nsys.path[:0] = {places!r}\n{script}", *arguments],
                          capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


FORK = """
    import json, os, signal
    from edgetl.errors import EdgetlError
    from edgetl.runtime import load
    from tiny_bundle import make_photo

    bundle, backend, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    photo = make_photo(2)
    classifier = load(bundle, backend, threads=threads)
    here = classifier.predict(photo).label
    classifier.submit(photo).result(300)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(300)
        told = {}
        for name, call in {
            "predict": lambda: classifier.predict(photo),
            "submit": lambda: classifier.submit(photo),
            "stream": lambda: list(classifier.predict_stream([photo])),
            "logits": lambda: classifier.logits([photo]),
            "again": lambda: load(bundle, "cpu", threads=threads).predict(photo).label,
        }.items():
            try:
                told[name] = call()
            except EdgetlError as problem:
                told[name] = problem.message
        classifier.close()
        os.write(writing, json.dumps(told).encode())
        if backend == "cpu":
            sys.exit(0)  # the long way out, on which inherited objects would be destroyed
        os._exit(0)
    os.close(writing)
    told = json.loads(b"".join(iter(lambda: os.read(reading, 65536), b"")) or b"{}")
    _, status = os.waitpid(child, 0)
    print(json.dumps({"told": told, "status": status, "here": here, "after": classifier.predict(photo).label,
                      "parent": os.getpid()}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("backend, threads", [("cpu", "1"), ("cpu", "2"), ("openvino", "1")])
def test_a_forked_child_is_told_and_can_load_its_own(bundle, backend, threads):
    found = fresh(FORK, str(bundle), backend, threads)
    assert found["status"] == 0, found
    assert found["after"] == found["here"]
    again = found["told"].pop("again")
    assert again == found["here"]
    for name, told in found["told"].items():
        assert f"opened in process {found['parent']}" in told, name
        assert "is a fork of it" in told, name


def answer_of(bundle):
    with load(bundle, threads=1) as loaded:
        return loaded.predict(PHOTO).label


@pytest.mark.parametrize("way", ["spawn"])
def test_another_process_loads_its_own(bundle, way):
    with multiprocessing.get_context(way).Pool(1) as pool:
        assert pool.apply(answer_of, [bundle]) == answer_of(bundle)


def test_a_classifier_cannot_be_sent_or_copied(bundle):
    with load(bundle, threads=1) as loaded:
        for attempt in (copy.copy, copy.deepcopy, multiprocessing.reduction.ForkingPickler.dumps):
            with pytest.raises(EdgetlError, match="belongs to the process that loaded it") as caught:
                attempt(loaded)
            assert "edgetl.runtime.load() there" in caught.value.hint


def test_every_method_of_a_closed_classifier_says_so(bundle):
    loaded = load(bundle, threads=1)
    loaded.close()
    prepared = np.zeros((1, 3, 16, 16), np.float32)
    calls = {
        "predict": lambda: loaded.predict(PHOTO),
        "predict a prepared array": lambda: loaded.predict(prepared),
        "predict_batch": lambda: loaded.predict_batch([PHOTO]),
        "predict_batch of nothing": lambda: loaded.predict_batch([]),
        "predict_stream": lambda: loaded.predict_stream([PHOTO]),
        "submit": lambda: loaded.submit(PHOTO),
        "logits": lambda: loaded.logits([PHOTO]),
        "logits of an array": lambda: loaded.logits(prepared),
        "logits of nothing": lambda: loaded.logits([]),
        "features": lambda: loaded.features([PHOTO]),
        "warmup": lambda: loaded.warmup(),
        "info": lambda: loaded.info(),
    }
    public = {name for name in dir(loaded) if not name.startswith("_")} - {"labels", "manifest", "close"}
    assert public - {"predict_async"} <= {name.split()[0] for name in calls}
    for name, call in calls.items():
        with pytest.raises(BackendUnavailable, match="closed"):
            pytest.fail(f"{name} gave {call()}")


def test_thirty_two_threads_give_what_one_gives(bundle):
    photos = [make_photo(seed, 20 + seed, 30) for seed in range(16)]
    prepared = np.random.default_rng(0).normal(size=(16, 3, 16, 16)).astype(np.float32)
    with load(bundle, threads=2) as loaded:
        serial = [loaded.predict(one) for one in (*photos, *prepared)]
        with ThreadPoolExecutor(32) as pool:
            for _ in range(8):
                assert list(pool.map(loaded.predict, (*photos, *prepared))) == serial


class Full:
    """A session that has no memory left."""

    def run(self, feeds):
        raise BackendUnavailable("ONNX Runtime failed while it ran the graph: Failed to allocate memory")

    def close(self):
        pass

    def info(self):
        return {}


def test_no_memory_in_the_engine_is_an_error(monkeypatch):
    session = open_session("cpu", make_graph(), graph_spec(), threads=1)

    class Library:
        def run(self, outputs, feeds):
            raise RuntimeError("[ONNXRuntimeError] : 6 : std::bad_alloc\nmore")

    session._handle.native = Library()
    with pytest.raises(BackendUnavailable, match="std::bad_alloc") as caught:
        session.run({"image": np.zeros((1, 3, 16, 16), np.float32)})
    assert "smaller batch" in caught.value.hint
    assert "\n" not in caught.value.message


LIMIT = """
    import json, resource
    import numpy as np
    from edgetl.errors import EdgetlError
    from edgetl.runtime import load

    classifier = load(sys.argv[1], threads=1)
    classifier.warmup(1)
    images = np.zeros((40_000, 3, 16, 16), np.float32)  # 123 MB; the graph needs as much again and more
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
    try:
        told = str(classifier.logits(images).shape)
    except EdgetlError as problem:
        told = f"{type(problem).__name__}: {problem.message}"
    small = classifier.logits(images[:2]).shape
    print(json.dumps([told, small]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory in use is read from Linux")
def test_no_memory_in_the_process_is_an_error_and_smaller_batches_still_run(bundle):
    told, small = fresh(LIMIT, str(bundle))
    assert told.startswith("BackendUnavailable: ONNX Runtime failed while it ran the graph"), told
    assert small == [2, 3]


def test_memory_does_not_grow_with_the_number_of_predictions(bundle):
    """A short form of benchmarks/runtime_soak.py; a leak of 250 bytes a call would show."""
    prepared = np.zeros((3, 16, 16), np.float32)
    with load(bundle, threads=1) as loaded:
        for _ in range(1_000):
            loaded.predict(prepared)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(8_000):
            loaded.predict(prepared)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2000  # KiB
