"""DICOM bytes to a Radiograph: header first, pixels only of what the header does not turn away."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.radiograph import Limits, Radiograph, View
from cxrvit_edge.readers.colour import to_gray
from cxrvit_edge.readers.containers import cut_short, damaged
from cxrvit_edge.readers.dicom_elements import Elements, gives_vr
from cxrvit_edge.readers.dicom_header import Header, extract
from cxrvit_edge.readers.dicom_pixels import ASK, decode_first_frame
from cxrvit_edge.readers.dicom_scope import check_body_part, check_object, is_radiograph
from cxrvit_edge.readers.grayscale import check_format, present
from cxrvit_edge.readers.orientation import must_mirror
from cxrvit_edge.readers.raster import check_size
from cxrvit_edge.readers.views import unusual_view, view_from_text

_PACKED, _UNPACKED, _KEPT = 1 << 16, 1 << 20, 1 << 26  # bytes taken at once, given at once, kept in the first pass
_BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"


def sniff_dicom(head: bytes, *, implicit: bool = True) -> bool:
    """Whether these first bytes are a DICOM file, or a data set without preamble that starts in group 0002 or 0008.

    implicit: whether a first element without VR counts.
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 16:
        return False
    for end in "<>":
        group, element = struct.unpack_from(end + "HH", head)
        if group not in (2, 8) or element > 0x2000 or (group == 2 and end == ">"):
            continue
        if head[4:6].isalpha() and head[4:6].isupper() and head[4:6].isascii():
            return True
        (length,) = struct.unpack_from(end + "I", head, 4)
        if implicit and end == "<" and length <= 1024 and length % 2 == 0:
            return True
    return False


def decode_dicom(data: bytes, limits: Limits) -> Radiograph:
    """Radiograph of a DICOM image object, from the bytes of its file.

    Raises InputError: WRONG_OBJECT, WRONG_MODALITY, WRONG_BODY_PART, LATERAL_VIEW, ROTATED, TOO_LARGE, TOO_SMALL from
    the header alone; then NO_PIXELS, TRUNCATED, CANNOT_DECODE, COLOUR; UNREADABLE for a broken data set.
    """
    header, data, at = read_header(data, limits)
    class_name = "" if is_radiograph(header.sop_class) else header.class_name
    warnings = check_object(header.modality, header.sop_class, class_name)
    warnings += check_body_part(header.body_part, header.descriptions)
    view, said = _view(header)
    mirror = must_mirror(header.patient_orientation)
    if not (header.rows and header.columns and header.allocated):
        if at >= len(data):
            raise InputError(
                Reason.NO_PIXELS, "the object has no picture, or was cut short; send the image object again"
            )
        raise InputError(Reason.NO_PIXELS, "the header gives no picture size; send the image object again")
    check_size(header.columns, header.rows, limits)
    if header.frames > limits.max_frames:
        message = f"{header.frames:,} frames are more than the limit of {limits.max_frames:,} (--max-frames)"
        raise InputError(Reason.TOO_LARGE, f"{message}; send one radiograph an object")
    check_format(header)
    words = _decode(data, at, header)
    if words.ndim == 3 or header.palette is not None:
        pixels, colour_said = to_gray(words if words.ndim == 3 else _through_palette(words, header))
        valid, window = None, None
        warnings += colour_said
    else:
        result = present(words, header)
        pixels, valid, window = result.pixels, result.valid, result.window
        warnings += result.warnings
    if mirror:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
        valid = None if valid is None else np.ascontiguousarray(valid[:, ::-1])
        warnings += ("PatientOrientation R\\F: mirrored, so that image-left is the patient's right",)
    if header.frames > 1:
        warnings += (f"first of {header.frames} frames",)
    return Radiograph(pixels, view, valid, window, header.identifiers, warnings + said)


