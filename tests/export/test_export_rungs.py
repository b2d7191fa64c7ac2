"""The rungs of the ladder beside one another: what is tried when, timed by a clock that is made up."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from compress.test_calibrate_quantize import SPEC, SQUARE, cnn, items, png, reader
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgetl.compress import adapt, mixed, quantize
from edgetl.compress.groups import groups_of
from edgetl.compress.mixed import Gain, Sensitivity
from edgetl.export import ladder, pace, rungs
from edgetl.export.rungs import mixed as mixed_rung
from edgetl.targets.x86_vnni import TARGET


def chain() -> bytes:
    """Expand, depthwise, project, pool, classify: every layer can be equalized with the next."""
    chance = np.random.default_rng(1)
    shapes = {"w1": (8, 3, 1, 1), "b1": (8,), "w2": (8, 1, 3, 3), "b2": (8,), "w3": (6, 8, 1, 1), "b3": (6,),
              "w4": (4, 6), "b4": (4,)}
    constants = {name: chance.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    constants["w1"] *= np.exp(chance.normal(size=(8, 1, 1, 1))).astype(np.float32)
    constants |= {"zero": np.float32(0), "six": np.float32(6)}
    nodes = [helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], name="expand"),
             helper.make_node("Clip", ["c1", "zero", "six"], ["r1"], name="clip"),
             helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="depthwise", pads=[1] * 4, group=8),
             helper.make_node("Relu", ["c2"], ["r2"], name="relu"),
             helper.make_node("Conv", ["r2", "w3", "b3"], ["c3"], name="project"),
             helper.make_node("GlobalAveragePool", ["c3"], ["pool"], name="pool"),
             helper.make_node("Flatten", ["pool"], ["flat"], name="flatten"),
             helper.make_node("Gemm", ["flat", "w4", "b4"], ["logits"], name="classify", transB=1)]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])
    graph = helper.make_graph(nodes, "chain", [image],
                              [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
                              [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"edgetl.labels": '["a", "b", "c", "d"]'})
    return model.SerializeToString()


class Clock:
    """A stopwatch that looks at no clock: every call takes so long, in each of five rounds."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.asked = seconds, []

    def __call__(self, calls: pace.Calls) -> dict[str, list[list[float]]]:
        self.asked.append(list(calls))
        for call in calls.values():
            call()  # each of them runs
        return {name: [[self.seconds.get(name, self.seconds["int8"])] * 3] * 5 for name in calls}


def subject(limits: ladder.Limits, watch: Any, heard: list[str] | None = None) -> ladder.Subject:
    train, val, spec = items(8, 8), items(10, 10)[::-1], dataclasses.replace(SPEC, precision="fp32")
    reference = ladder.judged(chain(), spec, val, png, SQUARE, 1)
    note = (lambda text: None) if heard is None else heard.append
    return ladder.Subject(chain(), spec, SQUARE, train, val, png, reference, limits, 16, 0, 1, note, watch=watch)


def target(*, timed: bool) -> Any:
    """Whatever this processor is, the made-up clock times it or not."""
    scheme = {**TARGET.quantize, "methods": ("min-max", "mse")}
    return dataclasses.replace(TARGET, requires={}, backends=("cpu",) if timed else (), quantize=scheme)


# ----------------------------------------------------------------------------------------------------- the whole ladder


@pytest.mark.parametrize("timed", [True, False])
def test_what_nothing_brings_within_the_limits_has_tried_every_rung(timed, monkeypatch):
    monkeypatch.setattr(adapt, "STEPS", (15, 15))
    clock, heard = Clock(fp32=2e-3, int8=1e-3, expand=3e-3, classify=1.1e-3), []
    climbed = ladder.Ladder("x86-vnni.int8", target(timed=timed), subject(ladder.Limits(None, 101.0), clock, heard))
    assert (climbed.backend is None) is not timed
    assert climbed.climbed() is None
    told = [row["method"] for row in climbed.rungs]
    assert told[:2] == ["min-max", "mse"]
    rest = [one.partition(" (")[0] for one in told[2:]]
    assert rest[:3] == ["biases corrected", "equalized by weights", "equalized by activations"]
    assert rest[3] == "mixed" and not any(row["passed"] for row in climbed.rungs)
    assert set(climbed.record["equalized"]) == {"weights", "activations"}
    assert climbed.record["equalized"]["weights"]["joints"] == 3
    assert len(climbed.record["adapted"]) == 4
    groups = {row["layer"]: row for row in climbed.record["groups"]}
    assert set(groups) == {"expand", "depthwise", "project", "classify"}
    for row in climbed.rungs:
        assert (row["latency_s"], row["fp32_latency_s"]) == ((1e-3, 2e-3) if timed else (None, None))
    if timed:
        assert groups["expand"]["gain_s"] == pytest.approx(2e-3) and groups["project"]["gain_s"] == 0.0
        assert sum("" in names for names in clock.asked) == 1  # AdaRound changes no group's time
    else:
        assert not clock.asked and groups["expand"]["gain_s"] is None
    assert any("agreement" in text for text in heard) and "outside the limits" in climbed.refusal()


