"""The allocator's settings, each in a process of its own: mallopt cannot be taken back."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from edgetl import allocator

CHURN = """
import json, resource, numpy
from edgetl.allocator import set_allocator
record = set_allocator() if {wanted} else None
numpy.ones(4_000_000).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    numpy.ones(4_000_000)  # 32 MB: above the greatest threshold at which glibc maps afresh
print(json.dumps([record, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""
# The test must not inherit what a developer's shell has set.
ALLOCATOR_VARIABLES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(ALLOCATOR_VARIABLES)}


def in_fresh_process(code: str) -> object:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=CLEAN, check=True)
    return json.loads(done.stdout)


def is_glibc() -> bool:
    return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc") if sys.platform == "linux" else False


@pytest.mark.skipif(not is_glibc(), reason="mallopt's settings are glibc's")
def test_large_buffers_are_reused_instead_of_faulted_in_again():
    _, faults_default = in_fresh_process(CHURN.format(wanted=False))
    record, faults_set = in_fresh_process(CHURN.format(wanted=True))
    assert record["set"] == {"M_MMAP_MAX": 0, "M_TRIM_THRESHOLD": 2**31 - 1}
    assert record["reason"] is None
    assert record["allocator"].startswith("glibc ")
    assert faults_set < faults_default / 5


def test_another_allocator_is_left_alone_and_named(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    record = allocator.set_allocator()
    assert record["set"] == {}
    assert "jemalloc" in record["reason"]


def test_a_c_library_without_mallopt_is_said_so(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr(os, "confstr_names", {})
    record = allocator.set_allocator()
    assert record["set"] == {} and record["reason"]
