"""Two reports against each other: what is said, what is refused, and how often it is wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import hand_made
import numpy as np
import pytest
from hand_made_pair import MACHINE, OTHER, calibration, graded, make, row
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from edgetl.bench import compare, compare_words, comparison, machines, report, stats
from edgetl.bench.compare import of_reports, verdict
from edgetl.bench.stats import Interval
from edgetl.errors import EdgetlError, GateFailed, GateUndecided
from edgetl.recipe_compare import Compare


def only(found):
    (case,) = found.cases
    return case


def of(base_ms, new_ms, **options):
    sides = {name: options.pop(name) for name in ("rounds", "between", "within") if name in options}
    return of_reports(make(row("fp32", base_ms, 1, **sides)), make(row("fp32", new_ms, 2, **sides)), **options)


# ---------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(("new_ms", "word"), [(1.1, "slower"), (0.9, "faster"), (1.0, "same"), (1.03, "inconclusive")])
def test_a_known_difference_gets_its_word(new_ms, word):
    case = only(of(1.0, new_ms))
    assert case.verdict == word
    assert case.ratio.value == pytest.approx(new_ms, rel=0.01)
    assert case.ratio.low < new_ms < case.ratio.high
    assert (case.gate, case.gate_p_value) == (None, None)


@pytest.mark.parametrize(("value", "low", "high", "p", "word"), [
    (1.05, 1.01, 1.09, 0.01, "slower"),
    (1.05, 1.01, 1.09, 0.011, "inconclusive"),  # the rank test is not sure
    (1.05, 0.99, 1.11, 0.001, "inconclusive"),  # the interval is not
    (1.02, 1.01, 1.03, 0.001, "same"),  # sure, and too little to count
    (1.02, 1.01, 1.04, 0.001, "inconclusive"),
    (1.0, 0.97, 1.03, 1.0, "inconclusive"),  # 1 / 1.03 is 0.9709
    (1.0, 0.971, 1.03, 1.0, "same"),
    (0.95, 0.91, 0.99, 0.01, "faster"),
])
def test_a_verdict_needs_effect_interval_and_rank_test(value, low, high, p, word):
    assert verdict(Interval(value, low, high, 0.95), p, 0.03) == word


def test_calls_of_one_round_are_no_witnesses_of_their_own():
    """Two rounds a side, 1000 calls each: the rounds differ by 10 %, the cases do not."""
    base, new = (make(dataclasses.replace(row("fp32", 1, seed, rounds=2), measurement=report.Measurement(
        "fp32", tuple(np.random.default_rng(seed).normal(levels, 0.001, (1000, 2)).T.ravel().tolist()), 2, 10,
        "back-to-back", "measured"))) for seed, levels in ((1, (1.0, 1.1)), (2, (1.1, 1.2))))
    found = of_reports(base, new)
    assert only(found).verdict == "inconclusive"
    assert only(found).p_value > 0.3
    assert any("takes 5" in note for note in found.notes)


def test_the_least_rounds_are_those_that_can_be_significant():
    assert compare.LEAST_ROUNDS == 5
    assert only(of(1.0, 2.0, rounds=4)).verdict == "inconclusive"
    assert only(of(1.0, 2.0, rounds=5)).verdict == "slower"
    assert [compare.least_rounds(level) for level in (0.5, 0.05, 1 / 252, 0.0039)] == [1, 3, 5, 6]


@pytest.mark.parametrize(("rounds", "gate"), [(3, "inconclusive"), (4, "fail")])
def test_a_gate_that_cannot_say_no_says_so(rounds, gate):
    """Three rounds a side have 20 orders, which is enough for one case and not for two."""
    base, new = (make(*(row(name, level, seed, rounds=rounds) for name, seed in (("a", 1), ("b", 2))))
                 for level in (1.0, 3.0))
    found = of_reports(base, new, max_regression=0.05)
    assert found.gate == gate
    assert any(note == "With 3 rounds the gate cannot say no to one of 2 cases; it takes 4."
               for note in found.notes) == (rounds == 3)
    assert only(of(1.0, 3.0, rounds=3, max_regression=0.05)).gate == "fail"


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 500), new_ms=st.sampled_from([0.7, 0.97, 1.0, 1.6]), scale=st.sampled_from([0.5, 64.0]))
def test_units_do_not_matter_and_swapped_sides_mirror_the_verdict(seed, new_ms, scale):
    sides = [make(row("fp32", 1.0, seed)), make(row("fp32", new_ms, seed + 1000))]
    scaled = [make(row("fp32", scale, seed)), make(row("fp32", scale * new_ms, seed + 1000))]
    plain, mirrored, other = only(of_reports(*sides)), only(of_reports(*sides[::-1])), only(of_reports(*scaled))
    assert mirrored.verdict == {"slower": "faster", "faster": "slower"}.get(plain.verdict, plain.verdict)
    assert mirrored.p_value == pytest.approx(plain.p_value)
    assert (mirrored.ratio.value, mirrored.ratio.low, mirrored.ratio.high) == pytest.approx(
        (1 / plain.ratio.value, 1 / plain.ratio.high, 1 / plain.ratio.low))
    assert (other.verdict, other.ratio.value) == (plain.verdict, pytest.approx(plain.ratio.value))


def test_a_report_is_the_same_as_itself():
    found = of_reports(*[make(row("fp32", 1.0, 1, between=0.001))] * 2)
    assert only(found).verdict == "same"
    assert only(found).ratio.value == 1


# -------------------------------------------------------------------------------------------------------------- gate


@pytest.mark.parametrize(("new_ms", "between", "word"), [
    (1.2, 0.004, "fail"), (1.0, 0.004, "pass"), (1.05, 0.004, "inconclusive"), (1.0, 0.15, "inconclusive")])
def test_a_gate_says_no_or_yes_only_when_it_is_sure(new_ms, between, word):
    found = of(1.0, new_ms, between=between, max_regression=0.05)
    assert only(found).gate == found.gate == word
    if word == "fail":
        with pytest.raises(GateFailed, match=r"Slower by more than 5 % beyond doubt: fp32 \(\+\d\d\.\d %"):
            found.insist()
    elif word == "inconclusive":
        with pytest.raises(GateUndecided, match="slower by more than 5 %: fp32"):
            found.insist()
    else:
        found.insist()


def test_without_a_gate_nothing_is_insisted_on():
    found = of(1.0, 3.0)
    assert found.gate is None
    found.insist()


def test_one_case_that_fails_decides_and_one_that_is_unknown_does_not_pass():
    base = make(row("a", 1.0, 1), row("b", 1.0, 2), row("c", 1.0, 3, between=0.2))
    for level, word in ((1.5, "fail"), (1.0, "inconclusive")):
        new = make(row("a", 1.0, 4), row("b", level, 5), row("c", 1.0, 6))
        assert of_reports(base, new, max_regression=0.05).gate == word


def test_more_cases_do_not_raise_the_alarms(monkeypatch):
    """Each case is slower by exactly what is allowed: that the gate says no is a false alarm.

    The intervals all say no, so that nothing but the corrected rank test holds it back.
    """
    monkeypatch.setattr(stats, "ratio", lambda *_, seed: Interval(2.0, 2.0, 2.0, 0.95))
    generator, alarms = np.random.default_rng(7), 0
    for _ in range(60):
        seeds = generator.integers(0, 2**31, 16).tolist()
        base = make(*(row(str(number), 1.00, seed, rounds=5) for number, seed in enumerate(seeds[:8])))
        new = make(*(row(str(number), 1.05, seed, rounds=5) for number, seed in enumerate(seeds[8:])))
        alarms += of_reports(base, new, max_regression=0.05).gate == "fail"
    assert binomtest(alarms, 60, comparison.FALSE_ALARMS, alternative="greater").pvalue > 0.01


def test_the_corrected_chance_is_at_least_the_plain_one():
    base, new = (make(*(row(str(number), level, 10 * number + side) for number in range(4)))
                 for side, level in ((0, 1.0), (1, 1.2)))
    together = of_reports(base, new, max_regression=0.05).cases
    alone = only(of_reports(make(base.rows[0]), make(new.rows[0]), max_regression=0.05))
    assert together[0].gate_p_value == pytest.approx(4 * alone.gate_p_value)


# ---------------------------------------------------------------------------------------------------- what is apart


def test_cases_of_one_side_only_are_named_and_hold_the_gate_up():
    base, new = make(row("a", 1, 1), row("gone", 1, 2)), make(row("a", 1, 3), row("added", 1, 4))
    found = of_reports(base, new, names=("old.json", "new.json"), max_regression=0.05)
    assert [(one.name, one.reason, one.matters) for one in found.apart] == [
        ("gone", "only in old.json", True), ("added", "only in new.json", False)]
    assert (only(found).gate, found.gate) == ("pass", "inconclusive")
    with pytest.raises(GateUndecided, match=r"gone \(only in old.json\)"):
        found.insist()


def test_a_case_that_failed_is_not_compared():
    found = of_reports(make(row("a", 1, 1)), make(row("a", 1, 1, reason="out of memory")), max_regression=0.05)
    assert found.cases == ()
    assert found.apart[0].reason == "not measured in NEW: out of memory"
    assert found.gate == "inconclusive"
    assert of_reports(make(row("a", 1, 1, reason="broken")), make(row("a", 1, 1)), max_regression=0.05
                      ).gate == "inconclusive"  # nothing was compared, so nothing passed


@pytest.mark.parametrize(("changes", "told"), [
    ({"arrival": "paced 10 ms"}, "arrival back-to-back and paced 10 ms"), ({"batch": 8}, "batch 1 and 8"),
    ({"threads": 2}, "threads 1 and 2"), ({"session": {"threads": 2}}, "threads in use 1 and 2"),
    ({"backend": "openvino"}, "backend cpu and openvino")])
def test_what_was_measured_differently_is_never_compared(changes, told):
    found = of_reports(make(row("a", 1, 1)), make(row("a", 1, 1, **changes)))
    assert found.cases == ()
    assert found.apart[0].reason == f"measured differently: {told}"


def test_pinned_to_other_cores_is_measured_differently_but_unknown_cores_are_not():
    pinned = [row("a", 1, 1, affinity=cores) for cores in ((0,), (1,), ())]
    assert of_reports(make(pinned[0]), make(pinned[1])).apart[0].reason == "measured differently: cores (0,) and (1,)"
    assert len(of_reports(make(pinned[0]), make(pinned[2])).cases) == 1


def test_no_case_in_common_is_an_error_that_names_both():
    with pytest.raises(EdgetlError, match="no case in common; the one has 'a', the other 'b'") as caught:
        of_reports(make(row("a", 1, 1)), make(row("b", 1, 1)))
    assert "matched by name" in caught.value.hint


@pytest.mark.parametrize(("seconds", "rounds", "told"), [
    ((1.0,) * 7, 2, "7 latencies for 2 rounds"), ((), 3, "0 latencies"), ((1.0,), 0, "for 0 rounds"),
    ((1.0, 0.0), 1, "no duration above 0"), ((1.0, math.nan), 1, "no duration"), ((1.0, -1.0), 1, "no duration")])
def test_damaged_latencies_are_named(seconds, rounds, told):
    sound = row("a", 1, 1)
    damaged = dataclasses.replace(sound, measurement=dataclasses.replace(
        sound.measurement, seconds=seconds, rounds=rounds))
    with pytest.raises(EdgetlError, match=f"^NEW: 'a' has .*{told}"):
        of_reports(make(sound), make(damaged))


# ---------------------------------------------------------------------------------------------------------- machines


def test_another_machine_is_refused_and_the_fields_are_named():
    with pytest.raises(EdgetlError) as caught:
        of_reports(make(row("a", 1, 1)), make(row("a", 1, 1), machine=OTHER))
    assert "different machines: machine: x86_64 and aarch64; cpu: AMD EPYC and Cortex-A76." in caught.value.message
    assert "--across-machines" in caught.value.hint


def across(base_ms, new_ms, *, parts, seed=0):
    return of_reports(make(row("a", base_ms, 1), calibration=calibration(seed)),
                      make(row("a", new_ms, 2), machine=OTHER, calibration=calibration(seed + 1, **parts)),
                      across_machines=True)


def test_a_machine_that_is_slower_in_everything_is_divided_out():
    alike = {"arithmetic": 2.0, "memory": 2.0, "scalar": 2.0}
    found = across(1.0, 2.0, parts=alike)
    assert found.factor.value == pytest.approx(2, rel=0.01)
    assert only(found).ratio.value == pytest.approx(1, rel=0.01)
    assert only(found).verdict == "same"
    assert only(across(1.0, 3.0, parts=alike)).verdict == "slower"
    assert only(across(1.0, 1.0, parts=alike)).verdict == "faster"
    assert found.machines == ("machine", "cpu")


def test_parts_that_disagree_leave_room_for_everything_between():
    found = across(1.0, 2.0, parts={"arithmetic": 1.0, "memory": 2.0, "scalar": 4.0})
    assert found.factor.value == pytest.approx(2, rel=0.01)  # geometric mean
    assert found.factor.low < 1.01 and found.factor.high > 3.99
    assert only(found).ratio.low < 0.51 and only(found).ratio.high > 1.99
    assert only(found).verdict == "inconclusive"
    assert only(across(1.0, 3.5, parts={"arithmetic": 1.0, "memory": 2.0, "scalar": 4.0})).verdict == "inconclusive"
    text = " ".join(compare_words.remarks(found))
    assert "arithmetic 1.00, memory 2.00, scalar 4.00" in text
    assert "orientation" in text


def test_swapped_machines_mirror_the_factor():
    parts = {"arithmetic": 1.5, "memory": 2.0, "scalar": 1.2}
    sides = (make(row("a", 1, 1), calibration=calibration(0)),
             make(row("a", 1.7, 2), machine=OTHER, calibration=calibration(1, **parts)))
    one, other = (of_reports(*pair, across_machines=True) for pair in (sides, sides[::-1]))
    assert (other.factor.value, other.factor.low, other.factor.high) == pytest.approx(
        (1 / one.factor.value, 1 / one.factor.high, 1 / one.factor.low))
    assert only(other).p_value == pytest.approx(only(one).p_value)
    assert (only(other).ratio.low, only(other).ratio.high) == pytest.approx(
        (1 / only(one).ratio.high, 1 / only(one).ratio.low))


def test_on_one_machine_nothing_is_divided():
    base, new = (make(row("a", 1, seed), calibration=calibration(seed, arithmetic=seed)) for seed in (1, 2))
    assert of_reports(base, new, across_machines=True).factor == machines.NONE


def test_without_the_kernel_machines_cannot_be_compared():
    plain = make(row("a", 1, 1), calibration=calibration(0))
    with pytest.raises(EdgetlError, match="NEW holds none of the calibration"):
        of_reports(plain, make(row("a", 1, 1), machine=OTHER), across_machines=True)
    with pytest.raises(EdgetlError, match="NEW holds 1 of the calibration"):
        of_reports(plain, make(row("a", 1, 1), machine=OTHER, calibration=calibration(0, rounds=1)),
                   across_machines=True)
    newer = dataclasses.replace(calibration(0), kernel=9)
    with pytest.raises(EdgetlError, match="version 1 of the calibration kernel, NEW of version 9"):
        of_reports(plain, make(row("a", 1, 1), machine=OTHER, calibration=newer), across_machines=True)


# ------------------------------------------------------------------------------------------------- what else is said


def test_a_machine_that_changed_between_the_reports_is_told():
    base, new = (make(row("a", 1, 1), calibration=calibration(seed, memory=1 + 0.2 * seed)) for seed in (0, 1))
    assert [note for note in of_reports(base, new).notes if "kernel's memory took +2" in note]
    assert not of_reports(base, dataclasses.replace(base, calibration=calibration(5))).notes


def test_changed_conditions_and_partial_reports_are_told():
    updated = {**MACHINE, "kernel": "6.9", "versions": {"onnxruntime": "1.31.0"}}
    found = of_reports(make(row("a", 1, 1)), make(row("a", 1, 1), machine=updated, status=report.PARTIAL))
    assert found.notes == ("NEW was broken off; it holds the rounds until then.",
                           "Between the two these have changed: kernel (6.8 to 6.9), versions (onnxruntime 1.30.0 to "
                           "1.31.0).")


DATA = report.Data("photos", "photos", hand_made.LABELS, 60, "3f", {})


def test_accuracies_on_the_same_images_are_compared_as_independent_shares():
    base, new = (make(row("a", 1, 1, accuracy=graded(errors, seed)), data=DATA) for errors, seed in ((6, 1), (12, 2)))
    found = only(of_reports(base, new)).accuracy_points
    # Newcombe's method 10 by hand: 54/60 and 48/60 with Wilson intervals (0.7985, 0.9534) and (0.6822, 0.8817).
    assert found.value == pytest.approx(-10)
    assert found.low == pytest.approx(100 * (-0.1 - math.hypot(0.8 - 0.6822, 0.9534 - 0.9)), abs=0.05)
    assert found.high == pytest.approx(100 * (-0.1 + math.hypot(0.8817 - 0.8, 0.9 - 0.7985)), abs=0.05)


def test_accuracies_on_other_images_are_not():
    base, new = (make(row("a", 1, 1, accuracy=graded(6, 1)), data=dataclasses.replace(DATA, fingerprint=name))
                 for name in ("3f", "4a"))
    case = only(of_reports(base, new))
    assert (case.accuracy_points, case.accuracy_reason) == (None, "measured on different images")
    assert only(of_reports(base, make(row("a", 1, 1)))).accuracy_reason == "not measured in both"


def test_sizes_stand_side_by_side():
    found = of_reports(make(row("a", 1, 1)), make(row("a", 1, 1, size_bytes=4_000_000)))
    (table, *_) = compare_words.tables(found)
    assert table.rows[0][table.columns.index("size MB")] == "3.40 to 4.00"


# ------------------------------------------------------------------------------------------------------------- files


def test_the_page_holds_verdicts_gate_and_what_is_apart(tmp_path):
    base = make(row("a|b", 1, 1), row("gone", 1, 2))
    found = of_reports(base, make(row("a|b", 2, 3)), max_regression=0.05)
    compare_words.write(found, tmp_path / "out", overwrite=False)
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert "| a\\|b | slower | fail | 1.999 | [1.9" in page
    assert "| gone | only in BASE |" in page
    assert page.startswith("# Comparison\n\nfail: 1 slower, 1 not compared; highest ratio: a\\|b, +")
    plain = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (plain["schema"], plain["gate"], plain["cases"][0]["verdict"]) == (1, "fail", "slower")
    compare_words.write(found, tmp_path / "out", overwrite=True)  # edgetl knows its own folder


def test_reports_are_read_from_files_and_folders(tmp_path):
    for name, level in (("old", 1.0), ("new", 1.3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(report.dumps(make(row("a", level, 1))))
    found = compare.compare(Compare(base=str(tmp_path / "old"), new=str(tmp_path / "new" / "report.json"),
                                    max_regression="10%", least_effect="50 %"))
    assert (only(found).verdict, found.gate, found.least_effect, found.max_regression) == ("same", "fail", 0.5, 0.1)


def test_the_documentation_names_every_field():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "comparison.md").read_text()
    for one in (comparison.Comparison, comparison.Case, comparison.Apart, machines.Factor, Interval):
        for field in dataclasses.fields(one):
            assert f"`{field.name}`" in page, field.name
    for constant in (comparison.SIGNIFICANCE, comparison.FALSE_ALARMS):
        assert f"at most {constant}" in page or f"at {constant} over" in page