def test_the_first_rung_within_the_limits_is_the_last_that_is_tried():
    climbed = ladder.Ladder("x86-vnni.int8", target(timed=True),
                            subject(ladder.Limits(None, 0.0), Clock(fp32=2e-3, int8=1e-3)))
    attempt = climbed.climbed()
    assert [row["method"] for row in climbed.rungs] == ["min-max"] and attempt.row["latency_s"] == 1e-3
    told = climbed.calibration(attempt)
    assert told["method"] == "min-max" and told["rungs"] == climbed.rungs and "adapted" not in told
    assert 0 <= attempt.row["accuracy"] <= 1


def test_what_is_not_faster_leaves_the_groups_in_float_that_lose_time():
    clock = Clock(fp32=1e-3, int8=1e-3, expand=0.6e-3, project=0.9e-3, depthwise=2e-3)
    climbed = ladder.Ladder("x86-vnni.int8", target(timed=True), subject(ladder.Limits(None, 0.0), clock))
    attempt = climbed.climbed()
    assert [row["float_layers"] for row in climbed.rungs] == [[], ["expand", "project"]]
    assert attempt.row in climbed.rungs  # neither is faster by this clock, so either may be it
    assert "sqnr_db" in climbed.record["groups"][0]


@pytest.mark.parametrize(("int8", "fp32", "paying"), [
    (0.96e-3, 1e-3, True), (0.98e-3, 1e-3, False), (3e-5, 2e-5, True), (None, None, True)])
def test_what_pays(int8, fp32, paying):
    assert ladder.pays({"latency_s": int8, "fp32_latency_s": fp32}) is paying


class Rung:
    """A rung that has made its attempt already."""

    def __init__(self, latency_s: float | None, *, quickens: bool = False) -> None:
        self.latency_s, self.QUICKENS, self.climbs = latency_s, quickens, 0

    def climb(self, climbed: Any) -> Any:
        self.climbs += 1
        row = {"latency_s": self.latency_s, "fp32_latency_s": 1e-3}
        return None if self.latency_s is None else SimpleNamespace(row=row)


def climb(monkeypatch: pytest.MonkeyPatch, *made: Rung) -> tuple[Any, list[int]]:
    monkeypatch.setattr(rungs, "in_order", lambda quantizer: iter(made))
    climber = object.__new__(ladder.Ladder)
    climber.subject = SimpleNamespace(quantizer=rungs.OWN)
    found = climber.climbed()
    return found and found.row["latency_s"], [one.climbs for one in made]


def test_the_order_of_the_rungs(monkeypatch):
    assert rungs.ORDER[:4] == ("calibrated", "equalized", "mixed", "adaptive")
    assert all(hasattr(one, "climb") for one in rungs.in_order())
    assert climb(monkeypatch, Rung(None), Rung(0.5e-3), Rung(0.1e-3)) == (0.5e-3, [1, 1, 0])
    assert climb(monkeypatch, Rung(None), Rung(None)) == (None, [1, 1])


def test_what_passed_but_is_slow_is_left_to_the_rungs_that_quicken(monkeypatch):
    assert climb(monkeypatch, Rung(1.2e-3), Rung(0.1e-3), Rung(0.8e-3, quickens=True)) == (0.8e-3, [1, 0, 1])
    assert climb(monkeypatch, Rung(1.2e-3), Rung(None, quickens=True)) == (1.2e-3, [1, 1])
    assert climb(monkeypatch, Rung(1.2e-3), Rung(1.1e-3, quickens=True)) == (1.1e-3, [1, 1])  # the faster of both


