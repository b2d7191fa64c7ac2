"""Which variant and backend are taken, and every reason why others are not."""

import pytest
from tiny_bundle import LABELS, PREPROCESS, make_graph, make_variant

from edgetl import plugins
from edgetl.backends import Availability
from edgetl.errors import BackendUnavailable, BundleError, UnknownName
from edgetl.runtime import choice, processor
from edgetl.runtime.choice import check_classifier, choose
from edgetl.runtime.manifest import SCHEMA, Manifest
from edgetl.runtime.session import TensorSpec

GRAPH = make_graph()


def manifest(*variants) -> Manifest:
    return Manifest(SCHEMA, "tiny", "classify", LABELS, PREPROCESS, variants)


def plain(name="fp32", **changes):
    return make_variant(name, GRAPH, f"{name}.onnx", **changes)


@pytest.fixture
def no_vnni(monkeypatch):
    monkeypatch.setattr(processor, "flags", lambda cpuinfo=None: frozenset({"avx2"}))


@pytest.fixture
def unusable(monkeypatch):
    """Makes backends unusable: `unusable("cpu")`."""

    def make(*names):
        real = plugins.load
        gone = Availability(usable=False, reason="the package is absent.", fix="Install it.")

        def load(package, name):
            module = real(package, name)
            return type("Gone", (), {"probe": staticmethod(lambda: gone)}) if name in names else module

        monkeypatch.setattr(choice.plugins, "load", load)

    return make


def test_the_manifests_order_decides():
    found = choose(manifest(plain("a"), plain("b")))
    assert (found.variant.name, found.backend, found.passed_over) == ("a", "cpu", ())
    assert choose(manifest(plain("a", backends=("openvino", "cpu")))).backend == "openvino"


def test_a_missing_requirement_is_passed_over_in_auto(no_vnni):
    found = choose(manifest(plain("int8", requires=("vnni",)), plain("fp32", requires=("avx2",))))
    assert found.variant.name == "fp32"
    assert found.passed_over == ("int8 requires vnni, which this processor does not show",)


def test_a_missing_requirement_is_an_error_by_name(no_vnni):
    with pytest.raises(BackendUnavailable, match="int8 requires vnni"):
        choose(manifest(plain("int8", requires=("vnni",)), plain()), variant="int8")


def test_a_backend_that_cannot_run_is_passed_over(unusable):
    unusable("cpu")
    found = choose(manifest(plain()))
    assert found.backend == "openvino"
    assert found.passed_over == ("fp32 cannot run on cpu: the package is absent. Install it",)


def test_nothing_can_run(unusable, no_vnni):
    unusable("cpu", "openvino")
    with pytest.raises(BackendUnavailable) as caught:
        choose(manifest(plain("int8", requires=("avx512_vnni",)), plain()))
    for reason in ("int8 requires avx512_vnni", "fp32 cannot run on cpu", "fp32 cannot run on openvino"):
        assert reason in caught.value.message


def test_backends_of_a_later_edgetl_are_passed_over():
    found = choose(manifest(plain(backends=("abacus", "cpu"))))
    assert found.backend == "cpu"
    assert "abacus" in found.passed_over[0]


def test_asked_for_backends_and_variants():
    both = manifest(plain("a", backends=("cpu",)), plain("b", backends=("openvino",)))
    assert choose(both, backend="openvino").variant.name == "b"
    assert choose(both, variant="b").backend == "openvino"
    with pytest.raises(BackendUnavailable, match="a is made for cpu, not for openvino"):
        choose(both, backend="openvino", variant="a")
    with pytest.raises(UnknownName, match="variant named 'c'"):
        choose(both, variant="c")
    with pytest.raises(UnknownName, match="backend named 'gpu'"):
        choose(both, backend="gpu")


def test_why_is_told():
    one = manifest(plain())
    assert "manifest's order" in choose(one).why
    assert "cpu" in choose(one, backend="cpu").why
    assert "asked for" in choose(one, variant="fp32").why
    assert "variant and backend" in choose(one, backend="cpu", variant="fp32").why


def test_preprocessing_in_the_graph_is_refused():
    with pytest.raises(BackendUnavailable, match="holds its preprocessing"):
        choose(manifest(plain(embeds_preprocess=True)))


def test_only_classifiers_of_prepared_images():
    good = plain()
    check_classifier(manifest(good), good)
    wide = TensorSpec("image", "image", "float32", ("N", 3, 8, 8), "NCHW")
    with pytest.raises(BundleError, match="expected one image"):
        check_classifier(manifest(good), plain(inputs=(wide,)))
    chances = TensorSpec("p", "probabilities", "float32", ("N", 3))
    with pytest.raises(BundleError, match="gives probabilities; expected logits"):
        check_classifier(manifest(good), plain(outputs=(chances,)))
