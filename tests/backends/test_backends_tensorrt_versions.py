"""How TensorRT 10 and 11 are asked, with modules made up after their bindings: no real one builds without a card."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import made_up_builder as fake
import pytest
from made_up_builder import VERSIONS, made_up
from tiny_bundle import SIZE, graph_spec

from edgetl.backends import _tensorrt_build, _tensorrt_timing
from edgetl.backends._tensorrt_build import Engine, How
from edgetl.backends._tensorrt_flavor import Flavor
from edgetl.errors import BackendUnavailable, BundleError, EdgetlError, GateFailed


@pytest.fixture(params=VERSIONS)
def flavor(request: pytest.FixtureRequest) -> Flavor:
    """TensorRT 10 and TensorRT 11."""
    return made_up(request.param)


def build(flavor: Flavor, graph: bytes = b"fp32", how: How | None = None, precision: str = "fp32",
          **more: Any) -> Engine:
    spec = dataclasses.replace(graph_spec(), precision=precision)
    return _tensorrt_build.build(graph, spec, flavor, how or How(), **more)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_made_up_module_offers_nothing_that_the_real_one_lacks(version: str) -> None:
    module = made_up(version).module
    for made in fake.CLASSES:
        offered = {name for name in vars(made) if not name.startswith("_")}
        offered |= {name for name in vars(module.__dict__[made.__name__](module)) if not name.startswith("_")} \
            if made in (fake.IBuilderConfig, fake.ParserError) else set()
        assert offered - fake.OWN <= set(fake.RECORDED[version][made.__name__]), made
    assert not hasattr(module, "ComputeCapability")


def test_ten_is_asked_for_strong_types_and_eleven_has_no_other(flavor: Flavor) -> None:
    build(flavor)
    strongly = flavor.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert flavor.module.network.flags == (1 << int(strongly) if flavor.major == 10 else 0)


def test_the_flags_of_a_build_reach_the_config(flavor: Flavor) -> None:
    how = How((2, 4, 8), (), 1 << 30, 5, True, "ampere-plus")
    made = build(flavor, how=how)
    config = flavor.module.config
    assert config.cleared == ["TF32"] and config.flags_set == ["VERSION_COMPATIBLE"]
    assert config.pools == {"WORKSPACE": 1 << 30} and config.builder_optimization_level == 5
    assert config.profiling_verbosity.name == "DETAILED"
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert config.profiles[0].shapes == {"image": tuple((n, 3, SIZE, SIZE) for n in (2, 4, 8))}
    assert made.plan == b"a plan of " + flavor.version.encode()


def test_nothing_is_set_that_was_not_asked_for(flavor: Flavor) -> None:
    build(flavor, how=How(hardware_compatible="same-compute-capability"))
    config = flavor.module.config
    assert config.flags_set == [] and config.pools == {} and config.builder_optimization_level is None
    assert config.hardware_compatibility_level.name == "SAME_COMPUTE_CAPABILITY"


@pytest.mark.parametrize(("said", "told"), [
    ("Chose 1 layer(s) using sparse tactics: sparse conv", "1 layer has 2:4 sparse weights; 1 got sparse kernels "
     "(sparse conv)."),
    ("TRT inference plan picked sparse implementation for layers: ", "1 layer has 2:4 sparse weights; none of them got "
     "a sparse kernel; the dense ones were faster there."),
    ("something new", "1 layer has 2:4 sparse weights; sparse kernels were allowed, and TensorRT"),
])
def test_sparse_kernels_are_allowed_where_the_weights_are_sparse(flavor: Flavor, said: str, told: str) -> None:
    flavor.module.chose = said
    made = build(flavor, b"sparse")
    assert flavor.module.config.flags_set == ["SPARSE_WEIGHTS"]
    assert made.notes[-1].startswith(told)
    assert build(flavor).notes == () and flavor.module.config.flags_set == []


def test_what_only_informs_is_no_error(flavor: Flavor) -> None:
    from edgetl.backends import _tensorrt_log

    with _tensorrt_log.collected(flavor.module) as heard:
        flavor.module.say("INFO", "(Sparsity) Chose 0 layer(s) using sparse tactics: ")
        flavor.module.say("INFO", "anything else")
    assert [one.text for one in heard] == ["(Sparsity) Chose 0 layer(s) using sparse tactics: "]
    assert _tensorrt_log.errors(heard) == []


def test_precision_is_proved_from_the_parsed_network(flavor: Flavor) -> None:
    assert build(flavor, b"fp16", precision="fp16").precisions == {"fp16": 1.0}
    with pytest.raises(GateFailed, match="fp16 was asked for, but the graph, as it was parsed, computes in 100 % fp32"):
        build(flavor, precision="fp16")


def test_cards_that_are_named_need_the_other_flavor(flavor: Flavor) -> None:
    assert _tensorrt_build.known_cards(flavor) == ()
    with pytest.raises(BackendUnavailable, match=r"builds for the card of this machine only; compute capability 8\.9 "
                                                 "was asked for") as caught:
        build(flavor, how=How(compute_capabilities=("8.9",)))
    assert "--flavor rtx" in (caught.value.hint or "")
    assert flavor.module.builders == 0


def test_a_parser_error_within_functions_names_them(flavor: Flavor) -> None:
    with pytest.raises(BundleError, match=r"the node that gives 'logits' \(Odd, number 4, in the function outer > "
                                          r"inner\): TensorRT does not have the operator Odd .* \(1 more after it\.\)"):
        build(flavor, b"odd")


def test_without_a_driver_there_is_no_builder() -> None:
    for version in VERSIONS:
        with pytest.raises(BackendUnavailable, match="finds no NVIDIA driver, or one that is too old") as caught:
            build(made_up(version, refuses="driver"))
        assert "--flavor rtx" in (caught.value.hint or "")


@pytest.mark.parametrize(("said", "told", "hint"), [
    ("IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any implementation for node a + "
     "b. In computeCosts at /_src/optimizer/globWriter.cpp:2207)", "Could not find any implementation for node a \\+ b",
     "workspace"),
    ("[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)", "out of memory", "Free memory"),
    ("IBuilder::buildSerializedNetwork: Error Code 6: API Usage Error (Unable to load library: libnvinfer_lean.so.10: "
     "cannot open shared object file)", "Unable to load library", "lean runtime"),
])
def test_a_build_that_fails_says_what_the_builder_said_last(said: str, told: str, hint: str) -> None:
    for version in VERSIONS:
        with pytest.raises(BackendUnavailable, match=f"for the card of this machine: {told}") as caught:
            build(made_up(version, refuses=said))
        assert hint in (caught.value.hint or "") and ".cpp" not in caught.value.message


# ----------------------------------------------------------------------------------------------------- timing caches


def test_a_timing_cache_goes_in_and_comes_out(flavor: Flavor) -> None:
    first = build(flavor)
    assert first.timing_cache == b"cache+kernels" and first.notes == ()
    assert build(flavor, timing_cache=first.timing_cache).timing_cache == b"cache+kernels+kernels"


@pytest.mark.parametrize("wrong", [b"damaged", b"other card"])
def test_a_wrong_timing_cache_is_left_aside(flavor: Flavor, wrong: bytes) -> None:
    made = build(flavor, timing_cache=wrong)
    assert made.timing_cache == b"cache+kernels"
    assert made.notes[0].startswith(f"The timing cache is not of {flavor.version}")


def test_a_cache_file_is_made_and_what_others_added_meanwhile_is_kept(flavor: Flavor, tmp_path: Path) -> None:
    path = tmp_path / "caches/timing.cache"
    empty = _tensorrt_timing.CacheFile(path, flavor)
    assert empty.before is None
    empty.keep(b"cache1")
    ours, theirs = (_tensorrt_timing.CacheFile(path, flavor) for _ in range(2))
    assert ours.before == b"cache1"
    theirs.keep(b"cache2")
    ours.keep(b"cache3")
    assert path.read_bytes() == b"cache3+cache2"
    path.write_bytes(b"of another version")
    ours.keep(b"cache4")
    assert path.read_bytes() == b"cache4"
    assert [one.name for one in path.parent.iterdir()] == ["timing.cache"]


def test_a_cache_file_that_cannot_be_read_is_refused(flavor: Flavor, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EdgetlError, match=r"timing cache cannot be read: .* expected a regular file"):
        _tensorrt_timing.CacheFile(tmp_path, flavor)
    (tmp_path / "large").write_bytes(b"123")
    monkeypatch.setattr(_tensorrt_timing, "MOST_BYTES", 2)
    with pytest.raises(EdgetlError, match="has 3 bytes; expected at most 2"):
        _tensorrt_timing.CacheFile(tmp_path / "large", flavor)
