"""Walks over PNG, JPEG, TIFF and BMP containers without decoding a pixel.

They give the size before anything is allocated, the orientation, and proof that the file is whole: decoders fill the
missing part of a cut JPEG with gray and say so on stderr only.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cxrvit_edge.errors import InputError, Reason

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
TIFF_MAGICS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


@dataclass(frozen=True)
class Container:
    """What the container says of its first picture.

    orientation: EXIF / TIFF tag 274, 1 to 8 (1 is upright)
    channels: samples a pixel as stored (1 for a palette)
    white_is_zero: TIFF PhotometricInterpretation 0
    """

    kind: str
    width: int
    height: int
    channels: int = 1
    bits: int = 8
    orientation: int = 1
    pages: int = 1
    white_is_zero: bool = False


def cut_short(what: str) -> InputError:
    return InputError(Reason.TRUNCATED, f"{what}; the copy was cut short, fetch the file again")


def damaged(what: str) -> InputError:
    return InputError(Reason.CANNOT_DECODE, f"{what}; the file is damaged, fetch it again")


def sniff_raster(head: bytes) -> str | None:
    """PNG, JPEG, TIFF or BMP by magic bytes."""
    if head.startswith(PNG_MAGIC):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(TIFF_MAGICS):
        return "TIFF"
    if (
        head.startswith(b"BM")
        and len(head) >= 18
        and struct.unpack_from("<I", head, 14)[0] in (12, 40, 52, 56, 64, 108, 124)
    ):
        return "BMP"
    return None


def walk(data: bytes) -> Container:
    """Container of a PNG, JPEG, TIFF or BMP file.

    Raises InputError: TRUNCATED if the file ends before its picture does, CANNOT_DECODE if its structure is broken.
    """
    walkers: dict[str | None, Callable[[bytes], Container]] = {
        "PNG": walk_png,
        "JPEG": walk_jpeg,
        "TIFF": walk_tiff,
        "BMP": walk_bmp,
    }
    kind = sniff_raster(data)
    if kind not in walkers:
        raise InputError(Reason.UNREADABLE, "neither PNG, JPEG, TIFF nor BMP")
    try:
        return walkers[kind](data)
    except (struct.error, IndexError) as error:
        raise cut_short(f"the {kind} header ends too early") from error


def walk_png(data: bytes) -> Container:
    """PNG chunks to IEND, checksums included (libpng would report a bad one on stderr only)."""
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    if data[12:16] != b"IHDR":
        raise damaged("PNG without IHDR")
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    orientation, pages, at = 1, 1, 8
    while True:
        if at + 12 > len(data):
            raise cut_short("the PNG ends before its end mark")
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise cut_short(f"the PNG ends inside {name.decode('latin-1')!r}")
        if name in (b"IHDR", b"PLTE", b"IDAT"):
            (stored,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != stored:
                raise damaged(f"the checksum of PNG chunk {name.decode()} is wrong")
        elif name == b"eXIf":
            orientation = exif_orientation(data[at + 8 : end - 4])
        elif name == b"acTL":
            (pages,) = struct.unpack_from(">I", data, at + 8)
        elif name == b"IEND":
            return Container("PNG", width, height, channels, bits, orientation, max(pages, 1))
        at = end


MOST_SCANS = 256  # each is a pass over the whole picture; progressive files have about ten
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # next marker after entropy-coded data with restart marks
_MARKER_OR_RESTART = re.compile(rb"\xff[^\x00\xff]")
_MARKER_JPEG_LS = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")  # a bit, not a zero byte, is stuffed after 0xFF
_AFTER_SCAN = frozenset({0xC4, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0), 0xF8})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # SOF0-15, and SOF55 of JPEG-LS


def walk_jpeg(data: bytes) -> Container:
    """JPEG (ISO 10918-1 Annex B) or JPEG-LS (ISO 14495-1 Annex C) markers from SOI to EOI; bytes may follow it."""
    width = height = channels = bits = 0
    orientation, restart, loco, at, scans = 1, 0, False, 2, 0
    while True:
        if at >= len(data):
            raise cut_short("the JPEG ends before its end mark")
        if data[at] != 0xFF:
            raise damaged(f"no JPEG marker at byte {at}")
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker == 0xD9:
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        if marker < 0xC0:
            raise damaged(f"a stray JPEG marker 0x{marker:02X} in the header")
        (length,) = struct.unpack_from(">H", data, at)
        if at + length > len(data):
            raise cut_short("the JPEG ends inside its header")
        if marker in _FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 2)
            loco = marker == 0xF7
        elif marker == 0xDD:
            (restart,) = struct.unpack_from(">H", data, at + 2)
        elif marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\x00\x00":
            orientation = exif_orientation(data[at + 8 : at + length])
        at += length
        if marker == 0xDA:
            scans += 1
            if scans > MOST_SCANS:
                raise damaged(f"a JPEG of more than {MOST_SCANS} scans")
            found = (_MARKER_JPEG_LS if loco else _MARKER if restart else _MARKER_OR_RESTART).search(data, at)
            if found is None:
                raise cut_short("the JPEG ends inside its picture")
            at = found.start()
            if data[at + 1] not in _AFTER_SCAN:
                raise damaged(f"a stray JPEG marker 0x{data[at + 1]:02X} inside the picture")
    if not (width and height and channels):
        raise damaged("a JPEG without a frame header")
    return Container("JPEG", width, height, channels, bits, orientation)


_TIFF_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}


def tiff_directory(data: bytes, at: int | None = None) -> tuple[dict[int, tuple[int, ...]], int]:
    """Integer tags of one TIFF directory (the first if `at` is None), and the offset of the next (0 at the end)."""
    end = {b"II": "<", b"MM": ">"}.get(data[:2])
    if end is None:
        raise damaged("a TIFF header of no known byte order")
    big = struct.unpack_from(end + "H", data, 2)[0] == 43
    if at is None:
        (at,) = struct.unpack_from(end + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(end + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    size, inline = (20, 8) if big else (12, 4)
    if count > 4096 or at + count * size > len(data):
        raise cut_short("the TIFF ends inside its directory")
    tags: dict[int, tuple[int, ...]] = {}
    for entry in range(at, at + count * size, size):
        tag, kind = struct.unpack_from(end + "HH", data, entry)
        (number,) = struct.unpack_from(end + ("Q" if big else "I"), data, entry + 4)
        code = _TIFF_TYPES.get(kind)
        if code is None or number * struct.calcsize(code) > len(data):
            continue
        value = entry + (12 if big else 8)
        if number * struct.calcsize(code) > inline:
            (value,) = struct.unpack_from(end + ("Q" if big else "I"), data, value)
        if value + number * struct.calcsize(code) > len(data):
            if tag in (273, 279, 324, 325):
                raise cut_short("the TIFF ends before its table of strips")
            continue
        tags[tag] = struct.unpack_from(f"{end}{number}{code}", data, value)
    following = at + count * size
    (after,) = struct.unpack_from(end + ("Q" if big else "I"), data, following)
    return tags, after


def _tiff_pages(data: bytes, after: int) -> Iterator[int]:
    seen: set[int] = set()
    while after and after not in seen and len(seen) < 1000:
        seen.add(after)
        try:
            _, after = tiff_directory(data, after)
        except (InputError, struct.error):
            return
        yield after


def walk_tiff(data: bytes) -> Container:
    """First directory of a TIFF 6.0 or BigTIFF file; every strip or tile of it must lie inside the file."""
    tags, after = tiff_directory(data)

    def first(tag: int, default: int) -> int:
        return (tags.get(tag) or (default,))[0]

    width, height = first(256, 0), first(257, 0)
    if not (width and height):
        raise damaged("a TIFF directory without a size")
    places, sizes = tags.get(273) or tags.get(324), tags.get(279) or tags.get(325)
    if not places:
        raise damaged("a TIFF directory without strips or tiles")
    if max(places) >= len(data) or (sizes and max(map(sum, zip(places, sizes, strict=False))) > len(data)):
        raise cut_short("the TIFF ends before its last strip")
    orientation = first(274, 1)
    return Container(
        "TIFF",
        width,
        height,
        channels=first(277, 1),
        bits=first(258, 1),
        orientation=orientation if 1 <= orientation <= 8 else 1,
        pages=1 + sum(1 for _ in _tiff_pages(data, after)),
        white_is_zero=first(262, 1) == 0,
    )


def walk_bmp(data: bytes) -> Container:
    """BITMAPCOREHEADER and BITMAPINFOHEADER families; uncompressed rows must lie inside the file."""
    offset, header = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
        height = abs(height)  # negative: rows run downwards
    if width <= 0 or height <= 0:
        raise damaged("a BMP without a size")
    if compression in (0, 3) and offset + ((width * bits + 31) // 32 * 4) * height > len(data):
        raise cut_short("the BMP ends before its last row")
    return Container("BMP", width, height, channels=max(1, bits // 8), bits=min(bits, 8))


def exif_orientation(exif: bytes) -> int:
    """Tag 274 of an EXIF block, which is a TIFF file of its own; 1 where it is absent or senseless."""
    try:
        tags, _ = tiff_directory(exif)
    except (InputError, struct.error):
        return 1
    value = (tags.get(274) or (1,))[0]
    return value if 1 <= value <= 8 else 1
