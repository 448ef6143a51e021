"""What can be done to PNG, JPEG, TIFF and BMP files and to the code streams in DICOM, and rasters that mean harm."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable

import reader_files as rf
from mutations_dicom import zeros_deflated

Mutation = Callable[[bytes, random.Random], bytes]
_EXTREMES = (0, 1, 2, 255, 256, 32767, 65535)


# --- PNG


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        found.append((name, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """With right checksums, whatever the chunks say."""
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def png_order(data: bytes, rng: random.Random) -> bytes:
    chunks = png_chunks(data)
    how = rng.randrange(4)
    if how == 0:
        rng.shuffle(chunks)
    elif how == 1:
        chunks.insert(rng.randrange(len(chunks) + 1), rng.choice(chunks))
    elif how == 2:
        del chunks[rng.randrange(len(chunks))]
    else:
        name = rng.choice(
            (b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"cHRM", b"gAMA", b"sBIT", b"IDAT", b"zTXt")
        )
        chunks.insert(rng.randrange(1, len(chunks) + 1), (name, rng.randbytes(rng.choice((0, 1, 8, 26, 768)))))
    return png(chunks)


def png_header(data: bytes, rng: random.Random) -> bytes:
    chunks = png_chunks(data)
    head = bytearray(chunks[0][1])
    if rng.random() < 0.5:
        struct.pack_into(
            ">I", head, rng.choice((0, 4)), rng.choice((0, 1, 64, 100, 5000, 20000, 0x7FFFFFFF, 0xFFFFFFFF))
        )
    else:
        head[rng.randrange(8, 13)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    return png([(chunks[0][0], bytes(head)), *chunks[1:]])


def png_stream(data: bytes, rng: random.Random) -> bytes:
    """Damage below the checksums: in the zlib stream, or in the filtered rows."""
    chunks = png_chunks(data)
    packed = b"".join(c for n, c in chunks if n == b"IDAT")
    if rng.random() < 0.5:
        out = bytearray(packed)
        for _ in range(rng.choice((1, 8))):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        packed = bytes(out)
    else:
        rows = zlib.decompress(packed)
        packed = zlib.compress(rng.choice((rows[: len(rows) // 2], rows + bytes(5000), b"", rng.randbytes(len(rows)))))
    return png([chunks[0], *(c for c in chunks[1:-1] if c[0] != b"IDAT"), (b"IDAT", packed), chunks[-1]])


PNG_KINDS: dict[str, Mutation] = {"PNG order": png_order, "PNG header": png_header, "PNG stream": png_stream}


# --- JPEG


def jpeg_segments(data: bytes) -> tuple[list[bytes], bytes]:
    """Segments between SOI and the first scan, and the rest."""
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = struct.unpack_from(">H", data, at + 2)[0]
        found.append(data[at : at + 2 + length])
        at += 2 + length
    return found, data[at:]


def jpeg_order(data: bytes, rng: random.Random) -> bytes:
    segments, rest = jpeg_segments(data)
    if not segments:
        return data
    how = rng.randrange(4)
    at = rng.randrange(len(segments))
    if how == 0:
        rng.shuffle(segments)
    elif how == 1:
        segments.insert(rng.randrange(len(segments) + 1), segments[at])
    elif how == 2:
        del segments[at]
    else:
        segments[at] = segments[at][:1] + bytes([rng.choice((*range(0xC0, 0xE2), 0xFE, 0x01))]) + segments[at][2:]
    return data[:2] + b"".join(segments) + rest


def jpeg_segment(data: bytes, rng: random.Random) -> bytes:
    """Bytes inside a segment of the header made extreme."""
    segments, rest = jpeg_segments(data)
    at = rng.randrange(len(segments)) if segments else 0
    if not segments or len(segments[at]) < 5:
        return data
    out = bytearray(segments[at])
    for _ in range(rng.choice((1, 1, 3))):
        out[rng.randrange(4, len(out))] = rng.choice((0, 1, 2, 3, 4, 8, 12, 16, 17, 0x44, 0xFF))
    segments[at] = bytes(out)
    return data[:2] + b"".join(segments) + rest


def jpeg_scans(data: bytes, rng: random.Random) -> bytes:
    """The last scan, if it is small, thousands of times; else once more."""
    at = data.rfind(b"\xff\xda")
    scan = data[at:-2] if at > 0 else b""
    times = min(rng.choice((2, 100, 4000)), max(1, 30_000_000 // max(1, len(scan))))
    return data[:-2] + scan * times + data[-2:]


JPEG_KINDS: dict[str, Mutation] = {"JPEG order": jpeg_order, "JPEG segment": jpeg_segment, "JPEG scans": jpeg_scans}


def code_stream_head(data: bytes, rng: random.Random) -> bytes:
    """A byte of the first 120 made extreme: sizes, tiles, components, tables of JPEG 2000, JPEG-LS, JPEG, RLE."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        out[rng.randrange(2, min(120, len(out)))] = rng.choice((0, 1, 2, 7, 8, 16, 0x20, 0x40, 0x7F, 0x80, 0xFE, 0xFF))
    return bytes(out)


