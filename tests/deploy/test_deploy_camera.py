"""deploy/examples/camera_loop.py: folders, videos and cameras in, one line a frame out, and a clean end."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_bundle import encode, make_bundle, make_photo

from edgetl.runtime import load

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"


@pytest.fixture
def camera_loop(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    import camera_loop

    yield camera_loop
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def folder(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        (photos / f"{number}.png").write_bytes(encode(make_photo(number)))
    (photos / "2.png").write_text("no image")
    (photos / "notes.txt").write_text("skipped")
    return photos


def expected(bundle, number):
    with load(bundle, threads=1) as classifier:
        return classifier.predict(make_photo(number)).label


def test_a_folder_as_json_lines_through_the_real_script(bundle, folder):
    words = [sys.executable, str(EXAMPLES / "camera_loop.py"), str(bundle), str(folder), "--threads", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(row["source"]).name for row in rows] == ["0.png", "1.png", "2.png", "3.png"]
    assert [row["frame"] for row in rows] == [0, 1, 2, 3]
    assert "is not an image" in rows[2]["error"]
    assert "label" not in rows[2]
    assert rows[3]["label"] == expected(bundle, 3)
    assert done.stderr == "4 frames classified, 0 dropped\n"


def test_a_csv_file_is_appended_to(camera_loop, bundle, folder, tmp_path, capsys):
    out = tmp_path / "rows.csv"
    words = [str(bundle), str(folder), "--out", str(out), "--every", "3"]
    assert camera_loop.main([*words, "--limit", "1"]) == 0
    assert camera_loop.main(words) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["frame"] for row in rows] == ["0", "0", "3"]
    assert rows[2]["label"] == expected(bundle, 3)
    assert list(rows[0]) == list(camera_loop.COLUMNS)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "arguments, code, says",
    [
        (["BUNDLE", "/nowhere"], 1, "error: /nowhere does not exist.\nhint: "),
        (["/nowhere", "FOLDER"], 1, "error: /nowhere does not exist."),
        (["BUNDLE", "FOLDER", "--every", "0"], 2, "at least 1"),
        (["BUNDLE", "FOLDER", "--limit", "0"], 2, "at least 1"),
    ],
)
def test_wrong_usage_and_expected_failures(camera_loop, bundle, folder, capsys, arguments, code, says):
    places = {"BUNDLE": str(bundle), "FOLDER": str(folder)}
    try:
        found = camera_loop.main([places.get(word, word) for word in arguments])
    except SystemExit as ended:
        found = ended.code
    assert found == code
    assert says in capsys.readouterr().err


def test_without_opencv_the_hint_says_what_to_install(camera_loop, bundle, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert camera_loop.main([str(bundle), "0"]) == 1
    assert "pip install opencv-python-headless" in capsys.readouterr().err


class Capture:
    """What stands in for cv2.VideoCapture: three frames in BGR, then no more."""

    def __init__(self, source) -> None:
        self.source, self.left, self.released = source, 3, False

    def isOpened(self) -> bool:
        return self.source != 9

    def read(self):
        self.left -= 1
        return (True, make_photo(self.left)[:, :, ::-1].copy()) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.released = True


@pytest.fixture
def captures(monkeypatch):
    made = []

    def capture(source):
        made.append(Capture(source))
        return made[-1]

    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=capture))
    return made


def test_frames_of_opencv_are_turned_to_rgb(camera_loop, bundle, captures, tmp_path, capsys):
    film = tmp_path / "film.mp4"
    film.write_bytes(b"")
    assert camera_loop.main([str(bundle), str(film)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["label"] for row in rows] == [expected(bundle, number) for number in (2, 1, 0)]
    with load(bundle, threads=1) as classifier:
        assert rows[0]["score"] == pytest.approx(classifier.predict(make_photo(2)).score)
    assert captures[0].source == str(film)
    assert captures[0].released


def test_a_camera_that_ends_or_cannot_be_opened_is_an_error(camera_loop, bundle, captures, capsys):
    assert camera_loop.main([str(bundle), "0", "--no-drop"]) == 1
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 3
    assert "The camera 0 gives no more frames" in told.err
    assert captures[0].source == 0
    assert captures[0].released
    assert camera_loop.main([str(bundle), "9"]) == 1
    assert "9 cannot be opened" in capsys.readouterr().err


def test_a_real_video(camera_loop, bundle, tmp_path, capsys):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    film = tmp_path / "film.avi"
    out = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 10, (56, 40))
    for number in range(6):
        out.write(make_photo(number)[:, :, ::-1].copy())
    out.release()
    assert camera_loop.main([str(bundle), str(film), "--every", "2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["frame"] for row in rows] == [0, 2, 4]
    assert [row["label"] for row in rows] == [expected(bundle, number) for number in (0, 2, 4)]


def test_old_frames_are_dropped_and_the_newest_is_taken(camera_loop):
    """The source runs ahead while the first frame is looked at: of frames 1 to 5 only the newest is left."""
    taken, ahead = threading.Event(), threading.Event()

    def camera():
        yield 0, "camera", "a"
        taken.wait(300)
        for number in range(1, 6):
            yield number, "camera", "b"
        ahead.set()

    with camera_loop.Latest(camera()) as latest:
        frames = iter(latest)
        assert next(frames)[0] == 0
        taken.set()
        assert ahead.wait(300)
        latest._thread.join(300)
        assert [number for number, _, _ in frames] == [5]
        assert latest.dropped == 4


def test_the_reader_ends_with_the_loop(camera_loop):
    """After the `with` block the thread takes no further frame."""
    given, entered = [], threading.Event()

    def camera():
        yield 0, "camera", None
        assert entered.wait(300)
        while not latest._ended:  # the second frame is on its way when the block ends
            time.sleep(0.001)
        for number in range(1, 1000):
            given.append(number)
            yield number, "camera", None

    with camera_loop.Latest(camera()) as latest:
        entered.set()
        assert next(iter(latest))[0] == 0
    latest._thread.join(300)
    assert given == [1]


def test_any_iterator_of_frames(camera_loop, bundle):
    frames = [(7, "a", make_photo(1)), (9, "b", np.zeros((0, 4, 3), np.uint8)), (11, "c", encode(make_photo(1)))]
    with load(bundle, threads=1) as classifier:
        first, second, third = camera_loop.classify(classifier, frames)
    assert first["label"] == third["label"]
    assert (first["frame"], second["frame"], third["source"]) == (7, 9, "c")
    assert "expected [H, W]" in second["error"]


ENDLESS = """
import sys, time
sys.path.insert(0, {examples!r})
import camera_loop
from tiny_bundle import make_photo
def frames():
    while True:
        yield "endless", make_photo(1)
