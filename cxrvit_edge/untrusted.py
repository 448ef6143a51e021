"""What a bundle from elsewhere is asked before its files are read: kind, size, zip directory, external data."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cxrvit_edge.errors import BundleError

MAX_MANIFEST = 16 * 1024**2  # bytes; ours has 70 kB
MAX_BYTES = 4 * 1024**3  # of all files of a bundle, and of its zip
MAX_ENTRIES = 10_000  # files and folders in a zip
MAX_DEPTH = 100  # messages within messages of an ONNX graph: protobuf's own parsers read no more
_MAX_DIRECTORY = 16 * 1024**2  # bytes of a zip's directory

# Messages of onnx.proto on the way to TensorProto.external_data: field number -> message in that field.
_ONNX = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_KEY = b"location"


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read. OSError for a link, a FIFO or a device, none of which is waited for."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, os.strerror(code) if code == errno.EISDIR else "not a regular file", str(path))
    return open(handle, "rb")


def read_manifest(path: Path) -> bytes:
    """OSError if it cannot be read, BundleError if it is too large."""
    with open_regular(path) as f:
        data = f.read(MAX_MANIFEST + 1)
    if len(data) > MAX_MANIFEST:
        raise BundleError(f"{path}: over {MAX_MANIFEST >> 20} MB; this is no manifest of ours")
    return data


def external_data(path: Path) -> set[str]:
    """Locations of external data that an ONNX graph names, in subgraphs, functions and constants too.

    They are as the graph gives them: relative to its folder. A file in which the word `location` does not occur names
    none, whatever it is. ValueError if it occurs and the file is not a protobuf message that can be walked.
    """
    with open_regular(path) as f:
        if not os.fstat(f.fileno()).st_size:
            return set()
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return set(_locations(data))


def _locations(data: mmap.mmap) -> Iterator[str]:
    messages = [("Model", 0, len(data), 0)]
    while messages:
        kind, start, end, depth = messages.pop()
        if data.find(_KEY, start, end) < 0:
            continue
        if depth > MAX_DEPTH:
            raise ValueError(f"over {MAX_DEPTH} messages within messages")
        if kind == "Entry":  # key = 1, value = 2; of several the last counts, so each is taken
            texts = [(number, data[a:b]) for number, a, b in _fields(data, start, end)]
            if any(number == 1 and text == _KEY for number, text in texts):
                yield from (text.decode("utf-8") for number, text in texts if number == 2)
            continue
        inner = _ONNX[kind]
        messages += [(inner[number], a, b, depth + 1) for number, a, b in _fields(data, start, end) if number in inner]


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of the length-delimited fields of a message; others are passed over."""
    while at < end:
        tag, at = (data[at], at + 1) if data[at] < 0x80 else _varint(data, at, end)
        wire = tag & 7
        if wire == 2:
            length, at = (data[at], at + 1) if at < end and data[at] < 0x80 else _varint(data, at, end)
            if at + length > end:
                raise ValueError("a field ends outside its message")
            yield tag >> 3, at, at + length
            at += length
        elif wire == 0:
            _, at = _varint(data, at, end)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
    if at != end:
        raise ValueError("a field ends outside its message")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number has no end")


def check_zip(path: Path) -> None:
    """BundleError if a zip asks for more than a bundle of ours does; from its sizes, before its directory is read."""
    with open(path, "rb") as f:
        size = f.seek(0, os.SEEK_END)
        f.seek(max(0, size - (1 << 16) - 22 - 20))
        tail = f.read()
    end = tail.rfind(b"PK\5\6")
    directory = int.from_bytes(tail[end + 12 : end + 16], "little")
    if size > MAX_BYTES or tail[:end].rfind(b"PK\6\7") >= 0 or end < 0 or directory > _MAX_DIRECTORY:
        raise BundleError(f"over {MAX_BYTES >> 30} GB, or its directory is that of a larger zip; no bundle of ours")


def check_entries(archive: zipfile.ZipFile) -> None:
    """BundleError if the entries are too many, too large, or packed in a way that bundles are not."""
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise BundleError(f"holds {len(entries):,} files, over {MAX_ENTRIES:,}; this is no bundle of ours")
    if sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise BundleError(f"unzips to over {MAX_BYTES >> 30} GB; this is no bundle of ours")
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
        raise BundleError("packed neither plainly nor with deflate; zip the bundle's folder again")