CODE_STREAM_KINDS: dict[str, Mutation] = {"head of the stream": code_stream_head, "JPEG order": jpeg_order}


# --- TIFF and BMP


def tiff_entry(data: bytes, rng: random.Random) -> bytes:
    """An entry of the first directory with another tag, type, count or value."""
    order = "<" if data[:2] == b"II" else ">"
    at = struct.unpack_from(order + "I", data, 4)[0]
    count = struct.unpack_from(order + "H", data, at)[0]
    out, entry = bytearray(data), at + 2 + 12 * rng.randrange(count)
    how = rng.randrange(4)
    if how == 0:
        tags = (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339)
        struct.pack_into(order + "H", out, entry, rng.choice((*tags, 330, 700, 34675, 65535)))
    elif how == 1:
        struct.pack_into(order + "H", out, entry + 2, rng.randrange(20))
    elif how == 2:
        struct.pack_into(order + "I", out, entry + 4, rng.choice((0, 2, 1000, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF)))
    else:
        value = rng.choice((*_EXTREMES, 3, 5, 6, 7, 8, 34712, 50000, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF))
        struct.pack_into(order + "I", out, entry + 8, value)
    return bytes(out)


def tiff_next(data: bytes, rng: random.Random) -> bytes:
    """The directory after the first: itself, nowhere, or inside the pixels."""
    order = "<" if data[:2] == b"II" else ">"
    at = struct.unpack_from(order + "I", data, 4)[0]
    following = at + 2 + 12 * struct.unpack_from(order + "H", data, at)[0]
    out = bytearray(data)
    struct.pack_into(
        order + "I", out, following, rng.choice((at, 8, 9, following, len(data) - 5, 0x7FFFFFFF, 0xFFFFFFFF))
    )
    return bytes(out)


def bmp_header(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    at, width = rng.choice(
        ((10, "I"), (14, "I"), (18, "i"), (22, "i"), (26, "H"), (28, "H"), (30, "I"), (34, "I"), (46, "I"))
    )
    values = (-0x80000000, -100, -96, 0, 1, 2, 3, 4, 8, 16, 24, 32, 40, 108, 124, 5000, 0x7FFFFFFF)
    value = rng.choice(values)
    bits = 8 * struct.calcsize(width)
    struct.pack_into("<" + width.upper(), out, at, value & ((1 << bits) - 1))
    return bytes(out)


TIFF_KINDS: dict[str, Mutation] = {"TIFF entry": tiff_entry, "TIFF directories": tiff_next}
BMP_KINDS: dict[str, Mutation] = {"BMP header": bmp_header}


# --- made from nothing


def _png_bomb(side: int) -> bytes:
    body = zlib.compressobj(9)
    packed = b"".join(body.compress(bytes(side + 1)) for _ in range(side)) + body.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return png([(b"IHDR", head), (b"IDAT", packed), (b"IEND", b"")])


def _progressive(rng: random.Random) -> bytes:
    return jpeg_scans(rf.raster(rf.picture(1500, 1500), "JPEG", progressive=True), random.Random(rng.random()))


def hostile_rasters() -> dict[str, Callable[[random.Random], bytes]]:
    gray = rf.raster(rf.P8, "PNG")
    return {
        "PNG of 9,000 x 9,000 zeros": lambda _: _png_bomb(9000),
        "PNG that says 30,000 x 30,000": lambda _: rf.claims(gray, 30_000, 30_000),
        "PNG with text of 300 MB": lambda _: png(
            [
                png_chunks(gray)[0],
                (b"zTXt", b"k\0\0" + zeros_deflated(300, window=zlib.MAX_WBITS)),
                *png_chunks(gray)[1:],
            ]
        ),
        "JPEG that says 9,000 x 9,000": lambda _: rf.claims(rf.raster(rf.P8, "JPEG"), 9000, 9000),
        "JPEG of many scans": _progressive,
        "BMP that says 9,000 x 9,000": lambda _: rf.claims(rf.raster(rf.P8, "BMP"), 9000, 9000),
        "TIFF that says 9,000 x 9,000": lambda _: rf.claims(rf.tiff(rf.P8), 9000, 9000),
    }
