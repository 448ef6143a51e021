"""DICOM bytes to a Radiograph: header first, pixels only of what the header does not turn away."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.radiograph import Limits, Radiograph, View
from cxrvit_edge.readers.colour import to_gray
from cxrvit_edge.readers.containers import cut_short, damaged
from cxrvit_edge.readers.dicom_header import Header, extract
from cxrvit_edge.readers.dicom_pixels import ASK, decode_first_frame
from cxrvit_edge.readers.dicom_scope import check_body_part, check_object
from cxrvit_edge.readers.grayscale import check_format, present
from cxrvit_edge.readers.orientation import must_mirror
from cxrvit_edge.readers.quiet import quiet_pydicom
from cxrvit_edge.readers.raster import check_size
from cxrvit_edge.readers.views import unusual_view, view_from_text

_DEFLATED = "1.2.840.10008.1.2.1.99"


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
    data = _inflate(data, limits)
    header, at = _read_header(data)
    warnings = check_object(header.modality, header.sop_class, header.class_name)
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


def _read_header(data: bytes) -> tuple[Header, int]:
    """Header, and the offset of the pixel element (the end of data if there is none)."""
    import pydicom

    stream = io.BytesIO(data)
    try:
        with quiet_pydicom():
            ds = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
            if any(_runs_over(element, len(data)) for element in ds.elements()):
                raise cut_short("the file ends inside its header")
            return extract(ds), stream.tell()
    except (InputError, MemoryError):
        raise
    except EOFError:
        raise cut_short("the file ends inside its header") from None
    except Exception as error:  # pydicom raises whatever the bytes make it stumble over
        message = f"the DICOM data set is broken ({type(error).__name__}); export it again from the PACS"
        raise InputError(Reason.UNREADABLE, message) from None


def _runs_over(element: Any, size: int) -> bool:
    length, start = getattr(element, "length", None), getattr(element, "value_tell", None)
    return length is not None and start is not None and length != 0xFFFFFFFF and start + length > size


def _inflate(data: bytes, limits: Limits) -> bytes:
    """A deflated data set (PS3.5 A.5) as uncompressed explicit little endian without its meta group; others unchanged.

    Raises InputError: TOO_LARGE if it unpacks to more than limits.max_bytes, TRUNCATED, CANNOT_DECODE.
    """
    if _DEFLATED.encode() not in data[:65536]:
        return data
    at, syntax = 132 if data[128:132] == b"DICM" else 0, b""
    while data[at : at + 2] == b"\x02\x00":
        long = data[at + 4 : at + 6] in (b"OB", b"UN")
        if at + 12 > len(data):
            raise cut_short("the file ends inside its header")
        (length,) = struct.unpack_from("<I" if long else "<H", data, at + (8 if long else 6))
        if data[at + 2 : at + 4] == b"\x10\x00":
            syntax = data[at + 8 : at + 8 + length].strip(b" \x00")
        at += (12 if long else 8) + length
    if syntax != _DEFLATED.encode():
        return data
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        body = unpacker.decompress(data[at:], limits.max_bytes)
    except zlib.error:
        raise damaged("the deflated data set cannot be unpacked") from None
    if unpacker.unconsumed_tail:
        raise InputError(Reason.TOO_LARGE, f"unpacks to more than the limit of {limits.max_bytes:,} bytes")
    if not unpacker.eof:
        raise cut_short("the deflated data set ends early")
    return body


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
