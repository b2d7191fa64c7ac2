"""Histograms that do not depend on the order, ranges against their definitions, and the writer against its origin."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import numpy as np
import onnx
import pytest
from compress.test_calibrate_quantize import cnn, reader
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import numpy_helper

from edgetl.compress import observe, quantize, ranges
from edgetl.compress.histogram import BINS, Histogram
from edgetl.errors import EdgetlError, RecipeError
from edgetl.targets.x86_vnni import TARGET

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)
VALUES = arrays.arrays(np.float32, st.integers(1, 60), elements=FLOATS)


def of(*parts: np.ndarray, bins: int = BINS) -> Histogram:
    found = Histogram(bins)
    for part in parts:
        found.add(part)
    return found


def state(histogram: Histogram) -> tuple:
    return (histogram.exponent, histogram.first, histogram.counts.tolist(), histogram.zeros, histogram.low,
            histogram.high)


@settings(max_examples=200, deadline=None)
@given(VALUES, st.integers(0, 60), st.randoms(use_true_random=False), st.sampled_from([2, 3, 16, BINS]))
def test_the_counts_depend_on_the_values_alone(values, cut, chance, bins):
    whole = of(values, bins=bins)
    shuffled = values.copy()
    chance.shuffle(shuffled)
    assert state(of(shuffled[:cut], shuffled[cut:], bins=bins)) == state(whole)
    assert len(whole.counts) <= bins and whole.total == len(values)
    assert (whole.low, whole.high) == (values.min(), values.max()) and whole.zeros == (values == 0).sum()


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_a_bin_holds_the_values_between_its_edges(values):
    found = of(values)
    numbers = np.floor(values.astype(np.float64) / found.width).astype(np.int64)
    assert np.array_equal(np.bincount(numbers - found.first, minlength=len(found.counts)), found.counts)
    assert (np.abs(found.centres[numbers - found.first] - values) <= found.width / 2).all()


def test_bins_are_as_narrow_as_they_can_be():
    values = np.linspace(-1, 3, 10_000).astype(np.float32)
    found = of(values)
    assert BINS / 2 < len(found.counts) <= BINS
    assert len(of(np.zeros(5)).counts) == 1 and of(np.zeros(5)).zeros == 5
    assert of(np.zeros(0)).total == 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_have_no_range(wrong):
    with pytest.raises(EdgetlError, match="infinite or no number"):
        of(np.array([1.0, wrong]))


def test_they_are_said_by_name():
    model = onnx.load_from_string(cnn())
    weight = next(one for one in model.graph.initializer if one.name == "w2")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1e38), "w2"))
    bias = next(one for one in model.graph.initializer if one.name == "b2")
    bias.CopyFrom(numpy_helper.from_array(np.full(8, np.inf, np.float32), "b2"))
    with pytest.raises(EdgetlError, match="'c2': An activation of the float graph is infinite"):
        observe.observe(model, reader(), ["c1", "c2"])


# ----------------------------------------------------------------------------------------------------------- ranges


def error(values: np.ndarray, low: float, high: float) -> float:
    """Mean square error of rounding to 256 steps, computed value by value."""
    step = (high - low) / 255
    zero = np.rint(-low / step)
    steps = np.clip(np.rint(values / step) + zero, 0, 255)
    return float(np.square((steps - zero) * step - values).mean())


def relu(values: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0)


CHANCE = np.random.default_rng(0)
SAMPLES = {
    "uniform": CHANCE.uniform(-1, 1, 50_000), "normal": CHANCE.normal(size=50_000),
    "relu": relu(CHANCE.normal(size=50_000)), "heavy": CHANCE.standard_t(2, size=50_000),
    "outlier": np.append(CHANCE.normal(size=50_000), 400.0), "negative": -relu(CHANCE.normal(size=50_000)),
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("method", ["min-max", "percentile-99.99", "mse", "entropy"])
def test_ranges_lie_within_what_was_seen_and_hold_zero(name, method):
    values = SAMPLES[name].astype(np.float32)
    low, high = ranges.choose(of(values), method)
    assert min(values.min(), 0) <= low <= 0 <= high <= max(values.max(), 0) and high > low


def test_min_max_is_all():
    assert ranges.choose(of(np.array([-1.5, 2.25])), "min-max") == (-1.5, 2.25)
    assert ranges.choose(of(np.array([1.5, 2.25])), "min-max") == (0.0, 2.25)
    for method in ("min-max", "percentile-99.9", "mse", "entropy"):
        assert ranges.choose(of(np.zeros(9)), method) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["uniform", "normal", "heavy"])
@pytest.mark.parametrize("percent", [99.0, 99.9, 99.99])
def test_a_percentile_leaves_its_share_out_on_each_side(name, percent):
    values = SAMPLES[name].astype(np.float32)
    histogram = of(values)
    low, high = ranges.choose(histogram, f"percentile-{percent}")
    share = 1 - percent / 100
    beyond_low, beyond_high = np.mean(values < low), np.mean(values > high)
    most = max(np.mean(np.floor(values / histogram.width) == np.floor(end / histogram.width)) for end in (low, high))
    assert abs(beyond_low - share) <= most + 1e-9 and abs(beyond_high - share) <= most + 1e-9


@pytest.mark.parametrize("name", SAMPLES)
def test_mse_is_as_good_as_the_best_of_a_search(name):
    values = SAMPLES[name].astype(np.float32)
    low, high = min(values.min(), 0), max(values.max(), 0)
    tried = [error(values, low * one, high * other) for one in np.linspace(0.02, 1, 25)
             for other in np.linspace(0.02, 1, 25) if low * one < high * other]
    found = error(values, *ranges.choose(of(values), "mse"))
    assert found <= 1.03 * min(tried)
    assert found <= error(values, *ranges.choose(of(values), "min-max")) * 1.001


def test_what_one_value_in_fifty_thousand_costs():
    histogram = of(SAMPLES["outlier"].astype(np.float32))
    for method in ("entropy", "percentile-99.99"):
        assert ranges.choose(histogram, method)[1] < 60
    assert ranges.choose(histogram, "min-max")[1] == 400.0
    # To clip it at 8 costs 392 squared, more than steps of 1.5 do to all others together.
    assert ranges.choose(histogram, "mse")[1] > 300


def test_entropy_keeps_what_is_evenly_spread():
    low, high = ranges.choose(of(SAMPLES["uniform"].astype(np.float32)), "entropy")
    assert low < -0.9 and high > 0.9


def test_divergence_by_hand():
    """Two steps of two bins: evenly spread within each, p = 1/8 3/8 2/8 2/8 becomes q = 2/8 2/8 2/8 2/8."""
    counts, centres = np.array([1.0, 3, 2, 2]), np.array([0.0, 0.4, 254.6, 255.0])
    expected = 1 / 8 * np.log((1 / 8) / (2 / 8)) + 3 / 8 * np.log((3 / 8) / (2 / 8))
    assert ranges._divergence(counts, centres, 0.0, 255.0, ranges.STEPS) == pytest.approx(expected)
    assert ranges._divergence(counts, centres, 300.0, 400.0, ranges.STEPS) == np.inf


@pytest.mark.parametrize("method", ["minmax", "percentile-", "percentile-50", "percentile-100", "mse-1", ""])
def test_a_wrong_method_is_named(method):
    with pytest.raises(RecipeError, match=f"'{method}' is no calibration method"):
        ranges.choose(of(np.ones(3)), method)


# ------------------------------------------------------------------------------------------------------- the writer


def by_onnxruntime(folder, *, per_channel: bool) -> onnx.ModelProto:
    """What `quantize_static` makes of the tiny network by itself."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    given, prepared, made = (folder / f"{name}.onnx" for name in ("given", "prepared", "made"))
    given.write_bytes(cnn())
    quant_pre_process(given, prepared, skip_symbolic_shape=True)
    with redirect_stdout(io.StringIO()):
        quantization.quantize_static(prepared, made, reader(), quant_format=quantization.QuantFormat.QDQ,
                                     activation_type=quantization.QuantType.QUInt8,
                                     weight_type=quantization.QuantType.QInt8, per_channel=per_channel,
                                     extra_options={"CalibStridedMinMax": 1})
    return onnx.load(made)