# ------------------------------------------------------------------------------------------------------------ mixtures


class Steps:
    """A ladder whose attempts pass where certain layers are in float."""

    def __init__(self, *needed: str) -> None:
        self.needed, self.tried = set(needed), []

    def attempt(self, plan: ladder.Plan) -> ladder.Attempt:
        self.tried.append(plan)
        return ladder.Attempt(plan, None, {"passed": self.needed <= set(plan.floats)}, None, None)


PLAN = ladder.Plan(None, "mse", "equalized by weights (mse)")


def test_groups_that_are_not_needed_in_float_are_given_back():
    steps, names = Steps("b", "d"), list("abcdefgh")
    gains = {name: Gain(place * 1e-4, 1e-5) for place, name in enumerate(names)}
    found = mixed_rung.fewest(steps, PLAN, names)
    assert found.plan.floats == tuple("abcd")
    found = mixed_rung.given_back(steps, found, gains)
    assert set(found.plan.floats) == {"a", "b", "d"}  # `a` gains nothing that was measured, so it may stay
    assert found.plan.told == "mixed (equalized by weights (mse), 3 layers in float)"


def test_what_is_given_back_costs_time_and_is_tried_a_few_times():
    steps, names = Steps(*"abcdefgh"), list("abcdefgh")
    found = mixed_rung.given_back(steps, steps.attempt(dataclasses.replace(PLAN, floats=tuple(names))),
                                  {name: Gain(1e-3, 1e-5) for name in names})
    assert found.plan.floats == tuple(names) and len(steps.tried) == 1 + mixed_rung.GIVEN_BACK


def test_the_order_is_noise_for_time():
    ranking = [Sensitivity("a", 10.0), Sensitivity("b", 20.0), Sensitivity("c", 20.0), Sensitivity("d", 30.0),
               Sensitivity("e", math.inf)]
    gains = {"a": Gain(100e-6, 1e-6), "b": Gain(20e-6, 1e-6), "c": Gain(5e-6, 1e-6), "d": Gain(-50e-6, 1e-6),
             "e": Gain(-1e-6, 1e-6)}
    # Noise 0.1, 0.01, 0.01, -, 0 for 100, 20, 5, -, 1 us; d is faster in float.
    assert mixed.by_worth(ranking, gains) == ["d", "c", "a", "b", "e"]
    assert mixed.by_worth(ranking, None) == list("abcde")


def test_a_gain_within_its_noise_counts_as_the_noise():
    ranking = [Sensitivity("a", 10.0), Sensitivity("b", 13.0)]
    gains = {"a": Gain(1e-6, 1e-6), "b": Gain(1e-9, 1e-6)}  # not a thousand times cheaper
    assert mixed.by_worth(ranking, gains) == ["a", "b"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 60), st.floats(-1e-4, 1e-3)), min_size=1, max_size=20))
def test_every_group_stands_in_the_order_once(drawn):
    ranking = [Sensitivity(str(place), sqnr) for place, (sqnr, _) in enumerate(drawn)]
    gains = {str(place): Gain(seconds, 1e-6) for place, (_, seconds) in enumerate(drawn)}
    assert sorted(mixed.by_worth(ranking, gains)) == sorted(one.node for one in ranking)


# -------------------------------------------------------------------------------------------------------------- groups


def test_a_group_is_a_layer_and_what_is_computed_behind_it():
    source = quantize.study(chain(), reader())
    found = groups_of(source, TARGET.quantize)
    assert list(found) == ["expand", "depthwise", "project", "classify"]
    assert found["expand"] == ("expand", "clip") and found["depthwise"] == ("depthwise", "relu")
    assert found["project"][:2] == ("project", "pool")


def test_an_addition_belongs_to_the_last_layer_that_goes_into_it():
    source = quantize.study(cnn(), reader())
    kinds = {node.name: node.op_type for node in source.ready.graph.node}
    found = [[kinds[name] for name in nodes] for nodes in groups_of(source, TARGET.quantize).values()]
    assert found[0] == ["Conv", "Clip"] and found[1][:3] == ["Conv", "Clip", "Add"] and found[2] == ["Gemm"]
    names = [name for nodes in groups_of(source, TARGET.quantize).values() for name in nodes]
    assert sorted(names) == sorted(quantize.nodes_of(source))


