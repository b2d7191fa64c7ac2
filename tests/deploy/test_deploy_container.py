"""Dockerfile, .dockerignore and compose.yaml agree with one another and with what they start.

What their steps do is tried by deploy/prove-dockerfile.sh, which needs root, buildah and the network.
"""

import json
import re
import shlex
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
PROVE = ROOT / "deploy" / "prove-dockerfile.sh"


def stages() -> dict[str, list[str]]:
    """Instructions by the name of their stage, those of the stages it is made FROM first."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]:
        head, *lines = [line.strip() for line in part.splitlines() if line.strip()]
        source, name = re.fullmatch(r"(\S+) AS (\w+)", head).groups()
        assert source in found or source.startswith("${"), f"{name} is made from {source}, which is no stage before it"
        found[name] = [*found.get(source, []), *lines]
    return found


def last(instructions: list[str], word: str) -> str:
    return [line.removeprefix(word).strip() for line in instructions if line.startswith(f"{word} ")][-1]


def test_every_copied_file_is_there_and_not_ignored():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    copied = [source for line in DOCKERFILE.splitlines() if line.startswith("COPY ") and "--from" not in line
              for source in line.split()[1:-1]]
    assert len(copied) >= 5
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in kept), f"{source} is ignored"
    assert sorted(kept) == sorted(copied)
    assert "*" in lines


def test_stages_that_files_are_copied_from_exist():
    names = list(stages())
    for line in re.findall(r"COPY --from=(\w+) ", DOCKERFILE):
        assert line in names
    assert {"runtime", "service", "train"} <= set(names)


@pytest.mark.parametrize("name", ["runtime", "service"])
def test_device_images_run_without_privileges_and_have_a_health_check(name):
    instructions = stages()[name]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last(instructions, "USER")), "a number tells that it is not root"
    assert json.loads(last(instructions, "ENTRYPOINT"))[:2] == ["python", "-P"]
    health = last(instructions, "HEALTHCHECK")
    assert json.loads(health.partition("CMD ")[2])[0] == "python"
    assert not any("apt-get" in line or "/pip/" in line for line in instructions), "it holds what only a build needs"


def test_the_health_checks_ask_for_what_is_there():
    """The entry points know the words, and the service has the path and the port."""
    from edgetl.runtime.__main__ import build_parser

    runtime = json.loads(last(stages()["runtime"], "HEALTHCHECK").partition("CMD ")[2])
    assert runtime[:4] == ["python", "-P", "-m", "edgetl.runtime"]
    build_parser().parse_args(runtime[4:])
    service = last(stages()["service"], "HEALTHCHECK")
    example = (ROOT / "deploy" / "examples" / "service.py").read_text()
    port = last(stages()["service"], "EXPOSE")
    assert f"127.0.0.1:{port}/readyz" in service
    assert "async def readyz(" in example
    assert f'"--port", type=int, default={port}' in example


def test_compose_gives_the_service_no_more_than_it_needs():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    service = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]["classifier"]
    instructions = stages()["service"]
    assert service["build"] == {"context": "..", "target": "service"}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == last(instructions, "USER")
    assert [one["read_only"] for one in service["volumes"]] == [True]
    assert all("noexec" in one for one in service["tmpfs"])
    assert service["mem_limit"] == service["memswap_limit"]
    assert {"cpus", "pids_limit"} <= set(service)
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["healthcheck"]["test"][1:] == json.loads(last(instructions, "HEALTHCHECK").partition("CMD ")[2])


def test_the_notes_name_the_sizes_of_the_images():
    notes = (ROOT / "deploy" / "README.md").read_text()
    for name in ("runtime", "service"):
        assert re.search(rf"^\| `{name}` \|.*\| \d+ MB \|$", notes, re.M), name


def test_the_proof_says_how_it_is_used():
    bash = shutil.which("bash")
    assert bash is not None
    assert subprocess.run([bash, "-n", str(PROVE)], check=False).returncode == 0
    done = subprocess.run([bash, str(PROVE)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "deploy/prove-dockerfile.sh BUNDLE PHOTO" in done.stderr
    assert shlex.split(PROVE.read_text().splitlines()[0]) == ["#!/usr/bin/env", "bash"]