@pytest.mark.parametrize("per_channel", [True, False])
def test_min_max_with_nearest_rounding_is_quantize_static(tmp_path, per_channel):
    scheme = {**TARGET.quantize, "rounding": "nearest", "per_channel": per_channel}
    ours = quantize._written(quantize.study(cnn(), reader()), scheme, "min-max", {})
    theirs = by_onnxruntime(tmp_path, per_channel=per_channel)
    mine, other = ({one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
                   for model in (ours, theirs))
    assert set(mine) == set(other)
    for name, value in mine.items():
        assert value.dtype == other[name].dtype and np.allclose(value, other[name], rtol=1e-6, atol=0), name
    assert [(node.op_type, *node.input) for node in ours.graph.node] == [
        (node.op_type, *node.input) for node in theirs.graph.node]


def test_one_study_serves_all_methods_and_stays_as_it_is():
    source = quantize.study(cnn(), reader())
    first = quantize.write(source, TARGET.quantize, method="min-max").graph
    others = {method: quantize.write(source, TARGET.quantize, method=method).graph
              for method in ("percentile-99", "mse", "entropy")}
    assert len({first, *others.values()}) == 4
    assert quantize.write(source, TARGET.quantize, method="min-max").graph == first


def test_the_images_are_read_once():
    calls = []
    one = reader()
    real = one.get_next
    one.get_next = lambda: calls.append(1) or real()
    quantize.quantize(cnn(), TARGET.quantize, one, method="mse")
    assert len(calls) == len(one) + 1
