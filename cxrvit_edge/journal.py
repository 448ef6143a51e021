"""results.jsonl: one line an input, appended when it is done, whole after a kill at any moment.

Every line carries bundle, back end, precision and rule, so the file itself says whom it belongs to.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, overload

from cxrvit_edge import lock
from cxrvit_edge.decision import USUAL, Rule
from cxrvit_edge.errors import UsageError
from cxrvit_edge.findings import SCHEMA, Finding
from cxrvit_edge.journal_index import Entry, Index, Values, grammar, values_from, values_of

RESULTS = "results.jsonl"
LOCK = ".lock"
_START = b'{"schema":'  # of every line
SYNC_LINES, SYNC_SECONDS = 64, 2.0  # a power cut loses at most so much; a kill loses nothing
MAX_LINE = 1 << 20  # bytes; a longer one is damage: names have at most 4,096, six bytes each when escaped
_BLOCK = 1 << 20


class Owner(NamedTuple):
    """What every line of one results.jsonl was made with, as in the lines themselves."""

    bundle: str
    backend: str
    precision: str
    sensitivity: int = USUAL.sensitivity
    selective: bool = USUAL.selective

    @classmethod
    def of(cls, finding: Finding) -> Owner:
        return cls(*(getattr(finding, name) for name in cls._fields))

    @property
    def rule(self) -> Rule:
        return Rule(self.sensitivity, self.selective)

    def __str__(self) -> str:
        return f"{self.bundle}, {self.backend}, {self.precision}, {self.rule}"


class Journal:
    """results.jsonl of one output folder, held by one process at a time. A context manager, for one thread.

    damaged: lines that were no result and will be dropped; unlocked: the file system has no locks. About 150 bytes an
    input beside its name are kept in memory. Whatever OSError a method raises, what was in the file stays in it, and
    the journal can go on when the cause is gone.
    """

    def __init__(self, folder: Path, owner: Owner, *, fresh: bool = False) -> None:
        """Open or begin it.

        UsageError if another process holds it, or if it belongs to another owner and not `fresh`. OSError if it cannot
        be written. A last line without its end, as a kill leaves it, is cut off.
        """
        self.path = folder / RESULTS
        self.owner = owner
        self.damaged = 0
        self._lines = self._end = self._unsynced = 0
        self._index = Index()
        self._line = grammar(owner)
        self._unbooked = False  # a write began and its line is not in the index yet
        folder.mkdir(parents=True, exist_ok=True)
        self._lock, self.unlocked = _lock(folder)
        try:
            if fresh:
                self.path.unlink(missing_ok=True)
            self._file = self._opened()
            try:
                self._load()
                self.path.with_name(f"{RESULTS}.part").unlink(missing_ok=True)  # of a run killed while it compacted
            except BaseException:
                self._file.close()
                raise
        except BaseException:
            os.close(self._lock)
            raise
        self._synced = time.monotonic()
        self._folder_synced = bool(self._lines)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._index)

    def get(self, file: str) -> Entry | None:
        """What is known of an input's last line without reading it."""
        return self._index.get(file)

    def sha256(self, file: str) -> str | None:
        """Hash of the file when it was read, from its line; None if there is none."""
        return self._read(file).sha256 if file in self._index.rows else None

    def append(self, finding: Finding) -> None:
        """Write one line; it is on its way to the disk when this returns. OSError if the disk takes no more."""
        if self._unbooked:
            self._load()
        self._stay()
        line, written = encoded(finding), 0
        self._unbooked = True
        try:
            while written < len(line):
                written += self._file.write(line[written:]) or 0
        except OSError:
            if written:
                self._cut()
            raise
        if self._file.tell() != self._end + len(line):
            raise self._changed()
        self._index.put(self._end, len(line), values_from(finding))
        self._end += len(line)
        self._lines += 1
        self._unsynced += 1
        self._unbooked = False
        if self._unsynced >= SYNC_LINES or time.monotonic() - self._synced >= SYNC_SECONDS:
            self._sync()

    def compact(self) -> None:
        """Rewrite the file to one line an input, the last of each, if it holds anything else.

        The new file takes the old one's place when it is whole and on the disk. OSError: the old one stays.
        """
        if self._unbooked:
            self._load()
        self._sync()
        if self._lines == len(self._index) and not self.damaged:
            return
        order = self._index.by_offset()
        temporary = self.path.with_name(f"{RESULTS}.part")
        temporary.unlink(missing_ok=True)
        out = open(temporary, "a+b", buffering=0)  # noqa: SIM115  takes the place of self._file
        try:
            for block in self._copied(self._index.runs(order)):
                while block:
                    block = block[out.write(block) :]
            lock.sync(out.fileno())
            temporary.replace(self.path)
        except BaseException:
            out.close()
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        old, self._file = self._file, out
        self._end = self._index.close_gaps(order)
        self._lines, self.damaged = len(self._index), 0
        old.close()
        lock.sync_folder(self.path.parent)

    def findings(self, files: Sequence[str] | None = None) -> Sequence[Finding]:
        """The last result of each of `files`, in that order; by default of every input, in the order of the file.

        Each is read when it is asked for, so that a long worklist takes no memory; for as long as the journal is open.
        """
        return _Findings(self, self.files() if files is None else files)

    def files(self) -> list[str]:
        """Every input, in the order of the file."""
        names = list(self._index.rows)
        return [names[row] for row in self._index.by_offset()]

    def close(self) -> None:
        """Hand the folder back. OSError if the last lines may not be on the disk."""
        if self._file.closed:
            return
        try:
            self._sync()
        finally:
            try:
                self._file.close()
            finally:
                os.close(self._lock)

    def _opened(self) -> FileIO:
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise UsageError(f"{self.path}: not a regular file; give another --out, or remove it")
        return open(handle, "a+b", buffering=0)

    def _sync(self) -> None:
        """OSError if what was written is not on the disk, or the file is no longer in its place."""
        if self._unsynced:
            lock.sync(self._file.fileno())
            self._stay()
            if not self._folder_synced:
                lock.sync_folder(self.path.parent)
                self._folder_synced = True
        self._unsynced, self._synced = 0, time.monotonic()

    def _stay(self) -> None:
        """OSError if the file is no longer in its place: removed, replaced, or its share unmounted."""
        if not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
            raise self._changed()

    def _cut(self) -> None:
        """Take back the part of a line that was written; if that fails, the next call or run does it."""
        with suppress(OSError):
            self._file.truncate(self._end)

    def _load(self) -> None:
        """Book the lines from `_end` on, and cut off what follows the last whole one."""
        with open(self.path, "rb", buffering=_BLOCK) as lines:
            now = os.fstat(self._file.fileno())
            self._stay()
            if now.st_size < self._end:
                raise self._changed()
            lines.seek(self._end)
            for line, length in lines_of(lines):
                self._lines += 1
                values = values_of(self._line, line) or self._unusual(line)
                if values is None:
                    self.damaged += 1
                else:
                    self._index.put(self._end, length, values)
                self._end += length
        start = os.pread(self._file.fileno(), len(_START), 0)
        if (self._lines and not len(self._index)) or not _START.startswith(start):
            raise UsageError(f"{self.path}: holds no results of ours; give another --out, or --fresh to replace it")
        if os.fstat(self._file.fileno()).st_size != self._end:
            self._file.truncate(self._end)
        self._unbooked = False

    def _unusual(self, line: bytes) -> Values | None:
        """Values of a line that is laid out otherwise than we write; None if it is damaged.

        UsageError if it is whole but not this owner's.
        """
        try:
            raw = json.loads(line)
            schema = raw["schema"]
            if schema == SCHEMA:
                finding = Finding.from_dict(raw)
                owner = Owner.of(finding)
                ours = encoded(finding)
                if not isinstance(finding.file, str):
                    return None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        if schema != SCHEMA:
            hint = "give another --out, or --fresh to start anew"
            raise UsageError(f"{self.path}: results of schema {schema!r}, this version writes {SCHEMA}; {hint}")
        if owner != self.owner:
            raise UsageError(
                f"{self.path.parent}: holds results of {owner}; this run uses {self.owner}; give another --out, or "
                "--fresh to start anew"
            )
        return values_of(self._line, ours)

    def _copied(self, runs: Iterable[tuple[int, int, int]]) -> Iterator[memoryview]:
        """The bytes of stretches of the file. OSError if they are not the lines that were booked."""
        for offset, length, lines in runs:
            while length:
                block = os.pread(self._file.fileno(), min(length, _BLOCK), offset)
                offset, length, lines = offset + len(block), length - len(block), lines - block.count(b"\n")
                if not block or (not length and (lines or not block.endswith(b"\n"))):
                    raise self._changed()
                yield memoryview(block)

    def _read(self, file: str) -> Finding:
        offset, length = self._index.line(file)
        try:
            return Finding.from_dict(json.loads(os.pread(self._file.fileno(), length, offset)))
        except (ValueError, AttributeError):
            raise self._changed() from None

    def _changed(self) -> OSError:
        return OSError(errno.ESTALE, "changed by another program while in use", str(self.path))


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


def encoded(finding: Finding) -> bytes:
    """A line of results.jsonl, its end included."""
    return json.dumps(finding.to_dict(), allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def lines_of(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Each line that has its end, and its length; of one that is longer than any of ours, nothing but the length."""
    length = 0
    for part in iter(partial(file.readline, MAX_LINE), b""):
        length += len(part)
        if part.endswith(b"\n"):
            yield part if length == len(part) else b"", length
            length = 0


def _lock(folder: Path) -> tuple[int, bool]:
    """Descriptor that holds the folder's lock, and whether the file system has none. UsageError names the holder."""
    try:
        return lock.take(folder / LOCK)
    except lock.Held as holder:
        raise UsageError(f"{folder}: in use by {holder}; wait for it, or give another --out") from None
