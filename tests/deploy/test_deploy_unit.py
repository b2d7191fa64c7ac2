"""deploy/edgetl.service: systemd's own judgement of it, and the service under the same rules of the kernel."""

import ctypes
import ctypes.util
import errno
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import encode, make_bundle, make_photo

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = (DEPLOY / "edgetl.service").read_text()

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*words):
    return subprocess.run(["systemd-analyze", *map(str, words)], capture_output=True, text=True, timeout=600)


def values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT, re.M)


@needs_systemd
def test_the_exposure_is_what_the_notes_say():
    done = analyze("security", "--offline=true", "--no-pager", DEPLOY / "edgetl.service")
    found = re.search(r"Overall exposure level for edgetl.service: ([\d.]+)", done.stdout)
    assert found is not None, done.stderr
    stated = re.search(r"exposure ([\d.]+)", (DEPLOY / "README.md").read_text())
    assert stated is not None
    # Another release of systemd may weigh things anew, but not by much.
    assert float(found[1]) <= float(stated[1]) + 0.5


@needs_systemd
def test_systemd_knows_every_line(tmp_path):
    """`verify` with a program that exists; the unit of today's systemd must not hold what older ones do not know."""
    unit = tmp_path / "edgetl.service"
    unit.write_text(UNIT.replace("/opt/edgetl/bin/python", sys.executable))
    done = analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("NoNewPrivileges", "NoNewPrivilege"))
    assert "'NoNewPrivilege'" in analyze("verify", "--man=no", unit).stderr


def test_its_command_and_limits_fit_the_example():
    program, *words = shlex.split(values("ExecStart")[0])
    assert program == "/opt/edgetl/bin/python"
    assert words[:2] == ["-P", "/opt/edgetl/service.py"]
    port = words[words.index("--port") + 1]
    assert values("SocketBindAllow") == [f"tcp:{port}"]
    from_the_example = re.search(r"timeout_graceful_shutdown=(\d+)", (DEPLOY / "examples" / "service.py").read_text())
    assert from_the_example is not None
    assert int(values("TimeoutStopSec")[0]) > int(from_the_example[1])


# What follows applies the kernel's part of the unit to a process, since systemd itself runs in few places where tests
# run: SystemCallFilter through libseccomp, MemoryDenyWriteExecute through prctl.

GUARDED = """
import ctypes, sys
sys.path[:0] = {path!r}
import test_deploy_unit as unit
unit.confine({names!r})
from edgetl.runtime import load
with load({bundle!r}, threads=2, backend="cpu") as classifier:
    print(classifier.predict({photo!r}).label)
import mmap
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    print("memory that can be written and run")
except PermissionError:
    print("confined")
try:
    import os
    os.chown({photo!r}, os.getuid(), os.getgid())
    print("chown")
except PermissionError:
    print("confined")
import asyncio
async def served():
    async with await asyncio.start_server(lambda *both: None, "127.0.0.1", 0):
        return "served"
print(asyncio.run(served()))
"""


def system_calls(group: str) -> set[str]:
    """Names of a group of `systemd-analyze syscall-filter`, with those of the groups in it."""
    lines = (line.split()[0] for line in analyze("syscall-filter", group).stdout.splitlines()[1:] if line.split())
    found = set()
    for name in lines:
        found |= system_calls(name) if name.startswith("@") else {name} - {"#"}
    return found


def allowed() -> list[str]:
    """What the unit's two lines of SystemCallFilter leave."""
    granted, taken = values("SystemCallFilter")
    assert taken.startswith("~")
    names = set().union(*map(system_calls, granted.split()))
    return sorted(names.difference(*map(system_calls, taken[1:].split())))


def confine(names: list[str]) -> None:
    """Applies the filter and the ban on memory that can be written and run to this process, for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    set_no_new_privs, set_mdwe, refuse_gain = 38, 65, 1
    assert libc.prctl(set_no_new_privs, 1, 0, 0, 0) == 0
    assert libc.prctl(set_mdwe, refuse_gain, 0, 0, 0) == 0, "the kernel is older than 6.3"
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    act_errno, act_allow = 0x00050000 | errno.EPERM, 0x7FFF0000
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(act_errno)))
    for name in names:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # others are not of this architecture
            assert seccomp.seccomp_rule_add(context, ctypes.c_uint32(act_allow), number, 0) == 0, name
    assert seccomp.seccomp_load(context) == 0


@needs_systemd
@pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="libseccomp is not installed")
def test_a_prediction_under_the_units_system_calls_and_memory_rules(tmp_path):
    if tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (6, 3):
        pytest.skip(f"kernel {os.uname().release} has no PR_SET_MDWE")
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode(make_photo(2)))
    script = GUARDED.format(path=[str(Path(__file__).parent), str(Path(__file__).parents[1])], names=allowed(),
                            bundle=str(make_bundle(tmp_path / "bundle")), photo=str(photo))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["dog", "confined", "confined", "served"]
