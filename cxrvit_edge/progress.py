"""The progress line and the closing words of a run, for the terminal."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TextIO

from cxrvit_edge.discover import StrPath, discover
from cxrvit_edge.plain_text import count, printable
from cxrvit_edge.report.run import RESEARCH_USE
from cxrvit_edge.summary import Progress, Summary

EVERY = 0.2  # seconds between two drawings


class ProgressLine:
    """One line, drawn over itself: done of all, images a second, time left. A context manager.

    The inputs are counted in a thread of its own while the first are at work; the total shows once it is known.
    """

    def __init__(
        self,
        paths: Sequence[StrPath],
        out: StrPath,
        *,
        shown: bool,
        counted: bool = True,
        follow_links: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        """counted: whether there is a total to be known, as there is none when watching."""
        self._paths, self._out, self._shown, self._counted = paths, out, shown, counted
        self._follow_links = follow_links
        self._stream = stream or sys.stderr
        self._total: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._count, name="cxrvit-edge-count", daemon=True)
        self._start = self._drawn = 0.0

    def __enter__(self) -> ProgressLine:
        self._start = time.monotonic()
        if self._shown and self._counted:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        if self._shown:
            if self._counted:
                self._thread.join()
            if self._drawn:
                self._write("\r" + " " * (_columns() - 1) + "\r")

    def update(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._shown and now - self._drawn >= EVERY:
            self._drawn = now
            text = line(progress, self._total, now - self._start)
            width = _columns() - 1
            self._write("\r" + text[:width].ljust(width))

    def _count(self) -> None:
        total = 0
        for _ in discover(self._paths, leave_out=self._out, follow_links=self._follow_links):
            if self._stop.is_set():
                return
            total += 1
        self._total = total

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a terminal that was closed ends the line, not the run
            self._shown = False


def line(progress: Progress, total: int | None, seconds: float) -> str:
    """What the progress line says; total None: not known yet."""
    ready = progress.done + progress.resumed
    speed = progress.done / seconds if seconds > 0 else 0.0
    parts = [f"{ready:,} done" if total is None else f"{_bar(ready, total)} {ready:,} of {total:,}"]
    if progress.done:
        parts.append(f"{speed:.1f} images/s")
        if total is not None and speed > 0:
            parts.append(f"{_duration(max(0, total - ready) / speed)} left")
    if progress.resumed:
        parts.append(f"{progress.resumed:,} from an earlier run")
    return "  ".join(parts)


def told(summary: Summary) -> str:
    """The closing words of a run."""
    return "\n".join(_told(summary))


def _told(summary: Summary) -> Iterator[str]:
    run = summary.run
    for file, message in summary.failed:
        yield f"failed: {printable(file)}: {message}"
    if summary.failures > len(summary.failed):
        yield f"failed: {summary.failures - len(summary.failed):,} more, see the worklist"
    kept = f" ({run.resumed:,} kept from an earlier run)" if run.resumed else ""
    yield f"{count(summary.inputs, 'input')}{kept}: {_listed(summary.statuses)}"
    yield f"priority: {_listed(summary.priorities)}"
    yield f"operating point: {run.rule}"
    if run.done:
        speed = run.done / run.seconds if run.seconds > 0 else 0.0
        with_what = f"{run.backend} {run.precision}"
        yield f"{count(run.done, 'input')} in {_duration(run.seconds)}, {speed:.1f} a second, {with_what}"
        stages = ", ".join(f"{stage} {ms:.0f}" for stage, ms in run.stage_ms.items())
        yield f"mean milliseconds an input: {stages}"
        yield from summary.ledger.told()
    for note in run.notes:
        yield f"note: {note}"
    for path in (summary.worklist, summary.report, summary.results):
        yield f"wrote {printable(path.as_posix())}"
    yield RESEARCH_USE


def _bar(ready: int, total: int, width: int = 20) -> str:
    filled = width * min(ready, total) // max(total, 1)
    return f"[{'#' * filled}{'.' * (width - filled)}]"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.{0 if seconds >= 10 else 1}f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counts.items())


def _columns() -> int:
    return max(20, shutil.get_terminal_size().columns)


class StepLine:
    """One line for work in phases, drawn over itself; other words go above it. A context manager."""

    def __init__(self, *, shown: bool, stream: TextIO | None = None) -> None:
        self._shown = shown
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()
        self._drawn = 0.0

    def __enter__(self) -> StepLine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            self._wipe()

    def update(self, phase: str, fraction: float) -> None:
        """fraction: done of the whole, 0 to 1. From any thread."""
        now = time.monotonic()
        with self._lock:
            if self._shown and now - self._drawn >= EVERY:
                self._drawn = now
                width = _columns() - 1
                text = f"{_bar(round(100 * fraction), 100)} {100 * fraction:3.0f} %  {phase}"
                self._stream.write("\r" + text[:width].ljust(width))
                self._stream.flush()

    def say(self, text: str) -> None:
        with self._lock:
            self._wipe()
            self._stream.write(f"{printable(text)}\n")
            self._stream.flush()

    def _wipe(self) -> None:
        if self._drawn:
            self._stream.write("\r" + " " * (_columns() - 1) + "\r")
            self._stream.flush()
            self._drawn = 0.0
