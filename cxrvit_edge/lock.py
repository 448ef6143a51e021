"""Locks between processes: a file that the kernel frees when its holder ends, however it ends."""

from __future__ import annotations

import errno
import os
import socket
from datetime import datetime, timezone
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_NO_SYNC = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Held(Exception):  # noqa: N818 (no error: what the caller makes of it is its own)
    """Another process has the lock; the message names it."""


def take(path: Path) -> tuple[int, bool]:
    """Descriptor that holds the lock until it is closed, and whether the file system has no locks.

    Held if another process has it; OSError if the file cannot be made.
    """
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
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
        note = f"process {os.getpid()} on {socket.gethostname()} since {started}\n"
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, note.encode("ascii", "replace"), 0)
        except OSError as error:
            if error.errno not in _NO_ROOM:  # held all the same, by a process without a name
                raise
    except BaseException:
        os.close(handle)
        raise
    return handle, unlocked


def sync(handle: int) -> None:
    """fsync, where the file system has it. OSError if what was written is not on the disk."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def sync_folder(folder: Path) -> None:
    """Let what was made or renamed in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(handle)
    finally:
        os.close(handle)
