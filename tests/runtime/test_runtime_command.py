"""`python -m edgetl.runtime`: what it prints, where, and with which exit code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import edit_manifest, encode, make_bundle, make_photo

from edgetl.runtime import __main__ as command

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encode(make_photo(2)))
    return path


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "edgetl.runtime", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def test_predict_through_the_real_entry_point(bundle, photo):
    done = run("predict", bundle, photo, "--top", "2")
    assert (done.returncode, done.stderr) == (0, "")
    name, first, second = done.stdout.strip().split("\t")
    assert name == str(photo)
    assert float(first.split()[1]) > float(second.split()[1])


@pytest.mark.parametrize(
    "arguments, code, says",
    [
        (("predict", "BUNDLE"), 2, "IMAGE"),
        (("predict", "BUNDLE", "a.png", "--top", "0"), 2, "--top"),
        (("fly", "BUNDLE"), 2, "invalid choice"),
        (("predict", "/nowhere", "a.png"), 1, "error: /nowhere does not exist.\nhint: "),
    ],
)
def test_wrong_usage_and_expected_failures(arguments, code, says):
    done = run(*arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_predict_as_json_lines(bundle, photo, capsys):
    assert command.main(["predict", str(bundle), str(photo), str(photo), "--json", "--top", "3"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == second
    assert first["image"] == str(photo)
    assert first["top"][0] == [first["label"], first["score"]]
    assert len(first["top"]) == 3


def test_a_bad_image_does_not_stop_the_others(bundle, photo, tmp_path, capsys):
    bad = tmp_path / "notes.jpg"
    bad.write_text("text")
    assert command.main(["predict", str(bundle), str(bad), str(photo)]) == 1
    told = capsys.readouterr()
    assert str(photo) in told.out
    assert told.err.startswith(f"error: {bad} is not an image")
    assert "\nhint: " in told.err


def test_info(bundle, capsys):
    assert command.main(["info", str(bundle), "--json", "--threads", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["session"]["threads"] == 1
    assert command.main(["info", str(bundle)]) == 0
    assert "manifest's order" in capsys.readouterr().out


def test_options_of_the_backend_and_ways_to_decode(bundle, photo, capsys):
    words = ["predict", str(bundle), str(photo), "--backend", "cpu"]
    assert command.main(words) == 0
    plain = capsys.readouterr().out
    assert command.main([*words, "--option", "spin=off", "--option", "graph_optimization=off", "--decode", "fast"]) == 0
    assert capsys.readouterr().out == plain  # a small PNG file is read alike
    assert command.main([*words, "--option", "colour=blue"]) == 1
    assert "has no option 'colour'" in capsys.readouterr().err
    assert command.main([*words, "--decode", "slow"]) == 1
    assert "'slow'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        command.main([*words, "--option", "spin"])
    assert ended.value.code == 2
    assert "'spin' is no NAME=VALUE" in capsys.readouterr().err


def test_verify_says_yes(bundle, capsys):
    assert command.main(["verify", str(bundle)]) == 0
    assert "passed   preprocess" in capsys.readouterr().out
    assert command.main(["verify", str(bundle), "--json", "--backend", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2


def test_verify_says_no_with_exit_code_three(bundle, tmp_path, capsys):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    edit_manifest(copy, "preprocess", "color", value="bgr")
    assert command.main(["verify", str(copy)]) == 3
    told = capsys.readouterr()
    assert told.out == ""
    assert "red and blue are swapped" in told.err


def test_an_interruption_is_130(bundle, photo, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "load", interrupted)
    assert command.main(["predict", str(bundle), str(photo)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_has_had_enough(bundle, photo):
    photos = " ".join([str(photo)] * 20)
    line = f"{sys.executable} -m edgetl.runtime predict {bundle} {photos} --json | true; echo ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, timeout=600)
    assert done.stdout.strip() == "0"
    assert done.stderr == ""
