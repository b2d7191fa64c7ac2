"""Threads a process may use, and what is said of feeds that do not fit."""

import os

import numpy as np
import pytest

from edgetl.errors import BundleError, EdgetlError, InputError, UnknownName
from edgetl.runtime.session import (
    GraphSpec,
    TensorSpec,
    check_feeds,
    check_graph,
    check_options,
    open_session,
    usable_threads,
)

IMAGE = TensorSpec("image", "image", "float32", ("N", 3, 8, 8), "NCHW")
MASK = TensorSpec("mask", "features", "uint8", ("N",))
SPEC = GraphSpec(inputs=(IMAGE,), outputs=(TensorSpec("logits", "logits", "float32", ("N", 2), "NC"),))
PAIR = GraphSpec(inputs=(IMAGE, MASK), outputs=SPEC.outputs)
GOOD = np.zeros((2, 3, 8, 8), np.float32)


@pytest.fixture
def many(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def groups(root, **files):
    for path, text in files.items():
        where = root / path.replace("__", "/").replace("_dot_", ".")
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)


def membership(root, text):
    (root / "membership").write_text(text)
    return root / "membership"


@pytest.mark.parametrize(
    "quota, threads", [("max 100000", 16), ("300000 100000", 3), ("250000 100000", 2), ("10000 100000", 1)]
)
def test_cgroup_two(many, tmp_path, quota, threads):
    groups(tmp_path, a__b__cpu_dot_max=quota)
    assert usable_threads(tmp_path, membership(tmp_path, "0::/a/b\n")) == threads


def test_the_tightest_group_above_counts(many, tmp_path):
    groups(tmp_path, cpu_dot_max="400000 100000", a__cpu_dot_max="200000 100000", a__b__cpu_dot_max="max 100000")
    assert usable_threads(tmp_path, membership(tmp_path, "0::/a/b\n")) == 2


def test_cgroup_one(many, tmp_path):
    folder = tmp_path / "cpu" / "job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("500000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_threads(tmp_path, membership(tmp_path, "4:memory:/job\n3:cpu,cpuacct:/job\n")) == 5
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_threads(tmp_path, membership(tmp_path, "3:cpu,cpuacct:/job\n")) == 16


def test_inside_a_container_the_root_counts(many, tmp_path):
    groups(tmp_path, cpu_dot_max="700000 100000")
    assert usable_threads(tmp_path, membership(tmp_path, "0::/docker/0123/not/here\n")) == 7


def test_affinity_bounds_the_quota_and_no_cgroups_are_no_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    groups(tmp_path, cpu_dot_max="700000 100000")
    assert usable_threads(tmp_path, membership(tmp_path, "0::/\n")) == 2
    assert usable_threads(tmp_path, tmp_path / "absent") == 2


def test_this_machine_has_at_least_one_thread():
    assert 1 <= usable_threads() <= os.cpu_count()


def test_good_feeds_pass():
    check_feeds({"image": GOOD}, SPEC)
    check_feeds({"mask": np.zeros(2, np.uint8), "image": GOOD}, PAIR)


@pytest.mark.parametrize(
    "feeds, says",
    [
        ({}, r"fed \[\]; expected \['image'\]"),
        ({"picture": GOOD}, "picture"),
        ({"image": GOOD, "more": GOOD}, "more"),
        ({"image": GOOD.tolist()}, "is a list"),
        ({"image": GOOD.astype(np.float64)}, "float64; expected float32"),
        ({"image": GOOD[0]}, r"shape \[3, 8, 8\]; expected \[N, 3, 8, 8\]"),
        ({"image": GOOD[:, :, :7]}, r"\[2, 3, 7, 8\]"),
        ({"image": GOOD[:0]}, "at least 1"),
    ],
)
def test_what_is_wrong_with_a_feed_is_said(feeds, says):
    with pytest.raises(InputError, match=says):
        check_feeds(feeds, SPEC)


def test_two_inputs_share_one_batch_size():
    with pytest.raises(InputError, match="mask"):
        check_feeds({"image": GOOD, "mask": np.zeros(3, np.uint8)}, PAIR)


def test_a_graph_with_other_names_is_refused():
    check_graph("cpu", ["image"], ["logits"], SPEC)
    with pytest.raises(BundleError, match=r"outputs \['probabilities'\]; expected \['logits'\]"):
        check_graph("cpu", ["image"], ["probabilities"], SPEC)


def test_options_are_checked():
    check_options("x", {"a": "1", "b": "any"}, {"a": ("1", "2"), "b": ()})
    with pytest.raises(EdgetlError, match="no option 'c'"):
        check_options("x", {"c": "1"}, {"a": ("1",)})
    with pytest.raises(EdgetlError, match="'3'; expected one of 1, 2"):
        check_options("x", {"a": "3"}, {"a": ("1", "2")})


def test_an_unknown_backend_names_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'cpu'"):
        open_session("cpu0", b"", SPEC)


def test_negative_threads_are_refused():
    with pytest.raises(EdgetlError, match="-1"):
        open_session("cpu", b"", SPEC, threads=-1)
