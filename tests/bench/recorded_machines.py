"""What the small files of four machines say, shortened: written out as a tree, they stand for `/` in tests."""

from __future__ import annotations

from pathlib import Path

CPU = "sys/devices/system/cpu"
RAPL = "sys/class/powercap"


def _cores(count: int, *, smt: bool = False, sockets: int = 1, **more: str) -> dict[str, str]:
    """The topology of so many cores a socket; with SMT the second threads are numbered after all first ones."""
    total, found = count * sockets, {}
    for core in range(total):
        threads = (core, core + total) if smt else (core,)
        for thread in threads:
            folder = f"{CPU}/cpu{thread}/topology"
            found |= {f"{folder}/physical_package_id": str(core // count), f"{folder}/core_id": str(core % count),
                      f"{folder}/thread_siblings_list": ",".join(map(str, threads))}
    return found | more


INTEL = {  # Dell PowerEdge R650, 2 x Xeon Gold 6338N, root
    **_cores(2, smt=True, sockets=2),
    "sys/class/dmi/id/sys_vendor": "Dell Inc.\n", "sys/class/dmi/id/product_name": "PowerEdge R650\n",
    "etc/machine-id": "0f3c9a1be8f24c0f9a3e5f0f2f6d7b11\n",
    f"{CPU}/intel_pstate/no_turbo": "0\n",
    f"{CPU}/cpu0/cpufreq/scaling_governor": "powersave\n", f"{CPU}/cpu0/cpufreq/scaling_driver": "intel_pstate\n",
    f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "2200000\n", f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq": "3500000\n",
    f"{CPU}/cpu1/cpufreq/scaling_cur_freq": "3500000\n",
    **{f"{CPU}/cpu{one}/thermal_throttle/{which}_throttle_count": "0\n"
       for one in range(8) for which in ("core", "package")},
    f"{RAPL}/intel-rapl:0/name": "package-0\n", f"{RAPL}/intel-rapl:0/energy_uj": "262000000000\n",
    f"{RAPL}/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    f"{RAPL}/intel-rapl:1/name": "package-1\n", f"{RAPL}/intel-rapl:1/energy_uj": "1000000000\n",
    f"{RAPL}/intel-rapl:1/max_energy_range_uj": "262143328850\n",
    f"{RAPL}/intel-rapl:0:0/name": "dram\n", f"{RAPL}/intel-rapl:0:0/energy_uj": "500\n",  # a part of package-0
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n", "sys/class/thermal/thermal_zone0/temp": "41000\n",
}

AMD = {  # a virtual machine of a cloud: no counters of energy, no frequencies
    **_cores(2),
    "sys/class/dmi/id/sys_vendor": "QEMU\n", "sys/class/dmi/id/product_name": "Standard PC (Q35 + ICH9, 2009)\n",
    ".dockerenv": "", "etc/machine-id": "3d1219c7c4c5404aaa1f6d2a48adfda4\n",
    "sys/fs/cgroup/memory.max": "8589934592\n",
    "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA L4\nIRQ:   \t\t 84\n",
    "sys/module/nvidia/version": "580.95.05\n",
}

INA = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
JETSON = {  # Jetson Orin Nano developer kit, JetPack 6
    **_cores(6), "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    f"{CPU}/cpu0/cpufreq/scaling_governor": "schedutil\n", f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "1510400\n",
    f"{INA}/name": "ina3221\n",
    f"{INA}/in1_label": "VDD_IN\n", f"{INA}/in1_input": "5072\n", f"{INA}/curr1_input": "800\n",
    f"{INA}/in2_label": "VDD_CPU_GPU_CV\n", f"{INA}/in2_input": "5064\n", f"{INA}/curr2_input": "120\n",
    f"{INA}/in3_label": "VDD_SOC\n", f"{INA}/in3_input": "5064\n", f"{INA}/curr3_input": "240\n",
    f"{INA}/in7_label": "sum of shunt voltages\n", f"{INA}/in7_input": "2\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n", "sys/class/thermal/thermal_zone0/temp": "48500\n",
}

PI5 = {  # Raspberry Pi 5: no sensor of power, throttling known through vcgencmd
    **_cores(4), "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "etc/machine-id": "9d1b4a77c0de4bb7a6c4f5e0d5a2b3c4\n",
    f"{CPU}/cpu0/cpufreq/scaling_governor": "ondemand\n", f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
    f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq": "2400000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n", "sys/class/thermal/thermal_zone0/temp": "61700\n",
}


def write(files: dict[str, str], root: Path) -> Path:
    """The tree below `root`."""
    for name, value in files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(value)
    return root
