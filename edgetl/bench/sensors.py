"""The sensors of energy of this machine, each by its name; nothing is called energy that no sensor measured.

- RAPL: counters of the processor, microjoules that begin again at zero beyond `max_energy_range_uj`. Linux lets only
  root read them (CVE-2020-8694). Documentation/power/powercap/powercap.rst of Linux.
- NVML: the counter of an NVIDIA card in millijoules since its driver was loaded, Volta and later
  (nvmlDeviceGetTotalEnergyConsumption), through the package nvidia-ml-py.
- INA: chips on the board that measure the power of a supply line, e.g. the INA3221 of Jetson; their readings are
  summed up over time by `edgetl.bench.energy`. Documentation/hwmon/ina3221.rst and ina2xx.rst of Linux.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.bench.machine import ROOT
from edgetl.bench.sysfs import number, text
from edgetl.errors import EdgetlError

RAPL = Path("sys/class/powercap")
INA_PLACES = ("sys/class/hwmon/hwmon*", "sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*")
SHUNTS = ("shunt", "sum of")  # voltages over a resistor and their sum: no supply line


class SensorFailed(EdgetlError):
    """A sensor that was there and no longer answers, or whose counter stands still."""


@dataclass(frozen=True)
class Sensor:
    """One reading of energy or power."""

    name: str  # as reports name it: which sensor, and which part of it
    scope: str  # whose energy it is
    counter: bool  # `read` gives joules from an arbitrary zero; else watts of now
    read: Callable[[], float]  # raises SensorFailed
    wraps_j: float | None = None  # where the counter begins again

    def spent_j(self, before: float, after: float) -> float:
        """Joules between two readings of a counter that began again at most once."""
        if after < before and self.wraps_j is not None:
            return after - before + self.wraps_j
        return after - before


@dataclass(frozen=True)
class Found:
    """The sensors of a machine, and why there are no others."""

    sensors: tuple[Sensor, ...]
    lacking: tuple[str, ...]  # a clause for each kind that gave none

    def of_device(self, device: str) -> tuple[Sensor, ...]:
        """Those that measure what a session on this device uses: a card's sensor tells nothing of the processor."""
        wanted = card_number(device)
        return tuple(one for one in self.sensors
                     if not one.name.startswith("NVML") or one.name.startswith(f"NVML GPU {wanted} "))

    def sentence(self) -> str:
        """What was looked for, where nothing was found."""
        return f"no energy sensor found (looked for: {'; '.join(self.lacking)})"


def card_number(device: str) -> str | None:
    """The number of the NVIDIA card that a session runs on, as it calls it (cuda, cuda:1, CUDA 0); None is no card."""
    named = re.fullmatch(r"cuda(?:[: ](\d+))?", device.lower())
    return None if named is None else named[1] or "0"


def find(root: Path = ROOT, nvml: Any = None) -> Found:
    """Every sensor of this machine that can be read.

    Args:
        root: stands for `/`.
        nvml: the module pynvml; None imports it.
    """
    sensors: list[Sensor] = []
    lacking: list[str] = []
    for found in (rapl(root), nvml_cards(nvml), ina(root)):
        if isinstance(found, str):
            lacking.append(found)
        else:
            sensors += found
    return Found(tuple(sensors), tuple(lacking))


def rapl(root: Path = ROOT) -> list[Sensor] | str:
    """RAPL's domains: all packages as one sensor, and memory and the whole platform where they are told; or why not."""
    zones = sorted((root / RAPL).glob("intel-rapl:*"))  # AMD's processors have the same name there
    if not zones:
        return f"RAPL: nothing at /{RAPL}/intel-rapl:*"
    closed = [zone for zone in zones if number(zone / "energy_uj") is None]
    if len(closed) == len(zones):
        return f"RAPL: /{(closed[0] / 'energy_uj').relative_to(root)} cannot be read, usually only root may"
    kinds: dict[str, list[Path]] = {}
    for zone in zones:
        if zone not in closed:
            kinds.setdefault((text(zone / "name") or zone.name).split("-")[0], []).append(zone)
    scopes = {"package": "the processor's packages", "dram": "the memory", "psys": "the whole platform"}
    return [_rapl_sensor(kinds[kind], scope) for kind, scope in scopes.items() if kind in kinds] \
        or f"RAPL: no package among /{RAPL}/intel-rapl:*"


def _rapl_sensor(zones: Sequence[Path], scope: str) -> Sensor:
    names = " + ".join(dict.fromkeys(text(zone / "name") or zone.name for zone in zones))
    if len(zones) == 1:
        return Sensor(f"RAPL {names}", scope, True, lambda: _microjoules(zones[0]), _range_j(zones[0]))
    parts = [_rapl_sensor([zone], scope) for zone in zones]
    last = [part.read() for part in parts]
    total = 0.0

    def read() -> float:
        # Each package begins again on its own, so their sum is counted on here and never begins again.
        nonlocal total
        for place, part in enumerate(parts):
            now = part.read()
            total += part.spent_j(last[place], now)
            last[place] = now
        return total

    return Sensor(f"RAPL {names}", scope, True, read)


