"""Entries of `edgetl tune`: found, followed, and passed by with a reason when they are not what they should be."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_bundle import edit_manifest, make_bundle

from edgetl.errors import BundleError, EdgetlError
from edgetl.runtime import choice, load, processor, tuned
from edgetl.runtime.bundle import open_bundle
from edgetl.runtime.tuned import Answer, Entry


@pytest.fixture
def bundle(tmp_path):
    """Two variants, the first for OpenVINO and the CPU, the second for the CPU."""
    return open_bundle(make_bundle(tmp_path / "bundle", second={"backends": ("cpu",)}))


def entry_of(bundle, **changes) -> Entry:
    from edgetl import plugins

    version = plugins.load("backends", "cpu").probe().version
    answers = (Answer("auto", "auto", "other", "cpu", 2, "1 ms, fp32 2 ms"),
               Answer("fp32", "cpu", "fp32", "cpu", 3, "2 ms"))
    plain = {"manifest_sha256": bundle.digest, "bundle": "tiny", "machine": tuned.machine(),
             "versions": {"cpu": version}, "tuned_at": "2026-01-02T03:04:05+00:00", "answers": answers}
    return Entry(**{**plain, **changes})


def store(entry: Entry, text: str | bytes | None = None) -> Path:
    path = tuned.path_of(entry.manifest_sha256, tuned.machine())
    path.parent.mkdir(parents=True, exist_ok=True)
    written = json.dumps(tuned.to_json(entry, {"cases": [{"median_s": 1e-3}]})) if text is None else text
    path.write_bytes(written.encode() if isinstance(written, str) else written)
    return path


def chosen(bundle, **asked):
    return choice.choose(bundle.manifest, **asked, tuned=tuned.find(bundle.digest))


def test_what_was_written_is_read(bundle):
    entry = entry_of(bundle)
    assert tuned.read(store(entry)) == entry == tuned.find(bundle.digest).entry
    assert tuned.files() == (tuned.path_of(bundle.digest, tuned.machine()),)


def test_a_tuned_bundle_is_loaded_as_measured(bundle):
    store(entry_of(bundle))
    with load(bundle.path) as classifier:
        told = classifier.info()
    assert (told["variant"], told["backend"], told["session"]["threads"]) == ("other", "cpu", 2)
    assert told["rule"] == "tuned"
    assert told["why"] == "tuned 2026-01-02T03:04:05+00:00: 1 ms, fp32 2 ms"
    with load(bundle.path, threads=1) as classifier:
        assert (classifier.info()["variant"], classifier.info()["session"]["threads"]) == ("other", 1)
    with load(bundle.path, variant="fp32", backend="cpu") as classifier:
        assert classifier.info()["session"]["threads"] == 3


def test_what_was_asked_for_and_not_measured_goes_by_the_other_rules(bundle):
    store(entry_of(bundle))
    found = chosen(bundle, variant="fp32", backend="openvino")
    assert (found.backend, found.threads, found.rule) == ("openvino", 0, "asked")
    assert "has not measured what was asked for" in found.why


def test_without_a_tuning_the_reason_says_so(bundle):
    assert "`edgetl tune` has not measured it" in chosen(bundle).why
    assert choice.choose(bundle.manifest).why == "first in the manifest's order that can run here"


GOOD = {"schema": 1, "manifest_sha256": "x", "bundle": "b", "tuned_at": "t", "versions": {"cpu": "1"}, "answers": [],
        "machine": {"architecture": "x86", "model": "m", "features": [], "usable_threads": 1}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "expected a table"),
        ("null", "expected a table"),
        ("[" * 100000, "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        ('{"schema": 1e999}', "not JSON"),
        ('{"schema": NaN}', "not JSON"),
        ("{}", "'schema' is missing"),
        ('{"schema": 2}', "has schema 2; this edgetl reads 1"),
        ('{"schema": true}', "'schema' is True"),
        (json.dumps({**GOOD, "machine": None}), "'machine' is None"),
        (json.dumps({**GOOD, "versions": {"cpu": 1}}), "'cpu' is 1"),
        (json.dumps({**GOOD, "answers": [{}]}), "answers[0]: 'asked_variant' is missing"),
        (json.dumps({**GOOD, "answers": [{"asked_variant": "auto", "asked_backend": "auto", "variant": "fp32",
                                          "backend": "cpu", "threads": 10**9, "why": ""}]}), "'threads' is 1000000000"),
        (json.dumps(GOOD), "is of another bundle or machine"),
        ("x" * (tuned.MOST_BYTES + 1), "more than"),
    ],
)
def test_a_damaged_file_is_passed_by_with_the_reason(bundle, text, told):
    path = store(entry_of(bundle), text)
    found = chosen(bundle)
    assert (found.variant.name, found.rule) == ("fp32", "order")
    assert "what `edgetl tune` measured is passed by" in found.why
    assert told in found.why and str(path) in found.why
    with load(bundle.path) as classifier:
        assert told in classifier.info()["why"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling", "secret"])
def test_what_is_no_readable_file_is_passed_by(bundle, kind):
    path = store(entry_of(bundle))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    else:
        path.write_text("{}")
        path.chmod(0)
    found = chosen(bundle)
    assert found.rule == "order" and "is passed by" in found.why


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False))
def test_no_mutation_of_an_entry_is_a_crash(bundle, random: random.Random):
    good = json.dumps(tuned.to_json(entry_of(bundle), {})).encode()
    bad = bytearray(good)
    for _ in range(random.randint(1, 8)):
        place = random.randrange(len(bad))
        bad[place:place + random.choice((0, 1, 1, 5))] = random.randbytes(random.choice((0, 1, 1, 3)))
    store(entry_of(bundle), bytes(bad))
    found = chosen(bundle)
    assert found.variant in bundle.manifest.variants and isinstance(found.why, str)


def test_an_entry_of_another_machine_is_passed_by(bundle, monkeypatch):
    store(entry_of(bundle))
    here = tuned.machine()
    for change in ({"model": "another"}, {"features": ("avx2",)}, {"usable_threads": 64}, {"architecture": "arm"}):
        monkeypatch.setattr(tuned, "machine", lambda change=change: dataclasses.replace(here, **change))
        found = chosen(bundle)
        assert found.rule == "order" and "only on another one" in found.why
        copied = tuned.path_of(bundle.digest, tuned.machine())
        copied.write_text(json.dumps(tuned.to_json(entry_of(bundle, machine=here), {})))  # with an editor, say
        assert "is of another bundle or machine" in chosen(bundle).why


def test_an_entry_is_stale_when_the_backend_is_another_version(bundle):
    store(entry_of(bundle, versions={"cpu": "0.1"}))
    found = chosen(bundle)
    assert found.rule == "order" and "cpu was 0.1 when it was measured, and is" in found.why


def test_an_answer_that_cannot_run_here_is_passed_by(bundle, monkeypatch):
    for answer, told in (
        (Answer("auto", "auto", "int4", "cpu", 1, ""), "the bundle has no variant int4 for cpu"),
        (Answer("auto", "auto", "other", "openvino", 1, ""), "the bundle has no variant other for openvino"),
    ):
        store(entry_of(bundle, answers=(answer,)))
        assert told in chosen(bundle).why
    store(entry_of(bundle))
    needy = dataclasses.replace(bundle.manifest.variants[1], requires=("amx_int8",))
    manifest = dataclasses.replace(bundle.manifest, variants=(bundle.manifest.variants[0], needy))
    monkeypatch.setattr(processor, "flags", lambda cpuinfo=None: frozenset())
    found = choice.choose(manifest, tuned=tuned.Found(entry_of(bundle)))
    assert found.variant.name == "fp32" and "other requires amx_int8" in found.why


def test_a_module_that_only_the_cache_and_the_bundle_name_is_not_imported(tmp_path):
    made = make_bundle(tmp_path / "bundle")
    edit_manifest(made, "variants", 0, "backends", value=["nobodys.module", "cpu"])
    bundle = open_bundle(made)
    answer = Answer("auto", "auto", "fp32", "nobodys.module", 1, "quick")
    store(entry_of(bundle, answers=(answer,)))
    found = chosen(bundle)
    assert found.backend == "cpu" and "imported only when it is asked for" in found.why


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tuned.cache_root() == tmp_path / "xdg" / "edgetl"
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "own"))
    assert tuned.cache_root() == tmp_path / "own"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("EDGETL_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuned.cache_root() == tmp_path / ".cache" / "edgetl"


def test_every_cache_is_in_that_place(monkeypatch, tmp_path):
    from edgetl.datasets import _download

    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path))
    assert _download.cache_folder("cifar10") == tmp_path / "datasets" / "cifar10"
    assert tuned.path_of("0" * 64, tuned.machine()).parent == tmp_path / "tuned"


def test_without_a_home_bundles_load_and_say_why_nothing_was_looked_up(bundle, monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    for name in ("XDG_CACHE_HOME", "EDGETL_CACHE", "HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EdgetlError, match="no home folder") as caught:
        tuned.cache_root()
    assert "EDGETL_CACHE" in caught.value.hint
    assert "no home folder" in chosen(bundle).why


def test_a_file_that_is_gone_is_told(tmp_path):
    with pytest.raises(BundleError, match="is missing"):
        tuned.read(tmp_path / "gone.json")


def test_a_cache_that_may_not_be_listed_is_said_in_the_note(bundle, monkeypatch, tmp_path):
    """Root may list everything, so the refusal is planted."""
    def refuse(_folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tuned.os, "listdir", refuse)
    found = tuned.find(bundle.digest)
    assert found.entry is None and "cannot be listed: Permission denied" in found.note
