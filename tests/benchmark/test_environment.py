"""What is said of a box, of one that tells everything and of one that tells nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cxrvit_edge.benchmark import environment
from cxrvit_edge.benchmark.sensors import Sensors


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def test_a_box_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with Sensors(root=tmp_path) as sensors:
        pass
    found = environment.environment(sensors, None, root=tmp_path)
    assert found["clock"] == {"governor": None, "mhz": None} and found["power_mode"] is None
    assert found["temperature_c"] is None and found["load"] == {"start": None}
    starts = ("no energy counter", "no temperature", "no governor", "no processor clock", "no power mode", "no load")
    assert [note.startswith(start) for note, start in zip(found["notes"], starts, strict=True)] == [True] * len(starts)
    json.dumps(found, allow_nan=False)


def test_a_box_that_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    cpu = "sys/devices/system/cpu/cpu"
    write(
        tmp_path,
        {
            f"{cpu}0/cpufreq/scaling_governor": "powersave\n",
            f"{cpu}1/cpufreq/scaling_governor": "performance\n",
            f"{cpu}0/cpufreq/scaling_cur_freq": "1800000\n",
            "sys/firmware/acpi/platform_profile": "low-power\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "proc/meminfo": "MemTotal:       16384000 kB\nMemFree: 1 kB\n",
            "proc/cpuinfo": "flags\t: avx2 hypervisor\n",
            "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12"\n',
            ".dockerenv": "",
        },
    )
    with Sensors(root=tmp_path) as sensors:
        pass
    found = environment.environment(sensors, 0.8, root=tmp_path)
    assert found["clock"] == {"governor": "performance, powersave", "mhz": {"start": 1800.0, "end": 1800.0}}
    assert found["power_mode"] == "platform profile low-power"
    assert found["box"]["memory_mb"] == 16000 and found["box"]["os"].startswith("Debian GNU/Linux 12, ")
    notes = " ".join(found["notes"])
    for words in ("load average 0.80", "in a container", "virtual machine", "limited to 1.5 cores"):
        assert words in notes


@pytest.mark.parametrize(
    ("body", "mode"),
    [("echo 'NV Power Mode: MAXN'; echo 0", "nvpmodel MAXN"), ("exit 1", None), ("echo nothing of use", None)],
)
def test_power_mode_of_a_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, mode: str | None) -> None:
    command = tmp_path / "nvpmodel"
    command.write_text(f"#!/bin/sh\n{body}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment._power_mode(tmp_path) == mode


def test_versions_are_of_what_is_installed() -> None:
    import numpy as np

    found = environment.versions()
    assert found["numpy"] == np.__version__ and "onnxruntime" in found
    assert all(found.values())


def test_this_box() -> None:
    box = environment.box()
    assert box["cores"] >= 1 and box["memory_mb"] > 100 and box["processor"]
    assert environment.load() is None or environment.load() >= 0  # type: ignore[operator]