def test_a_group_in_float_is_rounded_at_its_borders_alone():
    source = quantize.study(chain(), reader())
    floats = groups_of(source, TARGET.quantize)["depthwise"]
    made = onnx.load_from_string(quantize.write(source, TARGET.quantize, method="min-max", floats=floats).graph)
    makers = {name: node for node in made.graph.node for name in node.output}
    readers = {name: node for node in made.graph.node for name in node.input}
    convolution = next(node for node in made.graph.node if node.name == "depthwise")
    assert makers[convolution.input[0]].op_type == "DequantizeLinear" and convolution.input[1] == "w2"
    relu = readers[convolution.output[0]]
    assert relu.op_type == "Relu" and readers[relu.output[0]].op_type == "QuantizeLinear"


# ---------------------------------------------------------------------------------------------------------------- pace


def test_a_gain_by_hand():
    whole = [[1.0, 1.1, 5.0], [1.0, 1.0, 1.0], [1.2, 1.0, 1.1]]  # medians 1.1, 1.0, 1.1
    without = [[2.0, 2.0, 2.0], [1.6, 1.6, 9.0], [1.8, 1.8, 1.8]]  # 2.0, 1.6, 1.8: 0.9, 0.6, 0.7 longer
    found = pace.gain_of(without, whole)
    assert found.seconds == pytest.approx(0.7)
    assert found.noise_s == pytest.approx(1.2533 * 1.4826 * 0.1 / math.sqrt(3))
    assert not found.is_loss and pace.gain_of(whole, without).is_loss


def test_graphs_of_one_structure_are_timed_once():
    source, clock = quantize.study(chain(), reader()), Clock(fp32=2e-3, int8=1e-3)
    first, second, third = (quantize.write(source, TARGET.quantize, method=method, floats=floats).graph
                            for method, floats in (("min-max", ()), ("mse", ()), ("mse", ("project",))))
    assert first != second and pace.structure(first) == pace.structure(second) != pace.structure(third)
    spec = dataclasses.replace(SPEC, precision="fp32")
    timer = pace.Pace("cpu", chain(), spec, {"image": np.zeros((1, 3, 8, 8), np.float32)}, watch=clock)
    assert timer.beside_fp32(first) == timer.beside_fp32(second) == pace.Timed(1e-3, 2e-3)
    assert clock.asked == [["fp32", "int8"]]
    timer.beside_fp32(third)
    assert len(clock.asked) == 2


def test_groups_take_turns_with_the_whole_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(pace, "TOGETHER", 2)
    clock = Clock(int8=1e-3, a=3e-3, b=0.5e-3, c=1e-3)
    timer = pace.Pace("cpu", chain(), dataclasses.replace(SPEC, precision="fp32"),
                      {"image": np.zeros((1, 3, 8, 8), np.float32)}, watch=clock)
    found = timer.gains(chain(), ["a", "b", "c"], lambda name: chain())
    assert clock.asked == [["", "a", "b"], ["", "c"]]
    assert [round(found[name].seconds * 1e3, 6) for name in "abc"] == [2.0, -0.5, 0.0]


def test_the_stopwatch_keeps_the_rounds_apart():
    calls = {"a": lambda: None, "b": lambda: None}
    found = pace.stopwatch(calls)
    assert {name: [len(one) for one in rounds] for name, rounds in found.items()} == {
        name: [pace.BLOCK - pace.DROPPED] * pace.ROUNDS for name in calls}


def test_calibration_images_that_tell_layers_apart_are_of_every_class():
    climbed = ladder.Ladder("x86-vnni.int8", target(timed=True),
                            subject(ladder.Limits(None, 0.0), Clock(fp32=1.0, int8=1.0)))
    shown = climbed.batches(4)
    assert [len(batch["image"]) for batch in shown] == [4]
    every = {item.key: np.frombuffer(png(item), np.uint8).tobytes() for item in climbed.items}
    assert len(every) == 16 and len(climbed.batches(1000)) == 2