def _microjoules(zone: Path) -> float:
    found = number(zone / "energy_uj")
    if found is None:
        raise SensorFailed(f"{zone / 'energy_uj'} can no longer be read.")
    return found / 1e6


def _range_j(zone: Path) -> float | None:
    found = number(zone / "max_energy_range_uj")
    return None if found is None else found / 1e6


def load_nvml() -> Any:
    """The module pynvml with the driver opened, or the clause that says why there is none."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return "NVML: the package nvidia-ml-py is not installed"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as problem:
        return f"NVML: {problem}"
    return nvml


def nvml_cards(nvml: Any = None) -> list[Sensor] | str:
    """The counters of the cards, or why there are none."""
    nvml = load_nvml() if nvml is None else nvml
    if isinstance(nvml, str):
        return nvml
    try:
        cards = [(handle, f"NVML GPU {index} {_words(nvml.nvmlDeviceGetName(handle))}")
                 for index, handle in enumerate(_handles(nvml))]
    except nvml.NVMLError as problem:
        return f"NVML: {problem}"
    found, problems = [], ["NVML: the driver knows no card"]
    for handle, title in cards:
        one = Sensor(title, "the card, its memory included", True, _card_reader(nvml, handle, title))
        try:
            one.read()
        except SensorFailed as problem:
            problems = [f"NVML: {problem.message}"]
        else:
            found.append(one)
    return found or problems[0]


def _card_reader(nvml: Any, handle: Any, title: str) -> Callable[[], float]:
    def read() -> float:
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except nvml.NVMLError as problem:
            raise SensorFailed(f"{title} does not tell its energy: {problem}.") from problem

    return read


def gpu_memory_bytes(pid: int, nvml: Any = None) -> int | None:
    """Memory of all cards that a process holds; None where the driver does not tell it.

    In a container the driver counts processes by the host's numbers, and so knows none of ours.
    """
    nvml = load_nvml() if nvml is None else nvml
    if isinstance(nvml, str):
        return None
    try:
        known = [one for handle in _handles(nvml) for one in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    except nvml.NVMLError:
        return None  # cards that are split up, or shared under Windows, do not count by process
    held = [one.usedGpuMemory for one in known if one.pid == pid and one.usedGpuMemory is not None]
    return sum(held) if held else None


def _handles(nvml: Any) -> list[Any]:
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]


def _words(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name  # bytes in pynvml before version 11.5


def ina(root: Path = ROOT) -> list[Sensor] | str:
    """Supply lines that an INA chip measures, the board's whole input first, or why there are none."""
    folders = {folder.resolve(): folder for place in INA_PLACES for folder in sorted(root.glob(place))}
    chips = [folder for folder in folders.values() if (text(folder / "name") or "").startswith("ina")]
    if not chips:
        return "INA: no ina* chip among /sys/class/hwmon and /sys/bus/i2c/drivers"
    lines = [line for chip in chips for line in _lines(chip)]
    lines.sort(key=lambda line: "VDD_IN" not in line.name)
    return lines or f"INA: {text(chips[0] / 'name')} tells neither power nor voltage and current"


def _lines(chip: Path) -> list[Sensor]:
    title = f"{(text(chip / 'name') or 'ina').upper()}"
    if number(chip / "power1_input") is not None:  # ina219, ina226 and their like compute it themselves, in microwatts
        label = text(chip / "power1_label") or text(chip / "in1_label") or chip.parent.parent.name
        return [Sensor(f"{title} {label}", "the supply line of that name", False, lambda: _watts(chip, 1))]
    found = []
    for channel in range(1, 9):
        label = text(chip / f"in{channel}_label") or f"line {channel}"
        if number(chip / f"curr{channel}_input") is None or label.lower().startswith(SHUNTS):
            continue
        scope = "the whole board" if label == "VDD_IN" else "the supply line of that name"
        whole = Sensor(f"{title} {label}", scope, False, lambda channel=channel: _watts(chip, channel))  # type: ignore[misc]
        found.append(whole)
    return found


def _watts(chip: Path, channel: int) -> float:
    power = number(chip / f"power{channel}_input")
    if power is not None:
        return power / 1e6
    millivolts, milliamperes = number(chip / f"in{channel}_input"), number(chip / f"curr{channel}_input")
    if millivolts is None or milliamperes is None:
        raise SensorFailed(f"{chip} no longer tells the power of its line {channel}.")
    return millivolts * milliamperes / 1e6


def missing(found: Found, device: str) -> str | None:
    """Why a session on this device gets no energy; None where a sensor measures it."""
    if found.of_device(device):
        return None
    others = tuple(f"{one.name} measures another device" for one in found.sensors)
    return dataclasses.replace(found, lacking=(*found.lacking, *others)).sentence()
