"""The tables beside the summary: tails, throughput, the way from a file, and what ran where."""

from __future__ import annotations

import dataclasses
import re

import hand_made
import pytest

from edgetl.bench import html, markdown, report, tables


def line(table, number=0):
    return dict(zip(table.columns, table.rows[number], strict=True))


def with_rows(*rows, **changes):
    return dataclasses.replace(hand_made.make_report(), rows=rows, reference=None, focus=None, **changes)


def measured(rounds, calls, **changes):
    row = hand_made.row("a cpu", 2, backend="cpu", **changes)
    seconds = hand_made.samples(2, 0, rounds, calls)
    return dataclasses.replace(row, measurement=dataclasses.replace(row.measurement, seconds=seconds, rounds=rounds))


def test_percentiles_have_intervals_where_the_calls_bound_them():
    few = line(tables.tails(with_rows(measured(2, 20))))
    assert {few[name] for name in ("p90 ms", "p99 ms", "p99.9 ms")} == {
        "needs 64 samples", "needs 662 samples", "needs 6636 samples"}
    assert few["95 % interval of p95 ms"] == tables.MISSING and few["calls"] == "40"
    found = line(tables.tails(with_rows(measured(30, 100))))
    value, low, high = map(float, re.findall(r"[0-9.]+", found["p99 ms"]))
    assert low < value < high and found["p99.9 ms"] == "needs 6636 samples"
    assert found["95 % interval of p95 ms"].startswith("[2.")
    figures = report.figures(measured(30, 100))
    assert figures.p99_s * 1000 == pytest.approx(value, rel=0.01) and figures.p999_s is None
    assert figures.median_s < figures.p90_s < figures.p95_s < figures.p99_s


def test_an_end_that_the_rounds_do_not_bound_is_a_dash():
    found = line(tables.tails(with_rows(measured(2, 400))))
    assert found["p99 ms"].endswith(f"{tables.MISSING}]")


def test_throughput_is_shown_where_there_is_a_choice():
    alone = report.Throughput(500.0, 490.0, 510.0, 1, 1, (500.0,) * 5)
    plain = measured(5, 50, best_throughput=alone)
    assert tables.throughputs(with_rows(plain)).rows == ()  # one batch, one caller: the summary says it all
    crowd = report.Throughput(900.0, None, None, 8, 2, (880.0, 920.0))
    asked = dataclasses.replace(plain, throughputs=(crowd, dataclasses.replace(crowd, concurrency=4, ips=870.0)),
                                best_throughput=crowd, batch=8)
    both = tables.throughputs(with_rows(plain, asked))
    assert both.columns[-2:] == ("2 at once", "4 at once")
    assert line(both, 0)["2 at once"] == tables.MISSING and line(both, 0)["reached with"] == "batch 1, 1 at once"
    assert (line(both, 1)["best images/s"], line(both, 1)["reached with"], line(both, 1)["4 at once"]) == (
        "900", "batch 8, 2 at once", "870")
    paced = dataclasses.replace(plain, measurement=dataclasses.replace(plain.measurement, arrival="paced 5ms"))
    assert len(tables.throughputs(with_rows(plain, paced, asked)).rows) == 2
    assert line(both, 0)["best images/s"] == "500 [490, 510]"
    assert float(line(both, 1)["mean images/s"]) == pytest.approx(8 / 0.00206, rel=0.02)


def test_the_way_from_a_file_has_a_table_of_its_own():
    def of_four_files(seconds):
        return tuple(seconds * factor for factor in (0.9, 0.99, 1.01, 1.1)) * 5

    own = measured(5, 50, files="4 drawn JPEG files", decode_s=of_four_files(0.004), preprocess_s=(0.001,) * 20,
                   end_to_end_s=of_four_files(0.0071))
    other = hand_made.row("b cpu", 2, backend="cpu")
    found = tables.ways(with_rows(other, own))
    assert len(found.rows) == 1 and found.rows[0][:2] == ("2", "a cpu") and found.caption.endswith("4 drawn JPEG files")
    assert line(found)["end to end ms"] == "7.10 [6.39, 7.81]" and line(found)["decoding ms"] == "4.00 [3.60, 4.40]"
    assert tables.ways(with_rows(other)).rows == ()


