"""The fingerprint: what it reads of recorded machines, and which fields tell one machine from another."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from bench import recorded_machines as recorded

from edgetl.bench import environment, machine, sysfs

BARE = frozenset({"fpu"})


def test_the_fingerprint_is_plain_json_and_names_what_it_does_not_know(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = environment.fingerprint(tmp_path)
    assert json.loads(json.dumps(found)) == found
    assert found["governor"] is None and found["frequency_khz"] is None and found["board"] is None
    assert found["sockets"] is None and found["cores"] is None and found["gpus"] == []
    assert found["memory_bytes"] > 10**8 and 1 <= found["usable_threads"] <= os.cpu_count()
    assert found["variables"]["OMP_NUM_THREADS"] == "1" and found["versions"]["numpy"] == np.__version__
    recorded.write(recorded.PI5, tmp_path)
    found = environment.fingerprint(tmp_path)
    assert (found["governor"], found["frequency_khz"], found["cores"]) == ("ondemand", 1500000, 4)
    assert found["board"] == "Raspberry Pi 5 Model B Rev 1.0"


def test_every_listed_field_is_in_the_fingerprint():
    found = environment.fingerprint()
    listed = {*environment.IDENTIFYING, *environment.CONDITIONS} - {"allocator"}  # the runner adds it: the worker's
    assert listed <= set(found)
    assert not set(environment.IDENTIFYING) & set(environment.CONDITIONS)


def test_an_intel_server(tmp_path):
    root = recorded.write(recorded.INTEL, tmp_path)
    assert machine.topology(root) == {"sockets": 2, "cores": 4, "threads_per_core": 2.0, "core_capacities": None}
    assert machine.frequency(root) == {"governor": "powersave", "frequency_driver": "intel_pstate",
                                       "frequency_khz": 2200000, "frequency_max_khz": 3500000, "turbo": "on"}
    assert machine.board(root) == "Dell Inc. PowerEdge R650"
    assert machine.virtualization(BARE, root) == "none" and machine.container(root, {}) is None
    told = machine.machine_id(root, {})
    assert re.fullmatch("[0-9a-f]{16}", told) and told not in recorded.INTEL["etc/machine-id"]
    recorded.write({f"{recorded.CPU}/intel_pstate/no_turbo": "1\n"}, tmp_path)
    assert machine.turbo(root) == "off"


def test_a_container_in_a_virtual_machine_with_a_card(tmp_path):
    root = recorded.write(recorded.AMD, tmp_path)
    assert machine.virtualization(BARE, root) == "qemu" and machine.container(root, {}) == "docker"
    assert machine.machine_id(root, {}) is None  # the image's, the same on every machine
    assert machine.gpus(root) == ["NVIDIA L4"] and machine.memory_limit_bytes(root) == 8 << 30
    assert machine.frequency(root)["turbo"] is None


@pytest.mark.parametrize(("files", "variables", "expected"), [
    ({}, {}, None),
    ({}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
    ({"run/.containerenv": ""}, {}, "podman"),
    ({"run/systemd/container": "lxc\n"}, {}, "lxc"),
    ({"proc/sys/kernel/osrelease": "5.15.167.4-microsoft-standard-WSL2\n"}, {}, "wsl"),
])
def test_kinds_of_containers(tmp_path, files, variables, expected):
    assert machine.container(recorded.write(files, tmp_path), variables) == expected


@pytest.mark.parametrize(("files", "flags", "expected"), [
    ({}, frozenset(), None),
    ({}, BARE, "none"),
    ({}, BARE | {"hypervisor"}, "unnamed"),
    ({"sys/hypervisor/type": "xen\n"}, BARE, "xen"),
    ({"sys/class/dmi/id/sys_vendor": "Microsoft Corporation", "sys/class/dmi/id/product_name": "Virtual Machine"},
     BARE, "microsoft"),
    ({"sys/class/dmi/id/sys_vendor": "Amazon EC2", "sys/class/dmi/id/product_name": "m7g.large"}, frozenset(),
     "amazon"),
    ({"proc/device-tree/hypervisor/compatible": "linux,kvm\0"}, frozenset(), "kvm"),
    ({"proc/device-tree/model": "Raspberry Pi 5"}, frozenset(), "none"),
])
def test_kinds_of_hypervisors(tmp_path, files, flags, expected):
    assert machine.virtualization(flags, recorded.write(files, tmp_path)) == expected


def test_big_and_little_cores(tmp_path):
    sizes = {f"{recorded.CPU}/cpu{one}/cpu_capacity": str(446 if one < 2 else 1024) for one in range(4)}
    assert machine.topology(recorded.write(recorded.PI5 | sizes, tmp_path))["core_capacities"] == [446, 1024]


def test_version_1_cgroups_write_no_limit_as_a_large_number(tmp_path):
    recorded.write({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, tmp_path)
    assert machine.memory_limit_bytes(tmp_path) is None


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, ()),
    ({"cpu": "another"}, ("cpu",)),
    ({"memory_bytes": 16_100_000_000, "kernel": "6.9"}, ()),
    ({"memory_bytes": 32_000_000_000}, ("memory_bytes",)),
    ({"machine_id": None, "load_average": 9.0}, ()),  # a container, which does not know it
    ({"machine_id": "ffff", "usable_threads": 1}, ("machine_id", "usable_threads")),
])
def test_what_tells_two_machines_apart(changes, expected):
    base = {"machine_id": "aaaa", "cpu": "one", "memory_bytes": 16_000_000_000, "usable_threads": 2, "kernel": "6.8"}
    assert environment.differences(base, base | changes) == expected
    assert environment.differences(base | changes, base) == expected
    assert environment.differences({}, base) == ()


def test_what_changed_of_the_conditions():
    base = {"governor": "powersave", "cgroup_cpus": None, "cpu": "one"}
    assert environment.changed_conditions(base, base | {"governor": "performance", "cpu": "two"}) == ("governor",)
    assert environment.changed_conditions(base, base | {"cgroup_cpus": 1.5}) == ("cgroup_cpus",)
    assert environment.changed_conditions({}, base) == ()


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([0], "0"), ([3, 1, 2, 0, 8], "0-3,8"), ([1, 3], "1,3")])
def test_lists_of_processors(numbers, text):
    assert sysfs.ranges(numbers) == text


def test_values_that_are_no_numbers(tmp_path):
    recorded.write({"a": "<unsupported>\n", "b": "-12\n", "c": "\n"}, tmp_path)
    assert [sysfs.number(tmp_path / name) for name in "abcd"] == [None, -12, None, None]
