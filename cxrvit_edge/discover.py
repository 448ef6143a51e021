"""From the PATHs given to the input files, as a stream: nothing is listed ahead of its folder."""

# Paths are strings here, not Path objects: there may be a million of them.
# ruff: noqa: PTH110, PTH112, PTH118, PTH119

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cxrvit_edge.errors import InputError, Reason, UsageError

BLOCK = 65_536  # entries of one folder that are sorted at a time: a larger one comes in sorted blocks
DROPPINGS = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})  # .DS_Store and the like are hidden
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".dic", ".ima")

StrPath = str | os.PathLike[str]


class Found(NamedTuple):
    """One input. path: to open it; file: its name in every output (POSIX); problem: known without opening it."""

    path: str
    file: str
    problem: InputError | None = None


class _Entry(NamedTuple):
    name: str
    is_dir: bool
    is_link: bool


def require(paths: Iterable[StrPath], out: StrPath | None = None) -> None:
    """UsageError if no PATH is given, none of them exists, or `out` is one of them."""
    given = [os.fspath(path) for path in paths]
    if not given:
        raise UsageError("no PATH given; name a radiograph or a folder of them")
    if not any(os.path.lexists(path) for path in given):
        raise UsageError(f"{', '.join(map(_shown, given))}: no such file or folder; check the spelling and the mount")
    if out is not None and any(os.path.realpath(path) == os.path.realpath(out) for path in given):
        raise UsageError(f"--out {_shown(os.fspath(out))} is also a PATH to read from; give another folder")


def discover(paths: Iterable[StrPath], *, leave_out: StrPath | None = None) -> Iterator[Found]:
    """The inputs under `paths`, in the order given; a folder recursively, sorted by name.

    Left out: hidden entries (a leading dot), what operating systems drop into folders, and the folder `leave_out`;
    a PATH given by name is never left out. A file reached twice, through overlapping PATHs or links, comes once; links
    to folders are followed, each real folder once. A PATH that does not exist, a folder that cannot be listed, and a
    folder with the suffix of an image come as an input with its problem.
    """
    given = [os.fspath(path) for path in paths]
    walk = _Walk(leave_out, {os.path.realpath(path) for path in given if not os.path.isdir(path)})
    once: set[str] = set()
    for path in given:
        name = Path(path).as_posix()
        if os.path.isdir(path):
            yield from walk.folder(path, "" if name == "." else name)
            continue
        real = os.path.realpath(path)
        if real not in once:
            once.add(real)
            missing = None if os.path.lexists(path) else _missing(path)
            yield Found(path, name, missing)


class _Walk:
    """A depth-first walk that enters each real folder once. `taken`: real paths that come by their own PATH."""

    def __init__(self, leave_out: StrPath | None, taken: set[str]) -> None:
        self._leave_out = None if leave_out is None else os.path.realpath(leave_out)
        self._taken = taken
        self._entered: set[str] = set()

    def folder(self, path: str, file: str) -> Iterator[Found]:
        stack = [self._entries(path, file)]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
            elif isinstance(found, Found):
                yield found
            else:
                stack.append(self._entries(*found))

    def _entries(self, path: str, file: str) -> Iterator[Found | tuple[str, str]]:
        """Inputs of one folder, and (path, file) of the folders in it."""
        real = os.path.realpath(path)
        if real == self._leave_out or real in self._entered:
            return
        self._entered.add(real)
        name = os.path.basename(path.rstrip(os.sep)) or path
        if name.lower().endswith(IMAGE_SUFFIXES):
            message = f"{_shown(name)}: a folder named like an image; the files in it are read one by one"
            yield Found(path, file or path, InputError(Reason.IS_DIRECTORY, message))
        try:
            for block in _blocks(path):
                for entry in block:
                    child, child_file = os.path.join(path, entry.name), f"{file.rstrip('/')}/{entry.name}"
                    if not file:
                        child_file = entry.name
                    if entry.is_dir:
                        yield child, child_file
                    elif self._is_new(real, child, entry):
                        yield Found(child, child_file)
        except OSError as error:
            code = Reason.NO_PERMISSION if isinstance(error, PermissionError) else Reason.UNREADABLE
            cause = error.strerror or type(error).__name__
            message = f"{_shown(name)}: the folder cannot be listed ({cause}); what is in it was not read"
            yield Found(path, file or path, InputError(code, message))

    def _is_new(self, folder: str, path: str, entry: _Entry) -> bool:
        """Whether a file has no other way into this run. `folder`: real path of the one it was met in."""
        if not entry.is_link:
            return not self._taken or f"{folder.rstrip(os.sep)}{os.sep}{entry.name}" not in self._taken
        real = os.path.realpath(path)
        parent, name = os.path.split(real)
        if real in self._taken or (parent in self._entered and not _left_out(name) and os.path.exists(real)):
            return False
        self._taken.add(real)
        return True


def _blocks(path: str) -> Iterator[list[_Entry]]:
    with os.scandir(path) as entries:
        kept = (e for e in entries if not _left_out(e.name))
        while block := sorted(_Entry(e.name, _is_dir(e), e.is_symlink()) for e in islice(kept, BLOCK)):
            yield block


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into a folder that may not be entered: its reader says so
        return False


def _left_out(name: str) -> bool:
    return name.startswith(".") or name.lower() in DROPPINGS


def _missing(path: str) -> InputError:
    message = f"{_shown(os.path.basename(path) or path)}: no such file or folder; check the spelling and the mount"
    return InputError(Reason.NOT_FOUND, message)


def _shown(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)
