from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cxrvit_edge import host
from cxrvit_edge.host import Gpu, gpus

DRIVER = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *n) { *n = 2; return 0; }
int cuDeviceGet(int *device, int i) { *device = i + 7; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, device == 7 ? "Orin" : "Card", size); return 0; }
int cuDeviceGetAttribute(int *v, int what, int device) { *v = what == 75 ? 8 : 7; return device == 8; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 64ull << 30; return 0; }
int cuDriverGetVersion(int *v) { *v = 12060; return 0; }
"""


def test_no_driver_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> ctypes.CDLL:
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(host.ctypes, "CDLL", absent)
    assert gpus() == []


def test_what_the_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver of our own with two devices, of which one answers with an error."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True)
    real = ctypes.CDLL
    monkeypatch.setattr(host.ctypes, "CDLL", lambda _: real(str(library)))
    found: list[Any] = gpus()
    driver = found[0].driver
    assert found == [Gpu(0, "Orin", "87", 64 << 30, driver)]
    if not Path("/sys/module/nvidia/version").exists():
        assert driver == "CUDA 12.6"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_freed_memory_is_given_back_where_there_is_a_way() -> None:
    import resource

    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()  # noqa: E731
    pieces = [bytearray(60_000) for _ in range(2000)]  # under malloc's own threshold for mapping
    kept, full = pieces[-1], resident()
    del pieces
    host.give_back_memory()
    assert resident() < full - 60_000_000 and len(kept) == 60_000


_FAULTS = """
import resource, sys
from cxrvit_edge import host
if sys.argv[1] == "keep":
    assert host.keep_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(64 << 20)
start = faults()
for _ in range(8):
    bytearray(64 << 20)
print(faults() - start)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_kept_memory_is_taken_again_without_faults() -> None:
    """In processes of their own: it lasts as long as the process."""

    def faults(mode: str) -> int:
        words = [sys.executable, "-c", _FAULTS, mode]
        return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

    assert faults("keep") * 100 < faults("return")


def test_memory_is_not_kept_where_there_is_no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> ctypes.CDLL:
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(host.ctypes, "CDLL", absent)
    assert not host.keep_memory()
