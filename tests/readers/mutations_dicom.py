"""What can be done to a DICOM file in particular, and DICOM files that mean harm."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pydicom
import reader_files as rf

UNDEFINED = 0xFFFFFFFF
_LONG = (b"OB", b"OW", b"OF", b"OD", b"SQ", b"UN", b"UT", b"UC", b"UR", b"OL", b"OV", b"SV", b"UV")
_VRS = [
    *_LONG,
    b"US",
    b"SS",
    b"UL",
    b"SL",
    b"FL",
    b"FD",
    b"AT",
    b"DS",
    b"IS",
    b"CS",
    b"LO",
    b"UI",
    b"PN",
    b"ZZ",
    b"\0\0",
]
_FORMAT = ((0x28, 2), (0x28, 6), (0x28, 0x10), (0x28, 0x11), (0x28, 0x100), (0x28, 0x101), (0x28, 0x102), (0x28, 0x103))
_USED = (
    *((0x28, 4), (0x28, 0x120), (0x28, 0x121), (0x28, 0x1050), (0x28, 0x1051), (0x28, 0x1052), (0x28, 0x1053)),
    *(
        (0x28, 0x1056),
        (0x20, 0x20),
        (0x18, 0x5101),
        (0x18, 0x15),
        (8, 0x60),
        (8, 0x16),
        (0x2050, 0x20),
        (0x6000, 0x102),
    ),
)
_SYNTAXES = [
    *(
        rf.IMPLICIT,
        rf.EXPLICIT,
        rf.DEFLATED,
        rf.BIG_ENDIAN,
        rf.RLE,
        rf.JPEG_BASELINE,
        rf.JPEG_EXTENDED,
        rf.JPEG_LOSSLESS,
    ),
    *(rf.JPEG_LOSSLESS_SV1, rf.JPEG_LS, rf.JPEG_LS_NEAR, rf.J2K_LOSSLESS, rf.J2K),
    *("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.7", "9.9.9", "", "not a UID"),
]
Element = tuple[int, int, int]  # start, start of the value, end


def elements(data: bytes) -> list[Element]:
    """Top-level elements of a little endian file with preamble, up to its pixels, as far as they make sense."""
    found, at = [], 132
    while at + 12 <= len(data):
        group = struct.unpack_from("<H", data, at)[0]
        vr = data[at + 4 : at + 6]
        if vr in _LONG:
            value, length = at + 12, struct.unpack_from("<I", data, at + 8)[0]
        elif vr.isalpha() and vr.isupper():
            value, length = at + 8, struct.unpack_from("<H", data, at + 6)[0]
        else:
            value, length = at + 8, struct.unpack_from("<I", data, at + 4)[0]
        if length == UNDEFINED or value + length > len(data):
            found.append((at, value, value))
            break
        found.append((at, value, value + length))
        if group == 0x7FE0:
            break
        at = value + length
    return found


def _replaced(data: bytes, element: Element, new: bytes) -> bytes:
    return data[: element[0]] + new + data[element[2] :]


def _some(data: bytes, rng: random.Random) -> Element:
    return rng.choice(elements(data) or [(0, min(8, len(data)), min(8, len(data)))])


def _insert(data: bytes, rng: random.Random, new: bytes) -> bytes:
    """Before an element behind the meta group."""
    places = [at for at, _, _ in elements(data) if data[at : at + 2] != b"\x02\x00"] or [len(data)]
    at = rng.choice(places)
    return data[:at] + new + data[at:]


def swap_tags(data: bytes, rng: random.Random) -> bytes:
    a, b = _some(data, rng), _some(data, rng)
    out = bytearray(data)
    out[a[0] : a[0] + 4], out[b[0] : b[0] + 4] = data[b[0] : b[0] + 4], data[a[0] : a[0] + 4]
    return bytes(out)


def change_vr(data: bytes, rng: random.Random) -> bytes:
    at, _, _ = _some(data, rng)
    return data[: at + 4] + rng.choice(_VRS) + data[at + 6 :]


def change_length(data: bytes, rng: random.Random) -> bytes:
    at, value, end = _some(data, rng)
    length = rng.choice((0, 1, end - value + 1, max(0, end - value - 1), 0xFFFE, 0xFFFF, 0x7FFFFFFF, UNDEFINED))
    if value - at == 8 and data[at + 4 : at + 6].isalpha():
        return data[: at + 6] + struct.pack("<H", length & 0xFFFF) + data[at + 8 :]
    return data[: value - 4] + struct.pack("<I", length) + data[value:]


def drop_elements(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randrange(1, 4)):
        data = _replaced(data, _some(data, rng), b"")
    return data


def shuffle_elements(data: bytes, rng: random.Random) -> bytes:
    found = elements(data)
    pieces = [data[a:c] for a, _, c in found]
    rng.shuffle(pieces)
    return data[:132] + b"".join(pieces) + data[found[-1][2] :] if found else data


def change_format(data: bytes, rng: random.Random) -> bytes:
    """A value of the pixel description made something else."""
    tags = {struct.pack("<HH", *tag) for tag in _FORMAT}
    places = [e for e in elements(data) if data[e[0] : e[0] + 4] in tags and e[2] - e[1] == 2]
    for _, value, end in rng.sample(places, min(len(places), rng.choice((1, 1, 2)))):
        new = rng.choice((0, 1, 2, 3, 4, 7, 8, 10, 12, 15, 16, 17, 32, 64, 95, 97, 255, 256, 4096, 32768, 65535))
        data = data[:value] + struct.pack("<H", new) + data[end:]
    return data


def change_syntax(data: bytes, rng: random.Random) -> bytes:
    for element in elements(data):
        if data[element[0] : element[0] + 4] == b"\x02\x00\x10\x00":
            uid = rng.choice(_SYNTAXES).encode()
            uid += b"\x00" * (len(uid) % 2)
            return _replaced(data, element, b"\x02\x00\x10\x00UI" + struct.pack("<H", len(uid)) + uid)
    return data


def _short(tag: tuple[int, int], vr: bytes, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    return struct.pack("<HH2sH", *tag, vr, len(value) & 0xFFFF) + value


def frames(data: bytes, rng: random.Random) -> bytes:
    number = rng.choice((b"0", b"2", b"7", b"999", b"1001", b"99999999999", b"-3", b"1.5", b"nan", b"two", b"1e300"))
    return _insert(data, rng, _short((0x28, 8), b"IS", number))


def odd_values(data: bytes, rng: random.Random) -> bytes:
    """An element that the reader uses, once more, with a value that makes no sense."""
    tag = rng.choice(_USED)
    value = rng.choice(
        (b"", b"\\\\\\", b"nan", b"inf", b"-1e308", b"1e-320", b"R\\F", b"A\\F", b"\xff" * 8, b"\x00" * 8, b"x" * 3000)
    )
    vr = rng.choice((b"DS", b"US", b"SS", b"CS", b"FD", b"IS", b"LO", b"SL"))
    return _insert(data, rng, _short(tag, vr, value))


def charset(data: bytes, rng: random.Random) -> bytes:
    sets = rng.choice(
        (b"ISO_IR 100", b"ISO 2022 IR 87\\ISO_IR 192", b"GB18030", b"nonsense", b"\xff\xfe", b"\\ISO 2022 IR 149")
    )
    words = bytes(rng.choice((0x1B, 0x24, 0x42, 0x28, 0x4A, 0xFF, 0x80, 0x5C, rng.randrange(256))) for _ in range(60))
    return _insert(_insert(data, rng, _short((8, 0x1030), b"LO", words)), rng, _short((8, 5), b"CS", sets))


def private(data: bytes, rng: random.Random) -> bytes:
    new = b""
    for _ in range(rng.choice((1, 30, 1000))):
        value = rng.randbytes(rng.randrange(0, 40))
        vr = rng.choice((b"OB", b"UN", b"UT", b"SQ"))
        length = rng.choice((len(value), len(value), len(value), UNDEFINED, 0))
        new += struct.pack("<HH2sHI", 0x0029, rng.randrange(0x1000, 0xFFFF), vr, 0, length) + value
    return _insert(data, rng, new)


def nested(depth: int, tag: tuple[int, int], defined: bool) -> bytes:
    """Sequences in sequences, explicit little endian."""
    if not defined:
        opening = struct.pack("<HH2sHI", *tag, b"SQ", 0, UNDEFINED) + struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)
        closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        return opening * depth + closing * depth
    heads = []
    for level in range(depth):
        inside = 20 * level
        heads.append(struct.pack("<HH2sHI", *tag, b"SQ", 0, inside + 8) + struct.pack("<HHI", 0xFFFE, 0xE000, inside))
    return b"".join(reversed(heads))


def nest(data: bytes, rng: random.Random) -> bytes:
    tag = rng.choice(((0x54, 0x220), (0x28, 0x3000), (0x28, 0x3010), (8, 0x1111), (0x29, 0x1010)))
    return _insert(data, rng, nested(rng.choice((2, 10, 32, 33, 100, 1000, 100_000)), tag, rng.random() < 0.5))


def fragments(data: bytes, rng: random.Random) -> bytes:
    """An item of the compressed pixels, or of any sequence, with a wrong tag or length."""
    places = [at for at in range(132, len(data) - 8) if data[at : at + 4] == b"\xfe\xff\x00\xe0"]
    if not places:
        return change_length(data, rng)
    at = rng.choice(places[:8])
    if rng.random() < 0.3:
        return data[:at] + rng.choice((b"\xfe\xff\xdd\xe0", b"\xfe\xff\x0d\xe0", rng.randbytes(4))) + data[at + 4 :]
    length = rng.choice((0, 1, 2, 4, 7, 100, 0xFFFF, 0x7FFFFFFF, UNDEFINED))
    extra = rng.randbytes(length) if length < 200 and rng.random() < 0.5 else b""
    return data[: at + 4] + struct.pack("<I", length) + extra + data[at + 8 :]


DICOM_KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "tags swapped": swap_tags,
    "VR changed": change_vr,
    "length changed": change_length,
    "elements removed": drop_elements,
    "elements shuffled": shuffle_elements,
    "pixel format": change_format,
    "transfer syntax": change_syntax,
    "frames": frames,
    "odd values": odd_values,
    "character set": charset,
    "private garbage": private,
    "nested sequences": nest,
    "items": fragments,
}


def _around(header: bytes) -> bytes:
    """A whole explicit file with this at the end of its header."""
    whole = rf.part10(rf.data_set(rf.P8))
    at = whole.index(b"\xe0\x7f\x10\x00")
    return whole[:at] + header + whole[at:]


def _bomb(_: random.Random) -> bytes:
    """Some 700 KB that unpack to 700 MB."""
    whole = rf.part10(rf.data_set(rf.P8), rf.DEFLATED)
    return whole[: 144 + struct.unpack_from("<I", whole, 140)[0]] + zeros_deflated(
        700, b"\x29\x00\x10\x10UN\0\0\0\0\0\x2c"
    )


def zeros_deflated(megabytes: int, start: bytes = b"", window: int = -zlib.MAX_WBITS) -> bytes:
    """A deflated stream of some bytes and so many megabytes of zeros; quick, as one megabyte is packed and repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, window)
    head = packer.compress(start + bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + piece * (megabytes - 1) + packer.flush()


def _many_frames(rng: random.Random) -> bytes:
    ds = rf.data_set(rf.P12, BitsStored=12)
    count = rng.choice((2, 1001, 5000))
    return rf.compressed(ds, rf.JPEG_LS, [rf.jpeg_ls_stream(rf.P12, 12)] * count, table=rng.random() < 0.5)


def _lying_table(rng: random.Random) -> bytes:
    data = bytearray(rf.compressed(rf.data_set(rf.P12, BitsStored=12), rf.JPEG_LS, [rf.jpeg_ls_stream(rf.P12, 12)] * 3))
    at = data.index(b"\xfe\xff\x00\xe0") + 8
    struct.pack_into("<III", data, at, *(rng.choice((0, 1, 8, 0x7FFFFFFF, UNDEFINED)) for _ in range(3)))
    return bytes(data)


def _wide(pixels: int, side: tuple[int, int], **tags: int) -> bytes:
    ds = rf.data_set(np.zeros((64, 64), np.uint16), **tags)
    ds.Rows, ds.Columns = side
    ds.PixelData = bytes(pixels)
    return rf.part10(ds)


def _lookup(rng: random.Random) -> bytes:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [rng.choice((0, 1, 4096)), rng.choice((0, 65535)), rng.choice((0, 8, 16, 99))])
    item.add_new("LUTData", "OW", rng.randbytes(rng.choice((0, 3, 8192))))
    item.ModalityLUTType = "HU"
    return rf.part10(rf.data_set(rf.P12, BitsStored=12, ModalityLUTSequence=pydicom.Sequence([item])))