def read_header(data: bytes, limits: Limits) -> tuple[Header, bytes, int]:
    """Header of a DICOM file, the bytes that hold its data set (those given, unless it is deflated), and in these the
    offset of the pixel element (their end if there is none).

    Raises InputError: TRUNCATED, UNREADABLE; TOO_LARGE if it unpacks to more than limits.max_bytes, is nested deeper
    than limits.max_depth or has too many elements; CANNOT_DECODE.
    """
    meta = Elements(data, True, True, limits)
    at = meta.read(132 if data[128:132] == b"DICM" else 0, len(data), only_group=0x0002)
    syntax = meta.text("TransferSyntaxUID")
    if syntax == _DEFLATED:
        data, at = _inflate(memoryview(data)[at:], limits), 0
    at = Elements(data, True, False, limits).read(at, len(data), only_group=0x0000)  # a command set, left in by some
    explicit = gives_vr(data, at)  # whatever the transfer syntax says
    (group,) = struct.unpack_from("<H", data, at) if at + 2 <= len(data) else (0,)
    little = syntax != _BIG_ENDIAN and not (syntax == "" and explicit and group >= 0x0400)
    ds = Elements(data, little, explicit, limits)
    at = ds.read(at, len(data))
    return extract(meta, ds), data, at


def _inflate(packed: memoryview, limits: Limits) -> bytes:
    """A deflated data set (PS3.5 A.5), unpacked to explicit little endian; its size is known before it is kept."""
    unpacker, size, pieces = zlib.decompressobj(-zlib.MAX_WBITS), 0, []
    try:
        for start in range(0, len(packed), _PACKED):
            rest: bytes | memoryview = packed[start : start + _PACKED]
            while rest:
                piece = unpacker.decompress(rest, _UNPACKED)
                rest, size = unpacker.unconsumed_tail, size + len(piece)
                if size > limits.max_bytes:
                    message = f"unpacks to more than the limit of {limits.max_bytes:,} bytes; send it uncompressed"
                    raise InputError(Reason.TOO_LARGE, message)
                if size <= _KEPT:
                    pieces.append(piece)
            if unpacker.eof:
                break
        pieces.append(unpacker.flush())
        if not unpacker.eof:
            raise cut_short("the deflated data set ends early")
        return b"".join(pieces) if size <= _KEPT else zlib.decompress(packed, -zlib.MAX_WBITS, size)
    except zlib.error:
        raise damaged("the deflated data set cannot be unpacked") from None


def _view(header: Header) -> tuple[View, tuple[str, ...]]:
    """View from ViewPosition, else the view code, else the first description that names one.

    Raises InputError(LATERAL_VIEW).
    """
    for words in (header.view_position, *header.view_codes, *header.descriptions.values()):
        if unusual_view(words):
            return "unknown", ("an oblique, lordotic or decubitus view: no network here was made for it",)
        view = view_from_text(words)
        if view == "lateral":
            raise InputError(Reason.LATERAL_VIEW, "the header says lateral view; send the frontal view")
        if view != "unknown":
            return view, ()
    return "unknown", ()


def _decode(data: bytes, at: int, header: Header) -> NDArray[Any]:
    try:
        return decode_first_frame(data, at, header)
    except InputError:
        raise
    except MemoryError:
        message = f"{header.columns} x {header.rows} pixels do not fit into memory; send a smaller copy"
        raise InputError(Reason.TOO_LARGE, message) from None
    except Exception:  # each decoder has its own exceptions, some of them bare RuntimeErrors
        raise InputError(
            Reason.CANNOT_DECODE, f"the pixels cannot be decoded: damaged or of an odd kind; {ASK}"
        ) from None


def _through_palette(words: NDArray[Any], header: Header) -> NDArray[Any]:
    """(H, W) palette indices to (H, W, 3) B, G, R (PS3.3 C.7.6.3.1.5)."""
    assert header.palette is not None
    levels = np.arange(1 << min(header.stored, 16), dtype=np.int64)
    red, green, blue = (lut(levels) for lut in header.palette)
    table = np.stack([blue, green, red], axis=-1)  # (levels, 3)
    if max(lut.bits for lut in header.palette) <= 8:
        table = table.astype(np.uint8)
    return np.ascontiguousarray(table[words & words.dtype.type(len(levels) - 1)])
