"""Which inputs of watch mode are finished being written: those whose size and time stay as they are."""

# Paths are strings here, not Path objects: there may be a million of them.
# ruff: noqa: PTH116, PTH119

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import NamedTuple

from cxrvit_edge.discover import Found
from cxrvit_edge.errors import Reason

PARTIAL = (".part", ".partial", ".tmp", ".temp", ".filepart", ".crdownload", ".download", ".opdownload")


class _Unsettled(NamedTuple):
    found: Found
    signature: int
    since: float  # monotonic


class Settling:
    """Inputs that are met come out once they are settled; `len` is how many wait for that.

    One number is kept for each name ever met, so that none comes twice as it is. absent: the PATHs that have not been
    there so far. shared: the files lie where another box writes, and this one's cache is not believed.
    """

    def __init__(
        self,
        paths: Iterable[str],
        seconds: float,
        stands: Callable[[Found], bool] = lambda _: False,
        passed: Callable[[Found], None] = lambda _: None,
    ) -> None:
        """paths: those given by name. stands, passed: as in `Watch`."""
        self._paths, self._seconds = frozenset(paths), seconds
        self._stands, self._passed = stands, passed
        self._given: dict[str, int] = {}  # signature by path
        self._unsettled: OrderedDict[str, _Unsettled] = OrderedDict()  # by `since`
        self._partial: set[str] = set()
        self.absent, self.shared = set(self._paths), False

    def __len__(self) -> int:
        return len(self._unsettled)

    @property
    def partial(self) -> int:
        """How many are left alone for their names. From any thread."""
        return sum(map(os.path.lexists, tuple(self._partial)))

    @property
    def due(self) -> float | None:
        """When the first may have settled, by the monotonic clock; None if there is none."""
        first = next(iter(self._unsettled.values()), None)
        return first.since + self._seconds if first else None

    def meet(self, found: Found, touched: bool = False) -> None:
        """Begin to wait for an input to settle, unless it is as it was. touched: something happened to it just now."""
        path = found.path
        name = os.path.basename(path)
        if (name.lower().endswith(PARTIAL) or name.startswith("~")) and path not in self._paths:
            self._partial.add(path)
            return
        met = found.size, found.mtime_ns
        status = self._status(found) if met[0] is None or met[1] is None else (met[0], met[1])
        known = self._given.get(path)
        if status is None or (status[0] < 0 and known is not None):  # a share that stumbles takes no result away
            return
        signature = _packed(status)
        if signature == known:
            return
        waiting = self._unsettled.get(path)
        if waiting is None and found.problem is None and self._stands(found):
            self._given[path] = signature
            if known is None:
                self._passed(found)
        elif waiting is None or waiting.signature != signature or touched:
            self._unsettled[path] = _Unsettled(found, signature, monotonic())
            self._unsettled.move_to_end(path)

    def settled(self) -> Iterator[Found]:
        """What has not changed for long enough by now, with its size and time."""
        until = monotonic() - self._seconds
        while self._unsettled:
            path, waiting = next(iter(self._unsettled.items()))
            if waiting.since > until:
                return
            del self._unsettled[path]
            status = self._status(waiting.found, fresh=self.shared)
            if status is None:
                continue
            signature = _packed(status)
            if signature != waiting.signature:
                self._unsettled[path] = _Unsettled(waiting.found, signature, monotonic())
                continue
            again = path in self._given
            self._given[path] = signature
            size, mtime_ns = status if status[0] >= 0 else (None, None)
            found = waiting.found._replace(size=size, mtime_ns=mtime_ns)
            if not (again and self._stands(found)):  # changed after it was given, and read after that
                yield found

    def _status(self, found: Found, fresh: bool = False) -> tuple[int, int] | None:
        """Size and mtime_ns; negative and 0 if they cannot be had; None if there is nothing, or its problem is gone.

        fresh: open the file, which makes a share's client ask the server instead of its own cache.
        """
        path = found.path
        if found.problem is not None:
            return (-1, 0) if self._persists(path, found.problem.reason) else None
        try:
            status = os.stat(path)
            if fresh and stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK):
                with open(path, "rb", buffering=0) as file:
                    status = os.fstat(file.fileno())
        except (FileNotFoundError, NotADirectoryError) as error:
            return (-(error.errno or 1), 0) if os.path.lexists(path) else None
        except OSError as error:
            return -(error.errno or 1), 0
        except ValueError:  # a null character
            return -1, 0
        return status.st_size, status.st_mtime_ns

    def _persists(self, path: str, reason: Reason) -> bool:
        """Whether the problem that `discover` met is still there."""
        if reason is Reason.NOT_FOUND:
            return path in self.absent and not os.path.lexists(path)
        if reason is Reason.OUTSIDE:
            return os.path.exists(path)  # noqa: PTH110
        try:
            with os.scandir(path):
                return reason is Reason.IS_DIRECTORY
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return reason is not Reason.IS_DIRECTORY


def _packed(status: tuple[int, int]) -> int:
    return status[0] << 64 | status[1] & (1 << 64) - 1
