"""results.jsonl: one line an input, appended when it is done, whole after a kill at any moment.

Every line carries bundle, back end and precision, so the file itself says whom it belongs to.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, overload

from cxrvit_edge import lock
from cxrvit_edge.errors import UsageError
from cxrvit_edge.findings import SCHEMA, Finding

RESULTS = "results.jsonl"
LOCK = ".lock"
_START = b'{"schema":'  # of every line
SYNC_LINES, SYNC_SECONDS = 64, 2.0  # a power cut loses at most so much; a kill loses nothing


class Owner(NamedTuple):
    """What every line of one results.jsonl was made with, as in the lines themselves."""

    bundle: str
    backend: str
    precision: str


class Entry(NamedTuple):
    """An input's last line. offset, length: of that line, in bytes, its end mark included."""

    offset: int
    length: int
    status: str
    size: int | None
    mtime_ns: int | None
    view: str


class Journal:
    """results.jsonl of one output folder, held by one process at a time. A context manager.

    damaged: lines that were no result and will be dropped; unlocked: the file system has no locks.
    """

    def __init__(self, folder: Path, owner: Owner, *, fresh: bool = False) -> None:
        """Open or begin it.

        UsageError if another process holds it, or if it belongs to another owner and not `fresh`. OSError if it cannot
        be written. A last line without its end, as a kill leaves it, is cut off.
        """
        self.path = folder / RESULTS
        self.owner = owner
        self.damaged = 0
        self._lines = 0
        self._entries: dict[str, Entry] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._lock, self.unlocked = _lock(folder)
        try:
            if fresh:
                self.path.unlink(missing_ok=True)
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115  closed by close()
            try:
                self._load()
            except BaseException:
                self._file.close()
                raise
        except BaseException:
            os.close(self._lock)
            raise
        self._unsynced, self._synced = 0, time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, file: str) -> Entry | None:
        return self._entries.get(file)

    def append(self, finding: Finding) -> None:
        """Write one line; it is on its way to the disk when this returns. OSError if the disk takes no more."""
        line = json.dumps(finding.to_dict(), allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"
        offset = self._end
        written = 0
        try:
            while written < len(line):
                written += self._file.write(line[written:]) or 0
        except OSError:
            if written:
                self._file.truncate(offset)
            raise
        self._end += len(line)
        self._lines += 1
        self._entries[finding.file] = _entry(offset, len(line), finding)
        self._unsynced += 1
        if self._unsynced >= SYNC_LINES or time.monotonic() - self._synced >= SYNC_SECONDS:
            self._sync()

    def compact(self) -> None:
        """Rewrite the file to one line an input, the last of each, if it holds anything else."""
        self._sync()
        if self._lines == len(self._entries) and not self.damaged:
            return
        temporary = self.path.with_name(f"{RESULTS}.part")
        offset, entries = 0, {}
        with open(temporary, "wb") as out:
            for file, entry in sorted(self._entries.items(), key=lambda item: item[1].offset):
                out.write(self._line(entry))
                entries[file] = entry._replace(offset=offset)
                offset += entry.length
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(self.path)
        lock.sync_folder(self.path.parent)
        self._file.close()
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        self._entries, self._lines, self._end, self.damaged = entries, len(entries), offset, 0

    def findings(self, files: Sequence[str] | None = None) -> Sequence[Finding]:
        """The last result of each of `files`, in that order; by default of every input, in the order of the file.

        Each is read when it is asked for, so that a long worklist takes no memory; for as long as the journal is open.
        """
        if files is None:
            files = sorted(self._entries, key=lambda file: self._entries[file].offset)
        return _Findings(self, files)

    def close(self) -> None:
        """Hand the folder back."""
        try:
            self._sync()
        finally:
            self._file.close()
            os.close(self._lock)

    def _sync(self) -> None:
        if self._unsynced:
            os.fsync(self._file.fileno())
        self._unsynced, self._synced = 0, time.monotonic()

    def _load(self) -> None:
        self._end = 0
        with open(self.path, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self._lines += 1
                finding = self._parse(line)
                if finding is None:
                    self.damaged += 1
                else:
                    self._entries[finding.file] = _entry(self._end, len(line), finding)
                self._end += len(line)
        start = os.pread(self._file.fileno(), len(_START), 0)
        if (self._lines and not self._entries) or not _START.startswith(start):
            raise UsageError(f"{self.path}: holds no results of ours; give another --out, or --fresh to replace it")
        self._file.truncate(self._end)

    def _parse(self, line: bytes) -> Finding | None:
        """A line's result; None if it is damaged. UsageError if it is whole but not this owner's."""
        try:
            values = json.loads(line)
            schema = values["schema"]
            if schema == SCHEMA:
                finding = Finding.from_dict(values)
                owner = Owner(finding.bundle, finding.backend, finding.precision)
                if not isinstance(finding.file, str):
                    return None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        if schema != SCHEMA:
            hint = "give another --out, or --fresh to start anew"
            raise UsageError(f"{self.path}: results of schema {schema!r}, this version writes {SCHEMA}; {hint}")
        if owner != self.owner:
            raise UsageError(
                f"{self.path.parent}: holds results of {', '.join(owner)}, this run uses {', '.join(self.owner)}; "
                "give another --out, or --fresh to start anew"
            )
        return finding

    def _line(self, entry: Entry) -> bytes:
        return os.pread(self._file.fileno(), entry.length, entry.offset)

    def _read(self, file: str) -> Finding:
        return Finding.from_dict(json.loads(self._line(self._entries[file])))


class _Findings(Sequence[Finding]):
    """Results by name; one is in memory at a time."""

    def __init__(self, journal: Journal, files: Sequence[str]) -> None:
        self._journal, self._files = journal, files

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Finding]: ...
    def __getitem__(self, index: int | slice) -> Finding | Sequence[Finding]:
        if isinstance(index, slice):
            return _Findings(self._journal, self._files[index])
        return self._journal._read(self._files[index])

    def __iter__(self) -> Iterator[Finding]:
        return map(self._journal._read, self._files)


def _entry(offset: int, length: int, finding: Finding) -> Entry:
    return Entry(offset, length, finding.status, finding.size, finding.mtime_ns, finding.view)


def _lock(folder: Path) -> tuple[int, bool]:
    """Descriptor that holds the folder's lock, and whether the file system has none. UsageError names the holder."""
    try:
        return lock.take(folder / LOCK)
    except lock.Held as holder:
        raise UsageError(f"{folder}: in use by {holder}; wait for it, or give another --out") from None
