"""INT8 by NNCF: what it is told, what becomes of its graph, and that it is asked only where it was named."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import numpy as np
import onnx
import pytest
from compress.test_calibrate_quantize import cnn, logits, reader

from edgetl.compress import by_nncf, quantize
from edgetl.errors import EdgetlError, GateFailed, MissingDependency, RecipeError
from edgetl.export import rungs, variants
from edgetl.targets import tensorrt, x86_avx2, x86_vnni

SCHEME = x86_vnni.TARGET.quantize


class Fake(types.ModuleType):
    """A module `nncf` that rounds with ONNX Runtime's quantizer and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__("nncf")
        self.__version__ = "3.4.0"
        self.QuantizationPreset = types.SimpleNamespace(MIXED="mixed!", PERFORMANCE="performance!")
        self.OverflowFix = types.SimpleNamespace(ENABLE="on", DISABLE="off")
        self.InternalError = self.ValidationError = self.UnsupportedModelError = type("Broken", (Exception,), {})
        self.told: dict[str, Any] = {}
        self.fed: list[Any] = []
        self.problem: Exception | None = None
        self.rounds = True

    def AdvancedQuantizationParameters(self, **said: Any) -> dict[str, Any]:
        return said

    def Dataset(self, source: Any) -> Any:
        self.fed = [list(source), list(source)]
        return source

    def quantize(self, model: Any, dataset: Any, **said: Any) -> Any:
        print("a progress bar")
        self.told = said
        if self.problem is not None:
            raise self.problem
        if not self.rounds:
            return model
        return onnx.load_from_string(quantize.quantize(
            model.SerializeToString(), {**SCHEME, "rounding": "nearest"}, reader(), method="min-max").graph)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    monkeypatch.setitem(sys.modules, "nncf", made)
    return made


def test_the_scheme_of_the_target_is_what_it_is_told(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    made = by_nncf.write(cnn(), SCHEME, reader(), align=False)
    assert fake.told["preset"] == "mixed!" and fake.told["advanced_parameters"] == {
        "overflow_fix": "off", "disable_channel_alignment": True}
    assert made.rounding == {"method": "nncf", "version": "3.4.0", "preset": "mixed", "overflow_fix": "disable",
                             "channel_alignment": False}
    by_nncf.write(cnn(), x86_avx2.TARGET.quantize, reader(), align=True)
    assert fake.told["advanced_parameters"] == {"overflow_fix": "on", "disable_channel_alignment": False}
    by_nncf.write(cnn(), {**SCHEME, "activations": "int8"}, reader(), align=True)
    assert fake.told["preset"] == "performance!"
    assert capsys.readouterr().out == ""  # stdout is for results


def test_images_come_one_by_one_and_again(fake: Fake) -> None:
    by_nncf.write(cnn(), SCHEME, reader(), align=False)
    first, again = fake.fed
    whole = [batch["image"] for batch in iter(reader().get_next, None)]
    assert np.array_equal(np.concatenate([one["image"] for one in first]), np.concatenate(whole))
    assert len(again) == len(first) <= fake.told["subset_size"]
    assert {one["image"].shape for one in first} == {(1, 3, 8, 8)}


def test_the_graph_keeps_its_metadata_and_answers(fake: Fake) -> None:
    source = onnx.load_from_string(cnn())
    onnx.helper.set_model_props(source, {"edgetl.labels": "[]"})
    made = onnx.load_from_string(by_nncf.write(source.SerializeToString(), SCHEME, reader(), align=False).graph)
    assert {one.key: one.value for one in made.metadata_props} == {"edgetl.labels": "[]"}
    assert np.abs(logits(made.SerializeToString()) - logits(cnn())).max() < 0.5
    assert quantize.fused(made.SerializeToString())["integer_nodes"] > 0


def test_what_it_cannot_do_is_one_sentence(fake: Fake) -> None:
    fake.problem = KeyError("Conv_0")
    with pytest.raises(EdgetlError, match="NNCF cannot quantize this graph: KeyError: 'Conv_0'"):
        by_nncf.write(cnn(), SCHEME, reader(), align=False)
    fake.problem, fake.rounds = None, False
    with pytest.raises(GateFailed, match="left every node"):
        by_nncf.write(cnn(), SCHEME, reader(), align=False)


def test_it_is_missed_by_name_and_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingDependency, match="nncf"):
        by_nncf.write(cnn(), SCHEME, reader(), align=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="nncf"):
        variants.require_quantizer("nncf", x86_vnni.TARGET)
    variants.require_quantizer("edgetl", tensorrt.TARGET)


def test_it_does_not_round_for_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(RecipeError, match="expected edgetl for the target tensorrt"):
        variants.require_quantizer("nncf", tensorrt.TARGET)
    variants.require_quantizer("nncf", x86_vnni.TARGET)


def test_it_is_the_only_rung_where_it_is_named_and_none_elsewhere() -> None:
    assert [one.__name__ for one in rungs.in_order("nncf")] == ["edgetl.export.rungs.nncf"]
    assert "edgetl.export.rungs.nncf" not in [one.__name__ for one in rungs.in_order()]


def test_channels_are_aligned_where_the_first_graph_loses_too_much(fake: Fake) -> None:
    class Ladder:
        """Takes the second attempt."""

        source, scheme = None, SCHEME
        subject = types.SimpleNamespace(graph=cnn())
        reader = reader()

        def __init__(self) -> None:
            self.told: list[tuple[str, bool]] = []

        def judge(self, plan: Any, made: Any) -> Any:
            self.told.append((plan.told, made.rounding["channel_alignment"]))
            return types.SimpleNamespace(passed=len(self.told) == 2)

    ladder = Ladder()
    (rung,) = rungs.in_order("nncf")
    assert rung.climb(ladder) is not None  # type: ignore[arg-type]
    assert ladder.told == [("nncf", False), ("nncf, channels aligned", True)]


@pytest.mark.skipif(importlib.util.find_spec("nncf") is None,
                    reason="NNCF is not installed: pip install nncf, into an environment of its own")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("align", [False, True])
def test_nncf_itself_rounds_the_tiny_network(align: bool) -> None:
    made = by_nncf.write(cnn(), SCHEME, reader(), align=align)
    assert quantize.fused(made.graph)["integer_nodes"] >= 3
    assert np.abs(logits(made.graph) - logits(cnn())).max() < 0.2 * np.abs(logits(cnn())).max()
