"""--trace FILE: what each thread did when, for chrome://tracing and ui.perfetto.dev.

Source: the Trace Event Format, JSON array form: complete events (X), counters (C) and metadata (M), microseconds.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from cxrvit_edge.errors import UsageError
from cxrvit_edge.plain_text import printable

MOST = 100_000  # events that wait for the disk: more are dropped and counted
EVERY = 0.25  # seconds between two writes; a kill loses what came since the last
PIECE = 512  # events a write
ROWS, RECENT = 64, 64  # rows of one lane; spans that a row remembers


class NoTrace:
    """Takes what a Trace takes, and keeps nothing."""

    notes: tuple[str, ...] = ()

    def span(
        self, name: str, stage: str, start: float, end: float, lane: str, args: Mapping[str, Any] | None = None
    ) -> None:
        """stage lasted from start to end (perf_counter seconds) in the thread called lane, for the input called name.

        args: further figures of flat types. From any thread; about a microsecond.
        """

    def count(self, name: str, value: float, at: float) -> None:
        """A figure such as the depth of a queue was `value` from `at` (perf_counter seconds) on. From any thread."""

    def close(self) -> None:
        """Write what is left. More that comes is dropped."""


class _Span(NamedTuple):
    name: str
    stage: str
    start: float
    end: float
    lane: str
    args: Mapping[str, Any] | None


class _Count(NamedTuple):
    name: str
    value: float
    at: float


class Trace(NoTrace):
    """Events go through a bounded buffer to a thread that writes them, whole lines at a time.

    The file is valid JSON once closed. After a kill it lacks its closing bracket, which the format allows and viewers
    read. Spans of one lane that overlap without nesting are shown on rows of their own, as viewers need them. A
    disk that fails ends the trace with a note, never the run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """UsageError if the file cannot be made, or is there and is no trace."""
        self.path = Path(path)
        self._buffer: deque[_Span | _Count] = deque()
        self._rows: dict[str, list[_Row]] = {}  # by lane
        self._tids = 0
        self._start, self._pid = perf_counter(), os.getpid()
        self._dropped, self._note = 0, ""
        self._stop = threading.Event()
        try:
            if self.path.is_file() and self.path.stat().st_size:
                with open(self.path, "rb") as old:
                    if old.read(2) != b"[\n":
                        raise UsageError(
                            f"{printable(str(path))}: holds something else than a trace; give another --trace"
                        )
            self._file = open(self.path, "wb", buffering=0)  # noqa: SIM115  closed by the thread
            self._file.write(b"[\n" + _json({**self._meta("process_name", 0), "args": {"name": "cxrvit-edge"}}))
        except (OSError, ValueError) as error:
            cause = getattr(error, "strerror", None) or type(error).__name__
            raise UsageError(f"{printable(str(path))}: cannot be written ({cause}); give another --trace") from error
        self._thread = threading.Thread(target=self._write, name="cxrvit-edge-trace", daemon=True)
        self._thread.start()

    @property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]
        """What is missing from the file and why, in plain words."""
        notes = [self._note] if self._note else []
        if self._dropped and not self._note:
            notes.append(
                f"{printable(str(self.path))}: {self._dropped} events are missing, the disk was too slow for them"
            )
        return tuple(notes)

    def span(
        self, name: str, stage: str, start: float, end: float, lane: str, args: Mapping[str, Any] | None = None
    ) -> None:
        self._add(_Span(name, stage, start, end, lane, args))

    def count(self, name: str, value: float, at: float) -> None:
        self._add(_Count(name, value, at))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _add(self, event: _Span | _Count) -> None:
        if self._note or self._stop.is_set():
            return
        if len(self._buffer) < MOST:
            self._buffer.append(event)
        else:
            self._dropped += 1

    def _write(self) -> None:
        try:
            with self._file:
                while True:
                    last = self._stop.wait(EVERY)
                    while self._buffer:
                        piece = [self._buffer.popleft() for _ in range(min(PIECE, len(self._buffer)))]
                        self._put(b"".join(b",\n" + line for event in piece for line in self._lines(event)))
                    if last:
                        return self._put(b"\n]\n")
        except OSError as error:
            cause = error.strerror or type(error).__name__
            self._note = (
                f"{printable(str(self.path))}: the trace ends early ({cause}); the results are not touched by that"
            )
            self._buffer.clear()
        return None

    def _put(self, data: bytes) -> None:
        written = 0
        while written < len(data):
            written += self._file.write(data[written:]) or 0

    def _lines(self, event: _Span | _Count) -> list[bytes]:
        if isinstance(event, _Count):
            return [
                _json(
                    {"ph": "C", **self._at(0, event.at), "name": printable(event.name), "args": {"value": event.value}}
                )
            ]
        row = self._row(event)
        lines = []
        if not row.named:
            row.named = True
            name = {"name": printable(event.lane)}
            lines = [
                _json({**self._meta("thread_name", row.tid), "args": name}),
                _json({**self._meta("thread_sort_index", row.tid), "args": {"sort_index": row.tid}}),
            ]
        args = {"name": event.name, **(event.args or {})}
        took = round(max(0.0, event.end - event.start) * 1e6, 3)
        line = {"ph": "X", **self._at(row.tid, event.start), "dur": took, "name": event.stage, "cat": event.stage}
        return [*lines, _json({**line, "args": args})]

    def _row(self, span: _Span) -> _Row:
        """The first row of the span's lane on which it overlaps no other, or holds it whole."""
        rows = self._rows.setdefault(span.lane, [])
        row = next((row for row in rows if row.takes(span.start, span.end)), None)
        if row is None and len(rows) < ROWS:
            self._tids += 1
            row = _Row(self._tids)
            row.takes(span.start, span.end)
            rows.append(row)
        return row or rows[-1]

    def _at(self, tid: int, seconds: float) -> dict[str, Any]:
        return {"pid": self._pid, "tid": tid, "ts": round((seconds - self._start) * 1e6, 3)}

    def _meta(self, name: str, tid: int) -> dict[str, Any]:
        return {"ph": "M", "pid": self._pid, "tid": tid, "name": name}


class _Row:
    """One line of the picture."""

    def __init__(self, tid: int) -> None:
        self.tid, self.named = tid, False
        self._spans: deque[tuple[float, float]] = deque(maxlen=RECENT)  # apart from each other, in order

    def takes(self, start: float, end: float) -> bool:
        """Place a span that ends after those before it; False if it would cross one of them."""
        inside = 0
        for begun, ended in reversed(self._spans):
            if ended <= start:
                break
            if begun < start or ended > end:
                return False
            inside += 1
        for _ in range(inside):
            self._spans.pop()
        self._spans.append((start, end))
        return True


def open_trace(path: str | os.PathLike[str] | None) -> NoTrace:
    """A Trace, or what takes its place where none is asked for. UsageError as Trace."""
    return NoTrace() if path is None else Trace(path)


def _json(event: dict[str, Any]) -> bytes:
    event["args"] = {str(name): _plain(value) for name, value in event.get("args", {}).items()}
    return json.dumps(event, separators=(",", ":")).encode("ascii")


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int)) else printable(str(value))
