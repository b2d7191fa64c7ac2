"""A report knows its commit and its date, and does without where there is none."""

from __future__ import annotations

import datetime
import shutil
import subprocess

import pytest

from edgetl.bench import provenance

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr(provenance, "PATIENCE_S", 300.0)  # a busy machine is slow to start git


@pytest.fixture
def work_tree(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("there is no git here")

    def git(*words):
        identity = ["-c", "user.name=n", "-c", "user.email=e@e", "-c", "commit.gpgsign=false"]
        command = ["git", *identity, *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    git("tag", "v1")  # a tag is no commit
    return tmp_path, git("rev-parse", "HEAD").strip()


def test_the_commit_is_that_of_the_work_tree_and_says_when_it_is_changed(work_tree):
    folder, head = work_tree
    assert provenance.commit(folder, {}) == head
    (folder / "file").write_text("2")
    assert provenance.commit(folder, {}) == f"{head}-dirty"


def test_what_the_ci_says_goes_first_unless_it_is_no_commit(work_tree):
    folder, head = work_tree
    assert provenance.commit(folder, {"GITHUB_SHA": SHA}) == SHA
    assert provenance.commit(folder, {"GITHUB_SHA": "<b>", "CI_COMMIT_SHA": SHA}) == SHA
    assert provenance.commit(folder, {"GITHUB_SHA": ""}) == head


def test_without_git_or_a_work_tree_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit(tmp_path, {}) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit(tmp_path, {}) is None


def test_the_date_is_of_now_and_names_its_zone(tmp_path):
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    told = datetime.datetime.fromisoformat(provenance.record(tmp_path, {"GITHUB_SHA": SHA})["measured_at"])
    assert told.utcoffset() == datetime.timedelta(0) and before <= told <= datetime.datetime.now(datetime.UTC)
