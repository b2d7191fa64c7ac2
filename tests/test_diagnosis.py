"""What is the matter with made-up machines, and what each is told to do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from edgetl import diagnosis, rundir
from edgetl.cli import app
from edgetl.diagnosis import Facts
from edgetl.runtime.nvidia import Driver, Found, Gpu

NO_CARD = Found(None, reason="there is no NVIDIA driver", fix="Install the NVIDIA driver")


def with_card(cuda=(13, 0), capability="8.9", version="580.65.06"):
    return Found(Driver(cuda, version), (Gpu("Card", capability, 2**34),))


def machine(packages=None, cards=NO_CARD, features=("vnni",), **more):
    return Facts(packages or {}, cards, architecture="x86", features=features, **more)


def texts(facts):
    return [one.text for one in diagnosis.findings(facts)]


def test_nothing_is_the_matter_with_a_machine_that_has_one_of_each():
    packages = {"onnxruntime-gpu": "1.31.1", "torch": "2.15.0+cu130", "nvidia-cuda-runtime": "13.0.88",
                "tensorrt-cu13-bindings": "11.4.0", "tensorrt-cu13-libs": "11.4.0"}
    assert texts(machine(packages, with_card())) == []
    assert texts(machine({"onnxruntime": "1.31.1"})) == []


def test_two_runtimes_that_overwrite_each_other_are_errors_and_come_first():
    (both,) = diagnosis.findings(machine({"onnxruntime": "1", "onnxruntime-gpu": "1"}))
    assert (both.text, both.fix, both.error) == (diagnosis.BOTH_RUNTIMES, diagnosis.ONE_RUNTIME, True)
    three = {"onnxruntime": "1", "onnxruntime-openvino": "1", "onnxruntime-directml": "1"}
    first, *_ = diagnosis.findings(machine(three, features=()))
    assert first.text.startswith("onnxruntime, onnxruntime-openvino and onnxruntime-directml are installed together")
    assert first.fix.startswith("pip uninstall -y onnxruntime onnxruntime-openvino onnxruntime-directml, then")


def test_a_driver_that_is_too_old_for_what_is_installed():
    packages = {"nvidia-cuda-runtime": "13.2.86", "nvidia-cuda-runtime-cu12": "12.9.79", "torch": "2.15.0+cu132",
                "tensorrt-rtx-cu13-bindings": "1.7.1", "tensorrt-rtx-cu13-libs": "1.7.1"}
    (one,) = texts(machine(packages, with_card((12, 8), version="570.86.15")))
    assert one == ("The NVIDIA driver 570.86.15 runs CUDA 12.8 at most, which is too old for nvidia-cuda-runtime "
                   "13.2.86, torch 2.15.0+cu132, tensorrt-rtx-cu13-bindings 1.7.1.")
    assert texts(machine(packages, with_card((13, 0)))) == []
    assert texts(machine(packages)) == []  # without a driver there is none that is too old


def test_bindings_without_their_libraries():
    facts = machine({"tensorrt-cu13-bindings": "11.4.0.106"}, missing={"tensorrt-cu13": "libnvinfer.so.11"})
    (one,) = diagnosis.findings(facts)
    assert one.text == "tensorrt-cu13-bindings is installed without its libraries: libnvinfer.so.11 is missing."
    assert one.fix == "pip install tensorrt-cu13-libs==11.4.0.106"


def test_a_library_is_missing_where_neither_a_wheel_nor_the_system_has_it():
    packages = {"tensorrt-cu13-bindings": "11.4.0", "tensorrt-rtx-cu13-bindings": "1.7.1",
                "tensorrt-rtx-cu13-libs": "1.7.1"}
    asked = []

    def load(name):
        asked.append(name)
        raise OSError(name)

    assert dict(diagnosis._missing(packages, load)) == {"tensorrt-cu13": "libnvinfer.so.11"}
    assert dict(diagnosis._missing(packages, asked.append)) == {}
    assert [Path(name).name for name in asked] == ["libnvinfer.so.11"] * 2


def test_cards_that_tensorrt_for_rtx_does_not_know():
    rtx = {"tensorrt-rtx-cu13-bindings": "1.7.1", "tensorrt-rtx-cu13-libs": "1.7.1"}
    (one,) = diagnosis.findings(machine(rtx, with_card(capability="9.0")))
    assert "does not run on Card (compute capability 9.0), only on 7.5, 8.0" in one.text
    assert "pip install tensorrt" in one.fix
    assert texts(machine(rtx, with_card(capability="8.6"))) == []
    assert texts(machine({**rtx, "tensorrt-cu13-bindings": "11"}, with_card(capability="9.0"))) == []


def test_a_jetson_has_its_own_tensorrt():
    (one,) = diagnosis.findings(dataclasses.replace(machine(jetson="36.4"), architecture="arm"))
    assert "Jetson (Linux 36.4): its TensorRT 10 is part of JetPack" in one.text
    assert "--system-site-packages" in one.fix


def test_no_vnni_is_told_on_x86_alone():
    assert "no VNNI" in texts(machine(features=("avx2",)))[0]
    assert texts(dataclasses.replace(machine(features=()), architecture="arm")) == []


def test_advice_on_cards_is_for_machines_with_a_driver():
    backends = {"cuda": {"usable": False, "fix": "install it"}, "cpu": {"usable": True, "fix": None},
                "openvino": {"usable": False, "fix": "get it"}}
    said = diagnosis.advice(machine(features=("avx2",)), backends)
    assert said[0] == "backend openvino: get it"
    assert "no VNNI" in said[1] and said[1].endswith("Export for x86-avx2.")
    assert said[2:] == ["cuda: only with an NVIDIA card, and here there is no NVIDIA driver."]
    assert "backend cuda: install it" in diagnosis.advice(machine(cards=with_card()), backends)


def test_this_machine_is_looked_at():
    def no_library(name):
        raise OSError(f"{name}: cannot open shared object file")

    facts = diagnosis.look({"torch": "0"}, no_library)
    assert facts.packages["torch"] == "0"
    assert facts.cards.driver is None and "no NVIDIA driver" in facts.cards.reason
    assert facts.architecture and facts.features


def doctor(capsys, monkeypatch, *flags, facts):
    monkeypatch.setattr(diagnosis, "look", lambda versions: facts)
    monkeypatch.setattr("sys.argv", ["edgetl", "doctor", *flags])
    code = app.main()
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_doctor_tells_the_card_in_words_and_as_json(capsys, monkeypatch):
    facts = machine({}, with_card())
    code, out, _ = doctor(capsys, monkeypatch, facts=facts)
    assert code == 0
    assert "driver 580.65.06, CUDA 13.0: Card (8.9, 16 GiB)" in out
    code, out, _ = doctor(capsys, monkeypatch, "--json", facts=facts)
    found = json.loads(out)
    assert found["nvidia"]["cards"] == [{"name": "Card", "compute_capability": "8.9", "total_bytes": 2**34}]
    assert found["nvidia"]["driver"] == {"cuda": [13, 0], "version": "580.65.06"}
    assert (found["findings"], found["errors"], found["jetson"]) == ([], [], None)
    assert {"int8", "bf16", "fp16"} >= set(found["fast"])
    assert {"cpu", "cuda", "openvino", "ort", "tensorrt", "torch"} <= set(found["backends"])


def test_doctor_s_hint_is_the_fix_of_the_error(capsys, monkeypatch):
    packages = {"onnxruntime": "1", "onnxruntime-openvino": "1"}
    code, out, err = doctor(capsys, monkeypatch, "--json", facts=machine(packages, with_card((12, 0), "9.0")))
    assert code == 1
    assert "hint: pip uninstall -y onnxruntime onnxruntime-openvino, then install the one you want." in err
    assert [one["error"] for one in json.loads(out)["findings"]] == [True]


def test_on_a_terminal_no_line_is_longer_than_it(capsys, monkeypatch):
    from edgetl.cli import present

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(present.sys.stdout, "isatty", lambda: True, raising=False)
    code, out, _ = doctor(capsys, monkeypatch, facts=machine({}, with_card(), features=()))
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert rundir.versions().keys() <= set(out.split())


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_variant_for_a_card_runs_where_its_backend_does(capsys, monkeypatch, name):
    from edgetl import plugins

    usable = plugins.load("backends", name).probe().usable
    _, out, _ = doctor(capsys, monkeypatch, "--json", facts=machine())
    variants = [one for one in json.loads(out)["variants"] if one["variant"].startswith(f"{name}.")]
    assert variants and all(one["runs"] is usable for one in variants)
    assert usable or all("cannot run here" in one["because"] for one in variants)
