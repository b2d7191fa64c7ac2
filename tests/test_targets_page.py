"""docs/targets.md has every target's precisions, backends and requirements as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgetl import plugins
from edgetl.export import half_rules, variants
from edgetl.export.graph import OPSET
from edgetl.export.half import PRECISIONS, kind_of
from edgetl.export.halving import RANGE_IMAGES, ROOM
from edgetl.runtime import processor

PAGE = (Path(__file__).parents[1] / "docs/targets.md").read_text()
ROWS = {(row[0], row[1]): row for row in
        ([re.sub("`", "", cell).strip() for cell in line.strip("|").split("|")]
         for line in PAGE.splitlines() if line.startswith("| `"))}
TARGETS = {name: plugins.load("targets", name).TARGET for name in plugins.names("targets")}


def test_every_variant_that_can_be_has_its_row_and_no_other() -> None:
    assert set(ROWS) == {("portable", "fp32"), *((name, precision) for name, target in TARGETS.items()
                                                 for precision in target.precisions if precision != "fp32")}
    assert all("fp32" in target.precisions and target.name == name for name, target in TARGETS.items())


@pytest.mark.parametrize("key", [key for key in ROWS if key[0] != "portable"], ids=".".join)
def test_a_row_says_what_the_target_says(key: tuple[str, str]) -> None:
    _, precision, backends, requires, graph = ROWS[key]
    target = TARGETS[key[0]]
    assert backends == ", ".join(target.backends)
    assert requires == (", ".join(target.requires.get(precision, ())) or "-")
    assert all(one in processor.FEATURES for one in target.requires.get(precision, ()))
    if precision == "int8":
        assert f"{target.quantize['activations']} activations" in graph
        assert ("without zero points" in graph) == bool(target.quantize.get("symmetric"))
        assert ("7 bits" in graph) == target.quantize["reduce_range"]
        assert (f"the rest half, opset {target.opset}" in graph) == ("remainder" in target.quantize)
    else:
        opset = {"fp16": OPSET, "bf16": kind_of("bf16").greatest_opset}[precision]
        assert precision in PRECISIONS and graph.startswith(f"half, opset {opset}")


def test_the_portable_row_is_that_of_fp32() -> None:
    assert ROWS["portable", "fp32"][2] == ", ".join(variants.PORTABLE_BACKENDS)


def test_numbers_and_names_in_the_text_are_those_of_the_code() -> None:
    assert ROOM == 8 and f"on {RANGE_IMAGES} training images" in PAGE
    fp16, bf16 = (kind_of(precision).greatest_opset for precision in PRECISIONS)
    assert f"to {fp16} at most for fp16 and to {bf16} for bf16" in PAGE
    assert {"Softmax", "LayerNormalization", "ReduceMean", "Exp", "Pow", "Sqrt"} <= half_rules.DELICATE
    for name in re.findall(r"\(([a-z]+\.md)\)", PAGE):
        assert (Path(__file__).parents[1] / "docs" / name).is_file()


@pytest.mark.parametrize(("name", "flags"), [
    ("bf16_arithmetic", ("amx_bf16", "avx512_bf16", "bf16")), ("fp16_arithmetic", ("avx512_fp16", "asimdhp"))])
def test_the_arithmetic_a_precision_requires_is_what_makes_it_fast(name: str, flags: tuple[str, ...]) -> None:
    precision = name.split("_")[0]
    fast = {flag for (_, one), wanted in processor.ARITHMETIC.items() if one == precision for flag in wanted}
    assert set(processor.FEATURES[name]) == set(flags) == fast
