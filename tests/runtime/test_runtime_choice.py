"""Which variant and backend are taken, and every reason why others are not."""

import dataclasses
import re

import pytest
import recorded_cpuinfo as recorded
from tiny_bundle import LABELS, PREPROCESS, SIZE, make_graph, make_variant

from edgetl import plugins
from edgetl.backends import Availability
from edgetl.errors import BackendUnavailable, BundleError, UnknownName
from edgetl.runtime import cards, choice, processor
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


def pixels(name="fp32-u8", **changes):
    image = TensorSpec("image", "image", "uint8", ("N", SIZE, SIZE, 3), "NHWC")
    return plain(name, **{"embeds_preprocess": True, "inputs": (image,), **changes})


def test_of_two_forms_the_manifests_order_decides():
    for first, second in ((plain(), pixels()), (pixels(), plain())):
        assert choose(manifest(first, second)).variant == first


def test_only_classifiers_of_prepared_images():
    good = plain()
    check_classifier(manifest(good), good)
    wide = TensorSpec("image", "image", "float32", ("N", 3, 8, 8), "NCHW")
    with pytest.raises(BundleError, match="expected one image"):
        check_classifier(manifest(good), plain(inputs=(wide,)))
    chances = TensorSpec("p", "probabilities", "float32", ("N", 3))
    with pytest.raises(BundleError, match="gives probabilities; expected logits"):
        check_classifier(manifest(good), plain(outputs=(chances,)))


def test_a_classifier_may_take_pixels_when_it_says_so():
    good = pixels()
    check_classifier(manifest(good), good)
    gray = dataclasses.replace(PREPROCESS, color="gray", mean=(0.5,), std=(0.2,))
    one = TensorSpec("image", "image", "uint8", ("N", SIZE, SIZE, 1), "NHWC")
    check_classifier(dataclasses.replace(manifest(good), preprocess=gray), pixels(inputs=(one,)))
    for wrong, told in (
        (plain(inputs=good.inputs), "expected one image, float32 ['N', 3, 16, 16], as the manifest's preprocess"),
        (plain(embeds_preprocess=True), "expected one image, uint8 ['N', 16, 16, 3], pixels, since it embeds"),
        (pixels(inputs=(one,)), "uint8 ['N', 16, 16, 3]"),
        (pixels(inputs=good.inputs * 2), "expected one image"),
    ):
        with pytest.raises(BundleError, match=re.escape(told)):
            check_classifier(manifest(wrong), wrong)


# ------------------------------------------------------------------------------------------ by the processor's features

MEASURED = {"evaluations": ({"split": "val", "accuracy": 0.9},), "status": "measured"}
FP32 = plain("fp32")
ARM = plain("arm.int8", target="arm", precision="int8", requires=("dotprod",), **MEASURED)
VNNI = plain("x86-vnni.int8", target="x86-vnni", precision="int8", requires=("vnni",), **MEASURED)
AMX = plain("x86-amx.bf16", target="x86-amx", precision="bf16", requires=("amx_bf16",), **MEASURED)
HALF = plain("arm.fp16", target="arm", precision="fp16", **MEASURED)
BRAIN = plain("x86-amx.bf16", target="x86-amx", precision="bf16", **MEASURED)
ENGINE = plain("tensorrt.int8", target="tensorrt", precision="int8", **MEASURED)

