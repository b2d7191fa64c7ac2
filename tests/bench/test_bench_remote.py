"""Benchmarks on a device over ssh: the same report as here, one sentence for every failure, and nothing left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import edgetl
from edgetl import recipe, rundir
from edgetl.bench import agent, cases, connection, remote, report, runner, ssh
from edgetl.bench.connection import Lost
from edgetl.bench.trial import Trial
from edgetl.cli.app import main
from edgetl.errors import EdgetlError
from edgetl.runtime import archive
from edgetl.runtime.bundle import open_bundle
from tests.bench import sshd
from tests.tiny_bundle import edit_manifest, encode, make_bundle

real = pytest.mark.skipif(sshd.WHY_NOT is not None, reason=str(sshd.WHY_NOT))


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A device on a busy machine may take its time to remove what it was given; without a limit it would be a hang."""
    monkeypatch.setattr(connection, "LEAVE_S", 300.0)


@pytest.fixture
def bundle(tmp_path):
    made = make_bundle(tmp_path / "tiny")
    edit_manifest(made, "variants", 0, "backends", value=["cpu"])
    return made


def reached(device: sshd.Device, monkeypatch) -> sshd.Device:
    monkeypatch.setenv("PATH", str(device.root / "bin"), prepend=os.pathsep)
    return device


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A device behind a script that is called ssh."""
    (tmp_path / "board").mkdir()
    return reached(sshd.pretended(tmp_path / "board"), monkeypatch)


@pytest.fixture
def loopback(tmp_path, monkeypatch):
    """A device behind a real sshd."""
    (tmp_path / "loopback").mkdir()
    with sshd.running(tmp_path / "loopback") as device:
        yield reached(device, monkeypatch)


def options(tmp_path: Path, board: sshd.Device | None, bundle: Path, python: str = "", **changes) -> recipe.Bench:
    """Few calls of one backend; `python` is the device's, an ordinary one where it is left out."""
    plain = {"cases": (str(bundle),), "out": str(tmp_path / "report"), "backend": ("cpu",), "rounds": 2, "block": 20,
             "starts": 1, "warmup_s": 0.0, "photos": 0, "timeout_s": 600.0}
    if board is not None:
        plain |= {"device": board.url, "device_python": python or board.python()}
    return dataclasses.replace(recipe.Bench(**plain), **changes)


@contextlib.contextmanager
def opened(wanted: recipe.Bench):
    """A host with a trial of the first case."""
    chosen = cases.find(wanted)
    with remote.host(wanted, chosen) as host:
        yield host, Trial(chosen[0], wanted, host=host)


def refused(wanted: recipe.Bench) -> EdgetlError:
    with pytest.raises(EdgetlError) as caught, opened(wanted):
        pass
    assert wanted.device in caught.value.message and "\n" not in caught.value.message and caught.value.exit_code == 1
    return caught.value


def empty_at_last(device: sshd.Device) -> bool:
    """Whether its temporary folder gets empty; the device needs a moment where nobody waits for it."""
    for _ in range(3000):
        if not device.left():
            return True
        time.sleep(0.1)
    return False


