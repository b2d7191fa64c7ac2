"""Addresses of devices, the words for ssh, what its refusals mean, and the part of edgetl that goes to a device."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl import recipe
from edgetl.bench import cases, formats, html, luggage, markdown, remote, ssh, tables
from edgetl.errors import EdgetlError
from tests.bench import hand_made
from tests.tiny_bundle import make_bundle


@pytest.mark.parametrize(("text", "host", "user", "port"), [
    ("ssh://pi", "pi", None, None),
    ("ssh://pi@raspberrypi.local", "raspberrypi.local", "pi", None),
    ("ssh://pi@10.0.0.7:2222/", "10.0.0.7", "pi", 2222),
    ("ssh://[fe80::1%eth0]:22", "fe80::1%eth0", None, 22),
    ("ssh://first.last@[::1]", "::1", "first.last", None),
])
def test_addresses_are_read_and_written_back(text, host, user, port):
    found = ssh.parse(text)
    assert (found.host, found.user, found.port) == (host, user, port)
    assert str(found) == text.rstrip("/")


@pytest.mark.parametrize("text", [
    "ssh://-oProxyCommand=touch", "ssh://-l@host", "ssh://pi@-host", "ssh://pi@host:22x", "ssh://pi:secret@host",
    "pi@host",
    "ssh://", "ssh://pi@", "ssh://host name", "ssh://host;ls", "ssh://$(ls)", "ssh://host\n", "ssh://::1", "ssh://[host]",
    "ssh://host/path", "ssh://ho`ls`st", "ssh://pi@ho@st", "http://host", "ssh://host:0", "ssh://host:65536", "ssh://höst",
])
def test_other_addresses_are_refused_before_ssh_sees_them(text):
    with pytest.raises(EdgetlError, match="--device") as caught:
        ssh.parse(text)
    assert caught.value.hint


@given(st.text(max_size=30), st.text(max_size=30))
@settings(deadline=None, max_examples=200)
def test_no_part_of_an_address_is_an_option(user, host):
    try:
        found = ssh.parse(f"ssh://{user}@{host}")
    except EdgetlError:
        return
    for part in (found.user, found.host):
        assert part is not None and not part.startswith("-")
        assert part.isascii() and not set(part) & set(" '\"\\`$;|&<>\n/")


@pytest.fixture
def with_ssh(tmp_path, monkeypatch):
    (tmp_path / "ssh").write_text("")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_host_keys_are_checked_whatever_the_users_file_says(with_ssh):
    words = ssh.command(ssh.parse("ssh://pi@host:2222"), "python3 -c 1")
    assert words[-3:] == ["--", "host", "python3 -c 1"]
    assert words[words.index("-p") + 1] == "2222" and words[words.index("-l") + 1] == "pi"
    settings = dict(word.split("=") for word in words if "=" in word)
    assert (settings["StrictHostKeyChecking"], settings["BatchMode"]) == ("yes", "yes")
    assert settings["NoHostAuthenticationForLocalhost"] == "no"
    assert not {"UserKnownHostsFile", "IdentityFile", "ProxyJump"} & set(settings)  # the user's own count


def test_port_and_user_are_left_to_the_users_file(with_ssh):
    words = ssh.command(ssh.parse("ssh://board"), "x")
    assert "-p" not in words and "-l" not in words


def test_a_machine_without_ssh_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgetlError, match="the program ssh, which is not installed"):
        ssh.command(ssh.parse("ssh://board"), "x")


@pytest.mark.parametrize(("said", "sentence", "hint"), [
    ("ssh: Could not resolve hostname nowhere: Name or service not known", "its name is not known", "typing error"),
    ("ssh: connect to host board port 22: Connection refused", "nothing listens", "ssh server"),
    ("ssh: connect to host board port 22: Connection timed out", "does not answer", "ssh -p 2222 pi@board"),
    ("ssh: connect to host board port 22: No route to host", "does not answer", "switched on"),
    ("Host key verification failed.", "is not known on this machine", "accept it: ssh -p 2222 pi@board"),
    ("pi@board: Permission denied (publickey).", "does not accept the key", "ssh-copy-id -p 2222 pi@board"),
    ("kex_exchange_identification: Connection reset", "ssh says: kex_exchange_identification", "Try: ssh"),
])
def test_refusals_of_ssh_become_one_sentence(said, sentence, hint):
    found = ssh.refusal(ssh.parse("ssh://pi@board:2222"), 255, [said])
    assert found is not None and "ssh://pi@board:2222" in found.message
    assert sentence in found.message and hint in found.hint


def test_a_changed_host_key_is_not_called_unknown():
    said = ["@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @", "Host key verification failed."]
    found = ssh.refusal(ssh.parse("ssh://board"), 255, said)
    assert "is not the one that is known" in found.message and "ssh-keygen -R board" in found.hint


def test_failures_of_the_devices_own_commands_are_not_ssh_s():
    assert ssh.refusal(ssh.parse("ssh://board"), 127, ["sh: python3: not found"]) is None


def test_every_form_of_a_report_names_the_device():
    made = dataclasses.replace(hand_made.make_report(), device="board <7>", data=None)
    made = dataclasses.replace(made, rows=tuple(dataclasses.replace(row, accuracy=None) for row in made.rows))
    assert "board <7> (AMD EPYC)" in formats.action(made)
    assert "cases measured on board &lt;7&gt; (AMD EPYC)." in html.page(made, {})
    assert "- device: board &lt;7&gt;" in markdown.page(made)
    assert tables.machine(hand_made.make_report()) == hand_made.make_report().environment


# ------------------------------------------------------------------------------------------------------- the luggage


def test_what_goes_to_the_device_is_small_and_the_same_every_time():
    names = luggage.modules()
    needed = {"edgetl.bench.worker", "edgetl.bench.environment", "edgetl.runtime.session", "edgetl.backends.cpu"}
    assert needed <= {*names}
    foreign = ("torch", "train", "export", "compress", "cli", "datasets", "models", "pipeline")
    assert not {room for name in names for room in name.split(".")[1:2]} & {*foreign}
    assert "edgetl.backends.torch" not in names
    assert luggage.packed() == luggage.packed() and len(luggage.packed()) < 200_000


def test_tensorrt_goes_along_only_where_it_is_asked_for():
    assert not [name for name in luggage.modules() if "tensorrt" in name]
    asked = luggage.modules(["cpu", "tensorrt"])
    assert {"edgetl.backends.tensorrt", "edgetl.backends._cuda", "edgetl.backends.cpu"} <= {*asked}
    assert {*luggage.modules()} < {*asked}
    assert "tensorrt" in luggage.backends(["tensorrt"]) and "tensorrt" not in luggage.backends()
    assert len(luggage.packed(["tensorrt"])) > len(luggage.packed())


WITHOUT_PACKAGES = """
import json, sys
ALLOWED = set(sys.stdlib_module_names) | {"numpy", "edgetl", "__main__", "sitecustomize", "usercustomize"}
class Deny:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Deny())
sys.path.insert(0, sys.argv[1])
import importlib
for name in json.loads(sys.argv[2]):
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.argv[1]), module.__file__
from edgetl.bench import kernel, remote_worker
found = remote_worker.machine(["cpu"])
assert not found["backends"]["cpu"]["usable"], found
assert found["environment"]["cpu"] and kernel.block().scalar_s > 0
values = remote_worker.array(remote_worker.array_to_json(__import__("numpy").arange(6.0).reshape(2, 3)))
assert values.tolist() == [[0, 1, 2], [3, 4, 5]]
print("fine")
"""


def test_every_module_of_it_can_be_imported_with_nothing_but_numpy(tmp_path):
    with zipfile.ZipFile(io.BytesIO(luggage.packed(luggage.ASKED))) as archive:
        archive.extractall(tmp_path)
    names = json.dumps(luggage.modules(luggage.ASKED))
    done = subprocess.run([sys.executable, "-c", WITHOUT_PACKAGES, str(tmp_path), names], capture_output=True,
                          text=True, cwd=tmp_path, check=False)
    assert done.stdout == "fine\n", done.stderr


def test_runs_and_modules_of_ones_own_are_refused(tmp_path):
    bundle = make_bundle(tmp_path / "tiny")
    (case,) = cases.find(recipe.Bench(cases=(str(bundle),), out="", backend=("cpu",)))
    remote.check([case])
    run = dataclasses.replace(case, subject=dataclasses.replace(case.subject, kind="run", backend="torch"))
    with pytest.raises(EdgetlError, match="needs PyTorch, which --device does not take along") as caught:
        remote.check([case, run])
    assert "edgetl export" in caught.value.hint
    own = dataclasses.replace(case, subject=dataclasses.replace(case.subject, backend="mine.special"))
    with pytest.raises(EdgetlError, match="a module of this machine"):
        remote.check([own])
