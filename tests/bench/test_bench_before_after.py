"""A variant's nodes beside those of float32: which cases are held together, what changed, and how it is shown."""

from __future__ import annotations

import dataclasses

import pytest
from bench import hand_made

from edgetl.bench import before_after, before_after_plot, html, overview, report
from edgetl.bench.report import LayerTime, Report, Row


def layer(name: str, op: str, kind: str, median_us: float) -> LayerTime:
    return LayerTime(name, op, f"{op} kernel", kind, median_us * 1e-6, 0.0)


FLOAT = (layer("/stem/Conv_nchwc", "Conv", "float", 600), layer("/act/HardSwish", "HardSwish", "float", 100),
         layer("/head/Gemm", "FusedGemm", "float", 50))
INTEGER = (layer("image_QuantizeLinear", "QuantizeLinear", "converting", 20),
           layer("/stem/Conv_quant", "QLinearConv", "integer", 200), layer("/act/HardSwish", "HardSwish", "float", 130),
           layer("/head/Gemm", "QGemm", "integer", 10),
           layer("x_DequantizeLinear", "DequantizeLinear", "converting", 40))


def profiled(float_ms: float = 0.8, int8_ms: float = 0.4, **changed: object) -> Report:
    """The hand-made report with two cases of one bundle that differ in their precision alone."""
    made = hand_made.make_report()
    like = next(row for row in made.rows if row.measured)
    rows: list[Row] = []
    for name, precision, layers, middle in (("b fp32 cpu", "fp32", FLOAT, float_ms), ("b int8 cpu", "int8", INTEGER,
                                                                                       int8_ms)):
        seconds = tuple(1e-3 * middle * (1 + 1e-3 * (place % 5)) for place in range(40))
        measurement = dataclasses.replace(like.measurement, case=name, seconds=seconds, rounds=4)
        rows.append(dataclasses.replace(like, measurement=measurement, source="b", precision=precision, layers=layers,
                                        layers_s=sum(one.median_s for one in layers), profiled_s=2e-3))
    rows[1] = dataclasses.replace(rows[1], **changed)  # type: ignore[arg-type]
    return dataclasses.replace(made, rows=tuple(rows), reference=None, focus=None)


def test_a_variant_stands_beside_fp32_of_its_source_under_the_same_conditions():
    (pair,) = before_after.pairs(profiled())
    assert (pair.before[0], pair.before[1].precision) == (1, "fp32") and pair.after[1].precision == "int8"
    other = dataclasses.replace(profiled().rows[1].measurement, arrival="paced 10 ms")
    for changed in ({"source": "c"}, {"backend": "openvino"}, {"threads": 7}, {"batch": 2}, {"measurement": other},
                    {"layers": ()}, {"precision": None}, {"precision": "fp32"}):
        assert before_after.pairs(profiled(**changed)) == (), changed
    assert before_after.pairs(hand_made.make_report()) == ()


@pytest.mark.parametrize(("op", "kind", "name"), [
    ("QLinearConv", "integer", "Conv"), ("FusedConv", "float", "Conv"), ("NhwcFusedConv", "float", "Conv"),
    ("QGemm", "integer", "Gemm"), ("MatMulIntegerToFloat", "integer", "MatMul"),
    ("QLinearSigmoid", "integer", "Sigmoid"),
    ("QuantizeLinear", "converting", "conversions"), ("FakeQuantize", "converting", "conversions"),
    ("Convolution", "float", "Convolution"), ("ReorderInput", "moving", "ReorderInput")])
def test_what_a_kernel_does_has_one_name_in_all_precisions(op, kind, name):
    assert before_after.operation(layer("x", op, kind, 1.0)) == name


def test_operations_are_sorted_by_what_changed_and_end_with_the_sum():
    table, _ = before_after.tables(profiled())
    assert [row[:5] for row in table.rows] == [
        ("Conv", "600", "200", "-400", "1"), ("conversions", "0", "60", "+60", "0"), ("Gemm", "50", "10", "-40", "1"),
        ("HardSwish", "100", "130", "+30", "1"), ("all", "750", "400", "-350", "3")]
    assert [row[5:] for row in table.rows][-1] == ("5", "2")


def test_the_sentence_says_whether_it_pays_and_why():
    (pair,) = before_after.pairs(profiled())
    assert before_after.sentence(pair) == (
        "INT8 pays: 0.401 ms a call where fp32 takes 0.802 (2.00 times as fast); 2 of 5 nodes compute with integers; "
        "gained by Conv -400 µs and Gemm -40 µs; lost by conversions +60 µs and HardSwish +30 µs; "
        "conversions take 15.0 % of its time")
    (slower,) = before_after.pairs(profiled(0.4, 0.39))  # 2.5 % is noise
    assert before_after.sentence(slower).startswith("INT8 does not pay: 0.391 ms a call")


def test_layers_are_matched_by_order_where_an_operation_has_as_many_nodes_in_both():
    _, table = before_after.tables(profiled())
    assert table.rows[0] == ("600", "200", "-400", "/stem/Conv_quant", "Conv kernel", "QLinearConv kernel")
    assert ("0", "40", "+40", "x_DequantizeLinear", "–", "DequantizeLinear kernel") in table.rows
    many = tuple(layer(f"n{place}", "Relu", "float", 1.0 + place) for place in range(30))
    _, cut = before_after.tables(profiled(layers=many))
    assert len(cut.rows) == before_after.MOST and "the 10 of 33 layers" in cut.caption


def test_layers_are_matched_by_their_names_else_less_what_the_engine_adds():
    two = (layer("/stem/Conv_quant", "QLinearConv", "integer", 200), layer("/new/Conv", "Conv", "float", 70))
    _, table = before_after.tables(profiled(layers=two))
    assert table.rows[0] == ("600", "200", "-400", "/stem/Conv", "Conv kernel", "QLinearConv kernel")
    assert ("0", "70", "+70", "/new/Conv", "–", "Conv kernel") in table.rows


def test_the_page_and_the_terminal_show_it():
    made = profiled()
    page = html.page(made, {})
    assert page.count('id="before-after-2"') <= 1 and "before-after-2" in page
    assert "INT8 pays" in page and "beside fp32 (number 1)" in page
    captions = [table.caption for table in overview.all_tables(made)]
    assert sum("INT8 pays" in caption for caption in captions) == 1
    assert report.from_json(report.to_json(made), where="memory").rows == made.rows


def test_the_figure_keeps_few_operations_and_adds_the_others():
    many = tuple(layer(f"n{place}", f"Op{place}", "float", 1.0 + place) for place in range(12))
    (pair,) = before_after.pairs(profiled(layers=many))
    rows = before_after_plot._rows(pair)
    assert rows[0].operation == "all" and len(rows) == before_after_plot.MOST + 2
    assert rows[-1].operation.endswith("others")
    assert sum(one.after_s for one in rows[1:]) == pytest.approx(rows[0].after_s)
    drawn = before_after_plot.bars(pair)
    assert drawn is not None and drawn.startswith("<svg") and "Op11" in drawn