def make_photos(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog", "fox")):
        place = folder / "test" / name
        place.mkdir(parents=True)
        (folder / "train" / name).mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(0, 60, (20, 20, 3), dtype=np.uint8)
            pixels[:, :, label] += 150
            (place / f"{number}.png").write_bytes(encode(pixels))
            (folder / "train" / name / f"{number}.png").write_bytes(encode(pixels // 2))
    return folder


def told(value: object) -> object:
    """The shape of a report: which fields there are, and which of them are known."""
    if isinstance(value, dict):
        return {name: told(one) for name, one in value.items()}
    if isinstance(value, list):
        return [told(one) for one in value] if len(value) < 20 and value and isinstance(value[0], dict) else len(value)
    return value is None


# ---------------------------------------------------------------------------------------------------- what is measured


@real
def test_the_report_of_a_device_is_that_of_this_machine_but_for_the_device(tmp_path, loopback, bundle, monkeypatch):
    monkeypatch.setattr(runner, "_show", lambda *_: None)  # pages of reports have tests of their own
    more = {"data": str(make_photos(tmp_path / "photos")), "photos": 2, "concurrency": ("2",), "window_s": 0.02}
    here = runner.bench(options(tmp_path, None, bundle, out=str(tmp_path / "here"), **more))
    python = loopback.python(more="import platform; platform.node = lambda: 'board-7'")
    there = runner.bench(options(tmp_path, loopback, bundle, python, **more))
    assert (here.device, there.device) == (None, "board-7")
    one, other = (json.loads(report.dumps(found)) for found in (here, there))
    for name, value in one["rows"][0].items():
        assert told(value) == told(other["rows"][0][name]), name
    assert set(one["environment"]) == set(other["environment"]) and set(one) == set(other)
    assert there.environment["versions"]["edgetl"] == edgetl.__version__
    (row,), (own,) = there.rows, here.rows
    assert row.measured and len(row.measurement.seconds) == 2 * (20 - 10) and row.end_to_end_s and row.throughputs
    assert row.source == str(bundle) and row.size_bytes == own.size_bytes
    assert (row.accuracy.n, row.accuracy.confusion) == (9, own.accuracy.confusion)
    assert any("The test images were decoded and resized on this machine" in note for note in there.notes)
    assert there.calibration is not None and len(there.calibration.blocks) == 2
    assert report.read(tmp_path / "report").rows == there.rows
    assert loopback.left() == []


def test_a_device_s_login_may_print_and_its_python_be_named(tmp_path, bundle, monkeypatch):
    device = reached(sshd.pretended(tmp_path, "echo Welcome to the board; printf 'no newline'"), monkeypatch)
    with opened(options(tmp_path, device, bundle)) as (host, trial):
        assert [one.startswith(agent.PREFIX) for one in device.left()] == [True]
        assert host.name and host.missing(()) == () and host.fingerprint()["cpu"] and host.cores()
        trial.start(keep=True)
        trial.block()
        assert trial.alive and len(trial.row().measurement.seconds) == 10
        trial.close()
    assert device.left() == []


def test_packed_bundles_and_bare_graphs_go_to_a_device_too(tmp_path, board, bundle):
    graph = tmp_path / "plain.onnx"
    graph.write_bytes((bundle / "fp32.onnx").read_bytes())
    packed = tmp_path / "tiny.edgetl"
    with packed.open("wb") as stream:
        archive.write(open_bundle(bundle), stream)
    wanted = options(tmp_path, board, packed, cases=(str(packed), str(graph)))
    chosen = cases.find(wanted)
    assert chosen[0].subject.within is not None
    with remote.host(wanted, chosen) as host:
        for case in chosen:
            trial = Trial(case, wanted, host=host)
            trial.start(keep=False)
            assert trial.alive, trial.reason


def test_workers_that_die_or_hang_are_failed_rows_and_the_others_go_on(tmp_path, board, bundle):
    wanted = options(tmp_path, board, bundle)
    with opened(wanted) as (host, trial):
        patient = Trial(trial.case, wanted, host=host)
        hasty = Trial(trial.case, wanted, host=host)
        for one in (patient, trial, hasty):
            one.start(keep=True)
        hasty.process.timeout_s = 1.0
        workers = sorted(sshd.descendants("edgetl.bench.remote_worker"), key=lambda one: one.create_time())
        os.kill(workers[-2].pid, signal.SIGKILL)
        os.kill(workers[-1].pid, signal.SIGSTOP)
        trial.block()
        hasty.block()
        assert "SIGKILL" in trial.reason and "memory" in trial.reason
        assert hasty.reason.startswith("no answer within 1 s")
        patient.block()
        assert patient.alive and len(patient.blocks) == 1
    assert board.left() == [] and not [one for one in workers if one.is_running()]


# --------------------------------------------------------------------------------------------------- what is refused


@real
def test_host_keys_and_keys_that_do_not_fit_are_refused(tmp_path, loopback, bundle, capsys):
    port = ssh.parse(loopback.url).port
    words = ["bench", str(bundle), "--backend", "cpu", "--out", str(tmp_path / "report"), "--device", loopback.url]
    stranger = sshd.make_key(loopback.root / "stranger")
    (loopback.root / "known").write_text("")
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "error: The host key of" in said and "is not known on this machine" in said and f"ssh -p {port}" in said
    sshd.trust(loopback.root, port, stranger)
    assert "is not the one that is known" in refused(options(tmp_path, loopback, bundle, "python3")).message
    # Nobody who has told ssh to accept every key makes edgetl do so.
    config = loopback.root / "ssh_config"
    config.write_text(config.read_text() + " StrictHostKeyChecking no\n")
    assert "is not the one that is known" in refused(options(tmp_path, loopback, bundle, "python3")).message
    sshd.trust(loopback.root, port, loopback.root / "host")
    (loopback.root / "allowed").write_text(stranger.with_suffix(".pub").read_text())
    found = refused(options(tmp_path, loopback, bundle, "python3"))
    assert "does not accept the key of this user" in found.message and f"ssh-copy-id -p {port}" in found.hint
    assert not (tmp_path / "report").exists() and loopback.left() == []


@real
def test_a_device_that_is_not_there_is_told(tmp_path, loopback, bundle):
    with socket.socket() as held:  # nobody else can listen at it meanwhile
        held.bind(("127.0.0.1", 0))
        wanted = options(tmp_path, loopback, bundle, "python3", device=f"ssh://127.0.0.1:{held.getsockname()[1]}")
        assert "nothing listens at that port" in refused(wanted).message


def test_a_wrong_address_is_wrong_usage(tmp_path, bundle, capsys):
    words = ["bench", str(bundle), "--out", str(tmp_path / "report"), "--device"]
    assert main([*words, "ssh://-oProxyCommand=x"]) == 2
    assert "--device: found 'ssh://-oProxyCommand=x', expected ssh://[USER@]HOST[:PORT]" in capsys.readouterr().err
    assert main([*words, "ssh://board", "--device-python", "python3;ls"]) == 2
    assert "--device-python: found 'python3;ls', expected the name or path of a program" in capsys.readouterr().err


FULL = "import collections, shutil\nshutil.disk_usage = lambda _: collections.namedtuple('usage', 'free')(9_000_000)"


@pytest.mark.parametrize(("lacking", "sentence", "hint"), [
    ({"more": "sys.version_info = (3, 9, 2)"}, "is Python 3.9; expected 3.11 or newer", "--device-python"),
    ({"absent": ("numpy", *sshd.HEAVY)}, "has no numpy for", "pip install numpy"),
    ({"absent": ("onnxruntime", "openvino", *sshd.HEAVY)}, "backends that can run there: none.",
     "pip install"),
    ({"absent": ("onnxruntime", *sshd.HEAVY)}, "has no runtime for cpu (", "pip"),
    ({"more": "import os; os.access = lambda *_: False"}, "has no temporary folder that can be written to", "TMPDIR"),
    ({"more": FULL}, "has too little room: 1", "Make room"),
    ({"first": "ulimit -f 8"}, "refused to put code.zip in", None),
    ({"first": "exit 3"}, "it ended with exit code 3", "--device-python"),
    ({"more": "raise SystemExit('Illegal instruction')"}, "does not run on", "--device-python"),
], ids=lambda value: None if isinstance(value, dict) else str(value)[:20])
def test_what_a_device_lacks_is_told_in_one_sentence(tmp_path, board, bundle, lacking, sentence, hint):
    found = refused(options(tmp_path, board, bundle, board.python(**lacking)))
    assert sentence in found.message and (hint is None or hint in found.hint)
    assert board.left() == []


def test_a_device_without_python_is_told(tmp_path, board, bundle):
    found = refused(options(tmp_path, board, bundle, "python-of-nobody"))
    assert found.message == "ssh://pi@board has no program python-of-nobody." and "Install Python 3.11" in found.hint


def test_a_login_that_never_stops_printing_is_told(tmp_path, bundle, monkeypatch):
    device = reached(sshd.pretended(tmp_path, "yes 'the board talks and talks'"), monkeypatch)
    assert "prints at login without end" in refused(options(tmp_path, device, bundle)).message


# -------------------------------------------------------------------------------------------------- what goes wrong


def at(what: str, deed):
    """A listener that does a deed once, at the first step of that part of the work."""
    state = {"part": None, "done": False}

    def listen(event):
        if event.kind == "begin":
            state["part"] = event.values["what"]
        if event.kind == "advance" and state["part"] == what and not state["done"]:
            state["done"] = True
            deed()
    return listen


def agents() -> list[psutil.Process]:
    return sshd.descendants("exec(sys.stdin")


@real
def test_a_connection_that_is_lost_ends_the_benchmark_and_leaves_nothing(tmp_path, loopback, bundle):
    daemon = next(one for one in psutil.Process().children() if "sshd" in one.name())

    def cut():
        for one in daemon.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # ended since
                if "sshd" in one.name():
                    one.kill()

    with pytest.raises(Lost, match=r"The connection to .* was lost") as caught:
        runner.bench(options(tmp_path, loopback, bundle), listener=at("measuring", cut))
    assert "removes itself" in caught.value.hint and "\n" not in caught.value.message
    assert empty_at_last(loopback)
    # What there was is partial, and lies beside it.
    assert report.read(rundir.partial(tmp_path / "report")).status == report.PARTIAL
    assert not (tmp_path / "report").exists()


def test_an_interrupt_ends_the_workers_and_leaves_nothing(tmp_path, board, bundle):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.bench(options(tmp_path, board, bundle), listener=at("measuring", interrupt))
    assert board.left() == [] and not agents()


@real
def test_a_command_that_is_killed_leaves_nothing(tmp_path, loopback, bundle):
    words = ["bench", str(bundle), "--backend", "cpu", "--out", str(tmp_path / "report"), "--device", loopback.url,
             "--device-python", loopback.python(), "--warmup-s", "60", "--block", "1000000"]
    command = subprocess.Popen([sys.executable, "-m", "edgetl", *words], stderr=subprocess.PIPE, text=True)
    assert command.stderr is not None
    for line in command.stderr:
        if "warming up" in line:
            break
    assert loopback.left()
    command.kill()
    command.wait()
    command.stderr.close()
    assert empty_at_last(loopback)


# ----------------------------------------------------------------------------------------------------- the agent alone


def test_an_agent_that_hears_nothing_leaves():
    here, there = os.pipe()
    sink = os.open(os.devnull, os.O_WRONLY)
    with pytest.raises(agent.Gone):
        agent.Agent(here, sink, silence_s=0.05).serve()
    for one in (here, there, sink):
        os.close(one)


def test_an_agent_cleans_up_when_it_is_told_to_end(tmp_path, board):
    python = board.python()
    source = Path(agent.__file__).read_bytes()
    code = f"import sys;exec(sys.stdin.buffer.read({len(source)}).decode(),{{'__name__':'__main__'}})"
    for number in (signal.SIGTERM, signal.SIGHUP):
        one = subprocess.Popen([python, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert one.stdin is not None and one.stdout is not None
        one.stdin.write(source)
        one.stdin.flush()
        assert one.stdout.readline().startswith(agent.GREETING)
        one.stdin.write(json.dumps({"do": "settle", "folder": str(board.tmp)}).encode() + b"\n")
        one.stdin.flush()
        assert Path(json.loads(one.stdout.readline())["folder"]).is_dir()
        one.send_signal(number)
        assert one.wait(300) == 1
        assert board.left() == []
        one.stdin.close()
        one.stdout.close()


def test_folders_of_agents_that_are_no_more_are_removed_and_no_others(tmp_path):
    import fcntl

    dead, alive, young, foreign = (tmp_path / name for name in
                                   (f"{agent.PREFIX}a", f"{agent.PREFIX}b", f"{agent.PREFIX}c", "edgetl-bench-d"))
    for folder in (dead, alive, young, foreign):
        folder.mkdir()
        (folder / "graph.onnx").write_text("x")
    for folder in (dead, alive, foreign):
        os.utime(folder, (1e9, 1e9))
    (tmp_path / f"{agent.PREFIX}link").symlink_to(foreign)
    lock = os.open(alive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    agent.sweep(tmp_path)
    os.close(lock)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(
        [alive.name, young.name, foreign.name, f"{agent.PREFIX}link"])


def test_a_file_that_arrives_otherwise_than_it_left_is_refused(tmp_path):
    here, there = os.pipe()
    back, sink = os.pipe()
    one = agent.Agent(here, sink)
    thread = threading.Thread(target=one.serve)
    thread.start()
    request = {"do": "put", "name": "x", "size": 3, "sha256": "0" * 64}
    with os.fdopen(there, "wb", buffering=0) as out, os.fdopen(back, "rb") as answers:
        answers.readline()
        out.write(json.dumps({"do": "put", "name": "x", "size": 0, "sha256": ""}).encode() + b"\n")
        assert "no folder yet" in answers.readline().decode()
        out.write(json.dumps({"do": "settle", "folder": str(tmp_path)}).encode() + b"\n\n")
        answers.readline()
        out.write(json.dumps(request).encode() + b"\nabc")
        assert "another digest" in answers.readline().decode()
        out.write(json.dumps({"do": "leave"}).encode() + b"\n")
        assert json.loads(answers.readline()) == {"left": None}
    thread.join()
    assert list(tmp_path.iterdir()) == []
    os.close(here)
    os.close(sink)
