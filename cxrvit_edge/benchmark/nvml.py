"""What NVIDIA's management library tells of a card: energy, power, temperature, clock, throttling. Through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from cxrvit_edge.benchmark.power import Counter, Energy, Integral

LIBRARY = "libnvidia-ml.so.1"
TEMPERATURE_GPU, CLOCK_SM = 0, 1  # nvmlTemperatureSensors_t, nvmlClockType_t
THROTTLED = {  # nvmlClocksEventReasons: bits that mean that the card runs slower than it could
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "temperature (software)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}
ENERGY = "joules of the card while it ran offline, over its images; idle power is in it, the processor is not"


def load() -> ctypes.CDLL:
    """OSError if there is none."""
    return ctypes.CDLL(LIBRARY)


class Card:
    """One card. OSError if the library is not there, or does not know it. A figure that cannot be had is None.

    bus_id: as CUDA names it, "0000:41:00.0"; None is the first.
    """

    def __init__(self, bus_id: str | None = None, *, loader: Callable[[], ctypes.CDLL] = load) -> None:
        self._lib = loader()
        self._handle = ctypes.c_void_p()
        if self._lib.nvmlInit_v2():
            raise OSError(f"{LIBRARY}: nvmlInit failed")
        handle = ctypes.byref(self._handle)
        if bus_id is None:
            failed = self._lib.nvmlDeviceGetHandleByIndex_v2(0, handle)
        else:
            failed = self._lib.nvmlDeviceGetHandleByPciBusId_v2(bus_id.encode(), handle)
        if failed:
            self._lib.nvmlShutdown()
            raise OSError(f"{LIBRARY} does not know the card ({failed})")

    def close(self) -> None:
        self._lib.nvmlShutdown()

    def millijoules(self) -> int | None:
        """Since the driver was loaded; cards before Volta count none."""
        return self._ask("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong())

    def milliwatts(self) -> int | None:
        return self._ask("nvmlDeviceGetPowerUsage", ctypes.c_uint())

    def celsius(self) -> int | None:
        return self._ask("nvmlDeviceGetTemperature", ctypes.c_uint(), TEMPERATURE_GPU)

    def mhz(self) -> int | None:
        return self._ask("nvmlDeviceGetClockInfo", ctypes.c_uint(), CLOCK_SM)

    def throttled(self) -> set[str]:
        bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong()) or 0
        return {name for bit, name in THROTTLED.items() if bits & bit}

    def energy(self) -> Energy | str:
        """The counter, else power summed, else why neither."""
        if self.millijoules() is not None:
            return Counter("NVML energy counter", ENERGY, lambda: _required(self.millijoules()) / 1e3)
        if self.milliwatts() is not None:
            method = f"{ENERGY}; from power readings, the card counts no energy"
            return Integral("NVML power", method, lambda: _required(self.milliwatts()) / 1e3)
        return "NVML gives neither energy nor power of this card"

    def _ask(self, name: str, value: ctypes.c_uint | ctypes.c_ulonglong, *arguments: int) -> int | None:
        try:
            failed = getattr(self._lib, name)(self._handle, *arguments, ctypes.byref(value))
        except AttributeError:  # an older library
            return None
        return None if failed else int(value.value)


def _required(value: int | None) -> int:
    if value is None:
        raise OSError("NVML gives no figure any more")
    return value
