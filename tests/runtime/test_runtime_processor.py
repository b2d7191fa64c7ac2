"""What is read of a processor, from recordings of machines that are not at hand and from this one."""

from __future__ import annotations

import pytest
import recorded_cpuinfo as recorded

from edgetl.runtime import processor


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch, tmp_path):
    """No board of this machine's own, and nothing kept from another test."""
    monkeypatch.setattr(processor, "BOARD", tmp_path / "no-board")
    remembered = processor.read
    remembered.cache_clear()
    yield
    remembered.cache_clear()


def read(tmp_path, text, machine):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    return processor.read(str(cpuinfo), machine)


def features(found, monkeypatch):
    monkeypatch.setattr(processor, "read", lambda *_: found)
    return set(processor.features())


MACHINES = {
    "raspberry pi 5": (recorded.RASPBERRY_PI_5, "aarch64",
                       {"neon", "asimdhp", "asimddp", "dotprod", "fp16_arithmetic"}),
    "raspberry pi 4": (recorded.RASPBERRY_PI_4, "aarch64", {"neon"}),
    "raspberry pi 2": (recorded.RASPBERRY_PI_2, "armv7l", {"neon"}),
    "jetson orin": (recorded.JETSON_ORIN, "aarch64", {"neon", "asimdhp", "asimddp", "dotprod", "fp16_arithmetic"}),
    "graviton 3": (recorded.GRAVITON_3, "arm64", {"neon", "asimdhp", "asimddp", "dotprod", "i8mm", "bf16", "sve",
                                                       "bf16_arithmetic", "fp16_arithmetic"}),
    "laptop": (recorded.x86("avx2 avx_vnni"), "AMD64", {"avx2", "avx_vnni", "vnni"}),
    "server": (recorded.x86("avx2 avx512f avx512_vnni amx_int8 amx_bf16"), "x86_64",
               {"avx2", "avx512f", "avx512_vnni", "vnni", "amx_int8", "amx_bf16", "bf16_arithmetic"}),
}


@pytest.mark.parametrize("name", MACHINES)
def test_the_features_of_recorded_machines(name, tmp_path, monkeypatch):
    text, machine, expected = MACHINES[name]
    found = read(tmp_path, text, machine)
    assert found.architecture == ("x86" if name in ("laptop", "server") else "arm")
    assert found.source.endswith("cpuinfo")
    assert features(found, monkeypatch) == expected
    assert processor.missing(("i8mm", "vnni")) == tuple(one for one in ("i8mm", "vnni") if one not in expected)


@pytest.mark.parametrize(
    ("name", "precision", "feature"),
    [
        ("raspberry pi 5", "int8", "dotprod"),
        ("raspberry pi 5", "fp16", "asimdhp"),
        ("raspberry pi 5", "bf16", None),
        ("raspberry pi 4", "int8", None),
        ("graviton 3", "int8", "i8mm"),
        ("graviton 3", "bf16", "bf16"),
        ("laptop", "int8", "vnni"),
        ("laptop", "bf16", None),
        ("server", "bf16", "amx_bf16"),
        ("server", "fp32", None),
    ],
)
def test_what_makes_a_precision_fast(name, precision, feature, tmp_path, monkeypatch):
    features(read(tmp_path, *MACHINES[name][:2]), monkeypatch)
    assert processor.accelerates(precision) == feature


def test_the_names_of_recorded_machines(tmp_path, monkeypatch):
    assert read(tmp_path, recorded.RASPBERRY_PI_5, "aarch64").model == (
        "Raspberry Pi 5 Model B Rev 1.0, implementer 0x41 part 0xd0b")
    for text, machine, expected in (
        (recorded.JETSON_TX2, "aarch64", "implementer 0x41 part 0xd07, 0x4e part 0x003"),
        (recorded.x86("avx2", "AMD EPYC"), "x86_64", "AMD EPYC"),
    ):
        processor.read.cache_clear()
        assert read(tmp_path, text, machine).model == expected
    board = tmp_path / "board"
    board.write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    monkeypatch.setattr(processor, "BOARD", board)
    processor.read.cache_clear()
    assert read(tmp_path, recorded.JETSON_ORIN, "aarch64").model == (
        "NVIDIA Jetson AGX Orin Developer Kit, implementer 0x41 part 0xd42")


