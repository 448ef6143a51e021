"""Watch mode: the inputs under some PATHs as they are finished being written, for as long as the run goes on."""

# Paths are strings here, not Path objects: there may be a million of them.
# ruff: noqa: PTH116, PTH118, PTH206

from __future__ import annotations

import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from time import monotonic

from cxrvit_edge.discover import DROPPINGS, Found, StrPath, discover
from cxrvit_edge.errors import UsageError
from cxrvit_edge.inotify import Inotify, network
from cxrvit_edge.plain_text import printable
from cxrvit_edge.settle import PARTIAL, Settling

SETTLE = 2.0  # seconds
POLL, RESCAN = 5.0, 60.0  # seconds between two scans: where nothing tells of changes, and as a net where something does
RATIO = 10  # a scan that takes long is followed by a pause of so many times that
LOOK = 1.0  # seconds between two looks at the PATHs themselves
LONG = 2  # times `settle` since the last input was given, after which those that follow are not soon
BLOCK = 1024  # entries of a scan between two looks at what has settled


class Watch:
    """Iterate it, in one thread, for the inputs; the iteration blocks, and ends after `stop()`.

    An input is given once its size and modification time have been the same for `settle` seconds of the monotonic
    clock, by what its own file system says, so clocks of shares do not matter. What is there at the start comes in
    the order of `discover`, what is new in between as it settles. A file that is changed, replaced or restored later is
    given again; one whose size and time are those it was last given with is not. Left alone are names that end in one
    of PARTIAL or begin with "~" (and, as in `discover`, with a dot), until they are renamed; a PATH given by name never
    is. One removed before it settled never comes; one that cannot be read comes once, so that it gets its failure.

    inotify tells of changes where watchfiles is installed and the folder is local, with a full scan every RESCAN
    seconds as a net. Network shares are scanned every `poll` seconds (None is POLL), and so is everything if `poll` is
    given or inotify cannot be had, which `notes` tells. A scan holds each name with one number, and stats it.
    """

    def __init__(
        self,
        paths: Iterable[StrPath],
        *,
        leave_out: StrPath | None = None,
        stands: Callable[[Found], bool] = lambda _: False,
        passed: Callable[[Found], None] = lambda _: None,
        settle: float = SETTLE,
        poll: float | None = None,
        follow_links: bool = False,
    ) -> None:
        """stands: whether a result already holds; passed: called once for each input that one held for from the start.

        Both are called in the iterating thread. UsageError for seconds that are not above 0.
        """
        for name, seconds in (("settle", settle), ("poll", poll)):
            if seconds is not None and not seconds > 0:
                raise UsageError(f"{name} is {seconds}: must be above 0 seconds")
        self._paths = [os.fspath(path) for path in paths]
        self._leave_out, self._hole = leave_out, None if leave_out is None else os.path.realpath(leave_out)
        self._settling = Settling(self._paths, settle, stands, passed)
        self._poll, self._follow_links = poll, follow_links
        self._states: dict[str, tuple[int, ...] | None] = {}  # of the PATHs: () a file, (device, inode) a folder
        self._replaced: Counter[str] = Counter()
        self._named: dict[str, str] = {}  # PATHs that are files, by real path
        self._folders: list[tuple[str, str]] = []  # (real path, as given) of those that are folders
        self._inotify: Inotify | None = None
        self._without = ""  # why there is no inotify
        self._next_look = self._next_scan = self._soonest = 0.0
        self._settle, self._gave, self._idle = settle, monotonic(), False
        self._stop, self._wake = threading.Event(), threading.Event()

    def stop(self) -> None:
        """End the iteration, from any thread: within a second, unless the consumer or a dead share holds it up."""
        self._stop.set()
        self._wake.set()

    def pending(self) -> int:
        """Inputs known that have not settled yet. From any thread."""
        return len(self._settling)

    @property
    def stopped(self) -> bool:
        """Whether `stop` has been called. From any thread."""
        return self._stop.is_set()

    @property
    def idle(self) -> bool:
        """Whether it waits with nothing to give: for a change, or for what has not settled long after the last that
        did. From any thread."""
        return self._idle

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how it watched, in plain words. From any thread."""
        notes = [self._without] if self._without else []
        for path in self._paths:
            times = self._replaced[path]
            if path in self._states and self._states[path] is None:
                notes.append(f"{printable(path)}: is not there; watching goes on, see to the mount")
            elif times:
                notes.append(f"{printable(path)}: went, came back or was mounted anew {times} times; watching went on")
        partial = self._settling.partial
        if partial:
            notes.append(f"{partial} files were left alone: their names ({', '.join(PARTIAL)}, ~...) say unfinished")
        return tuple(notes)

    def __iter__(self) -> Iterator[Found]:
        scan: Iterator[Found] | None = None
        spent = 0.0
        try:
            while True:
                self._wake.clear()
                if self._stop.is_set():
                    return
                if monotonic() >= self._next_look:
                    self._look()
                if scan is None and monotonic() >= self._next_scan:
                    scan, spent = self._discover(self._paths), 0.0
                    self._next_scan = float("inf")
                if scan is not None:
                    start, before = monotonic(), self._next_scan
                    block = list(islice(scan, BLOCK))
                    for found in block:
                        if self._stop.is_set():
                            return
                        self._settling.meet(found)
                    spent += monotonic() - start
                    if len(block) < BLOCK:
                        scan = None
                        self._soonest = monotonic() + max(self._poll or POLL, RATIO * spent)
                        self._next_scan = min(before, monotonic() + max(self._every(), RATIO * spent))
                self._hear()
                for found in self._settling.settled():
                    yield found
                    self._gave = monotonic()
                    if self._stop.is_set():
                        return
                if scan is None:
                    self._wait()
        finally:
            self._idle = False
            if self._inotify:
                self._inotify.close()

    def _discover(self, paths: Iterable[str]) -> Iterator[Found]:
        return discover(paths, leave_out=self._leave_out, follow_links=self._follow_links)

    def _every(self) -> float:
        return self._poll or (POLL if self._settling.shared or self._without else RESCAN)

    def _wait(self) -> None:
        first = self._settling.due
        until = min(self._next_look, self._next_scan, self._next_look if first is None else first)
        pause = until - monotonic()
        if pause <= 0:
            return
        self._idle = first is None or monotonic() - self._gave > LONG * self._settle  # one may grow for hours
        self._wake.wait(pause)
        self._idle = False

    def _look(self) -> None:
        """See whether the PATHs are what they were; files among them are examined, folders watched anew if not."""
        self._next_look = monotonic() + LOOK
        states = {path: _state(path) for path in self._paths}
        self._settling.absent.difference_update(path for path, state in states.items() if state is not None)
        if states != self._states:
            self._replaced.update(path for path, was in self._states.items() if was != states[path])
            self._states = states
            self._named, self._folders = {}, []
            for path, state in states.items():
                real = os.path.realpath(path)
                if state == ():
                    self._named.setdefault(real, path)
                elif state and real not in (folder for folder, _ in self._folders):
                    self._folders.append((real, path))
            self._arm()
            self._next_scan = 0.0
        for path in self._named.values():
            self._settling.meet(Found(path, Path(path).as_posix()))

    def _arm(self) -> None:
        if self._inotify:
            self._inotify.close()
            self._inotify = None
        remote = {real for real, _ in self._folders if network(real)}
        self._settling.shared = bool(remote)
        local = [real for real, _ in self._folders if real not in remote]
        if local and self._poll is None and not self._without:
            self._inotify = Inotify(local, self._wake.set)

    def _hear(self) -> None:
        """Examine what inotify tells of."""
        if self._inotify is None:
            return
        changed, armed, error = self._inotify.take()
        if armed:
            self._next_scan = 0.0  # what came between the scan and the first watch
        for path in sorted(changed):
            if self._stop.is_set():
                return
            self._examine(path)
        if isinstance(error, RuntimeError):  # such as a name that is not UTF-8: the scan sees it
            self._inotify.close()
            self._inotify = None
            self._states, self._next_look = {}, monotonic() + POLL
            self._next_scan = 0.0
        elif error is not None:
            self._inotify.close()
            self._inotify, self._next_scan = None, 0.0
            self._without = _why(error)

    def _examine(self, path: str) -> None:
        """Meet what is at a real path that has changed, a folder with all that is in it."""
        for real, given in self._folders:
            if not path.startswith(os.path.join(real, "")):
                continue
            inside = path[len(os.path.join(real, "")) :]
            if any(part.startswith(".") or part.lower() in DROPPINGS for part in inside.split(os.sep)):
                return
            if self._hole and f"{path}{os.sep}".startswith(f"{self._hole}{os.sep}"):
                return
            whole = os.path.join(given, inside)
            for found in self._discover([whole]):
                if self._stop.is_set():
                    return
                plain = os.path.join(real, found.path[len(os.path.join(given, "")) :])
                if os.path.realpath(found.path) != plain:  # a link: only a whole scan knows where else it is reached
                    self._next_scan = min(self._next_scan, self._soonest)
                elif plain not in self._named:
                    self._settling.meet(found, touched=True)
            return


def _state(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else ()


def _why(error: Exception) -> str:
    every = f"the folders are scanned every {POLL:.0f} seconds or less often"
    if isinstance(error, ImportError):
        return f"watchfiles is not installed, {every}; pip install watchfiles"
    cause = getattr(error, "strerror", None) or type(error).__name__
    return f"inotify cannot be used ({cause}), {every}; raise fs.inotify.max_user_watches if that is the cause"