LAPTOP, OLD = recorded.x86("avx2 avx_vnni"), recorded.x86("avx2")
SERVER = recorded.x86("avx2 avx512f avx512_vnni amx_int8 amx_bf16")


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Makes this process run on a recorded machine: `here(cpuinfo, machine)`."""
    real = processor.read

    def move(cpuinfo, machine="aarch64"):
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        real.cache_clear()
        found = real(tmp_path / "cpuinfo", machine)
        monkeypatch.setattr(processor, "read", lambda *_: found)

    yield move
    real.cache_clear()


def made_on(machine, *variants):
    provenance = {"export": {"environment": {"machine": machine}}} if machine else {}
    return dataclasses.replace(manifest(*variants), provenance=provenance)


@pytest.mark.parametrize(
    ("cpuinfo", "expected", "feature"),
    [
        (recorded.RASPBERRY_PI_5, "arm.int8", "dotprod"),
        (recorded.JETSON_ORIN, "arm.int8", "dotprod"),
        (recorded.GRAVITON_3, "arm.int8", "i8mm"),
        (recorded.RASPBERRY_PI_4, "fp32", None),
    ],
)
def test_on_arm_its_own_variant_comes_before_the_portable_one(here, cpuinfo, expected, feature):
    """The bundle was exported on a PC, so that its order says nothing of arm."""
    here(cpuinfo)
    found = choose(made_on("x86_64", VNNI, FP32, ARM))
    assert (found.variant.name, found.rule) == (expected, "features" if feature else "order")
    assert feature is None or f"this processor has {feature}, which makes int8 fast" in found.why
    if feature is None:
        refused = choose(made_on("x86_64", ARM, FP32))
        assert refused.passed_over == ("arm.int8 requires dotprod, which this processor does not show",)


@pytest.mark.parametrize(("cpuinfo", "expected"), [(LAPTOP, "x86-vnni.int8"), (OLD, "fp32"), (SERVER, "x86-vnni.int8")])
def test_on_x86_an_order_that_was_measured_on_x86_stands(here, cpuinfo, expected):
    here(cpuinfo, "x86_64")
    assert choose(made_on("x86_64", VNNI, FP32, ARM)).variant.name == expected
    # There INT8 was not faster than fp32.
    found = choose(made_on("AMD64", FP32, VNNI))
    assert (found.variant.name, found.rule) == ("fp32", "order")
    # Measured on another kind of processor, or who knows where, the feature decides.
    for machine in ("aarch64", None):
        assert choose(made_on(machine, FP32, VNNI)).variant.name == expected


@pytest.mark.parametrize(("cpuinfo", "expected"), [(SERVER, "x86-amx.bf16"), (LAPTOP, "fp32")])
def test_bf16_runs_where_there_is_arithmetic_for_it(here, cpuinfo, expected):
    here(cpuinfo, "x86_64")
    assert choose(made_on("arm64", FP32, AMX)).variant.name == expected
    assert choose(made_on("x86_64", BRAIN, FP32)).variant.name == expected


def test_fp16_is_not_emulated_unless_it_is_all_there_is(here):
    here(recorded.RASPBERRY_PI_4)
    assert choose(made_on("arm64", HALF, FP32)).variant.name == "fp32"
    assert choose(made_on("arm64", HALF)).variant.name == "arm.fp16"
    here(recorded.RASPBERRY_PI_5)
    assert choose(made_on("arm64", HALF, FP32)).variant.name == "arm.fp16"


def test_what_is_made_for_another_architecture_comes_last(here):
    here(LAPTOP, "x86_64")
    portable_arm = plain("arm.fp32", target="arm")
    assert choose(made_on("arm64", portable_arm, FP32)).variant.name == "fp32"
    assert choose(made_on("arm64", portable_arm)).variant.name == "arm.fp32"


def test_an_accuracy_that_nobody_measured_is_not_preferred(here):
    here(recorded.RASPBERRY_PI_5)
    unknown = dataclasses.replace(ARM, evaluations=(), status="not-measured")
    assert choose(made_on("x86_64", FP32, unknown)).variant.name == "fp32"


def test_variants_for_other_devices_keep_their_place(here):
    """A Jetson has both: the accelerator's variant stays before the processor's, whichever comes forward."""
    here(recorded.JETSON_ORIN)
    assert choose(made_on("x86_64", ENGINE, FP32, ARM)).variant.name == "tensorrt.int8"
    gone = dataclasses.replace(ENGINE, backends=("abacus",))
    found = choose(made_on("x86_64", gone, FP32, ARM))
    assert (found.variant.name, found.rule) == ("arm.int8", "features")
    assert found.passed_over == ("tensorrt.int8 runs on 'abacus', which this edgetl does not have",)


# ------------------------------------------------------------------------------------------------ by the machine's card

UNTIMED = {"evaluations": ({"split": "val", "accuracy": 0.9, "latency_s": None, "simulates": ["tensorrt"]},),
           "status": "not-measured"}
TENSOR = plain("tensorrt.fp16", target="tensorrt", precision="fp16", backends=("tensorrt",), **UNTIMED)
CUDA = plain("cuda.fp16", target="cuda", precision="fp16", backends=("cuda",), **UNTIMED)


@pytest.fixture
def machine(monkeypatch):
    """Makes a machine: with signs of a card or none, and these backends usable; the probes that were asked."""

    def make(signs, *usable):
        real, asked = plugins.load, []

        def load(package, name):
            def probe():
                asked.append(name)
                return Availability(usable=name in usable, reason="there is none.", device="a card")

            real(package, name)
            return type("Said", (), {"probe": staticmethod(probe)})

        monkeypatch.setattr(choice.plugins, "load", load)
        monkeypatch.setattr(choice.cards, "nvidia", lambda: signs)
        return asked

    return make


def test_a_card_is_taken_where_there_is_one(machine):
    asked = machine(True, "cpu", "tensorrt", "cuda")
    found = choose(manifest(FP32, TENSOR, CUDA))
    assert (found.variant.name, found.backend, found.rule) == ("tensorrt.fp16", "tensorrt", "features")
    assert "made for tensorrt, and this machine has a card for it" in found.why
    assert asked == ["tensorrt"]


def test_the_next_that_can_run_is_taken_and_the_reason_kept(machine):
    machine(True, "cpu", "cuda")
    found = choose(manifest(FP32, TENSOR, CUDA))
    assert (found.variant.name, found.backend) == ("cuda.fp16", "cuda")
    assert found.passed_over == ("tensorrt.fp16 cannot run on tensorrt: there is none",)
    machine(True, "cpu")
    assert choose(manifest(FP32, TENSOR, CUDA)).variant.name == "fp32"


def test_without_a_sign_of_a_card_nothing_is_asked_of_one(machine):
    asked = machine(False, "cpu", "tensorrt", "cuda")
    assert choose(manifest(FP32, TENSOR, CUDA)).variant.name == "fp32"
    assert asked == ["cpu"]
    assert choose(manifest(FP32, TENSOR, CUDA), variant="tensorrt.fp16").backend == "tensorrt"  # unless by name


def test_an_order_that_was_measured_with_a_card_stands(machine):
    machine(True, "cpu", "tensorrt", "cuda")
    timed = dataclasses.replace(TENSOR, **MEASURED)
    assert choose(manifest(FP32, timed)).variant.name == "fp32"  # fp32 was faster there
    assert choose(manifest(timed, FP32)).variant.name == "tensorrt.fp16"
    unknown = dataclasses.replace(TENSOR, evaluations=())
    assert choose(manifest(FP32, unknown)).variant.name == "fp32"


def test_a_portable_graph_runs_on_a_card_where_that_is_asked_for(machine):
    machine(True, "cpu", "tensorrt", "cuda")
    everywhere = dataclasses.replace(FP32, backends=("cpu", "openvino", "cuda", "tensorrt"))
    assert choose(manifest(everywhere)).backend == "cpu"
    assert choose(manifest(everywhere, TENSOR), backend="cuda").variant.name == "fp32"


def test_the_signs_of_a_card(monkeypatch, tmp_path):
    monkeypatch.setattr(cards, "DEVICES", (str(tmp_path / "nvidiactl"),))
    monkeypatch.setattr(cards.sys, "platform", "linux")
    assert not cards.nvidia()
    (tmp_path / "nvidiactl").touch()
    assert cards.nvidia()
    monkeypatch.setattr(cards.sys, "platform", "win32")
    monkeypatch.setenv("SYSTEMROOT", str(tmp_path))
    assert not cards.nvidia()
    (tmp_path / "System32").mkdir()
    (tmp_path / "System32" / cards.LIBRARY).touch()
    assert cards.nvidia()


def test_an_unknown_processor_runs_what_requires_nothing(here, monkeypatch):
    monkeypatch.setattr(processor, "_numpy_flags", frozenset)
    here("nothing of the kind", "riscv64")
    found = choose(made_on("x86_64", VNNI, ARM, AMX, FP32))
    assert (found.variant.name, found.rule) == ("fp32", "order")