@pytest.mark.parametrize("text", [None, "", "nothing of the kind\n", "\0\xff: flags\n" * 9, "flags" * 99999])
def test_without_cpuinfo_numpy_is_asked(text, tmp_path, monkeypatch):
    """Not Linux, a sandbox without /proc, or a file that says nothing."""
    monkeypatch.setattr(processor, "_numpy_flags", lambda: frozenset({"asimd", "asimddp"}))
    (tmp_path / "cpuinfo").write_text(text) if text is not None else None
    found = processor.read(str(tmp_path / "cpuinfo"), "aarch64")
    assert (found.architecture, found.flags, found.source) == ("arm", {"asimd", "asimddp"}, "numpy")
    assert found.model


def test_an_emulated_process_does_not_believe_the_host_s_cpuinfo(tmp_path, monkeypatch):
    """A process for arm on an x86 host: older emulators show it the host's /proc/cpuinfo."""
    monkeypatch.setattr(processor, "_numpy_flags", lambda: frozenset({"asimd"}))
    found = read(tmp_path, recorded.x86("avx512_vnni"), "aarch64")
    assert (found.architecture, found.flags) == ("arm", {"asimd"})


def test_what_nobody_tells_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "_numpy_flags", frozenset)
    found = processor.read(str(tmp_path / "absent"), "riscv64")
    assert (found.architecture, found.flags, found.source) == ("riscv64", frozenset(), "unknown")
    monkeypatch.setattr(processor, "read", lambda *_: found)
    assert processor.missing(tuple(processor.FEATURES)) == tuple(processor.FEATURES)
    assert processor.accelerates("int8") is None


def test_numpy_names_are_those_of_this_numpy():
    """On this machine numpy and the kernel must agree on whatever both know."""
    from_numpy = processor._numpy_flags()
    assert from_numpy
    here = processor.read()
    if here.source == str(processor.CPUINFO):
        known = set(processor.NUMPY_NAMES.values())
        assert from_numpy - {"neon"} <= here.flags & known  # 64-bit kernels do not list neon: it goes without saying


def test_apple_silicon_is_read_by_sysctl(tmp_path, monkeypatch):
    told = {"hw.optional.arm.FEAT_DotProd": b"\1\0\0\0", "hw.optional.arm.FEAT_I8MM": b"\0\0\0\0",
            "hw.optional.arm.FEAT_FP16": b"\1\0\0\0", "machdep.cpu.brand_string": b"Apple M1 Pro\0"}
    monkeypatch.setattr(processor.sys, "platform", "darwin")
    monkeypatch.setattr(processor, "_sysctl", told.get)
    found = processor.read(str(tmp_path / "absent"), "arm64")
    assert found == processor.Processor("arm", "Apple M1 Pro", frozenset({"asimd", "asimddp", "asimdhp"}), "sysctl")


def test_the_file_is_read_once_and_not_to_its_end(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(recorded.x86("avx2 avx512_vnni", processors=512))
    lines = []
    for line in processor._lines(cpuinfo):
        lines.append(line)
        if not line.strip():
            break
    assert sum(map(len, lines)) < 400
    endless = tmp_path / "endless"
    endless.write_text("x" * (3 * processor.MOST_CHARACTERS))
    assert sum(map(len, processor._lines(endless))) == processor.MOST_CHARACTERS
    first = processor.read(str(cpuinfo), "x86_64")
    cpuinfo.write_text(recorded.x86("sse"))
    assert processor.read(str(cpuinfo), "x86_64") is first


@pytest.mark.parametrize(("name", "expected"), [("AMD64", "x86"), ("i686", "x86"), ("aarch64", "arm"), ("arm64", "arm"),
                                                ("armv7l", "arm"), ("x86", "x86"), ("riscv64", "riscv64")])
def test_architectures(name, expected):
    assert processor.architecture(name) == expected
