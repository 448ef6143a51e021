"""The box this runs on: processor, its instruction sets, cores."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CPU_FLAGS = (  # that decide how fast a kernel is: x86-64, then aarch64
    *("sse4_2", "avx", "fma", "f16c", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16", "asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)


def _cpuinfo() -> dict[str, str]:
    """First value of each key of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def processor() -> str:
    """Name of the processor; on aarch64, whose kernels give none, its part number."""
    info = _cpuinfo()
    return info.get("model name") or info.get("CPU part") or platform.processor() or "unknown"


def cpu_flags() -> list[str]:
    """Instruction sets of CPU_FLAGS that this processor has (Linux)."""
    info = _cpuinfo()
    present = set((info.get("flags") or info.get("Features") or "").split())
    return [flag for flag in CPU_FLAGS if flag in present]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
