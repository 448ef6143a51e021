"""Temperature, clocks and energy while something runs; what a box does not tell is named, and why."""

from __future__ import annotations

import ctypes
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from cxrvit_edge.benchmark import nvml, power

EVERY = 1.0  # seconds between two readings
FINE = 0.1  # where power is summed over time
ENDS = 3  # readings that make the clock of the start, and of the end
ZONES = ("x86_pkg_temp", "cpu", "soc", "tj")  # thermal zones by preference, parts of their type
CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")  # hwmon drivers of processors


class Sensors:
    """Read in a thread of its own between entering and leaving. gpu: whether anything that is measured runs on one.

    root, load_nvml, tegrastats: where they are looked for. After leaving: temperature, clock, notes.
    """

    def __init__(
        self,
        *,
        gpu: bool = False,
        root: Path = Path("/"),
        load_nvml: Callable[[], ctypes.CDLL] = nvml.load,
        tegrastats: str = "tegrastats",
        every: float = EVERY,
    ) -> None:
        self._gpu, self._root, self._load, self._tegrastats, self._every = gpu, root, load_nvml, tegrastats, every
        self._notes: list[str] = []
        self._stop, self._closing = threading.Event(), ExitStack()
        self._card: nvml.Card | None = None
        self._energy: dict[bool, power.Energy | None] = {True: None, False: None}  # on the GPU or not -> source
        self._celsius: list[float] = []
        self._mhz: dict[str, list[float]] = {"processor": [], "GPU": []}
        self._throttled: set[str] = set()
        self._zone: tuple[str, Callable[[], float | None]] | None = None

    def __enter__(self) -> Sensors:
        try:
            self._open()
        except BaseException:
            self._closing.close()
            raise
        return self

    def _open(self) -> None:
        if self._gpu:
            try:
                self._card = nvml.Card(_bus_id(), loader=self._load)
                self._closing.callback(self._card.close)
            except (OSError, AttributeError) as error:  # the second: a library of another kind
                self._notes.append(f"no temperature, clock and energy of the GPU from NVML: {error}")
        self._energy = self._sources()
        self._zone = self._thermometer()
        if self._zone is None:
            self._notes.append("no temperature: nothing that can be read in /sys/class/thermal or /sys/class/hwmon")
        self._throttles = self._throttle_count()
        self._read()
        thread = threading.Thread(target=self._follow, name="sensors", daemon=True)
        thread.start()
        self._closing.callback(thread.join)
        self._closing.callback(self._stop.set)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closing.close()

    def joules(self, on_gpu: bool) -> float | None:
        """Since entering; None where nothing counts them, or no longer does."""
        source = self._energy[on_gpu]
        try:
            return None if source is None else source.joules()
        except (OSError, ValueError) as error:
            self._energy = {key: None if kept is source else kept for key, kept in self._energy.items()}
            self._notes.append(f"{source and source.sensor} gave no more figures ({error}): no energy a study")
            return None

    def energy(self, on_gpu: bool) -> dict[str, str] | None:
        """{sensor, method} of `joules`."""
        source = self._energy[on_gpu]
        return None if source is None else {"sensor": source.sensor, "method": source.method}

    def temperature(self) -> dict[str, Any] | None:
        """{sensor, start, end, most} in degrees Celsius."""
        if self._zone is None or not self._celsius:
            return None
        t = self._celsius
        return {"sensor": self._zone[0], "start": t[0], "end": t[-1], "most": max(t)}

    def clock(self) -> dict[str, float] | None:
        """{start, end}: the processor's mean MHz over its cores, medians of the first and last readings."""
        return _ends(self._mhz["processor"])

    @property
    def notes(self) -> tuple[str, ...]:
        said = list(self._notes)
        if self._throttled:
            said.append(f"the GPU was held back while it was measured: {', '.join(sorted(self._throttled))}")
        if gpu := _ends(self._mhz["GPU"]):
            said.append(f"GPU clock {gpu['start']:.0f} MHz at the start, {gpu['end']:.0f} at the end")
        times = self._throttle_count() - self._throttles
        if times > 0:
            said.append(f"the processor was held back by its temperature {times} times while it was measured")
        return tuple(said)

    def _sources(self) -> dict[bool, power.Energy | None]:
        """A Jetson's whole module comes before parts of it, for both."""
        module: power.Energy | str = power.ina3221(self._root)
        missed = [module]
        if isinstance(module, str):
            module = power.tegrastats(self._tegrastats)
            missed.append(module)
        if not isinstance(module, str):
            self._closing.callback(module.close)
            return {True: module, False: module}
        packages = power.rapl(self._root)
        missed.insert(0, packages)
        if isinstance(packages, str):
            why = "; ".join(m for m in missed if isinstance(m, str))
            self._notes.append(f"no energy counter of the processor: {why}")
        card = self._card.energy() if self._card else None
        if isinstance(card, str):
            self._notes.append(f"no energy of the GPU: {card}")
        on = {True: card, False: packages}
        return {key: None if isinstance(source, str) else source for key, source in on.items()}

    def _follow(self) -> None:
        sums = any(isinstance(source, power.Integral) for source in self._energy.values())
        pause, since = min(FINE, self._every) if sums else self._every, 0.0
        while not self._stop.wait(pause):
            for on_gpu in (True, False):
                self.joules(on_gpu)
            since += pause
            if since >= self._every:
                since = 0.0
                self._read()

    def _read(self) -> None:
        celsius = self._zone[1]() if self._zone else None
        if celsius is not None:
            self._celsius.append(celsius)
        if (mhz := processor_mhz(self._root)) is not None:
            self._mhz["processor"].append(mhz)
        if self._card:
            self._throttled |= self._card.throttled()
            if (mhz := self._card.mhz()) is not None:
                self._mhz["GPU"].append(float(mhz))

    def _thermometer(self) -> tuple[str, Callable[[], float | None]] | None:
        card = self._card
        if card is not None and card.celsius() is not None:
            return "GPU (NVML)", lambda: _as_float(card.celsius())
        for name, path in _thermometers(self._root):
            if _degrees(path) is not None:
                return name, lambda path=path: _degrees(path)
        return None

    def _throttle_count(self) -> int:
        cpus = self._root / "sys/devices/system/cpu"
        counts = [_number(p) for p in cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
        return int(sum(count for count in counts if count is not None))


def processor_mhz(root: Path = Path("/")) -> float | None:
    """Mean over the cores, by cpufreq, else as /proc/cpuinfo says."""
    cpus = root / "sys/devices/system/cpu"
    found = [_number(path) for path in sorted(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    khz = [value for value in found if value]
    if khz:
        return round(statistics.fmean(khz) / 1e3, 1)
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
        mhz = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    except (OSError, ValueError):
        return None
    return round(statistics.fmean(mhz), 1) if mhz else None


def _thermometers(root: Path) -> Iterator[tuple[str, Path]]:
    """Name and file of each, the processor's first."""
    zones = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind = power._text(zone / "type")
        rank = next((i for i, part in enumerate(ZONES) if part in kind.lower()), len(ZONES))
        zones.append((rank, kind or zone.name, zone / "temp"))
    zones.sort(key=lambda z: z[0])
    yield from ((name, path) for rank, name, path in zones if rank < len(ZONES))
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if (name := power._text(chip / "name")) in CHIPS:
            yield name, chip / "temp1_input"
    yield from ((name, path) for rank, name, path in zones if rank == len(ZONES))


def _degrees(path: Path) -> float | None:
    """Of a file of millidegrees; what no box of ours has is no reading."""
    value = _number(path)
    return None if value is None or not -50_000 < value < 150_000 else round(value / 1e3, 1)


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _as_float(value: int | None) -> float | None:
    return None if value is None else float(value)


def _ends(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"start": statistics.median(values[:ENDS]), "end": statistics.median(values[-ENDS:])}


def _bus_id() -> str | None:
    """PCI bus of CUDA's first device, since NVML counts cards in another order; None if CUDA does not say."""
    from cxrvit_edge import host

    cuda, device, name = host._cuda(), ctypes.c_int(), ctypes.create_string_buffer(32)
    if cuda is None or cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    return None if cuda.cuDeviceGetPCIBusId(name, len(name), device) else name.value.decode()