def _stream(syntax: str, stream: bytes, side: int) -> bytes:
    ds = rf.data_set(np.zeros((1, 1), np.uint8))
    ds.Rows = ds.Columns = side
    return rf.compressed(ds, syntax, [stream])


def _scans() -> bytes:
    stream = rf.raster(np.zeros((2000, 2000), np.uint8), "JPEG", progressive=True)
    return stream[:-2] + stream[stream.rfind(b"\xff\xda") : -2] * 20_000 + stream[-2:]


def _no_tiles(rng: random.Random) -> bytes:
    stream = bytearray(rf.j2k_stream(np.zeros((2000, 2000), np.uint8), 8))
    side = rng.choice((1, 10, 100, 1999))
    struct.pack_into(">II", stream, stream.index(b"\xff\x51") + 22, side, side)
    return _stream(rf.J2K, bytes(stream), 2000)


def hostile_dicom() -> dict[str, Callable[[random.Random], bytes]]:
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    empty = b"".join(struct.pack("<HH2sH", 0x29, n % 65536, b"LO", 0) for n in range(300_000)) * 4
    encapsulated = rf.compressed(rf.data_set(rf.P8), rf.JPEG_BASELINE, [rf.raster(rf.P8, "JPEG")])
    at = encapsulated.index(item[:4])
    return {
        "deflate bomb": _bomb,
        "100,000 sequences deep": lambda _: _around(nested(100_000, (8, 0x1111), False)),
        "1,000 deep in a sequence that is read": lambda _: _around(nested(1000, (0x54, 0x220), True)),
        "1,200,000 elements": lambda _: _around(empty),
        "a million items": lambda _: _around(
            struct.pack("<HH2sHI", 0x54, 0x220, b"SQ", 0, UNDEFINED) + item * 1_000_000
        ),
        "a million fragments": lambda _: encapsulated[:at] + item * 1_000_000 + encapsulated[at:],
        "thousands of frames": _many_frames,
        "an offset table that lies": _lying_table,
        "huge and empty": lambda _: _wide(100, (65535, 65535)),
        "large and empty": lambda _: _wide(100, (9000, 9000)),
        "large zeros": lambda _: _wide(2 * 3000 * 3000, (3000, 3000)),
        "64 bits": lambda _: _wide(8 * 4096, (64, 64), BitsAllocated=64, BitsStored=64, HighBit=63),
        "32 bits": lambda _: _wide(
            4 * 4096, (64, 64), BitsAllocated=32, BitsStored=29, HighBit=31, PixelRepresentation=1
        ),
        "1 bit": lambda _: _wide(512, (64, 64), BitsAllocated=1, BitsStored=1, HighBit=0),
        "lookup table": _lookup,
        "RLE bomb": lambda _: _stream(rf.RLE, struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * 5_000_000, 64),
        "20,000 JPEG scans": lambda _: _stream(rf.JPEG_EXTENDED, _scans(), 2000),
        "JPEG 2000 without its tiles": _no_tiles,
        "large JPEG-LS of nothing": lambda _: _stream(
            rf.JPEG_LS, rf.jpeg_ls_stream(np.zeros((5000, 5000), np.uint8), 8), 5000
        ),
    }
