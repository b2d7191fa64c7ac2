"""Frequency, temperature and throttling of the processor, read before and after each block and never during one.

Throttled counts as shown by any of

- core_throttle_count and package_throttle_count of Intel's processors: they grew during the block;
- `vcgencmd get_throttled` of the Raspberry Pi: a bit is set now, or was set during the block. Its bits are those of
  raspberrypi.com/documentation/computers/os.html#get_throttled;
- a cooling device of the kernel that holds the processor back (type `Processor` or `...cpufreq...`).
"""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.bench.machine import CPUS, ROOT
from edgetl.bench.sysfs import number, text

THERMAL = Path("sys/class/thermal")
PI_BITS = {0: "the supply voltage is too low", 1: "the frequency is capped", 2: "throttled by the firmware",
           3: "the soft temperature limit is reached"}
PI_SINCE = 16  # the same bits shifted by so many tell what happened since the board was started
PI_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class State:
    """One reading; what the machine does not tell is None or empty."""

    frequency_khz: int | None  # of the fastest processor
    celsius: float | None  # of the hottest zone
    throttle_counts: Mapping[str, int]  # events since the start, by kind
    pi_bits: int | None  # what vcgencmd says
    held_back: tuple[str, ...]  # cooling devices that slow the processor down now

    def since(self, before: State) -> list[str]:
        """Signs in words that the processor was throttled between that reading and this one."""
        signs = [f"{kind} grew by {count - before.throttle_counts[kind]}"
                 for kind, count in self.throttle_counts.items() if count > before.throttle_counts.get(kind, count)]
        if self.pi_bits is not None:
            bits = self.pi_bits | (self.pi_bits & ~(before.pi_bits or 0)) >> PI_SINCE
            signs += [words for bit, words in PI_BITS.items() if bits >> bit & 1]
        return [*signs, *(f"{name} slows it down" for name in self.held_back)]


def read(root: Path = ROOT, get_throttled: Callable[[], str | None] | None = None) -> State:
    """How the machine is now.

    Args:
        root: stands for `/`.
        get_throttled: gives what `vcgencmd get_throttled` prints; None where there is no such command.
    """
    speeds = [number(file) for file in (root / CPUS).glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    told = [speed for speed in speeds if speed is not None] or _cpuinfo_khz(root)
    zones = [number(file) for file in (root / THERMAL).glob("thermal_zone*/temp")]
    # A zone that is switched off or broken says something far from any temperature.
    hot = [zone / 1000 for zone in zones if zone is not None and 0 < zone < 150_000]
    said = get_throttled() if get_throttled else None
    return State(max(told, default=None), max(hot, default=None), _throttle_counts(root), _pi_bits(said),
                 _held_back(root))


def _cpuinfo_khz(root: Path) -> list[int]:
    lines = (text(root / "proc/cpuinfo") or "").splitlines()
    return [round(float(line.partition(":")[2]) * 1000) for line in lines if line.startswith("cpu MHz")]


def _throttle_counts(root: Path) -> dict[str, int]:
    """Events of cores added up; each processor repeats its package's, so of those the greatest counts."""
    folders = list((root / CPUS).glob("cpu[0-9]*/thermal_throttle"))
    cores = [number(folder / "core_throttle_count") for folder in folders]
    packages = [number(folder / "package_throttle_count") for folder in folders]
    found = {"core_throttle_count": sum(one for one in cores if one is not None),
             "package_throttle_count": max((one for one in packages if one is not None), default=0)}
    return found if folders else {}


def _pi_bits(said: str | None) -> int | None:
    value = (said or "").strip().partition("throttled=0x")[2]
    return int(value, 16) if value else None


def _held_back(root: Path) -> tuple[str, ...]:
    found = []
    for device in sorted((root / THERMAL).glob("cooling_device*")):
        kind = text(device / "type") or ""
        if ("cpufreq" in kind or kind == "Processor") and (number(device / "cur_state") or 0) > 0:
            found.append(kind)
    return tuple(dict.fromkeys(found))


def vcgencmd() -> Callable[[], str | None] | None:
    """What asks the Raspberry Pi's firmware; None on other machines."""
    program = shutil.which("vcgencmd")
    if program is None:
        return None

    def ask() -> str | None:
        try:
            done = subprocess.run([program, "get_throttled"], capture_output=True, text=True, timeout=PI_TIMEOUT_S,
                                  check=True)
        except (OSError, subprocess.SubprocessError):
            return None  # the user may not be in the group "video": then the firmware tells this user nothing
        return done.stdout

    return ask


class Watch:
    """Reads the machine's state around the blocks of every case.

    Args:
        state: gives the state of now.
    """

    def __init__(self, state: Callable[[], State] | None = None) -> None:
        ask = vcgencmd()
        self._state = state or (lambda: read(get_throttled=ask))
        self._before: State | None = None
        self._pairs: dict[str, list[tuple[State, State]]] = defaultdict(list)

    def before_round(self) -> None:
        """Called before a block of any case."""
        self._before = self._state()

    def after_round(self, case: str) -> None:
        """Called when that block of the case is over."""
        assert self._before is not None, "before_round() comes first"
        self._pairs[case].append((self._before, self._state()))

    def of(self, case: str) -> dict[str, Any]:
        """What was seen of a case, one value a block, for a row's `sensors`; what nobody tells is left out."""
        pairs = self._pairs.get(case, [])
        series: dict[str, list[Any]] = {
            "frequency_khz": [after.frequency_khz for _, after in pairs],
            "celsius_before": [before.celsius for before, _ in pairs],
            "celsius_after": [after.celsius for _, after in pairs],
        }
        found: dict[str, Any] = {name: values for name, values in series.items() if any(values)}
        told = any(after.throttle_counts or after.pi_bits is not None or after.held_back for _, after in pairs)
        if told:
            found["throttled"] = [after.since(before) for before, after in pairs]
        return found

    def warnings(self) -> list[str]:
        """A sentence for each case of which a block was throttled."""
        found = []
        for case, pairs in self._pairs.items():
            signs = [signs for before, after in pairs if (signs := after.since(before))]
            if signs:
                words = ", ".join(dict.fromkeys(sign for one in signs for sign in one))
                found.append(f"{case}: the processor was throttled in {len(signs)} of {len(pairs)} rounds ({words}); "
                             "its latencies are those of a hot or underpowered machine.")
        return found
