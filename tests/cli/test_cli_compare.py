"""`edgetl compare` from the shell: what is printed, and with which exit code it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from hand_made_pair import OTHER, calibration, make, row

from edgetl.bench import report
from edgetl.cli import app


def write(folder: Path, name: str, *rows: report.Row, **changes: object) -> str:
    (folder / name).mkdir()
    (folder / name / "report.json").write_text(report.dumps(make(*rows, **changes)))
    return str(folder / name)


@pytest.fixture
def old(tmp_path: Path) -> str:
    return write(tmp_path, "old", row("bundle fp32 cpu", 1.0, 1), calibration=calibration(0))


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = app.main(["compare", *argv])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return code, shown.out, shown.err


@pytest.mark.parametrize(("new_ms", "gate", "code", "word", "error"), [
    (1.5, (), 0, "slower", ""),
    (1.5, ("--max-regression", "5%"), 3, "slower", "error: Slower by more than 5 % beyond doubt: bundle fp32 cpu (+"),
    (1.0, ("--max-regression", "5%"), 0, "same", ""),
    (1.05, ("--max-regression", "5%"), 4, "slower", "error: Nobody can say whether these are slower by more than 5 %"),
])
def test_the_exit_code_is_the_gate_s(tmp_path, old, capsys, new_ms, gate, code, word, error):
    new = write(tmp_path, "new", row("bundle fp32 cpu", new_ms, 2))
    found, out, err = said(capsys, old, new, *gate)
    assert found == code
    assert word in out
    assert error in err
    assert ("error" in err) == bool(error)


def test_the_json_is_whole_whatever_the_gate_says(tmp_path, old, capsys):
    new = write(tmp_path, "new", row("bundle fp32 cpu", 2.0, 2))
    code, out, _ = said(capsys, old, new, "--json", "--max-regression", "5%", "--out", str(tmp_path / "out"))
    document = json.loads(out)
    assert (code, document["gate"], document["cases"][0]["gate"]) == (3, "fail", "fail")
    assert document["cases"][0]["ratio"]["value"] == pytest.approx(2, rel=0.01)
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == document
    assert (tmp_path / "out" / "comparison.md").read_text().startswith("# Comparison\n\nfail: 1 slower")
    code, _, err = said(capsys, old, new, "--out", str(tmp_path / "out"))
    assert (code, "exists already" in err) == (1, True)
    assert said(capsys, old, new, "--out", str(tmp_path / "out"), "--overwrite")[0] == 0


def test_another_machine_is_exit_1_unless_asked_for(tmp_path, old, capsys):
    new = write(tmp_path, "new", row("bundle fp32 cpu", 2.0, 2), machine=OTHER,
                calibration=calibration(1, arithmetic=2.0, memory=2.0, scalar=2.0))
    code, out, err = said(capsys, old, new)
    assert (code, out) == (1, "")
    assert "different machines: machine: x86_64 and aarch64; cpu: AMD EPYC and Cortex-A76." in err
    assert "hint: Measure both on one machine; --across-machines" in err
    code, out, err = said(capsys, old, new, "--across-machines")
    assert (code, "same" in out) == (0, True)
    assert "Different machines (machine, cpu): all ratios are divided by 2.0" in err


@pytest.mark.parametrize(("text", "told"), [
    ("", "cannot be read as JSON"),
    ('{"rows": []}', "is not a benchmark report"),
    ("[1, 2]", "is not a benchmark report"),
    ('{"schema": 99}', "has schema 99; this version of edgetl reads up to 1"),
    ('{"schema": 0}', "has schema 0, which this version of edgetl no longer reads"),
    ('{"schema": 1, "environment": {}}', "is missing"),
])
def test_what_is_no_report_is_exit_1_and_names_the_file(tmp_path, old, capsys, text, told):
    (tmp_path / "other.json").write_text(text)
    code, out, err = said(capsys, old, str(tmp_path / "other.json"))
    assert (code, out) == (1, "")
    assert told in err and "other.json" in err


def test_a_cut_report_a_missing_one_and_none_in_common_are_exit_1(tmp_path, old, capsys):
    whole = (Path(old) / "report.json").read_text()
    (tmp_path / "cut.json").write_text(whole[:len(whole) // 2])
    for other, told in ((tmp_path / "cut.json", "cannot be read as JSON"), (tmp_path / "none.json", "does not exist"),
                        (write(tmp_path, "new", row("other fp32 cpu", 1.0, 2)), "no case in common")):
        code, out, err = said(capsys, old, str(other))
        assert (code, out, told in err) == (1, "", True)


@pytest.mark.parametrize("argv", [(), ("old",), ("old", "new", "--max-regression", "five"),
                                  ("old", "new", "--max-regression", "0%"), ("old", "new", "--least-effect", "3")])
def test_wrong_usage_is_exit_2(capsys, argv):
    code, _, err = said(capsys, *argv)
    assert code == 2
    assert err.startswith("error: ")
