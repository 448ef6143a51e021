"""What tells `watch` of changes: inotify through watchfiles, and which file systems it cannot be asked about."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

# inotify sees what is done on this box; on these another one writes. fuse.* as well: what lies below is unknown.
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "9p", "virtiofs", "vboxsf", "afs", "ceph", "lustre", "glusterfs"}
)
_MOUNTS = Path("/proc/self/mountinfo")


def network(path: str, mounts: Path = _MOUNTS) -> bool:
    """Whether a real path lies on a file system that other boxes write to: by the mount point that is its longest
    prefix (the last of several on one point); False where that cannot be known. Source: proc(5), mountinfo."""
    try:
        lines = mounts.read_bytes().splitlines()
    except OSError:
        return False
    best, kind = -1, ""
    for line in lines:
        before, _, after = line.partition(b" - ")
        fields, types = before.split(b" "), after.split(b" ")
        if len(fields) < 5:
            continue
        point = os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8) & 255]), fields[4]))
        inside = path == point or path.startswith(os.path.join(point, ""))  # noqa: PTH118  undecodable names
        if inside and len(point) >= best:
            best, kind = len(point), types[0].decode("ascii", "replace")
    return kind in NETWORK or kind.startswith("fuse.")


class Inotify:
    """Paths that change under some folders, collected in a thread; memory grows with their number only."""

    def __init__(self, folders: Sequence[str], wake: Callable[[], object]) -> None:
        """folders: real paths; wake: called when there is something to `take`."""
        self._folders, self._wake = folders, wake
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._changed: set[str] = set()
        self._armed = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="cxrvit-edge-inotify", daemon=True)
        self._thread.start()

    def take(self) -> tuple[set[str], bool, Exception | None]:
        """Real paths that have changed since the last call; whether all folders became watched since then; what ended
        it: ImportError without watchfiles, OSError if the system refuses, RuntimeError if a change could not be told.
        """
        with self._lock:
            taken = self._changed, self._armed, self._error
            self._changed, self._armed = set(), False
        return taken

    def close(self) -> None:
        self._stop.set()
        self._thread.join(1.0)  # it looks every 50 ms; a share that hangs must not hold the run

    def _run(self) -> None:
        try:
            from watchfiles import watch

            first = True
            for changes in watch(
                *self._folders,
                watch_filter=None,
                debounce=200,
                step=50,
                stop_event=self._stop,
                rust_timeout=250,
                yield_on_timeout=True,
                force_polling=False,
                ignore_permission_denied=True,
            ):
                if first or changes:
                    self._put({path for _, path in changes}, armed=first)
                first = False
        except Exception as error:
            self._put(set(), error=error)

    def _put(self, changed: set[str], *, armed: bool = False, error: Exception | None = None) -> None:
        with self._lock:
            self._changed |= changed
            self._armed |= armed
            self._error = self._error or error
        self._wake()