camera_loop.open_frames = lambda source: (frames(), {live})
sys.exit(camera_loop.main([{bundle!r}, "0", "--threads", "1"]))
"""


@pytest.mark.parametrize("number, live", [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_a_signal_ends_it_cleanly(bundle, number, live):
    script = ENDLESS.format(examples=str(EXAMPLES), bundle=str(bundle), live=live)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdout=pipe, stderr=pipe, text=True, env=environment) as work:
        first = json.loads(work.stdout.readline())
        work.send_signal(number)
        rest, err = work.stdout.read(), work.stderr.read()  # not communicate(): it forgets what readline() read ahead
    assert work.returncode == 0
    rows = [first, *map(json.loads, rest.splitlines())]  # no line is torn
    assert err.startswith(f"{len(rows)} frames classified, ")


def test_a_stop_is_heard_while_it_waits_and_forced_by_a_second(camera_loop):
    def frames():
        yield 0, "a", None
        signal.raise_signal(signal.SIGTERM)  # while the loop waits for the next
        yield 1, "b", None

    assert len(list(camera_loop.Stop().until(frames()))) == 1
    stop = camera_loop.Stop()
    signal.raise_signal(signal.SIGINT)  # while the bundle is being opened, say
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert list(stop.until(frames())) == []


def test_a_reader_that_has_had_enough(bundle, folder):
    line = f"{sys.executable} {EXAMPLES / 'camera_loop.py'} {bundle} {folder} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "0"
    assert "Traceback" not in done.stderr
