"""cv2, pydicom and gdcm, kept from printing: what matters is said in the InputError, and odd values may be names."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@cache
def quiet_cv2() -> Any:
    """The cv2 module, its logger silenced for the whole process."""
    import cv2

    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(0)
    else:  # OpenCV 5
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


@cache
def _silence_loggers() -> None:
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    try:
        import gdcm
    except ImportError:
        return
    for off in (gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff, gdcm.Trace.DebugOff):
        off()


_lock = threading.RLock()  # catch_warnings is process-wide; nothing is lost by taking turns, pydicom holds the GIL


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Around every use of pydicom: its warnings and log records quote element values."""
    _silence_loggers()
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
