"""What is chosen of what was measured, on figures made by hand."""

from __future__ import annotations

import itertools

import pytest

from edgetl.bench import selection
from edgetl.bench.selection import Candidate, decide, faster

NOISE = (1.0, 1.004, 0.997, 1.002, 0.999)


def one(variant, ms, *, backend="cpu", threads=1, drop=0.0, noise=NOISE, **changes):
    rounds = tuple(1e-3 * ms * factor for factor in noise)
    plain = {"precision": "fp32" if variant == "fp32" else "int8", "rounds_s": rounds,
             "drop_points": None if variant == "fp32" else drop}
    return Candidate(variant, backend, threads, **{**plain, **changes})


def chosen(*group, **options):
    found = decide(group, **{"max_drop": 0.5, **options})
    return (found.chosen.variant, found.chosen.backend, found.chosen.threads), found


def test_the_lowest_latency_within_the_accuracy_allowed():
    group = [one("int8", 1.0), one("fp32", 2.0), one("int8", 0.7, threads=2), one("fp32", 1.5, threads=2)]
    found, verdict = chosen(*group)
    assert found == ("int8", "cpu", 2)
    assert verdict.refusals == (None,) * 4
    assert "0.7 ms, fp32 on cpu with 2 threads 1.5 ms; the fastest of the 4" in verdict.why


@pytest.mark.parametrize(("drop", "expected"), [(0.5, "int8"), (0.51, "fp32"), (None, "fp32"), (-3.0, "int8")])
def test_accuracy_that_is_lost_or_not_known_is_not_chosen(drop, expected):
    found, verdict = chosen(one("int8", 1.0, drop=drop), one("fp32", 2.0))
    assert found[0] == expected
    assert (verdict.refusals[0] is None) == (expected == "int8")
    if drop is None:
        assert "not known: --data measures it" in verdict.refusals[0]
    # Asked for by its name it is what the user wants.
    assert chosen(one("int8", 1.0, drop=drop), by_name=True)[0][0] == "int8"


def test_a_variant_that_is_not_faster_than_fp32_is_never_chosen():
    """Although it stands first in the manifest, and is faster by a little less than what counts."""
    found, verdict = chosen(one("int8", 1.98), one("fp32", 2.0))
    assert found[0] == "fp32"
    assert verdict.refusals[0] == "it is not faster than fp32 on cpu with 1 thread (1.98 ms against 2 ms)"
    assert chosen(one("int8", 1.0), one("fp32", 2.0), one("fp32", 0.9, backend="openvino"))[0] == (
        "fp32", "openvino", 1)
    # Within the backend that was asked for, fp32 of another one is no measure.
    assert chosen(one("int8", 1.0), one("fp32", 2.0))[0][0] == "int8"


def test_ties_go_to_the_earlier():
    order = [one("fp32", 1.01), one("fp32", 1.0, threads=2), one("fp32", 1.02, backend="openvino")]
    for group in itertools.permutations(order):
        found, verdict = chosen(*group)
        assert found == (group[0].variant, group[0].backend, group[0].threads)
        assert ("beyond doubt" in verdict.why) == (group[0].median_s > 1.0e-3)


def test_an_effect_that_the_rounds_do_not_agree_on_is_no_effect():
    unsteady = one("fp32", 0.9, threads=2, noise=(1.0, 1.0, 1.0, 1.0, 1.2))
    steady = one("fp32", 0.9, threads=2)
    assert unsteady.median_s == steady.median_s
    assert chosen(one("fp32", 1.0), steady)[0][2] == 2
    assert chosen(one("fp32", 1.0), unsteady)[0][2] == 1


def test_four_rounds_decide_nothing():
    assert 2.0**-selection.LEAST_ROUNDS <= selection.SIGNIFICANCE < 2.0 ** -(selection.LEAST_ROUNDS - 1)
    assert not faster(one("int8", 1.0, noise=NOISE[:4]), one("fp32", 9.0, noise=NOISE[:4]))
    assert faster(one("int8", 1.0), one("fp32", 9.0))


def test_what_could_not_be_measured_is_passed_over():
    gone = one("fp32", 0.1, backend="openvino", reason="cannot run on openvino", rounds_s=())
    found, verdict = chosen(gone, one("fp32", 2.0))
    assert found == ("fp32", "cpu", 1)
    assert verdict.refusals == ("cannot run on openvino", None)
    assert decide([gone], max_drop=0.5).chosen is None
    # A backend that only the fast variant has: there is no fp32 to be faster than.
    assert chosen(one("int8", 1.0))[0][0] == "int8"
