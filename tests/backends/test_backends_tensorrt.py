"""Opening an engine on a made-up card: from the cache, from a file, from the graph, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import made_up_engine
import numpy as np
import pytest
from made_card import CARD, FLAVOR, HEAD, MadeCard
from made_up_cuda import Runtime
from tiny_bundle import edit_manifest, give_features, graph_spec, make_bundle, make_graph, make_photo, reference_logits

from edgetl.backends import _cuda, _tensorrt_flavor, tensorrt
from edgetl.backends._cuda_python import CudaPython
from edgetl.backends._tensorrt_build import Engine, How
from edgetl.backends._tensorrt_store import EngineStore, Place, fingerprint, write_engine
from edgetl.cli.app import main
from edgetl.errors import BackendUnavailable, BundleError, EdgetlError, GateFailed
from edgetl.runtime import load, proving, verify
from edgetl.runtime.layers import open_profiled
from edgetl.runtime.session import open_session

GRAPH, SPEC = make_graph(), graph_spec()
IMAGES = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)


@pytest.fixture
def card(monkeypatch) -> MadeCard:
    return MadeCard().install(monkeypatch)


@pytest.fixture
def bundle(tmp_path) -> Path:
    return for_tensorrt(make_bundle(tmp_path / "bundle"))


def for_tensorrt(bundle: Path) -> Path:
    edit_manifest(bundle, "variants", 0, "backends", value=["tensorrt"])
    return bundle


def opened(**options) -> tensorrt.EngineSession:
    return open_session("tensorrt", GRAPH, SPEC, threads=1, options=options)


def engine_of(**options) -> dict:
    """What a session of the graph tells of its engine."""
    session = opened(**options)
    assert np.abs(session.run({"image": IMAGES})["logits"] - reference_logits(IMAGES)).max() < 1e-4
    session.close()
    return session.info()["engine"]


def kept(own_home: Path) -> list[Path]:
    return sorted((own_home / "cache" / "edgetl" / "engines").glob("*.engine"))


# ------------------------------------------------------------------------------------------------ the cache


def test_an_engine_is_built_once_and_kept(card, own_home):
    first, second = engine_of(), engine_of()
    assert (first["built"], first["why_built"], first["kept"]) == (True, "it was not built here yet", True)
    assert (second["built"], second["kept"]) == (False, True)
    assert "why_built" not in second
    assert first["build_s"] == second["build_s"] == 12.5
    assert first["sha256"] == second["sha256"]
    assert card.builds == [How()]
    assert [path.read_bytes() for path in kept(own_home)] == [HEAD + GRAPH]


def test_a_folder_may_be_named(card, tmp_path, own_home):
    open_session("tensorrt", GRAPH, SPEC, threads=1, cache_dir=tmp_path / "here").close()
    assert len(list((tmp_path / "here").glob("*.engine"))) == 1
    assert kept(own_home) == []


@pytest.mark.parametrize("change", [
    {"card": dataclasses.replace(CARD, compute_capability="9.0")}, {"card": dataclasses.replace(CARD, name="Other")},
    {"card": dataclasses.replace(CARD, driver_version="581.1")},
    {"flavor": dataclasses.replace(FLAVOR, version="11.5.0.1")}, {"flavor": dataclasses.replace(FLAVOR, name="rtx")}])
def test_another_machine_builds_its_own(card, change):
    engine_of()
    vars(card).update(change)
    assert engine_of()["built"]
    assert len(card.builds) == 2


def test_free_memory_is_no_reason_to_build_again(card):
    engine_of()
    card.card = dataclasses.replace(CARD, free_bytes=1)
    assert not engine_of()["built"]


@pytest.mark.parametrize("options, how", [
    ({"batches": "1,8,32"}, How(batches=(1, 8, 32))), ({"batches": "1:8:16"}, How(batches=(1, 8, 16))),
    ({"batches": "4"}, How(batches=(4, 4, 4))),
    ({"workspace_mib": "512"}, How(workspace_bytes=512 << 20)),
    ({"optimization_level": "5"}, How(optimization_level=5)),
    ({"version_compatible": "on"}, How(version_compatible=True)),
    ({"hardware_compatible": "ampere-plus"}, How(hardware_compatible="ampere-plus"))])
def test_other_flags_are_another_engine(card, options, how):
    engine_of()
    assert engine_of(**options)["built"]
    assert not engine_of(**options)["built"]
    assert card.builds == [How(), how]


def test_what_is_no_flag_of_the_build_changes_no_engine(card):
    engine_of()
    assert not engine_of(cuda_graph="off", cache_mib="100")["built"]
    assert card.cuda_graphs == [True, False]


def test_the_timing_cache_goes_from_build_to_build(card):
    engine_of()
    engine_of(batches="1:2:3")
    assert card.timing_caches == [None, b"learned"]


def test_a_full_cache_is_told(card, monkeypatch):
    monkeypatch.setattr(tensorrt, "MIB", 100)
    told = engine_of(cache_mib="1")
    assert told["kept"] is False
    assert "limited to 100" in told["why_not_kept"]
    assert engine_of(cache_mib="1")["why_built"] == "it was not built here yet"


def test_of_an_engine_that_is_not_kept_no_proof_is(card, bundle, monkeypatch):
    monkeypatch.setattr(tensorrt, "MIB", 1500)  # room for a sidecar, not for the plan too
    for _ in range(2):
        with load(bundle, options={"cache_mib": "1"}) as classifier:
            told = classifier.info()["session"]
        assert (told["engine"]["why_built"], told["engine"]["kept"]) == ("it was not built here yet", False)
        assert len(told["proofs"]) == 1
    assert card.calls == [2, 2]


def test_a_plan_that_looks_right_and_is_not_taken_is_built_again_once(card, own_home):
    engine_of()
    # As if an earlier builder had made it: bytes and sidecar agree, and TensorRT does not take them.
    store, of = EngineStore(None), wanted()
    store.discard(of)
    store.get(of, lambda: Engine(b"no plan", {"fp32": 1.0}, 1.0, None))
    told = engine_of()
    assert told["built"]
    assert "magic tag" in told["why_built"]
    assert not engine_of()["built"]
    assert len(card.builds) == 2


def wanted() -> dict:
    return fingerprint(GRAPH, SPEC, FLAVOR, How(), Place(("8.9",), "580.65", "Made Up 9"))


def test_an_engine_that_was_built_now_and_is_not_taken_is_an_error_and_not_kept(card, own_home):
    card.refuses = True
    with pytest.raises(BackendUnavailable, match=r"built here just now, and cannot be opened.*magic tag") as caught:
        opened()
    assert "one version" in caught.value.hint
    assert kept(own_home) == []
    assert len(card.builds) == 1
    card.refuses = False
    engine_of()
    card.refuses = True
    with pytest.raises(BackendUnavailable, match="built here just now"):
        opened()
    assert len(card.builds) == 3  # the kept one was refused, and then the new one
    assert kept(own_home) == []


def test_a_kept_engine_of_another_precision_is_refused(card):
    engine_of()
    with pytest.raises(GateFailed, match="fp16 was asked for, but the engine computes in 100 % fp32"):
        open_session("tensorrt", GRAPH, dataclasses.replace(SPEC, precision="fp16"), threads=1)


def test_a_graph_with_its_weights_elsewhere_is_refused(card):
    import onnx

    model = onnx.load_from_string(GRAPH)
    weight = model.graph.initializer[0]
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.ClearField("raw_data")
    weight.external_data.add(key="location", value="weights.bin")
    with pytest.raises(BundleError, match="in another file"):
        open_session("tensorrt", model.SerializeToString(), SPEC, threads=1)
    assert card.builds == []


# ------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize("options, says", [
    ({"batches": "1:2"}, "LEAST,BEST,GREATEST"), ({"batches": "0"}, "from 1 upwards"),
    ({"batches": "8:4:2"}, "the least, the best and the greatest"), ({"batches": "one"}, "LEAST,BEST,GREATEST"),
    ({"workspace_mib": "0"}, "whole number of MiB"), ({"workspace_mib": "1GB"}, "whole number of MiB"),
    ({"cache_mib": "-1"}, "whole number of MiB"), ({"optimization_level": "6"}, "expected one of 0, 1"),
    ({"flavor": "openvino"}, "expected one of auto, tensorrt, rtx"), ({"cuda_graph": "yes"}, "expected one of on, off"),
    ({"hardware_compatible": "all"}, "expected one of none"), ({"turbo": "on"}, "no option 'turbo'")])
def test_a_wrong_option_is_one_sentence(card, options, says):
    with pytest.raises(EdgetlError, match=says) as caught:
        opened(**options)
    assert type(caught.value) is EdgetlError
    assert card.builds == []


def test_the_options_are_described():
    for name in tensorrt.OPTIONS:
        assert f"\n    {name}: " in tensorrt.__doc__


def test_layers_are_profiled_without_cuda_graphs(card):
    open_profiled("tensorrt", GRAPH, SPEC, threads=1).close()
    assert card.cuda_graphs == [False]


# ------------------------------------------------------------------------------------------------ FILE.engine


def ahead(path: Path, plan: bytes = HEAD + GRAPH, cards: tuple[str, ...] = ("8.6", "8.9"),
          graph: bytes = GRAPH) -> Path:
    how = How(compute_capabilities=cards)
    of = fingerprint(graph, SPEC, FLAVOR, how, Place.ahead(cards))
    write_engine(path, Engine(plan, {"fp32": 1.0}, 3.0, None), of)
    return path


def test_an_engine_built_ahead_of_time_is_used_as_it_is(card, tmp_path, own_home):
    file = ahead(tmp_path / "model.engine")
    told = engine_of(engine=str(file))
    assert told["file"] == str(file)
    assert told["build_s"] == 3.0
    assert card.builds == [] and kept(own_home) == []


@pytest.mark.parametrize("harm, says", [
    (lambda file: file.unlink(), "model.engine is missing"),
    (lambda file: file.write_bytes(b"x"), "model.engine should have"),
    (lambda file: file.write_bytes(HEAD[::-1] + GRAPH), "is damaged"),
    (lambda file: file.with_name("model.engine.json").unlink(), "model.engine.json is missing"),
    (lambda file: ahead(file, cards=("7.5",)), "built for compute capability 7.5, here is 8.9"),
    (lambda file: ahead(file, graph=b"another"), "built from another graph"),
    (lambda file: ahead(file, plan=b"what TensorRT does not take"), "magic tag")])
def test_a_file_that_does_not_serve_is_passed_by_and_told(card, tmp_path, harm, says):
    file = ahead(tmp_path / "model.engine")
    harm(file)
    told = engine_of(engine=str(file))
    assert says in told["file_passed_by"]
    assert told["built"] and "file" not in told
    assert not engine_of()["built"]


def test_flags_that_the_user_asks_for_must_be_the_file_s(card, tmp_path):
    file = str(ahead(tmp_path / "model.engine"))
    assert "file" in engine_of(engine=file, batches="1:1:32")
    assert "built with batches 1, 1, 32, asked for is 1, 1, 8" in engine_of(engine=file, batches="1:1:8")[
        "file_passed_by"]


# ------------------------------------------------------------------------------------------------ the golden check


def test_a_new_engine_answers_the_golden_images_once(card, bundle):
    for _ in range(3):
        with load(bundle) as classifier:
            told = classifier.info()["session"]
            assert len(told["proofs"]) == 1
            assert "unproven" not in told
            assert classifier.predict(make_photo(0)).label in ("cat", "dog", "fox")
    assert card.calls == [2, 1, 1, 1]  # the two golden images, then the photos
    assert len(card.builds) == 1


def test_a_wrong_engine_is_refused_and_removed(card, bundle, own_home):
    card.off_by = 0.5
    with pytest.raises(GateFailed, match=r"on 'tensorrt' gives other logits.* is 0\.5 away, expected at most "
                                         r".*; the engine is refused, and it is removed from the cache") as caught:
        load(bundle)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert kept(own_home) == []
    assert card.opened == card.closed == 1
    card.off_by = 0.0
    with load(bundle) as classifier:
        assert classifier.info()["session"]["engine"]["built"]


@pytest.mark.parametrize("off_by", [float("nan"), float("inf"), -1.0])
def test_numbers_that_are_none_are_refused_too(card, bundle, off_by):
    card.off_by = off_by
    with pytest.raises(GateFailed):
        load(bundle)


def test_an_engine_within_the_tolerance_is_taken(card, bundle):
    card.off_by = 0.5
    edit_manifest(bundle, "variants", 0, "tolerance", value=0.6)
    load(bundle).close()


def test_a_stricter_tolerance_or_other_golden_images_are_shown_again(card, bundle, tmp_path):
    load(bundle).close()
    assert card.calls == [2]
    edit_manifest(bundle, "variants", 0, "tolerance", value=1e-4)
    load(bundle).close()
    assert card.calls == [2, 2]
    other = for_tensorrt(give_features(make_bundle(tmp_path / "other")))
    load(other).close()
    assert card.calls == [2, 2, 2]
    load(bundle).close()
    assert card.calls == [2, 2, 2]
    assert len(card.builds) == 2  # the graph with features is another one


def test_features_are_held_against_training_s_too(card, tmp_path):
    bundle = for_tensorrt(give_features(make_bundle(tmp_path / "features")))
    edit_manifest(bundle, "variants", 0, "tolerance", value=10.0)
    card.off_by = 0.5
    with pytest.raises(GateFailed, match="other features"):
        load(bundle)


def test_a_bundle_without_golden_images_is_loaded_and_says_so(card, bundle):
    edit_manifest(bundle, "golden", value={})
    with load(bundle) as classifier:
        told = classifier.info()["session"]
    assert told["unproven"] == proving.NO_GOLDEN
    assert told["proofs"] == []
    assert card.calls == []


def test_a_session_without_a_bundle_says_that_nothing_was_shown(card):
    session = opened()
    assert session.info()["unproven"] == tensorrt.NO_BUNDLE
    session.close()


def test_golden_images_that_the_manifest_names_must_be_there(card, bundle):
    (bundle / "golden.npz").unlink()
    with pytest.raises(BundleError, match=r"golden\.npz is missing"):
        load(bundle)
    assert card.opened == card.closed == 1


def test_an_engine_for_larger_batches_is_shown_the_images_again(card, bundle):
    card.least = 5
    load(bundle).close()
    assert card.calls == [5]


def test_an_engine_from_a_file_is_shown_once_on_each_machine(card, bundle, tmp_path):
    options = {"engine": str(ahead(tmp_path / "model.engine"))}
    before = (tmp_path / "model.engine.json").read_bytes()
    for _ in range(2):
        load(bundle, options=options).close()
    assert card.calls == [2]
    card.card = dataclasses.replace(CARD, name="Made Up 10")
    load(bundle, options=options).close()
    assert card.calls == [2, 2]
    assert card.builds == []
    assert (tmp_path / "model.engine.json").read_bytes() == before


def test_a_wrong_engine_from_a_file_is_refused_and_left_where_it_is(card, bundle, tmp_path):
    file = ahead(tmp_path / "model.engine")
    card.off_by = 0.5
    with pytest.raises(GateFailed, match=r"model\.engine is not used"):
        load(bundle, options={"engine": str(file)})
    assert file.exists()


def test_a_proof_that_cannot_be_recorded_is_given_again(card, bundle, monkeypatch):
    load(bundle, options={"cache_mib": "1"}).close()
    monkeypatch.setattr(EngineStore, "prove", lambda *_: "the disk is full")
    edit_manifest(bundle, "variants", 0, "tolerance", value=1e-4)
    with load(bundle) as classifier:
        assert classifier.info()["session"]["engine"]["why_shown_again"] == "the disk is full"
    load(bundle).close()
    assert card.calls == [2, 2, 2]


def test_a_session_that_fails_in_the_golden_check_is_closed(card, bundle, monkeypatch):
    def failing(*_):
        raise BackendUnavailable("The card is out of memory: 3 MiB is needed.")

    monkeypatch.setattr("made_card.MadeSession.run", failing)
    with pytest.raises(BackendUnavailable, match="out of memory"):
        load(bundle)
    assert card.opened == card.closed == 1


def test_verify_goes_through_the_same_door(card, bundle):
    checks = verify(bundle, "tensorrt").checks
    assert [one.status for one in checks if one.name == "fp32"] == ["passed"]
    card.off_by = 0.5
    with pytest.raises(GateFailed, match="other logits"):
        verify(bundle, "tensorrt")


def test_exit_codes_and_words_of_the_command_line(card, bundle, capsys):
    card.off_by = 0.5
    assert main(["verify", str(bundle), "--backend", "tensorrt"]) == 3
    assert "the engine is refused" in capsys.readouterr().err


def test_backends_that_run_the_graph_itself_show_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(proving, "insist", lambda *_: pytest.fail("it was asked for a proof"))
    load(make_bundle(tmp_path / "cpu"), "cpu").close()


# ------------------------------------------------------------------------------------------------ the whole way


@pytest.fixture
def whole(monkeypatch):
    """The real session on a made-up CUDA and engine, which note whatever a card would punish."""
    runtime, built = Runtime(), []
    state = SimpleNamespace(runtime=runtime, built=built, bias=0.0, flavor=made_up_engine.flavor(runtime.card, "rtx"))

    def build(graph, spec, flavor, how, *, timing_cache=None):
        built.append(how)
        plan = made_up_engine.make_plan(biased(graph, state.bias), (how.batches,), flavor.version)
        return Engine(plan, {spec.precision: 1.0}, 0.25, None)

    monkeypatch.setattr(_tensorrt_flavor, "find", lambda wanted="auto": state.flavor)
    monkeypatch.setattr(_cuda, "find", lambda: CudaPython(runtime, "13.5"))
    monkeypatch.setattr(tensorrt, "build", build)
    tensorrt._probed.cache_clear()
    yield state
    tensorrt._probed.cache_clear()
    assert runtime.card.violations == []
    assert runtime.card.left() == []


def biased(graph: bytes, bias: float) -> bytes:
    """The graph that a wrong builder makes of one: the same names and shapes, other numbers."""
    import onnx

    model = onnx.load_from_string(graph)
    weight = next(one for one in model.graph.initializer if one.name == "fc_b")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + np.float32(bias), "fc_b"))
    return model.SerializeToString()


def test_from_the_bundle_to_the_card_and_back(whole, bundle):
    for number in range(2):
        with load(bundle) as classifier:
            told = classifier.info()["session"]
            assert told["engine"]["built"] == (number == 0)
            assert told["provider"].startswith("TensorRT for RTX")
            assert len(told["proofs"]) == 1
            assert np.abs(classifier.logits(IMAGES) - reference_logits(IMAGES)).max() < 1e-4
    assert len(whole.built) == 1


def test_a_builder_that_is_wrong_is_found_out_on_the_card(whole, bundle, own_home):
    whole.bias = 0.25
    with pytest.raises(GateFailed, match=r"0\.25 away.*the engine is refused"):
        load(bundle)
    assert kept(own_home) == []
    assert whole.runtime.card.left() == []
    whole.bias = 0.0
    load(bundle).close()
    assert len(whole.built) == 2


def test_a_plan_of_another_version_that_looks_right_is_built_again_on_the_card(whole, bundle):
    load(bundle).close()
    store = EngineStore(None)
    of = json.loads(next(store.folder.glob("*.json")).read_text())["fingerprint"]
    store.discard(of)
    old = made_up_engine.make_plan(GRAPH, version="10.9")
    store.get(of, lambda: Engine(old, {"fp32": 1.0}, 1.0, None))
    with load(bundle) as classifier:
        assert "cannot open the engine" in classifier.info()["session"]["engine"]["why_built"]
    assert len(whole.built) == 2


def test_what_tensorrt_for_rtx_compiled_is_there_at_the_next_start(whole, bundle, monkeypatch):
    given = []
    real = made_up_engine.RuntimeCache.deserialize
    monkeypatch.setattr(made_up_engine.RuntimeCache, "deserialize",
                        lambda self, blob: given.append(blob) or real(self, blob))
    load(bundle).close()
    assert given == []
    compiled = EngineStore(None).folder.glob("*.kernels")
    assert [path.read_bytes()[65:] for path in compiled] == [made_up_engine.RuntimeCache.HEAD]
    with load(bundle) as classifier:
        classifier.predict(make_photo(0))
    assert given == [made_up_engine.RuntimeCache.HEAD]


def test_what_was_compiled_for_a_file_is_kept_too(whole, bundle, tmp_path):
    how = How(compute_capabilities=("8.9",))
    file = tmp_path / "model.engine"
    plan = made_up_engine.make_plan(GRAPH, (how.batches,), whole.flavor.version)
    write_engine(file, Engine(plan, {"fp32": 1.0}, 3.0, None),
                 fingerprint(GRAPH, SPEC, whole.flavor, how, Place.ahead(how.compute_capabilities)))
    load(bundle, options={"engine": str(file)}).close()
    assert len(list(EngineStore(None).folder.glob("*.kernels"))) == 1
    assert whole.built == []


# ------------------------------------------------------------------------------------------------ probe


def test_a_card_that_is_there_is_usable(card):
    told = tensorrt.probe()
    assert (told.usable, told.version, told.device) == (True, "11.4.0.1", "Made Up 9 (TensorRT 11.4)")


def test_what_is_missing_is_told_with_its_fix(card, monkeypatch, bundle):
    monkeypatch.setattr(_cuda, "find", lambda: (_ for _ in ()).throw(_cuda.no_driver("no libcuda")))
    told = tensorrt.probe()
    assert (told.usable, told.version) == (False, "11.4.0.1")
    assert "no NVIDIA driver" in told.reason and "driver" in told.fix
    with pytest.raises(BackendUnavailable, match="cannot run on tensorrt: There is no NVIDIA driver"):
        load(bundle)
    assert main(["verify", str(bundle), "--backend", "tensorrt"]) == 1


def test_a_card_that_the_flavor_does_not_know(card):
    members = {"NONE": 0, "CURRENT": 1, "SM86": 2, "SM89": 3, "SM120": 4}
    module = SimpleNamespace(ComputeCapability=SimpleNamespace(__members__=members))
    card.flavor = dataclasses.replace(FLAVOR, name="rtx", module=module, version="1.7.1.116")
    assert tensorrt.probe().usable
    tensorrt._probed.cache_clear()
    card.card = dataclasses.replace(CARD, name="NVIDIA H100", compute_capability="9.0")
    told = tensorrt.probe()
    assert not told.usable
    assert "TensorRT for RTX 1.7 runs on cards of compute capability 8.6, 8.9, 12.0; NVIDIA H100 has 9.0" in told.reason
    assert "pip install tensorrt" in told.fix


def test_the_answer_is_looked_for_once(card, monkeypatch):
    assert tensorrt.probe().usable
    monkeypatch.setattr(_tensorrt_flavor, "find", lambda wanted="auto": pytest.fail("looked again"))
    assert tensorrt.probe().usable


def test_without_tensorrt_nothing_heavy_is_imported_to_find_that_out(tmp_path):
    script = ("import importlib.util, json, sys\n"
              "real = importlib.util.find_spec\n"
              "importlib.util.find_spec = lambda name, *more: (\n"
              "    None if name.startswith('tensorrt') else real(name, *more))\n"
              "from edgetl import plugins\n"
              "told = plugins.load('backends', 'tensorrt').probe()\n"
              "heavy = [name for name in ('torch', 'cuda', 'tensorrt', 'tensorrt_rtx_bindings', 'onnx') "
              "if name in sys.modules]\n"
              "print(json.dumps([told.usable, told.reason, told.fix, heavy]))\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=True,
                          cwd=Path(__file__).parents[2])
    usable, reason, fix, heavy = json.loads(done.stdout)
    assert (usable, heavy) == (False, [])
    assert "not installed" in reason
    assert "pip install" in fix
