"""What measurements share: candidates in turn, processes that wait for commands, peak memory, size of an install.

Rows go into a table by `benchmarks.record.record`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from time import perf_counter, sleep
from types import TracebackType
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOOK = 0.1  # seconds between two looks at memory
REST = 0.05  # seconds between two blocks: threads of the last that still spin would take from the next


def in_turn(
    runs: Mapping[str, Callable[[], float]], rounds: int, failed: Callable[[str, Exception], None]
) -> dict[str, list[float]]:
    """Figures that each gave over rounds in turn; one that raises is told to `failed` and left out from then on."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in list(found):
            sleep(REST)
            try:
                found[name].append(runs[name]())
            except Exception as error:
                del found[name]
                failed(name, error)
    return found


class PeerError(Exception):
    """A process ended, or said that it cannot."""


class Process:
    """A process of this Python that reads commands as JSON lines and answers each with one line, until it is closed."""

    def __init__(self, module: str, arguments: Iterable[str], environment: Mapping[str, str] | None = None) -> None:
        self.started = perf_counter()
        command = [sys.executable, "-m", module, *arguments]
        env = {**os.environ, **(environment or {})}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def answer(self) -> Any:
        """The next line. PeerError with what it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"ended with exit code {self._process.wait()}")
        found = json.loads(line)
        if "error" in found:
            raise PeerError(found["error"])
        return found["answer"]

    def ask(self, command: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended; what it said last is read
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        return self.answer()

    def close(self) -> None:
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class Peak:
    """Megabytes. together: largest sum of PSS; main, workers: the largest RSS of the process, and of a child."""

    together: float = 0.0
    main: float = 0.0
    workers: float = 0.0
    most_children: int = 0

    def look(self, pid: int) -> None:
        below = children(pid)
        own, others = memory(pid), [memory(child) for child in below]
        self.together = max(self.together, own["Pss"] + sum(m["Pss"] for m in others))
        self.main = max(self.main, own["Rss"])
        self.workers = max([self.workers, *(m["Rss"] for m in others)])
        self.most_children = max(self.most_children, len(below))


@contextmanager
def watched(pid: int, every: float = LOOK) -> Iterator[Peak]:
    """Peak of a process and those that it starts, while the block runs (Linux)."""
    peak, over = Peak(), threading.Event()

    def look() -> None:
        while not over.wait(every):
            peak.look(pid)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def children(pid: int | None = None) -> list[int]:
    """Processes started by one, and by those (Linux)."""
    found: list[int] = []
    for task in Path(f"/proc/{pid or os.getpid()}/task").glob("*"):
        try:
            own = [int(child) for child in (task / "children").read_text().split()]
        except OSError:  # it ended meanwhile
            continue
        for child in own:
            found += [child, *children(child)]
    return found


def memory(pid: int) -> dict[str, float]:
    """Rss and Pss in MB; 0 of a process that has ended."""
    found = {"Rss": 0.0, "Pss": 0.0}
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return found
    for line in text.splitlines()[1:]:
        key, _, value = line.partition(":")
        if key in found:
            found[key] = int(value.split()[0]) * 1024 / 1e6
    return found


def closure(requirements: Iterable[str]) -> dict[str, Distribution]:
    """Installed distributions that these requirements need here, by name: with extras, markers applied.

    PeerError names one that is not installed.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    left = [Requirement(text) for text in requirements]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                found.setdefault(name, distribution(name))
            except PackageNotFoundError:
                raise PeerError(f"{name} is not installed") from None
            for text in found[name].requires or ():
                needed = Requirement(text)
                wanted = needed.marker is None or needed.marker.evaluate({"extra": extra})
                if wanted and (not extra or "extra" in str(needed.marker)):
                    left.append(needed)
    return found


def installed_mb(distributions: Iterable[Distribution]) -> float:
    """What their files take up, of those that their RECORDs list, compiled Python left out."""
    sizes = []
    for one in distributions:
        for file in one.files or ():
            path = Path(str(one.locate_file(file)))
            if path.suffix != ".pyc" and path.is_file():
                sizes.append(path.stat().st_size)
    return sum(sizes) / 1e6


def folder_mb(folder: Path) -> float:
    """What a package takes up that is used from a checkout, compiled Python left out."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc") / 1e6
