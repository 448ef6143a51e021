"""The box on which something was measured: what decides its speed, as far as it can be known."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cxrvit_edge.benchmark.power import _text
from cxrvit_edge.benchmark.sensors import Sensors
from cxrvit_edge.host import cores, cpu_flags, gpus, processor

PACKAGES = (
    *("cxrvit-edge", "numpy", "opencv-python-headless", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"),
    *("cuda-python", "torch", "pydicom", "python-gdcm", "pyjpegls", "pylibjpeg-openjpeg"),
)
BUSY = 0.5  # load a core from which others were at work when it began
WAIT = 10.0  # seconds for nvpmodel


def load() -> float | None:
    """Load average of the last minute over the cores; None where the system keeps none."""
    try:
        return round(os.getloadavg()[0] / cores(), 3)
    except (OSError, AttributeError):
        return None


def environment(sensors: Sensors, start_load: float | None, *, root: Path = Path("/")) -> dict[str, Any]:
    """The report's "environment"; sensors: after they were left. What cannot be had is null, and its note says why."""
    governor, mode = _governor(root), _power_mode(root)
    clock, notes = sensors.clock(), list(sensors.notes)
    if governor is None:
        notes.append("no governor: /sys/devices/system/cpu/cpu0/cpufreq is not there")
    if clock is None:
        notes.append("no processor clock: neither cpufreq nor /proc/cpuinfo tells one")
    if mode is None:
        notes.append("no power mode: neither nvpmodel nor /sys/firmware/acpi/platform_profile is there")
    if start_load is None:
        notes.append("no load average: this system keeps none")
    elif start_load > BUSY:
        notes.append(f"others were at work when it began: load average {start_load:.2f} a core; measure again at rest")
    return {
        "box": box(root),
        "versions": versions(),
        "clock": {"governor": governor, "mhz": clock},
        "power_mode": mode,
        "temperature_c": sensors.temperature(),
        "load": {"start": start_load},
        "notes": [*notes, *_confined(root)],
    }


def box(root: Path = Path("/")) -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": cores(),
        "cpu_flags": cpu_flags(),
        "memory_mb": _memory_mb(root),
        "os": _system(root),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "gpus": [
            {"name": gpu.name, "sm": gpu.sm, "memory_mb": gpu.memory_bytes >> 20, "driver": gpu.driver}
            for gpu in gpus()
        ],
    }


def versions() -> dict[str, str]:
    """Of those packages that are installed; OpenCV and TensorRT of a Jetson come with the system."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    if "opencv-python-headless" not in found:
        import cv2

        found["opencv"] = str(cv2.__version__)
    return found


def _memory_mb(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        if key == "MemTotal" and value.split()[:1] and value.split()[0].isdigit():
            return int(value.split()[0]) // 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    except (OSError, ValueError, AttributeError):
        return None


def _system(root: Path) -> str:
    """Name of the distribution and the kernel's version."""
    for line in _text(root / "etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return f"{line.partition('=')[2].strip(chr(34))}, {platform.system()} {platform.release()}"
    return f"{platform.system()} {platform.release()}"


def _governor(root: Path) -> str | None:
    """Of all cores: "performance", or "performance, powersave" where they differ."""
    paths = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    return ", ".join(sorted({text for path in paths if (text := _text(path))})) or None


def _power_mode(root: Path) -> str | None:
    """Of a Jetson (nvpmodel), else the platform profile of a laptop."""
    if command := shutil.which("nvpmodel"):
        try:
            told = subprocess.run([command, "-q"], capture_output=True, text=True, timeout=WAIT, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            told = ""
        mode = next((line for line in told.splitlines() if "Power Mode" in line), None)
        if mode:
            return f"nvpmodel {mode.partition(':')[2].strip()}"
    profile = _text(root / "sys/firmware/acpi/platform_profile")
    return f"platform profile {profile}" if profile else None


def _confined(root: Path) -> Iterator[str]:
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        yield "in a container: others on its host may have been at work without a trace here"
    if "hypervisor" in _text(root / "proc/cpuinfo"):
        yield "on a virtual machine: its cores may be shared, and its clock may not be the processor's"
    quota, _, period = _text(root / "sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        yield f"its processor time is limited to {int(quota) / int(period):g} cores"