def test_a_way_that_was_broken_off_or_had_one_round_still_has_its_median():
    few = measured(5, 50, files="x", decode_s=(0.004,) * 7, end_to_end_s=(0.0071,) * 7)
    assert line(tables.ways(with_rows(few)))["decoding ms"] == "4.00 [4.00, 4.00]"  # no whole rounds: taken as calls
    assert line(tables.ways(with_rows(few)))["preprocessing ms"] == tables.MISSING
    one = measured(1, 50, files="x", end_to_end_s=(0.0071,))
    assert line(tables.ways(with_rows(one)))["end to end ms"] == "7.10"


def test_cases_tell_their_warm_up_and_their_cores():
    told = line(tables.cases(with_rows(measured(5, 50, warmup_calls=80, affinity=(0, 1, 5)))))
    assert (told["warm-up calls"], told["cores"]) == ("80", "0-1, 5") and "GPU MB" not in told
    limited = line(tables.cases(with_rows(measured(5, 50, affinity=(0, 1), cpu_quota=1.5))))
    assert limited["cores"] == "0-1, quota 1.5"
    bare = line(tables.cases(with_rows(measured(5, 50), measured(5, 50, gpu_memory_bytes=3_000_000))))
    assert (bare["warm-up calls"], bare["cores"], bare["GPU MB"]) == (tables.MISSING,) * 3


def test_the_device_alone_has_a_column_only_where_some_case_tells_it():
    told, silent = measured(5, 50, device_s=(0.002, 0.001, 0.0015)), measured(5, 50)
    both = tables.summary(with_rows(told, silent))
    column = both.columns.index(tables.DEVICE_ALONE)
    assert [row[column] for row in both.rows] == ["1.50", tables.MISSING] and tables.DEVICE_ALONE in both.caption
    assert both.columns.index("median ms") < column and line(both)["median ms"] != "1.50"
    alone = tables.summary(with_rows(silent))
    assert tables.DEVICE_ALONE not in alone.columns and tables.DEVICE_ALONE not in alone.caption
    for shown in (markdown.page(with_rows(told, silent)), html.page(with_rows(told, silent), {})):
        assert tables.DEVICE_ALONE in shown
    assert "The device alone:" in html.page(with_rows(told), {})
    assert "The device alone:" not in html.page(with_rows(silent), {})


def test_a_partial_report_says_first_that_it_is_one():
    found = with_rows(measured(5, 50), status=report.PARTIAL, notes=("A warning.",))
    assert tables.notes(found) == [tables.BROKEN_OFF, "A warning."]
    assert tables.summary(found).caption.startswith(tables.BROKEN_OFF)  # a terminal shows no notes
    assert tables.BROKEN_OFF in markdown.page(found).replace("\\", "") and tables.BROKEN_OFF in html.page(found, {})


def test_the_page_says_how_it_was_measured_and_nothing_that_was_not_done():
    bare = html.page(with_rows(measured(5, 50)), {})
    assert not [word for word in ("Kendall", "windows of", "The bytes are in memory") if word in bare]
    crowd = report.Throughput(900.0, None, None, 1, 2, (880.0, 920.0))
    full = html.page(with_rows(measured(5, 50, warmup_calls=40, throughputs=(crowd,), end_to_end_s=(0.1,))), {})
    assert all(word in full for word in ("Kendall", "windows of 0.5 s", "the bytes are in memory"))


def test_arrivals_are_told_beside_the_speed_up():
    first, second = measured(5, 50), measured(5, 50)
    second = dataclasses.replace(second, measurement=dataclasses.replace(second.measurement, arrival="paced 5ms"))
    found = dataclasses.replace(with_rows(first, second), reference="a cpu")
    assert "speed-up against a cpu, under the same arrival;" in tables.summary(found).caption
    assert "under the same" not in tables.summary(dataclasses.replace(found, rows=(first,))).caption
