"""Locks between processes: a file that the kernel frees when its holder ends, however it ends."""

from __future__ import annotations

import errno
import os
import socket
from datetime import datetime, timezone
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Held(Exception):  # noqa: N818 (no error: what the caller makes of it is its own)
    """Another process has the lock; the message names it."""


def take(path: Path) -> tuple[int, bool]:
    """Descriptor that holds the lock until it is closed, and whether the file system has no locks.

    Held if another process has it; OSError if the file cannot be made.
    """
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    unlocked = False
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Held(os.pread(handle, 200, 0).decode("ascii", "replace").strip() or "another process") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            unlocked = True
        started = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        os.ftruncate(handle, 0)
        os.pwrite(
            handle, f"process {os.getpid()} on {socket.gethostname()} since {started}\n".encode("ascii", "replace"), 0
        )
    except BaseException:
        os.close(handle)
        raise
    return handle, unlocked


def sync_folder(folder: Path) -> None:
    """Let what was renamed in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
