"""Code streams in DICOM: the first frame's, and what can be told of it before a decoder sees it."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.readers.containers import cut_short, damaged, walk_jpeg
from cxrvit_edge.readers.dicom_elements import UNDEFINED
from cxrvit_edge.readers.dicom_header import Header

NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"})
RLE = "1.2.840.10008.1.2.5"
JPEG = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})
JPEG_LOSSLESS = frozenset({"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"})
JPEG_LS = frozenset({"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"})
JPEG_2000 = frozenset({"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
HTJ2K = frozenset({"1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"})
MAX_FRAGMENTS = 100_000
MAX_SCANS = 256  # 10 or so are usual; one of 23 bytes has the decoder go through 10 megapixels again


def first_frame(data: bytes, start: int, frames: int) -> bytes:
    """Code stream of the first frame of encapsulated pixels (PS3.5 A.4); `start` is at the basic offset table.

    Raises InputError: TRUNCATED if a fragment runs over the file's end, CANNOT_DECODE if the items are broken.
    """
    fragments: list[tuple[int, int]] = []
    at, table = start, b""
    while True:
        if at + 8 > len(data):
            if len(fragments) > 1:
                break  # no end mark; the code stream's own end is checked by its decoder
            raise cut_short("the file ends inside its pixels")
        tag, length = struct.unpack_from("<II", data, at)  # encapsulation is always little endian
        if tag == 0xE0DDFFFE:
            break
        if tag != 0xE000FFFE or length == UNDEFINED:
            raise damaged("the items of the compressed pixels are broken")
        if at + 8 + length > len(data):
            raise cut_short("the file ends inside its pixels")
        fragments.append((at, length))
        if len(fragments) > MAX_FRAGMENTS:
            raise damaged(f"the compressed pixels are in more than {MAX_FRAGMENTS:,} pieces")
        at += 8 + length
    if not fragments:
        return b""
    table_at, table_length = fragments.pop(0)
    if frames > 1 and table_length >= 8:
        table = data[table_at + 8 : table_at + 8 + table_length]
        second = table_at + 8 + table_length + int(struct.unpack_from("<I", table, 4)[0])
        fragments = [fragment for fragment in fragments if fragment[0] < second]
    elif frames > 1:
        fragments = _frame_without_table(data, fragments, frames)
    if len(fragments) == 1:
        at, length = fragments[0]
        return data[at + 8 : at + 8 + length]
    return b"".join(data[at + 8 : at + 8 + length] for at, length in fragments)


def _frame_without_table(data: bytes, fragments: list[tuple[int, int]], frames: int) -> list[tuple[int, int]]:
    """A fragment a frame where the counts agree, else up to the first that ends in EOI or EOC (both 0xFFD9)."""
    if len(fragments) == frames:
        return fragments[:1]
    for number, (at, length) in enumerate(fragments):
        if data[at + 8 : at + 8 + length].rstrip(b"\x00").endswith(b"\xff\xd9"):
            return fragments[: number + 1]
    return fragments


def walk_frame(frame: bytes, header: Header) -> tuple[int, int]:
    """Bits and channels of a JPEG or JPEG-LS code stream that is whole and of the header's size."""
    if not frame.startswith(b"\xff\xd8"):
        raise damaged("the compressed pixels do not start as JPEG")
    if frame.count(b"\xff\xda") > MAX_SCANS:
        raise damaged(f"a JPEG of more than {MAX_SCANS} scans")
    try:
        stream = walk_jpeg(frame)
        if header.syntax in JPEG_LOSSLESS:
            check_lossless(frame)
    except (struct.error, IndexError):
        raise cut_short("the JPEG ends inside its header") from None
    same_size(stream.width, stream.height, header)
    units = (
        header.rows * header.columns
        if header.syntax in JPEG_LOSSLESS
        else -(-header.rows // 8) * -(-header.columns // 8)
    )
    if header.syntax not in JPEG_LS and 8 * len(frame) < units:  # a bit a sample, or a block, at the least
        raise cut_short("the JPEG is too short for its picture")
    return stream.bits, stream.channels


def check_lossless(frame: bytes) -> None:
    """Holds the header of a lossless JPEG, process 14 (ISO 10918-1 Annex H), to the standard.

    gdcm ends the whole process on some that are not. Raises InputError: CANNOT_DECODE, TRUNCATED.
    """
    at, tables, bits, components = 2, set[int](), 0, set[int]()
    while True:
        mark, marker, length = struct.unpack_from(">BBH", frame, at)
        body = frame[at + 4 : at + 2 + length]
        if mark != 0xFF or length != len(body) + 2:
            raise damaged("the header of the lossless JPEG is broken")
        if marker == 0xC3 and not bits and len(body) >= 9:
            bits, count = body[0], body[5]
            components = set(body[6::3])
            good = 2 <= bits <= 16 and count in (1, 3) and len(body) == 6 + 3 * count and len(components) == count
            good = good and set(body[7::3]) == {0x11}
        elif marker == 0xC4:
            good = bool(body)
            while body and good:
                codes, room = body[1:17], sum(n << (16 - i) for i, n in enumerate(body[1:17], 1))
                symbols = body[17 : 17 + sum(codes)]
                good = body[0] < 4 and len(codes) == 16 and 0 < len(symbols) == sum(codes) and room <= 65536
                good = good and max(symbols) <= 16 and len(set(symbols)) == len(symbols)
                tables.add(body[0])
                body = body[17 + sum(codes) :]
        elif marker == 0xDA:
            count = body[0] if body else 0
            good = bool(bits) and len(body) == 4 + 2 * count and set(body[1:-3:2]) == components
            good = good and {table >> 4 for table in body[2:-3:2]} <= tables and 1 <= body[-3] <= 7
            if good and body[-1] & 15 < bits:
                return
            good = False
        else:
            good = marker in (0xDB, 0xDD, 0xFE) or 0xE0 <= marker <= 0xEF
        if not good:
            raise damaged(f"the lossless JPEG has a marker 0x{marker:02X} that makes no sense")
        at += 2 + length


def same_size(width: int, height: int, header: Header) -> None:
    """A stream larger than its header would be decoded past the limits that the header was held to."""
    if (width, height) != (header.columns, header.rows):
        raise damaged(f"the code stream is {width} x {height}, its header says {header.columns} x {header.rows}")


def walk_jpeg_2000(frame: bytes, header: Header) -> tuple[int, int]:
    """Components, and bits less one (128 more if signed), of a code stream of the header's size that has all its tiles.

    ISO 15444-1 Annex A. Decoders fill a tile that is not there with gray.
    """
    at = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # SOC and SIZ, at 0 unless wrapped in a JP2 header
    if at < 0 or at + 42 > len(frame):
        raise damaged("the compressed pixels do not start as JPEG 2000")
    right, bottom, left, top, width, height, tile_left, tile_top, channels, depth = struct.unpack_from(
        ">8IHB", frame, at + 8
    )
    same_size(right - left, bottom - top, header)
    if channels not in (1, 3):
        raise damaged(f"JPEG 2000 of {channels} components")
    if not frame.rstrip(b"\x00").endswith(b"\xff\xd9"):
        raise cut_short("the JPEG 2000 stream ends before its end mark")
    if not (width and height and tile_left <= left and tile_top <= top):
        raise damaged("the tiles of the JPEG 2000 stream make no sense")
    tiles = -(-(right - tile_left) // width) * -(-(bottom - tile_top) // height)
    try:
        found = _tiles(frame, at + 2)
    except struct.error:
        raise cut_short("the JPEG 2000 stream ends inside a tile") from None
    if len(found) != tiles:
        raise cut_short(f"the JPEG 2000 stream has {len(found)} of {tiles} tiles")
    return channels, depth


def _tiles(frame: bytes, at: int) -> set[int]:
    """Indices of the tiles whose parts follow one another from the main header on; struct.error if the stream ends."""
    found: set[int] = set()
    while frame[at : at + 2] != b"\xff\xd9":
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker != 0xFF90:  # the main header
            if found or length < 2 or marker < 0xFF00:
                raise damaged("something else where a tile of the JPEG 2000 stream should be")
            at += 2 + length
            continue
        tile, size = struct.unpack_from(">HI", frame, at + 4)
        found.add(tile)
        if size == 0:  # up to the end of the stream
            return found
        if size < 14:
            raise damaged("a tile of the JPEG 2000 stream without a length")
        at += size
    return found


def unpack_rle(frame: bytes, header: Header) -> NDArray[Any]:
    """(H, W, samples) of PS3.5 Annex G. Nothing is unpacked past the picture's end: 2 bytes may stand for 128.

    Raises InputError: TRUNCATED, CANNOT_DECODE.
    """
    if len(frame) < 64:
        raise cut_short("the RLE frame ends inside its header")
    count, *starts = struct.unpack_from("<16I", frame)
    width = header.allocated // 8
    if header.allocated not in (8, 16, 32) or count != header.samples * width:
        raise damaged(f"{count} RLE segments do not go with {header.samples} samples of {header.allocated} bits")
    size = header.rows * header.columns
    ends = [*starts[1:count], len(frame)]
    planes = [_unpack_bits(frame[start:end], size) for start, end in zip(starts, ends, strict=False)]
    words = np.empty((header.rows, header.columns, header.samples, width), np.uint8)
    for place, plane in enumerate(planes):  # the most significant byte of each sample comes first
        words[..., place // width, width - 1 - place % width] = np.frombuffer(plane, np.uint8).reshape(words.shape[:2])
    return words.view(f"<u{width}")[..., 0]


def _unpack_bits(packed: bytes, size: int) -> bytearray:
    """PackBits to exactly `size` bytes. Raises InputError: TRUNCATED if it holds fewer."""
    out, at, end, held = bytearray(), 0, len(packed) - 1, 0
    while at < end and held < size:
        code = packed[at]
        if code < 128:
            out += packed[at + 1 : at + 2 + code]
            at += 2 + code
            held += 1 + code
        else:
            if code > 128:
                out += packed[at + 1 : at + 2] * (257 - code)
                held += 257 - code
                at += 2
            else:
                at += 1
    if len(out) < size:
        raise cut_short("an RLE segment ends early")
    del out[size:]
    return out
