"""The stored pixels of a DICOM image's first frame, one decoder a transfer syntax.

Times are of a 3.6 megapixel 15-bit chest (JPEG 2000, JPEG-LS), a 3.1 megapixel 10-bit one (lossless JPEG) and a 1.0
megapixel 8-bit one (baseline), one thread, all with identical pixels:

    baseline JPEG    cv2 1.6 ms (frees the GIL), gdcm 7.2 ms
    lossless JPEG    gdcm 51 ms (the only one without pylibjpeg-libjpeg, which is GPL)
    JPEG-LS          pyjpegls 90 ms, gdcm 154 ms
    JPEG 2000        cv2 111 ms (frees the GIL), openjpeg 118 ms, gdcm 148 ms; cv2 refuses signed samples
    RLE              unpacked here in 17.6 ms, which stops at the picture's end; pydicom 16.2 ms (0.9 megapixel)
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.readers.code_streams import (
    HTJ2K,
    JPEG,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    NATIVE,
    RLE,
    first_frame,
    unpack_rle,
    walk_frame,
    walk_jpeg_2000,
)
from cxrvit_edge.readers.containers import cut_short, damaged
from cxrvit_edge.readers.dicom_elements import UNDEFINED
from cxrvit_edge.readers.dicom_header import Header
from cxrvit_edge.readers.quiet import quiet_cv2, quiet_pydicom

ASK = "ask the sender for uncompressed or lossless JPEG"


def decode_first_frame(data: bytes, at: int, header: Header) -> NDArray[Any]:
    """Stored words (H, W) of the first frame, or (H, W, 3) B, G, R of a colour one; the pixel element starts at `at`.

    Words are as allocated (1, 2, 4 bytes; 4 or 8 for float pixel data), high bits untouched, sign not yet interpreted;
    perhaps a read-only view of `data`.
    Raises InputError: NO_PIXELS, TRUNCATED, CANNOT_DECODE.
    """
    start, length, kind = find_value(data, at, header.little_endian)
    if header.syntax in NATIVE:
        if length == UNDEFINED:
            raise damaged("the pixels are encapsulated, but the transfer syntax says uncompressed")
        return _native(data, start, length, kind, header)
    if length != UNDEFINED:
        raise damaged("the transfer syntax says compressed, but the pixels are not encapsulated")
    frame = first_frame(data, start, header.frames)
    if not frame:
        raise InputError(Reason.NO_PIXELS, "the pixel element is empty; send the image object again")
    if header.syntax in JPEG:
        words = _jpeg(frame, header)
    elif header.syntax in JPEG_LOSSLESS:
        walk_frame(frame, header)
        words = _pydicom(frame, header, "gdcm")
    elif header.syntax in JPEG_LS:
        walk_frame(frame, header)
        words = _jpeg_ls(frame) if header.samples == 1 else _pydicom(frame, header, "pyjpegls")
    elif header.syntax in JPEG_2000 | HTJ2K:
        words = _jpeg_2000(frame, header)
    elif header.syntax == RLE:
        words = unpack_rle(frame, header)
        words = words[..., 0] if header.samples == 1 else _to_bgr(words, header)
    else:
        name = header.syntax_name or "of no known name"
        raise InputError(Reason.CANNOT_DECODE, f"transfer syntax {name} is not read here; {ASK}")
    if words.shape[:2] != (header.rows, header.columns):
        raise damaged(
            f"the picture is {words.shape[1]} x {words.shape[0]}, its header says {header.columns} x {header.rows}"
        )
    return words


def find_value(data: bytes, at: int, little: bool) -> tuple[int, int, int]:
    """Start and length of the pixel element at `at`, and its element number (0x0010 integer, 8 float, 9 double float).

    Raises InputError: NO_PIXELS if the data set has ended there, TRUNCATED if the element's header is cut.
    """
    end = "<" if little else ">"
    if at + 8 > len(data):
        raise InputError(Reason.NO_PIXELS, "the object has no pixels; send the image object again")
    group, element = struct.unpack_from(end + "HH", data, at)
    if group != 0x7FE0:
        raise InputError(Reason.NO_PIXELS, "the object has no pixels; send the image object again")
    if data[at + 4 : at + 6] in (b"OB", b"OW", b"OF", b"OD", b"UN", b"OV", b"OL"):
        if at + 12 > len(data):
            raise cut_short("the file ends before its pixels")
        (length,) = struct.unpack_from(end + "I", data, at + 8)
        return at + 12, length, element
    (length,) = struct.unpack_from(end + "I", data, at + 4)
    return at + 8, length, element


def _native(data: bytes, start: int, length: int, element: int, header: Header) -> NDArray[Any]:
    end = "<" if header.little_endian else ">"
    code = {8: "f4", 9: "f8"}.get(element) or {8: "u1", 16: "u2", 32: "u4"}.get(header.allocated)
    if code is None:
        raise InputError(Reason.CANNOT_DECODE, f"{header.allocated} bits allocated are not read here; {ASK}")
    dtype = np.dtype(end + code)
    count = header.rows * header.columns * header.samples
    needed = count * dtype.itemsize
    if header.photometric == "YBR_FULL_422":
        raise InputError(Reason.COLOUR, "a colour picture, not a radiograph; send the gray original")
    if length < needed:
        raise cut_short(f"the pixel element holds {length:,} bytes and needs {needed:,}")
    if start + needed > len(data):
        raise cut_short("the file ends inside its pixels")
    words = np.frombuffer(data, dtype, count=count, offset=start)
    if code == "u1" and end == ">" and data[start - 12 + 4 : start - 12 + 6] == b"OW":
        even = np.frombuffer(data, ">u2", count=min(length, len(data) - start) // 2, offset=start)
        words = even.astype("<u2").view(np.uint8)[:count]  # bytes of a big endian word are swapped (PS3.5 8.1.2)
    if not (words.dtype.isnative and words.flags.aligned):
        words = words.astype(dtype.newbyteorder("="))
    if header.samples == 1:
        return words.reshape(header.rows, header.columns)
    if header.samples != 3:
        raise damaged(f"{header.samples} samples a pixel")
    planes = words.reshape(3, header.rows, header.columns) if header.planar == 1 else None
    colour = words.reshape(header.rows, header.columns, 3) if planes is None else planes.transpose(1, 2, 0)
    return _to_bgr(np.ascontiguousarray(colour), header)


def _jpeg(frame: bytes, header: Header) -> NDArray[Any]:
    bits, channels = walk_frame(frame, header)
    if bits != 8:
        # gdcm claims 12 bits, but does not give back what it has encoded itself (errors over the full range)
        raise InputError(Reason.CANNOT_DECODE, f"JPEG of {bits} bits cannot be decoded here; {ASK}")
    if channels == 3 and header.photometric == "RGB":
        return _pydicom(frame, header, "gdcm")  # libjpeg would take unmarked RGB for YCbCr
    cv2 = quiet_cv2()
    words = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_UNCHANGED)
    if words is None:
        raise InputError(Reason.CANNOT_DECODE, f"the JPEG of the pixels cannot be decoded; {ASK}")
    return words


def _jpeg_ls(frame: bytes) -> NDArray[Any]:
    import jpeg_ls  # type: ignore[import-untyped]

    decoded, info = jpeg_ls.decode_buffer(frame)
    if info["components"] != 1:
        raise damaged(f"JPEG-LS of {info['components']} components, its header says 1")
    dtype = np.dtype(np.uint8) if info["bits_per_sample"] <= 8 else np.dtype("<u2")
    return np.frombuffer(decoded, dtype).reshape(info["height"], info["width"])


def _jpeg_2000(frame: bytes, header: Header) -> NDArray[Any]:
    channels, depth = walk_jpeg_2000(frame, header)
    unsigned = not depth & 0x80
    words = None
    if header.syntax in JPEG_2000 and channels == 1 and unsigned and depth < 16:
        cv2 = quiet_cv2()
        words = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_UNCHANGED)
    if words is None:
        import openjpeg

        words = openjpeg.decode(frame)
    if words.ndim == 3:
        if words.shape[2] != 3 or not unsigned:
            raise damaged("JPEG 2000 of signed colours")
        return _to_bgr(words, header)
    return words.view(f"u{words.dtype.itemsize}")


def _pydicom(frame: bytes, header: Header, plugin: str) -> NDArray[Any]:
    """The frame through one of pydicom's decoder plugins: (H, W) as stored, or (H, W, 3) B, G, R."""
    from pydicom.pixels import get_decoder

    padded = frame + b"\x00" * (len(frame) % 2)
    item = struct.pack("<II", 0xE000FFFE, 0)
    item += struct.pack("<II", 0xE000FFFE, len(padded)) + padded + struct.pack("<II", 0xE0DDFFFE, 0)
    options: dict[str, Any] = {
        "rows": header.rows,
        "columns": header.columns,
        "samples_per_pixel": header.samples,
        "photometric_interpretation": header.photometric,
        "bits_allocated": header.allocated,
        "bits_stored": header.stored,
        "pixel_representation": int(header.signed),
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
    if header.samples > 1:
        options["planar_configuration"] = header.planar
    with quiet_pydicom():
        words, _ = get_decoder(header.syntax).as_array(item, index=0, raw=True, decoding_plugin=plugin, **options)
    if words.ndim == 3:
        return _to_bgr(words, header)
    return words.view(f"u{words.dtype.itemsize}")


def _to_bgr(colour: NDArray[Any], header: Header) -> NDArray[Any]:
    """(H, W, 3) of the header's photometric interpretation to B, G, R; uint8 or uint16."""
    cv2 = quiet_cv2()
    if colour.dtype not in (np.uint8, np.uint16):
        raise InputError(Reason.CANNOT_DECODE, f"colour of {header.allocated} bits is not read here; {ASK}")
    if header.photometric in ("RGB", "YBR_RCT", "YBR_ICT"):  # JPEG 2000 decoders undo the component transforms
        return cv2.cvtColor(np.ascontiguousarray(colour), cv2.COLOR_RGB2BGR)
    if header.photometric == "YBR_FULL":
        return cv2.cvtColor(np.ascontiguousarray(colour[..., [0, 2, 1]]), cv2.COLOR_YCrCb2BGR)
    raise InputError(Reason.COLOUR, f"colour coding {header.photometric or 'unnamed'}; send the gray original")
