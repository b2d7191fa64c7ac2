"""`python -m edgetl.runtime serve BUNDLE --stdin`: every line is answered, in order; only the end ends it."""

import base64
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import encode, make_bundle, make_photo

from edgetl.runtime import __main__ as command
from edgetl.runtime import load, serve

ROOT = Path(__file__).parents[2]
PHOTO = encode(make_photo(2))
IMAGE = base64.b64encode(PHOTO).decode()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def classifier(bundle):
    with load(bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(PHOTO)
    return path


def answers(classifier, sent: bytes, tmp_path, **options):
    """What the worker says to `sent`, through JSON as a client reads it."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(sent)
    with path.open("rb") as source, serve.Stop() as stop:
        found = serve.answers(classifier, source.fileno(), stop, **options)
        return [json.loads(json.dumps(one, allow_nan=False)) for one in found]


def lines(*requests) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in requests)


def test_path_and_bytes_give_what_predict_gives(classifier, photo, tmp_path):
    expected = classifier.predict(photo, top=2)
    sent = lines({"id": 1, "path": str(photo)}, {"id": "b", "image": IMAGE}, {"image": IMAGE, "top": 1, "note": []})
    first, second, third = answers(classifier, sent, tmp_path, top=2)
    assert first["id"] == 1
    assert (first["label"], first["index"], first["score"]) == (expected.label, expected.index, expected.score)
    assert first["top"] == [list(one) for one in expected.top]
    assert second == first | {"id": "b"}
    assert (third["id"], len(third["top"])) == (None, 1)


@pytest.mark.parametrize(
    "line, identity, says",
    [
        (b"", None, "not JSON"),
        (b"photo.jpg", None, "not JSON"),
        (b"\xff\xfe\x00", None, "not JSON"),
        (b"[" * 100_000, None, "not JSON"),
        (b"1" * 5000, None, "not JSON"),
        (b"[1]", None, "is a list; expected an object"),
        (b"null", None, "is null"),
        (b'{"id": 1.5, "path": "x"}', None, "'id' is a number; expected a text or a whole number"),
        (b'{"id": {}, "path": "x"}', None, "'id' is an object"),
        (b'{"id": true, "path": "x"}', None, "'id' is true or false"),
        (b'{"id": 1}', 1, "neither 'path' nor 'image'"),
        (b'{"id": 1, "path": "a", "image": "b"}', 1, "both 'path' and 'image'"),
        (b'{"id": 1, "path": 7}', 1, "'path' is a number; expected a text"),
        (b'{"id": 1, "image": "???"}', 1, "not base64"),
        (b'{"id": 1, "image": ""}', 1, "it is empty"),
        (b'{"id": 1, "image": "AAAA"}', 1, "not an image"),
        (b'{"id": "\\ud800", "path": "\\ud800"}', "\ud800", "cannot be read"),
        (b'{"id": 1, "path": "a\\u0000b"}', 1, "cannot be read"),
        (b'{"id": 1, "path": "/nowhere/x.jpg"}', 1, "/nowhere/x.jpg cannot be read"),
        (b'{"id": 1, "path": "/dev/zero"}', 1, "/dev/zero is no regular file"),
        (b'{"id": 1, "path": "/"}', 1, "/ cannot be read"),
        (b'{"id": 1, "path": "x", "top": 0}', 1, "'top' is 0; expected a whole number"),
        (b'{"id": 1, "path": "x", "top": "all"}', 1, "'top' is \"all\""),
    ],
)
def test_a_bad_line_is_answered_and_the_next_one_too(classifier, tmp_path, line, identity, says):
    bad, good = answers(classifier, line + b"\n" + lines({"id": 2, "image": IMAGE}), tmp_path)
    assert bad["id"] == identity
    assert bad["line"] == 1
    assert says in bad["error"]
    assert set(bad) == {"id", "line", "error", "hint"}
    assert good["id"] == 2
    assert "label" in good


@pytest.mark.parametrize("length", [101, 70_000, 200_000])
def test_a_line_that_is_too_long_is_not_kept(classifier, photo, tmp_path, length):
    short = lines({"id": 2, "path": photo.name})[:-1]
    assert len(short) <= 100
    told = answers(classifier, b"x" * length + b"\n" + short + b"\n" + b"y" * length, tmp_path, max_line_bytes=100)
    assert [one.get("line") for one in told] == [1, 2, 3]
    assert "longer than the limit of 100 bytes" in told[0]["error"]
    assert "photo.png cannot be read" in told[1]["error"]
    assert "longer than the limit" in told[2]["error"]


def test_a_line_at_the_limit_and_one_without_its_line_end(classifier, tmp_path):
    line = lines({"id": 1, "image": IMAGE})[:-1]
    first, second = answers(classifier, line + b"\r\n" + line, tmp_path, max_line_bytes=len(line) + 1)
    assert first == second
    assert first["id"] == 1
    assert "longer" in answers(classifier, line, tmp_path, max_line_bytes=len(line) - 1)[0]["error"]
    assert answers(classifier, b"", tmp_path) == []


def test_without_memory_the_worker_goes_on(classifier, tmp_path, monkeypatch):
    def starve(source, **options):
        raise MemoryError

    monkeypatch.setattr(classifier, "predict", starve)
    first, second = answers(classifier, lines({"id": 1, "image": IMAGE}, {"id": 2, "image": IMAGE}), tmp_path)
    assert (first["id"], second["id"]) == (1, 2)
    assert "memory" in first["error"]


SCALARS = st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(codec=None))
KEYS = st.sampled_from(["id", "path", "image", "top", "x"])
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8)
LINES = JSON.map(lambda value: json.dumps(value).encode()) | st.binary().map(lambda raw: raw.replace(b"\n", b""))


@settings(deadline=None, max_examples=60)
@given(st.lists(LINES, min_size=1, max_size=5))
def test_as_many_answers_as_lines(classifier, tmp_path_factory, sent):
    told = answers(classifier, b"\n".join(sent) + b"\n", tmp_path_factory.mktemp("sent"))
    assert [one.get("line", number) for number, one in enumerate(told, 1)] == list(range(1, len(sent) + 1))
    assert all(("error" in one) != ("label" in one) for one in told)


# ------------------------------------------------------------------------------------------------- the real process


class Worker:
    """The command in a process of its own; `ready` was read already."""

    def __init__(self, *arguments) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
        words = [sys.executable, "-m", "edgetl.runtime", "serve", *map(str, arguments), "--stdin", "--threads", "1"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, env=environment,
                                        bufsize=0)
        self.ready = self.process.stderr.readline().decode()

    def ask(self, *requests) -> None:
        self.process.stdin.write(lines(*requests))
        self.process.stdin.flush()

    def hear(self, wait_s: float = 300) -> dict:
        assert select.select([self.process.stdout], [], [], wait_s)[0], "no answer came"
        return json.loads(self.process.stdout.readline())

    def end(self) -> tuple[int, str]:
        out, err = self.process.communicate(timeout=300)
        assert out == b""
        return self.process.returncode, err.decode()


@pytest.fixture
def worker(bundle):
    opened = Worker(bundle)
    yield opened
    opened.process.kill()
    opened.process.communicate()


def test_answers_come_at_once_and_the_end_of_input_is_exit_zero(worker, photo):
    assert json.loads(worker.ready.removeprefix("ready: "))["name"] == "tiny"
    worker.ask({"id": 1, "path": str(photo)})
    assert worker.hear()["id"] == 1  # while standard input stays open
    worker.ask({"id": 2}, {"id": 3, "image": IMAGE})
    assert "neither" in worker.hear()["error"]
    assert worker.hear()["id"] == 3
    assert worker.end() == (0, "")


def test_sigterm_while_it_waits(worker):
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(timeout=300) == 0
    assert worker.end() == (0, "")


def test_ctrl_c_while_it_waits(worker):
    worker.process.send_signal(signal.SIGINT)
    assert worker.process.wait(timeout=300) == 130
    assert worker.end() == (130, "interrupted\n")


def test_sigterm_finishes_the_request_in_hand(classifier, tmp_path):
    """The signal comes while the first image is predicted: it is answered, and the second line is left."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(lines({"id": 1, "image": IMAGE}, {"id": 2, "image": IMAGE}))
    before = signal.getsignal(signal.SIGTERM)

    class Signalled:
        def predict(self, source, *, top):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            return classifier.predict(source, top=top)

    with path.open("rb") as source, serve.Stop() as stop:
        found = list(serve.answers(Signalled(), source.fileno(), stop))
    assert [one["id"] for one in found] == [1]
    assert "label" in found[0]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_bundle_that_cannot_be_opened_is_exit_one():
    worker = Worker("/nowhere")
    assert worker.ready == "error: /nowhere does not exist.\n"
    assert worker.end()[0] == 1


def test_closed_standard_input_and_wrong_usage(bundle, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert command.main(["serve", str(bundle), "--stdin"]) == 1
    assert "Standard input is closed" in capsys.readouterr().err
    for wrong in (["serve", str(bundle)], ["serve", str(bundle), "--stdin", "--max-line-bytes", "0"]):
        with pytest.raises(SystemExit) as ended:
            command.main(wrong)
        assert ended.value.code == 2
    assert "--stdin" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["numpy", "argparse", "edgetl.runtime.bundle"])
def test_ctrl_c_during_an_import_is_130_without_a_traceback(tmp_path, module):
    """Ctrl-C is pressed as `module` is imported, within exec(text): CPython notes what passes through that."""
    (tmp_path / "sitecustomize.py").write_text(f"""
import signal, sys
class Press:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            exec("signal.raise_signal(signal.SIGINT)")
sys.meta_path.insert(0, Press())
""")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    words = [sys.executable, "-m", "edgetl.runtime", "info", "/nowhere"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 130
    assert done.stderr in ("", "interrupted\n")


def test_an_app_that_imports_the_runtime_gets_its_own_ctrl_c(tmp_path):
    script = """
import signal, sys
class Press:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Press())
try:
    import edgetl.runtime
except KeyboardInterrupt:
    print("mine")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=600)
    assert (done.stdout, done.stderr, done.returncode) == ("mine\n", "", 0)
