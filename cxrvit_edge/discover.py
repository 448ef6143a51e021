"""From the PATHs given to the input files, as a stream: nothing is listed ahead of its folder."""

# Paths are strings here, not Path objects: there may be a million of them.
# ruff: noqa: PTH110, PTH112, PTH116, PTH118, PTH119

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from cxrvit_edge.errors import InputError, Reason, UsageError
from cxrvit_edge.plain_text import printable

BLOCK = 32_768  # entries of one folder that are sorted at a time: a larger one comes in sorted blocks
DROPPINGS = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})  # .DS_Store and the like are hidden
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".dic", ".ima")

StrPath = str | os.PathLike[str]


class Found(NamedTuple):
    """One input. path: to open it; file: its name in every output (POSIX); problem: known without opening it.

    size, mtime_ns: of the file that a link leads to, as it was met; None if that is not known.
    """

    path: str
    file: str
    problem: InputError | None = None
    size: int | None = None
    mtime_ns: int | None = None


def require(paths: Iterable[StrPath], out: StrPath | None = None) -> None:
    """UsageError if no PATH is given, none of them exists, or `out` is one of them."""
    given = [os.fspath(path) for path in paths]
    if not given:
        raise UsageError("no PATH given; name a radiograph or a folder of them")
    if not any(os.path.lexists(path) for path in given):
        raise UsageError(
            f"{', '.join(map(printable, given))}: no such file or folder; check the spelling and the mount"
        )
    if out is not None and any(os.path.realpath(path) == os.path.realpath(out) for path in given):
        raise UsageError(f"--out {printable(os.fspath(out))} is also a PATH to read from; give another folder")


def discover(
    paths: Iterable[StrPath], *, leave_out: StrPath | None = None, follow_links: bool = False
) -> Iterator[Found]:
    """The inputs under `paths`, in the order given; a folder recursively, sorted by name.

    Left out: hidden entries (a leading dot), what operating systems drop into folders, and the folder `leave_out`;
    a PATH given by name is never left out. A file reached twice, through overlapping PATHs or links, comes once; links
    to folders are followed, each real folder once. A link that leads out of the PATHs given is followed if
    `follow_links`, or if it is a PATH itself; else it comes with the problem OUTSIDE. A PATH that does not exist, a
    folder that cannot be listed, and a folder with the suffix of an image come as an input with its problem.
    """
    given = [os.fspath(path) for path in paths]
    walk = _Walk(given, leave_out, follow_links)
    once: set[str] = set()
    for path in given:
        name = Path(path).as_posix()
        if os.path.isdir(path):
            yield from walk.folder(path, "" if name == "." else name)
            continue
        real = _real(path)
        if real not in once:
            once.add(real)
            yield _found(path, name) if os.path.lexists(path) else Found(path, name, _missing(path))


class _Folder(NamedTuple):
    """path: to open it; real: without links; file: in every output."""

    path: str
    real: str
    file: str


class _Walk:
    """A depth-first walk that enters each real folder once."""

    def __init__(self, given: list[str], leave_out: StrPath | None, follow_links: bool) -> None:
        self._leave_out = None if leave_out is None else _real(os.fspath(leave_out))
        self._taken = {_real(path) for path in given if not os.path.isdir(path)}  # these come by their own PATH
        self._roots = tuple({os.path.join(_real(path), "") for path in given if os.path.isdir(path)})
        self._follow_links = follow_links
        self._entered: set[str] = set()

    def folder(self, path: str, file: str) -> Iterator[Found]:
        stack = [self._entries(_Folder(path, _real(path), file))]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
            elif isinstance(found, Found):
                yield found
            else:
                stack.append(self._entries(found))

    def _entries(self, folder: _Folder) -> Iterator[Found | _Folder]:
        """Inputs of one folder, and the folders in it."""
        path, real, file = folder
        if real == self._leave_out or real in self._entered:
            return
        self._entered.add(real)
        name = os.path.basename(path.rstrip(os.sep)) or path
        if name.lower().endswith(IMAGE_SUFFIXES):
            message = f"{printable(name)}: a folder named like an image; the files in it are read one by one"
            yield Found(path, file or path, InputError(Reason.IS_DIRECTORY, message))
        start = f"{file.rstrip('/')}/" if file else ""
        real_start = os.path.join(real, "")
        try:
            for block in _blocks(path):
                while block:
                    entry = block.pop()
                    if _is(entry.is_symlink):
                        yield from self._link(entry, start + entry.name)
                    elif _is(entry.is_dir):
                        yield _Folder(entry.path, real_start + entry.name, start + entry.name)
                    elif not self._taken or real_start + entry.name not in self._taken:
                        yield _found(entry.path, start + entry.name, entry)
        except OSError as error:
            code = Reason.NO_PERMISSION if isinstance(error, PermissionError) else Reason.UNREADABLE
            cause = error.strerror or type(error).__name__
            message = f"{printable(name)}: the folder cannot be listed ({cause}); what is in it was not read"
            yield Found(path, file or path, InputError(code, message))

    def _link(self, entry: os.DirEntry[str], file: str) -> Iterator[Found | _Folder]:
        """What a link leads to, if that is to be followed and has no other way into this run."""
        real = _real(entry.path)
        if real in self._taken or real == self._leave_out:
            return
        is_dir, there = _is(entry.is_dir), os.path.exists(entry.path)
        if there and not (self._follow_links or os.path.join(real, "").startswith(self._roots)):
            message = f"{printable(entry.name)}: a link out of the folder given; --follow-links follows it"
            yield Found(entry.path, file, InputError(Reason.OUTSIDE, message))
        elif is_dir:
            yield _Folder(entry.path, real, file)
        else:
            parent, name = os.path.split(real)
            if there and parent in self._entered and not _left_out(name):
                return
            self._taken.add(real)
            yield _found(entry.path, file, entry)


def _is(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a loop of links, or a folder that may not be entered: its reader says so
        return False


def _found(path: str, file: str, entry: os.DirEntry[str] | None = None) -> Found:
    try:
        status = os.stat(path) if entry is None else entry.stat()
    except (OSError, ValueError):  # its reader says what is wrong
        return Found(path, file)
    return Found(path, file, None, status.st_size, status.st_mtime_ns)


def _blocks(path: str) -> Iterator[list[os.DirEntry[str]]]:
    """Entries in blocks, each sorted from last to first; nothing stays open behind the last one."""
    with os.scandir(path) as entries:
        kept = (e for e in entries if not _left_out(e.name))
        while len(block := _falling(islice(kept, BLOCK))) == BLOCK:
            yield block
    yield block


def _falling(entries: Iterable[os.DirEntry[str]]) -> list[os.DirEntry[str]]:
    return sorted(entries, key=attrgetter("name"), reverse=True)


def _real(path: str) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # a null character: no file has it
        return path


def _left_out(name: str) -> bool:
    return name.startswith(".") or name.lower() in DROPPINGS


def _missing(path: str) -> InputError:
    message = f"{printable(os.path.basename(path) or path)}: no such file or folder; check the spelling and the mount"
    return InputError(Reason.NOT_FOUND, message)
