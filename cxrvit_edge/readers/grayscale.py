"""From stored words to presentation values: padding, sign, modality LUT, VOI LUT, polarity (PS3.3 C.7.6.3, C.11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.readers.dicom_header import Header
from cxrvit_edge.readers.raster import to_unsigned

STRAY_SHARE = 0.02  # annotations in unused high bits take less of an image; a wrong BitsStored shows in more


@dataclass(frozen=True)
class Presented:
    """pixels (H, W) uint8 or uint16, brighter = denser; valid and window as in Radiograph."""

    pixels: NDArray[Any]
    valid: NDArray[np.bool_] | None
    window: tuple[float, float] | None
    warnings: tuple[str, ...]


def present(words: NDArray[Any], header: Header) -> Presented:
    """Presentation values of stored words (H, W), at full depth.

    An increasing rescale is left out and a LINEAR window is not applied (it clips): the network's equalisation is
    invariant to increasing maps. MONOCHROME1 and Presentation LUT Shape INVERSE mean the same (PS3.3 C.8.11.3.1.2) and
    invert once, within the stored range. Raises InputError(NOT_FINITE).
    """
    inverse = header.photometric == "MONOCHROME1" or header.lut_shape == "INVERSE"
    if words.dtype.kind == "f" or header.stored > 16:
        return _present_wide(words, header, inverse)
    warnings: tuple[str, ...] = ()
    valid = _not_padding(words, header)
    if valid is not None and not valid.any():
        valid, warnings = None, ("every pixel is PixelPaddingValue: padding ignored",)
    levels, stored, said = _levels(words, valid, header)
    warnings += said
    zero = 1 << (stored - 1) if header.signed else 0  # level of stored value 0
    table, top, window = _table(header, stored, zero)
    if table is not None:
        if inverse:
            table = np.asarray(top - table, dtype=table.dtype)
        pixels = table[levels]
    else:
        top = (1 << stored) - 1
        inverse ^= header.slope < 0
        pixels = np.subtract(levels.dtype.type(top), levels) if inverse else levels
    if window is not None and inverse:
        window = (top - window[0], window[1])
    if table is None:
        pixels = pixels.astype(np.uint8 if stored <= 8 else np.uint16, copy=False)
    pixels = np.require(pixels, requirements=["C", "W"])  # a copy of what is still a view of the file's bytes
    return Presented(pixels, valid, window, warnings)


def _present_wide(words: NDArray[Any], header: Header, inverse: bool) -> Presented:
    """Float or more than 16 bits: squeezed to 16 bits in order; lookup tables are not defined for such depths."""
    warnings = (f"{'float' if words.dtype.kind == 'f' else header.stored} pixels squeezed to 16 bits",)
    if words.dtype.kind != "f":
        words = words.astype(np.int64) & ((1 << header.stored) - 1)
        if header.signed:
            half = 1 << (header.stored - 1)
            words = (words ^ half) - half
    pixels, valid = to_unsigned(words)
    if inverse ^ (header.slope < 0):
        pixels = np.bitwise_not(pixels)
    return Presented(np.ascontiguousarray(pixels), valid, None, warnings)


def _not_padding(words: NDArray[Any], header: Header) -> NDArray[np.bool_] | None:
    """False where a word is in the padding range (PS3.3 C.7.5.1.1.2), None if none is; before high bits are cut."""
    if header.padding is None:
        return None
    size = 8 * words.dtype.itemsize
    low, high = header.padding
    if low == high:
        if not -(1 << size - 1) <= low < 1 << size:
            return None  # the decoder's container is narrower than the value
        padded = words == (low & ((1 << size) - 1))
        if -(1 << header.stored - 1) <= low < 0:  # signed, high bits not filled with the sign
            padded |= words == (low & ((1 << header.stored) - 1))
    else:
        values = words.astype(np.int32)
        if header.signed:
            half, full = 1 << (header.stored - 1), (1 << header.stored) - 1
            values = ((values & full) ^ half) - half
            low, high = ((v - (1 << size) if v >= 1 << (size - 1) else v) for v in (low, high))
        padded = (values >= low) & (values <= high)
    return ~padded if padded.any() else None


def _levels(
    words: NDArray[Any], valid: NDArray[np.bool_] | None, header: Header
) -> tuple[NDArray[Any], int, tuple[str, ...]]:
    """Words as levels 0 to 2^stored - 1 in the order of their values, the depth, and warnings."""
    stored, size = header.stored, 8 * words.dtype.itemsize
    shift = header.high + 1 - stored
    if shift > 0 and header.high < size:
        words = words >> words.dtype.type(shift)
    if stored >= size:
        stored = size
        if header.signed:
            words = words ^ words.dtype.type(1 << (size - 1))
        return words, stored, ()
    full = words.dtype.type((1 << stored) - 1)
    if header.signed:
        return (words & full) ^ words.dtype.type(1 << (stored - 1)), stored, ()
    if int(words.max()) <= int(full):
        return words, stored, ()
    over = words > full
    if valid is not None:
        over &= valid
    if size <= 16 and over.mean() > STRAY_SHARE and not header.overlay_in_pixels:
        depth = int(words.max(initial=0, where=True if valid is None else valid)).bit_length()
        said = f"BitsStored says {stored}, the pixels use {depth}: taken as {depth}"
        return words & words.dtype.type((1 << depth) - 1), depth, (said,)
    return words & full, stored, ()


def _table(header: Header, stored: int, zero: int) -> tuple[NDArray[Any] | None, int, tuple[float, float] | None]:
    """Output of every level where a LUT or sigmoid applies (None: levels stand), its top value, the display window."""
    values = np.arange(1 << stored, dtype=np.int64) - zero
    sigmoid = header.voi_function == "SIGMOID" and header.window is not None
    if header.voi_lut is None and not sigmoid and header.modality_lut is None:
        if header.window is None:
            return None, 0, None
        centre, width = header.window
        shown = ((centre - header.intercept) / header.slope + zero, width / abs(header.slope))
        return None, 0, shown if np.isfinite(shown).all() else None
    window, top = None, 65535
    if header.modality_lut is not None:
        table: NDArray[Any] = header.modality_lut(values)
        top, window = (1 << header.modality_lut.bits) - 1, header.window
    else:
        table = header.slope * values + header.intercept
    if header.voi_lut is not None:
        table = header.voi_lut(np.rint(table).astype(np.int64))
        top, window = (1 << header.voi_lut.bits) - 1, None
    elif sigmoid and header.window is not None:
        centre, width = header.window
        table = np.rint(65535 / (1 + np.exp(np.clip(-4 * (table - centre) / width, -60, 60))))
        top, window = 65535, None
    return table.astype(np.uint8 if top <= 255 else np.uint16), top, window


def check_format(header: Header) -> None:
    """Raises InputError(CANNOT_DECODE) for a pixel format that makes no sense, before it is used as a size."""
    known = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB")
    if header.photometric not in known and not header.photometric.startswith("YBR_"):
        raise InputError(
            Reason.CANNOT_DECODE, "PhotometricInterpretation is absent or unknown; correct it at the modality"
        )
    if header.samples not in (1, 3) or (header.samples == 3) != (header.photometric[:3] in ("RGB", "YBR")):
        raise InputError(Reason.CANNOT_DECODE, f"{header.samples} samples a pixel do not go with {header.photometric}")
    if not 1 <= header.stored <= min(header.allocated, 64) or not 0 <= header.high < 64:
        raise InputError(
            Reason.CANNOT_DECODE, f"{header.stored} bits stored in {header.allocated} allocated; export the image again"
        )
