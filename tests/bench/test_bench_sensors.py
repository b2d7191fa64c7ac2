"""Sensors of energy, throttling and GPU memory, on recorded machines and a made-up driver."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable

import pytest
from bench import recorded_machines as recorded

from edgetl.bench import energy, sensors, watch
from edgetl.bench.energy import Clock
from edgetl.bench.sensors import Sensor, SensorFailed


class NVMLError(Exception):
    pass


def driver(*, names=("NVIDIA L4",), millijoules=(5_000.0, 65_000.0), processes=(), refuses: str | None = None):
    """As much of pynvml as is asked; the counter gives the next of `millijoules` at each reading."""
    readings = iter(millijoules)

    def read(handle: int) -> float:
        if refuses:
            raise NVMLError(refuses)
        return next(readings)

    return types.SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: len(names),
        nvmlDeviceGetHandleByIndex=lambda index: index, nvmlDeviceGetName=lambda handle: names[handle],
        nvmlDeviceGetTotalEnergyConsumption=read, nvmlDeviceGetComputeRunningProcesses=lambda handle: processes)


NO_NVML = "NVML: the package nvidia-ml-py is not installed"


class Time:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def clock(self, at_rest: Callable[[], None] = lambda: None) -> Clock:
        def sleep_until(moment: float) -> None:
            self.seconds = moment
            at_rest()

        return Clock(lambda: self.seconds, sleep_until)


def test_an_intel_server_adds_its_packages_and_keeps_the_memory_apart(tmp_path):
    root = recorded.write(recorded.INTEL, tmp_path)
    packages, memory = sensors.rapl(root)
    assert packages.name == "RAPL package-0 + package-1" and packages.counter and memory.name == "RAPL dram"
    before = packages.read()
    # The first counter begins again at zero beyond 262143.32885 J, the second goes on.
    recorded.write({f"{recorded.RAPL}/intel-rapl:0/energy_uj": "56671150\n",
                    f"{recorded.RAPL}/intel-rapl:1/energy_uj": "1100000000\n"}, tmp_path)
    assert packages.spent_j(before, packages.read()) == pytest.approx(200 + 100, abs=1e-6)


def test_one_package_that_begins_again_is_seen_by_its_range(tmp_path):
    files = {name: value for name, value in recorded.INTEL.items() if "rapl:1" not in name}
    one = sensors.rapl(recorded.write(files, tmp_path))[0]
    assert one.name == "RAPL package-0" and one.wraps_j == pytest.approx(262143.32885)
    assert one.spent_j(262000.0, 56.67115) == pytest.approx(200)
    assert one.spent_j(10.0, 12.5) == 2.5


def test_what_only_root_may_read_is_said_and_not_called_zero(tmp_path, monkeypatch):
    root = recorded.write(recorded.INTEL, tmp_path)
    monkeypatch.setattr(sensors, "number", lambda path: None)  # tests may run as root, who may read everything
    assert sensors.rapl(root) == ("RAPL: /sys/class/powercap/intel-rapl:0/energy_uj cannot be read, usually only root "
                                  "may")


def test_a_counter_that_vanishes_is_a_failure(tmp_path):
    files = {name: value for name, value in recorded.INTEL.items() if "rapl:1" not in name}
    one = sensors.rapl(recorded.write(files, tmp_path))[0]
    (tmp_path / recorded.RAPL / "intel-rapl:0/energy_uj").unlink()
    with pytest.raises(SensorFailed, match="can no longer be read"):
        one.read()


@pytest.mark.parametrize("machine", [recorded.AMD, recorded.PI5])
def test_machines_without_a_sensor_say_what_was_looked_for(tmp_path, machine):
    found = sensors.find(recorded.write(machine, tmp_path), NO_NVML)
    assert found.sensors == ()
    assert sensors.missing(found, "CPU") == (
        "no energy sensor found (looked for: RAPL: nothing at /sys/class/powercap/intel-rapl:*; " + NO_NVML +
        "; INA: no ina* chip among /sys/class/hwmon and /sys/bus/i2c/drivers)")


def test_a_jetson_measures_its_supply_lines_the_whole_board_first(tmp_path):
    lines = sensors.find(recorded.write(recorded.JETSON, tmp_path), NO_NVML).sensors
    assert [one.name for one in lines] == ["INA3221 VDD_IN", "INA3221 VDD_CPU_GPU_CV", "INA3221 VDD_SOC"]
    assert lines[0].scope == "the whole board" and not lines[0].counter
    assert lines[0].read() == pytest.approx(5.072 * 0.8)


def test_a_chip_that_computes_the_power_itself(tmp_path):
    files = {"sys/class/hwmon/hwmon3/name": "ina226\n", "sys/class/hwmon/hwmon3/power1_input": "3500000\n",
             "sys/class/hwmon/hwmon3/in1_label": "12V rail\n", "sys/class/hwmon/hwmon2/name": "coretemp\n"}
    [line] = sensors.ina(recorded.write(files, tmp_path))
    assert (line.name, line.read()) == ("INA226 12V rail", 3.5)
    (tmp_path / "sys/class/hwmon/hwmon3/power1_input").unlink()
    with pytest.raises(SensorFailed, match="no longer tells the power of its line 1"):
        line.read()


def test_a_chip_that_tells_nothing_is_no_sensor(tmp_path):
    root = recorded.write({"sys/class/hwmon/hwmon0/name": "ina219\n"}, tmp_path)
    assert sensors.ina(root) == "INA: ina219 tells neither power nor voltage and current"


def test_a_card_counts_for_what_runs_on_it_only(tmp_path):
    found = sensors.find(tmp_path, driver(millijoules=(5_000.0, 65_000.0)))
    [card] = found.sensors
    assert card.name == "NVML GPU 0 NVIDIA L4" and card.read() == 65.0
    assert found.of_device("cuda:0") == found.of_device("cuda") == (card,) and found.of_device("cuda:1") == ()
    assert "NVML GPU 0 NVIDIA L4 measures another device" in sensors.missing(found, "CPU")
    assert sensors.missing(found, "cuda:0") is None


@pytest.mark.parametrize(("nvml", "reason"), [
    (driver(refuses="Not Supported"), "NVML: NVML GPU 0 NVIDIA L4 does not tell its energy: Not Supported."),
    (driver(names=()), "NVML: the driver knows no card"),
    (NO_NVML, NO_NVML),
])
def test_cards_without_a_counter(nvml, reason):
    assert sensors.nvml_cards(nvml) == reason


def test_the_driver_is_opened_or_the_reason_is_said(monkeypatch):
    absent = driver()

    def refuse() -> None:
        raise NVMLError("Driver Not Loaded")

    for given, expected in ((None, NO_NVML), (driver(), "opened"), (absent, "NVML: Driver Not Loaded")):
        absent.nvmlInit = refuse
        monkeypatch.setitem(__import__("sys").modules, "pynvml", given)  # None makes the import fail
        found = sensors.load_nvml()
        assert (found if isinstance(found, str) else "opened") == expected


def test_a_driver_that_refuses_is_a_reason_and_no_traceback():
    def refuse(*_: object) -> None:
        raise NVMLError("Insufficient Permissions")

    closed = driver()
    closed.nvmlDeviceGetCount = closed.nvmlDeviceGetComputeRunningProcesses = refuse
    assert sensors.nvml_cards(closed) == "NVML: Insufficient Permissions"
    assert sensors.gpu_memory_bytes(7, closed) is None


def test_gpu_memory_of_a_process():
    held = [types.SimpleNamespace(pid=7, usedGpuMemory=300), types.SimpleNamespace(pid=8, usedGpuMemory=5),
            types.SimpleNamespace(pid=9, usedGpuMemory=None)]
    nvml = driver(names=(b"NVIDIA L4", b"NVIDIA L4"), processes=held)
    assert sensors.gpu_memory_bytes(7, nvml) == 600  # the same on both cards
    assert sensors.gpu_memory_bytes(9, nvml) is None and sensors.gpu_memory_bytes(1, nvml) is None
    assert sensors.gpu_memory_bytes(7, NO_NVML) is None


# ------------------------------------------------------------------------------------------------ joules of a window


def counter(name: str, joules: list[float]) -> Sensor:
    return Sensor(name, "all of it", True, iter(joules).__next__)


def test_joules_an_image_with_the_power_at_rest_beside_them():
    time = Time()

    def calls() -> int:
        time.seconds += 4.0
        return 100

    # 2 s of rest take 10 J, the window of 4 s takes 60 J for 100 calls of 3 images.
    found, failed = energy.measure([counter("RAPL package-0", [0.0, 10.0, 10.0, 70.0])], calls, batch=3,
                                   clock=time.clock())
    assert failed == []
    assert energy.to_json(found) == [{
        "sensor": "RAPL package-0", "scope": "all of it", "joules_per_image": pytest.approx(0.2), "joules": 60.0,
        "images": 300, "window_s": 4.0, "watts": 15.0, "idle_watts": 5.0, "samples": None}]


def test_a_counter_that_stands_still_is_no_frugal_machine():
    time = Time()
    found, failed = energy.measure([counter("RAPL package-0", [7.0] * 4)], lambda: 1, batch=1, clock=time.clock())
    assert found == [] and failed == ["RAPL package-0: the counter did not move in 2 s"]


def test_a_sensor_that_fails_leaves_the_others():
    time = Time()

    def broken() -> float:
        raise SensorFailed("it is gone.")

    def calls() -> int:
        time.seconds += 1.0
        return 10

    both = [Sensor("A", "", True, broken), counter("B", [0.0, 2.0, 2.0, 5.0])]
    found, failed = energy.measure(both, calls, batch=1, clock=time.clock())
    assert [one.sensor for one in found] == ["B"] and failed == ["it is gone."] and found[0].joules_per_image == 0.3


def test_a_power_meter_is_read_while_the_work_lasts(monkeypatch):
    monkeypatch.setattr(energy, "SAMPLE_S", 0.001)
    time, readers = Time(), []  # the threads that read, and how often each has: one at rest and one while there is work

    def read() -> float:
        mine = threading.current_thread()
        if not readers or readers[-1][0] is not mine:
            readers.append([mine, 0])
        readers[-1][1] += 1
        return (4.0, 6.0)[len(readers) - 1]

    def wait_for(reader: int, count: int) -> None:
        while len(readers) <= reader or readers[reader][1] < count:
            threading.Event().wait(0.001)

    def calls() -> int:
        wait_for(1, 5)
        time.seconds += 2.0
        return 50

    meter = Sensor("INA3221 VDD_IN", "the whole board", False, read)
    [found], failed = energy.measure([meter], calls, batch=1, clock=time.clock(at_rest=lambda: wait_for(0, 3)))
    assert failed == [] and found.samples == readers[1][1] >= 5 and found.idle_watts == 4.0
    assert found.watts == 6.0 and found.joules == 12.0 and found.joules_per_image == pytest.approx(12.0 / 50)


def test_a_power_meter_that_fails_once_says_nothing():
    def read() -> float:
        raise SensorFailed("the chip is gone.")

    found, failed = energy.measure([Sensor("INA", "", False, read)], lambda: 1, batch=1, clock=Time().clock())
    assert found == [] and failed == ["the chip is gone."]


@pytest.mark.parametrize(("median_s", "calls"), [(0.001, 3000), (0.7, 5), (60.0, 1)])
def test_calls_that_fill_a_window(median_s, calls):
    assert energy.calls_for(median_s) == calls


# --------------------------------------------------------------------------------------- frequency and throttling


def test_the_state_of_an_intel_server(tmp_path):
    root = recorded.write(recorded.INTEL, tmp_path)
    before = watch.read(root)
    assert (before.frequency_khz, before.celsius) == (3500000, 41.0) and before.since(before) == []
    assert before.throttle_counts == {"core_throttle_count": 0, "package_throttle_count": 0}
    hot = {f"{recorded.CPU}/cpu{one}/thermal_throttle/package_throttle_count": "4\n" for one in range(8)}
    recorded.write(hot | {f"{recorded.CPU}/cpu3/thermal_throttle/core_throttle_count": "2\n"}, tmp_path)
    assert watch.read(root).since(before) == ["core_throttle_count grew by 2", "package_throttle_count grew by 4"]


def test_a_machine_that_tells_nothing(tmp_path):
    state = watch.read(tmp_path)
    assert state == watch.State(None, None, {}, None, ()) and state.since(state) == []


def test_frequencies_of_cpuinfo_where_there_are_no_others(tmp_path):
    lines = "processor : 0\ncpu MHz\t\t: 2596.126\nprocessor : 1\ncpu MHz : 3100.5\n"
    recorded.write({"proc/cpuinfo": lines}, tmp_path)
    assert watch.read(tmp_path).frequency_khz == 3100500


@pytest.mark.parametrize(("before", "after", "signs"), [
    ("throttled=0x0\n", "throttled=0x0\n", []),
    ("throttled=0x0\n", "throttled=0x50005\n", ["the supply voltage is too low", "throttled by the firmware"]),
    ("throttled=0x0\n", "throttled=0x20000\n", ["the frequency is capped"]),  # for a while during the block
    ("throttled=0x20000\n", "throttled=0x20000\n", []),  # long ago
    (None, None, []),
])
def test_the_bits_of_a_raspberry_pi(tmp_path, before, after, signs):
    root = recorded.write(recorded.PI5, tmp_path)
    first, last = watch.read(root, lambda: before), watch.read(root, lambda: after)
    assert last.since(first) == signs and last.celsius == 61.7


def test_cooling_devices_that_slow_the_processor_down(tmp_path):
    place = "sys/class/thermal/cooling_device"
    files = {f"{place}0/type": "pwm-fan\n", f"{place}0/cur_state": "3\n",
             f"{place}1/type": "thermal-cpufreq-0\n", f"{place}1/cur_state": "0\n"}
    root = recorded.write(files, tmp_path)
    assert watch.read(root).held_back == ()
    recorded.write({f"{place}1/cur_state": "2\n"}, tmp_path)
    assert watch.read(root).since(watch.read(root)) == ["thermal-cpufreq-0 slows it down"]


def test_throttling_of_a_block_is_its_case_s_alone():
    def state(khz: int, count: int) -> watch.State:
        return watch.State(khz, 50.0 + count, {"core_throttle_count": count}, None, ())

    states = iter([state(1, 0), state(3_000_000, 0), state(1, 0), state(1_200_000, 7), state(1, 7), state(9, 7)])
    seen = watch.Watch(lambda: next(states))
    for case in ("cold", "hot", "hot"):
        seen.before_round()
        seen.after_round(case)
    assert seen.of("cold") == {"frequency_khz": [3_000_000], "celsius_before": [50.0], "celsius_after": [50.0],
                               "throttled": [[]]}
    assert seen.of("hot")["throttled"] == [["core_throttle_count grew by 7"], []]
    assert seen.warnings() == ["hot: the processor was throttled in 1 of 2 rounds (core_throttle_count grew by 7); its "
                               "latencies are those of a hot or underpowered machine."]
    assert seen.of("never measured") == {}


def test_what_nobody_tells_is_left_out():
    seen = watch.Watch(lambda: watch.State(None, None, {}, None, ()))
    seen.before_round()
    seen.after_round("one")
    assert seen.of("one") == {} and seen.warnings() == []


@pytest.mark.parametrize(("script", "expected"), [
    ("echo 'throttled=0x50000'", "throttled=0x50000\n"), ("echo 'VCHI initialization failed' >&2; exit 255", None)])
def test_the_command_of_the_raspberry_pi(tmp_path, monkeypatch, script, expected):
    monkeypatch.setattr(watch, "PI_TIMEOUT_S", 300.0)  # a busy machine is slow to start a shell
    program = tmp_path / "vcgencmd"
    program.write_text(f"#!/bin/sh\n[ \"$1\" = get_throttled ] || exit 2\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert watch.vcgencmd()() == expected
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert watch.vcgencmd() is None
