"""The box this runs on: processor, its instruction sets, cores, GPUs."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CPU_FLAGS = (  # that decide how fast a kernel is: x86-64, then aarch64
    *("sse4_2", "avx", "fma", "f16c", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16", "asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)

_KEEP = ((-4, 0), (-1, -1), (-2, 64 << 20))  # mallopt's M_MMAP_MAX: none; M_TRIM_THRESHOLD: never; M_TOP_PAD


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


def give_back_memory() -> None:
    """Return to the system what C code has freed (glibc); elsewhere nothing. Milliseconds: after a compilation, not a
    batch."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def keep_memory() -> bool:
    """Have C code keep what it frees for what it takes next (glibc), for the life of this process; whether it will.

    Large tensors are otherwise mapped anew at each step of training, and every page of them faults and is zeroed:
    benchmarks/kept_memory.py. For processes that take the same sizes again and again; what they hold does not
    sink in between.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        return all(libc.mallopt(option, value) for option, value in _KEEP)
    except (OSError, AttributeError):
        return False


@dataclass(frozen=True)
class Gpu:
    """One CUDA device. sm: compute capability without its point, such as "86"; driver: its version, or CUDA's."""

    index: int
    name: str
    sm: str
    memory_bytes: int
    driver: str


def gpus() -> list[Gpu]:
    """CUDA devices that this process may use, asked of the driver itself; empty where there is no driver or no GPU."""
    cuda = _cuda()
    count = ctypes.c_int()
    if cuda is None or cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = [_gpu(cuda, i) for i in range(count.value)]
    return [gpu for gpu in found if gpu]


def _cuda() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError:
        return None


_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu | None:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory, name = ctypes.c_size_t(), ctypes.create_string_buffer(256)
    failed = (
        cuda.cuDeviceGet(ctypes.byref(device), index)
        or cuda.cuDeviceGetName(name, len(name), device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    )
    if failed:
        return None
    text = name.value.decode("utf-8", "replace")
    return Gpu(index, text, f"{major.value}{minor.value}", memory.value, _driver(cuda))


def _driver(cuda: ctypes.CDLL) -> str:
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:  # Windows, Jetson
        version = ctypes.c_int()
        cuda.cuDriverGetVersion(ctypes.byref(version))
        return f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
