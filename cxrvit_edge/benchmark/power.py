"""Joules from what the box counts itself: RAPL of the processor, INA3221 and tegrastats of a Jetson."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Protocol

Clock = Callable[[], float]


class Energy(Protocol):
    """Joules since it was opened. sensor: what is read; method: what the figure holds. From any thread."""

    sensor: str
    method: str

    def joules(self) -> float:
        """OSError, ValueError if the sensor is gone."""
        ...

    def close(self) -> None: ...


class Counter:
    """A counter of joules that only rises, or begins anew at 0 when it has reached `wraps`: read it at least as often.

    read: joules.
    """

    def __init__(self, sensor: str, method: str, read: Callable[[], float], wraps: float | None = None) -> None:
        self.sensor, self.method = sensor, method
        self._read, self._wraps, self._lock = read, wraps, threading.Lock()
        self._last, self._sum = read(), 0.0

    def joules(self) -> float:
        with self._lock:
            now = self._read()
            step = now - self._last
            if step < 0 and self._wraps is not None:
                step += self._wraps
            self._sum += max(0.0, step)  # one that was reset has lost what it had
            self._last = now
            return self._sum

    def close(self) -> None:
        pass


class Integral:
    """Power summed over time, by trapezoids between readings. read: watts."""

    def __init__(
        self,
        sensor: str,
        method: str,
        read: Callable[[], float],
        *,
        clock: Clock = perf_counter,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.sensor, self.method, self.close = sensor, method, close
        self._read, self._clock, self._lock = read, clock, threading.Lock()
        self._at, self._watts, self._sum = clock(), read(), 0.0

    def joules(self) -> float:
        with self._lock:
            watts, at = self._read(), self._clock()
            self._sum += 0.5 * (watts + self._watts) * (at - self._at)
            self._at, self._watts = at, watts
            return self._sum


class Sum:
    """Several at once, as the packages of a board with two processors."""

    def __init__(self, parts: Sequence[Energy]) -> None:
        self.sensor = ", ".join(part.sensor for part in parts)
        self.method, self._parts = parts[0].method, parts

    def joules(self) -> float:
        return sum(part.joules() for part in self._parts)

    def close(self) -> None:
        for part in self._parts:
            part.close()


RAPL = "joules of the processor packages while it ran offline, over its images; memory and the rest of the box left out"


def rapl(root: Path = Path("/")) -> Energy | str:
    """Counters of the processor packages (powercap), or why there are none."""
    folder = root / "sys/class/powercap"
    zones = sorted(folder.glob("intel-rapl:*"))  # AMD's too; "intel-rapl:0:0" is a part of package 0
    packages = [zone for zone in zones if zone.name.count(":") == 1 and _text(zone / "name").startswith("package")]
    if not packages:
        return f"{_shown(folder, root)} holds no RAPL package"
    try:
        return Sum([_package(zone) for zone in packages])
    except PermissionError:
        return f"{_shown(packages[0], root)}/energy_uj may be read by root only"
    except (OSError, ValueError) as error:
        return f"{_shown(packages[0], root)}/energy_uj cannot be read ({type(error).__name__})"


def _package(zone: Path) -> Counter:
    limit = _text(zone / "max_energy_range_uj")
    wraps = (float(limit) + 1) / 1e6 if limit else None
    return Counter(f"RAPL {_text(zone / 'name')}", RAPL, lambda: float((zone / "energy_uj").read_text()) / 1e6, wraps)


TOTAL = ("VDD_IN", "POM_5V_IN")  # rails that feed all others
MODULE = "power of {rails}, summed over the time that it ran offline, over its images; idle power is in it"


def ina3221(root: Path = Path("/"), *, clock: Clock = perf_counter) -> Energy | str:
    """The power monitors of a Jetson, or why there are none."""
    folder = root / "sys/class/hwmon"
    rails: dict[str, tuple[Path, Path]] = {}
    for chip in sorted(folder.glob("hwmon*")):
        if _text(chip / "name") == "ina3221":
            for label in sorted(chip.glob("in*_label")):
                number = label.name[len("in") : -len("_label")]
                volts, amperes = chip / f"in{number}_input", chip / f"curr{number}_input"
                if amperes.exists():  # the seventh is the sum of the shunts, without a current
                    rails[_text(label)] = (volts, amperes)
    if not rails:
        return f"{_shown(folder, root)} holds no INA3221"
    total = [name for name in TOTAL if name in rails]
    names = total[:1] or sorted(rails)

    def watts() -> float:
        return sum(float(rails[n][0].read_text()) * float(rails[n][1].read_text()) for n in names) / 1e6  # mV mA

    try:
        return Integral(f"INA3221 {', '.join(names)}", MODULE.format(rails=" + ".join(names)), watts, clock=clock)
    except (OSError, ValueError) as error:
        return f"INA3221 under {_shown(folder, root)} cannot be read ({type(error).__name__})"


_RAIL = re.compile(r"\b((?:VDD|VIN|POM)_\w+) (\d+)(?:mW)?/\d+")


def tegrastats(command: str = "tegrastats", *, wait: float = 3.0, clock: Clock = perf_counter) -> Energy | str:
    """Power as `tegrastats` prints it ten times a second, or why it does not. wait: seconds for its first line."""
    if shutil.which(command) is None:
        return f"no {Path(command).name} on the path"
    try:
        process = subprocess.Popen(
            [command, "--interval", "100"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError as error:
        return f"{Path(command).name} cannot be started ({error.strerror})"
    latest: dict[str, float] = {}
    first = threading.Event()

    def follow() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if found := parse_tegrastats(line):
                latest.update(found)
                first.set()
        latest.clear()
        first.set()

    thread = threading.Thread(target=follow, name="tegrastats", daemon=True)
    thread.start()

    def close() -> None:
        process.kill()
        process.wait()
        thread.join()
        if process.stdout is not None:
            process.stdout.close()

    def watts() -> float:
        if not latest:
            raise OSError("tegrastats has ended")
        return sum(latest[name] for name in [n for n in TOTAL if n in latest][:1] or list(latest))

    try:
        prints = first.wait(wait) and bool(latest)
    except BaseException:  # an interrupt while it is waited for
        close()
        raise
    if not prints:
        close()
        return f"{Path(command).name} prints no power"
    rails = [n for n in TOTAL if n in latest][:1] or sorted(latest)
    names = ", ".join(rails)
    return Integral(f"tegrastats {names}", MODULE.format(rails=names), watts, clock=clock, close=close)


def parse_tegrastats(line: str) -> dict[str, float]:
    """Rail -> watts now: "VDD_IN 5081mW/5081mW VDD_CPU_GPU_CV 1283mW/1283mW", or without units as JetPack 4 has it."""
    return {name: int(milliwatts) / 1e3 for name, milliwatts in _RAIL.findall(line)}


def _text(path: Path) -> str:
    """Empty if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _shown(path: Path, root: Path) -> str:
    return f"/{path.relative_to(root)}"
