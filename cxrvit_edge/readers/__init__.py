"""From a path to a Radiograph: what kind of file it is, and whether it may be opened at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.plain_text import printable
from cxrvit_edge.radiograph import Limits, Radiograph
from cxrvit_edge.readers.containers import sniff_raster
from cxrvit_edge.readers.dicom import decode_dicom, sniff_dicom
from cxrvit_edge.readers.raster import decode_raster
from cxrvit_edge.readers.views import view_from_text

__all__ = ["DICOM_SUFFIXES", "RASTER_SUFFIXES", "decode", "load", "read_file", "sniff", "view_from_text"]

RASTER_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".ima"})


def read_file(path: Path, limits: Limits) -> Radiograph:
    """Radiograph of one file.

    Raises InputError, and nothing else, for whatever is wrong with the file; the message starts with its name.
    """
    return decode(load(path, limits), path.name, limits)


def load(path: Path, limits: Limits) -> bytes:
    """Content of a regular file within limits.max_bytes; pipes, sockets and devices are never opened.

    Raises InputError: NOT_FOUND, NO_PERMISSION, IS_DIRECTORY, EMPTY_FILE, TOO_LARGE, UNREADABLE.
    """
    name = printable(path.name or str(path))
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise InputError(Reason.IS_DIRECTORY, f"{name}: a directory, not a file; give the files in it")
        if not stat.S_ISREG(found.st_mode):
            raise InputError(
                Reason.UNREADABLE, f"{name}: a pipe, socket or device, not a file; save the image to a file"
            )
        if found.st_size == 0:
            raise InputError(Reason.EMPTY_FILE, f"{name}: the file is empty; copy it again")
        if found.st_size > limits.max_bytes:
            message = (
                f"{name}: {found.st_size:,} bytes are more than the limit of {limits.max_bytes:,}; send a smaller copy"
            )
            raise InputError(Reason.TOO_LARGE, message)
        with open(path, "rb") as file:
            data = file.read(limits.max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(Reason.NOT_FOUND, f"{name}: no such file; check the path") from None
    except PermissionError:
        raise InputError(Reason.NO_PERMISSION, f"{name}: no permission to read it; change its owner or mode") from None
    except MemoryError:
        raise InputError(Reason.TOO_LARGE, f"{name}: does not fit into memory; send a smaller copy") from None
    except (OSError, ValueError) as error:
        cause = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "not a path"
        raise InputError(Reason.UNREADABLE, f"{name}: {cause}; check the disk or the connection") from None
    if not data:
        raise InputError(Reason.EMPTY_FILE, f"{name}: the file is empty; copy it again")
    return data


def decode(data: bytes, name: str, limits: Limits) -> Radiograph:
    """Radiograph of a file's content; `name` is for the messages, and where the content is no image for its suffix.

    Raises InputError.
    """
    kind = sniff(data[:256], name)
    try:
        if kind == "raster":
            return decode_raster(data, limits)
        if kind == "dicom":
            return decode_dicom(data, limits)
        raise _stranger(data[:256], Path(name).suffix.lower())
    except InputError as error:
        raise InputError(error.reason, f"{printable(name)}: {error}") from error.__cause__
    except MemoryError:
        raise InputError(
            Reason.TOO_LARGE, f"{printable(name)}: does not fit into memory; send a smaller copy"
        ) from None
    except Exception as error:  # a fault of ours; the run goes on all the same
        message = f"{printable(name)}: the reader failed ({type(error).__name__}); report it, with the file if you may"
        raise InputError(Reason.INTERNAL, message) from error


def sniff(head: bytes, name: str) -> Literal["dicom", "raster"] | None:
    """Kind of a file by its first 132 bytes or more; a PNG named .jpg is a raster all the same.

    A DICOM data set without preamble is known by its first element, in group 0002 or 0008. Where that has no VR
    (implicit) the evidence is thin, and a suffix that is none of DICOM's (.dcm, none, a UID's end) outweighs it.
    """
    if sniff_raster(head) is not None:
        return "raster"
    suffix = Path(name).suffix.lower()
    plausible = suffix in DICOM_SUFFIXES or not suffix.strip(".0123456789")
    return "dicom" if sniff_dicom(head, implicit=plausible) else None


_KNOWN = (
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP or Office file"),
    (b"\x1f\x8b", "gzip"),
    (b"GIF8", "GIF"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000 outside DICOM"),
    (b"\xff\x4f\xff\x51", "JPEG 2000 outside DICOM"),
    (b"\x7fELF", "a program"),
)


def _looks_like(head: bytes) -> str:
    for magic, words in _KNOWN:
        if head.startswith(magic):
            return words
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return "HEIC, AVIF or a film"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "HTML or XML"
    if not head.strip(b"\x00"):
        return "zeros"
    if all(byte in b"\t\n\r\f" or byte >= 32 for byte in head):
        return "text"
    return "no image known here"


def _stranger(head: bytes, suffix: str) -> InputError:
    start = _looks_like(head)
    if suffix in DICOM_SUFFIXES:
        return InputError(Reason.UNREADABLE, f"starts like {start}, not DICOM; export it again from the PACS")
    if suffix in RASTER_SUFFIXES:
        kind = suffix[1:].upper()
        return InputError(Reason.UNREADABLE, f"starts like {start}, not {kind}; save it again as PNG")
    return InputError(
        Reason.NOT_AN_IMAGE, f"starts like {start}: neither DICOM nor PNG, JPEG, TIFF or BMP; leave it out"
    )
