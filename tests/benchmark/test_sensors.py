"""Sensors on a box of our own making: a tree under /sys, a command, a library that is compiled here."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cxrvit_edge.benchmark import nvml, power, sensors
from cxrvit_edge.benchmark.sensors import Sensors

NONE = "no-such-command"


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def rapl_tree(root: Path, *microjoules: int, wraps: int = 1_000_000) -> Path:
    files: dict[str, object] = {"sys/class/powercap/intel-rapl/enabled": 1}
    for i, value in enumerate(microjoules):
        zone = f"sys/class/powercap/intel-rapl:{i}"
        files |= {f"{zone}/name": f"package-{i}", f"{zone}/energy_uj": value, f"{zone}/max_energy_range_uj": wraps - 1}
        files |= {f"sys/class/powercap/intel-rapl:{i}:0/name": "core"}
    return tree(root, files)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rapl_counts_packages_and_begins_anew(tmp_path: Path) -> None:
    found = power.rapl(rapl_tree(tmp_path, 900_000, 100))
    assert not isinstance(found, str) and found.sensor == "RAPL package-0, RAPL package-1"
    assert found.joules() == 0
    rapl_tree(tmp_path, 200_000, 50_100)
    assert found.joules() == pytest.approx(0.3 + 0.05), "0.1 J up to the end, 0.2 J after it, and the other package"
    rapl_tree(tmp_path, 250_000, 50_100)
    assert found.joules() == pytest.approx(0.4)


def test_a_counter_that_was_reset_loses_but_never_falls() -> None:
    values = iter([5.0, 6.0, 1.0, 2.0])
    counter = power.Counter("x", "y", lambda: next(values))
    assert [counter.joules() for _ in range(3)] == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("files", [{}, {"sys/class/powercap/intel-rapl:0/name": "psys"}])
def test_no_rapl(tmp_path: Path, files: dict[str, object]) -> None:
    assert power.rapl(tree(tmp_path, files)) == "/sys/class/powercap holds no RAPL package"


def test_rapl_that_is_no_number(tmp_path: Path) -> None:
    rapl_tree(tmp_path, 1)
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("?")
    assert power.rapl(tmp_path) == "/sys/class/powercap/intel-rapl:0/energy_uj cannot be read (ValueError)"


def test_rapl_that_only_root_may_read(tmp_path: Path) -> None:
    import small_bundle

    rapl_tree(tmp_path, 1)
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").chmod(0o000)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == tmp_path.stat().st_uid and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o055)
    with small_bundle.another_user():
        found = power.rapl(tmp_path)
    assert found == "/sys/class/powercap/intel-rapl:0/energy_uj may be read by root only"


def ina_tree(root: Path, rails: dict[str, tuple[int, int]]) -> Path:
    chip = "sys/class/hwmon/hwmon3"
    files: dict[str, object] = {f"{chip}/name": "ina3221", f"{chip}/in7_label": "sum of shunt voltages"}
    for i, (name, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
        files |= {f"{chip}/in{i}_label": name, f"{chip}/in{i}_input": millivolts, f"{chip}/curr{i}_input": milliamperes}
    return tree(root, files)


def test_a_jetson_is_summed_over_time(tmp_path: Path) -> None:
    clock = Clock()
    ina_tree(tmp_path, {"VDD_IN": (5000, 1000), "VDD_CPU_GPU_CV": (5000, 400)})
    found = power.ina3221(tmp_path, clock=clock)
    assert not isinstance(found, str) and found.sensor == "INA3221 VDD_IN", "which holds the others"
    clock.now = 2.0
    assert found.joules() == pytest.approx(10.0), "5 W for 2 s"
    ina_tree(tmp_path, {"VDD_IN": (5000, 3000), "VDD_CPU_GPU_CV": (5000, 400)})
    clock.now = 3.0
    assert found.joules() == pytest.approx(20.0), "between 5 W and 15 W for 1 s"


def test_a_jetson_without_a_rail_for_all(tmp_path: Path) -> None:
    clock = Clock()
    found = power.ina3221(ina_tree(tmp_path, {"VIN_SYS_5V0": (5000, 600), "VDD_GPU_SOC": (4000, 500)}), clock=clock)
    assert not isinstance(found, str) and found.sensor == "INA3221 VDD_GPU_SOC, VIN_SYS_5V0"
    clock.now = 1.0
    assert found.joules() == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        ("RAM 2/7 CPU [1%@729] tj@48C VDD_IN 5081mW/5081mW VDD_SOC 1443mW/1400mW", {"VDD_IN": 5.081, "VDD_SOC": 1.443}),
        ("RAM 2/3 POM_5V_IN 2500/2400 POM_5V_GPU 80/80", {"POM_5V_IN": 2.5, "POM_5V_GPU": 0.08}),
        ("RAM 2/3 CPU [off] EMC_FREQ 0%", {}),
    ],
)
def test_lines_of_tegrastats(line: str, watts: dict[str, float]) -> None:
    assert power.parse_tegrastats(line) == watts


def script(path: Path, body: str) -> str:
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)
    return str(path)


def test_tegrastats_is_asked_and_ended(tmp_path: Path) -> None:
    prints = (
        "import time\nwhile True:\n    print('VDD_IN 4000mW/1mW VDD_SOC 1mW/1mW', flush=True)\n    time.sleep(0.01)\n"
    )
    clock = Clock()
    found = power.tegrastats(script(tmp_path / "tegrastats", prints), wait=60, clock=clock)
    assert not isinstance(found, str) and found.sensor == "tegrastats VDD_IN"
    clock.now = 3.0
    assert found.joules() == pytest.approx(12.0)
    found.close()
    with pytest.raises(OSError, match="has ended"):
        found.joules()


@pytest.mark.parametrize(
    ("body", "why"), [("print('RAM 1/2')", "prints no power"), ("raise SystemExit(1)", "prints no power")]
)
def test_tegrastats_without_power(tmp_path: Path, body: str, why: str) -> None:
    assert power.tegrastats(script(tmp_path / "tegrastats", body), wait=60) == f"tegrastats {why}"
    assert power.tegrastats(NONE) == f"no {NONE} on the path"


NVML = """
#include <string.h>
#include <stddef.h>
typedef unsigned int u; typedef unsigned long long ull; static ull energy = 5000; static int card;
int nvmlInit_v2(void) { return FAILS; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(u i, void **h) { *h = &card; return i; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **h) { *h = &card; return strcmp(id, "0000:41:00.0"); }
int nvmlDeviceGetTotalEnergyConsumption(void *h, ull *mj) { *mj = energy += 250; return COUNTS ? 0 : 3; }
int nvmlDeviceGetPowerUsage(void *h, u *mw) { *mw = 70000; return h != &card; }
int nvmlDeviceGetTemperature(void *h, int which, u *c) { *c = 61; return which; }
int nvmlDeviceGetClockInfo(void *h, int which, u *mhz) { *mhz = 1410; return which != 1; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *h, ull *bits) { *bits = 0x41; return 0; }
"""


@pytest.fixture
def library(tmp_path: Path) -> Callable[..., Callable[[], ctypes.CDLL]]:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")

    def compiled(*, fails: int = 0, counts: int = 1) -> Callable[[], ctypes.CDLL]:
        name = f"libnvml{fails}{counts}"
        source, made = tmp_path / f"{name}.c", tmp_path / f"{name}.so"
        source.write_text(NVML)
        defined = [f"-DFAILS={fails}", f"-DCOUNTS={counts}"]
        subprocess.run([compiler, "-shared", "-fPIC", *defined, "-o", made, source], check=True)
        return lambda: ctypes.CDLL(str(made))

    return compiled


def test_a_card(library: Any) -> None:
    card = nvml.Card("0000:41:00.0", loader=library())
    assert (card.celsius(), card.mhz(), card.milliwatts()) == (61, 1410, 70000)
    assert card.throttled() == {"temperature (hardware)"}, "idle is no reason"
    energy = card.energy()
    assert not isinstance(energy, str) and energy.sensor == "NVML energy counter"
    assert energy.joules() == pytest.approx(0.25)
    with pytest.raises(OSError, match="does not know the card"):
        nvml.Card("0000:01:00.0", loader=library())


def test_a_card_that_counts_no_energy(library: Any) -> None:
    energy = nvml.Card(None, loader=library(counts=0)).energy()
    assert not isinstance(energy, str) and energy.sensor == "NVML power" and "counts no energy" in energy.method


def test_sensors_of_a_gpu(tmp_path: Path, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "_bus_id", lambda: None)
    with Sensors(gpu=True, root=tmp_path, load_nvml=library(), tegrastats=NONE) as found:
        assert found.joules(True) is not None and found.joules(False) is None
        about = found.energy(True)
        assert about is not None and about["sensor"] == "NVML energy counter"
    assert found.temperature() == {"sensor": "GPU (NVML)", "start": 61.0, "end": 61.0, "most": 61.0}
    assert "the GPU was held back while it was measured: temperature (hardware)" in found.notes
    assert "GPU clock 1410 MHz at the start, 1410 at the end" in found.notes


@pytest.mark.parametrize("fails", [None, 1])
def test_no_management_library(
    tmp_path: Path, library: Any, monkeypatch: pytest.MonkeyPatch, fails: int | None
) -> None:
    monkeypatch.setattr(sensors, "_bus_id", lambda: None)

    def absent() -> ctypes.CDLL:
        raise OSError("cannot open shared object file")

    load = absent if fails is None else library(fails=fails)
    with Sensors(gpu=True, root=tmp_path, load_nvml=load, tegrastats=NONE) as found:
        assert found.joules(True) is None
    assert any(note.startswith("no temperature, clock and energy of the GPU from NVML: ") for note in found.notes)


def test_a_box_without_anything_says_what_was_looked_for(tmp_path: Path) -> None:
    with Sensors(root=tmp_path, tegrastats=NONE) as found:
        assert found.joules(False) is None and found.energy(False) is None
    assert found.temperature() is None and found.clock() is None
    looked = f"/sys/class/powercap holds no RAPL package; /sys/class/hwmon holds no INA3221; no {NONE} on the path"
    assert found.notes == (
        f"no energy counter of the processor: {looked}",
        "no temperature: nothing that can be read in /sys/class/thermal or /sys/class/hwmon",
    )


def test_a_box_that_tells(tmp_path: Path) -> None:
    thermal, cpu = "sys/class/thermal/thermal_zone", "sys/devices/system/cpu/cpu"
    rapl_tree(tmp_path, 1000, wraps=10**9)
    tree(
        tmp_path,
        {
            f"{thermal}0/type": "acpitz",
            f"{thermal}0/temp": 27800,
            f"{thermal}1/type": "x86_pkg_temp",
            f"{thermal}1/temp": 48000,
            f"{cpu}0/cpufreq/scaling_cur_freq": 2_000_000,
            f"{cpu}1/cpufreq/scaling_cur_freq": 3_000_000,
            f"{cpu}0/thermal_throttle/core_throttle_count": 4,
        },
    )
    with Sensors(root=tmp_path, tegrastats=NONE, every=1e9) as found:
        rapl_tree(tmp_path, 3_001_000, wraps=10**9)
        assert found.joules(False) == pytest.approx(3.0)
        tree(tmp_path, {f"{thermal}1/temp": 61000, f"{cpu}0/thermal_throttle/core_throttle_count": 6})
        found._read()
        tree(tmp_path, {f"{thermal}1/temp": 55000})
        found._read()
    assert found.temperature() == {"sensor": "x86_pkg_temp", "start": 48.0, "end": 55.0, "most": 61.0}
    assert found.clock() == {"start": 2500.0, "end": 2500.0}
    assert found.notes == ("the processor was held back by its temperature 2 times while it was measured",)


def test_readings_come_by_themselves(tmp_path: Path) -> None:
    import time

    tree(tmp_path, {"sys/class/hwmon/hwmon0/name": "k10temp", "sys/class/hwmon/hwmon0/temp1_input": 40000})
    with Sensors(root=tmp_path, tegrastats=NONE, every=0.01) as found:
        tree(tmp_path, {"sys/class/hwmon/hwmon0/temp1_input": 70000})
        while (found.temperature() or {"most": 0})["most"] != 70.0:
            time.sleep(0.01)
    assert found.temperature() == {"sensor": "k10temp", "start": 40.0, "end": 70.0, "most": 70.0}


def test_a_counter_that_goes_away_is_told_once(tmp_path: Path) -> None:
    with Sensors(root=rapl_tree(tmp_path, 1000), tegrastats=NONE, every=1e9) as found:
        (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
        assert found.joules(False) is None and found.joules(False) is None and found.energy(False) is None
    assert sum("gave no more figures" in note for note in found.notes) == 1
