"""PNG, JPEG, TIFF and BMP bytes to a Radiograph, through OpenCV."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.radiograph import Limits, Radiograph
from cxrvit_edge.readers.colour import judge_colour, to_gray
from cxrvit_edge.readers.containers import Container, cut_short, damaged, walk
from cxrvit_edge.readers.orientation import EXIF_WORDS, apply_exif
from cxrvit_edge.readers.quiet import quiet_cv2

_CV2_MAX_PIXELS = 1 << 30  # CV_IO_MAX_IMAGE_PIXELS


def check_size(width: int, height: int, limits: Limits) -> None:
    """Raises InputError TOO_LARGE or TOO_SMALL; called with the header's size, before anything is allocated."""
    if width * height > min(limits.max_pixels, _CV2_MAX_PIXELS):
        raise InputError(
            Reason.TOO_LARGE,
            f"{width} x {height} pixels are more than the limit of {min(limits.max_pixels, _CV2_MAX_PIXELS):,}; "
            "send a smaller copy",
        )
    if min(width, height) < limits.min_side:
        raise InputError(
            Reason.TOO_SMALL,
            f"{width} x {height} pixels: the shorter side is under {limits.min_side}; send the full-size radiograph",
        )


def decode_raster(data: bytes, limits: Limits) -> Radiograph:
    """Radiograph of a whole PNG, JPEG, TIFF or BMP file; brighter is taken as denser, the view is unknown.

    Raises InputError: TRUNCATED, CANNOT_DECODE, UNREADABLE, TOO_LARGE, TOO_SMALL, COLOUR, NOT_FINITE.
    """
    container = walk(data)
    check_size(container.width, container.height, limits)
    if container.kind == "JPEG" and 8 * len(data) < -(-container.height // 8) * -(-container.width // 8):
        # a block of 8 x 8 takes a bit at the least; the rest would be made up
        raise cut_short(f"the JPEG is too short for its picture of {container.width} x {container.height}")
    cv2 = quiet_cv2()
    try:
        gray, warnings = _decode(np.frombuffer(data, np.uint8), container)
    except (cv2.error, MemoryError) as error:
        if isinstance(error, MemoryError) or "nsufficient memory" in str(error):
            message = f"{container.width} x {container.height} pixels do not fit into memory; send a smaller copy"
            raise InputError(Reason.TOO_LARGE, message) from None
        raise damaged(f"the {container.kind} picture cannot be decoded") from None
    pixels, valid = to_unsigned(gray)
    if container.white_is_zero and container.bits > 8:  # cv2 inverts such TIFFs itself up to 8 bits
        pixels = np.bitwise_not(pixels) if pixels.dtype == np.uint16 else pixels
    if container.orientation != 1:
        warnings = (*warnings, f"the file says {EXIF_WORDS[container.orientation]}: turned upright")
        if container.kind != "TIFF":  # cv2 has turned a TIFF already
            pixels = apply_exif(pixels, container.orientation)
    if container.pages > 1:
        warnings = (*warnings, f"first of {container.pages} pages")
    return Radiograph(pixels=np.ascontiguousarray(pixels), valid=valid, warnings=warnings)


def _decode(data: NDArray[np.uint8], container: Container) -> tuple[NDArray[Any], tuple[str, ...]]:
    """(H, W) of any depth, as stored, and warnings."""
    cv2 = quiet_cv2()
    # Never IMREAD_REDUCED_GRAYSCALE for the pixels: equalisation sees other gray levels. Even of 15 million pixels at
    # 1/2 0.9 % of the input departs by more than 2/255, at 1/4 9 %, and little time is won (results/reduced_jpeg.csv).
    if container.kind == "JPEG" and container.channels == 3:
        # luma is stored as such: decoding it alone, and colour at 1/2 to 1/8 for the judge, takes 3/4 of the time and a
        # third of the memory of a full colour picture
        reduced = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
        step = max(1, min(container.width, container.height) // 128)
        flag = cv2.IMREAD_REDUCED_COLOR_8 if step >= 8 else reduced[4 if step >= 4 else 2 if step >= 2 else 1]
        sample = cv2.imdecode(data, flag | cv2.IMREAD_IGNORE_ORIENTATION)
        warnings = judge_colour(sample) if sample is not None else ()
        pixels = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    else:
        pixels, warnings = cv2.imdecode(data, cv2.IMREAD_UNCHANGED), ()
    if pixels is None:
        what = f"a {container.kind} of {container.bits} bits and {container.channels} channels cannot be decoded"
        raise InputError(Reason.CANNOT_DECODE, f"{what}; save it as 8 or 16 bit PNG and send that")
    if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
        if pixels.dtype not in (np.uint8, np.uint16):
            raise InputError(
                Reason.CANNOT_DECODE, f"a colour {container.kind} of {pixels.dtype}; save it as 16 bit gray PNG"
            )
        return to_gray(pixels)
    if pixels.ndim == 3:
        pixels = np.ascontiguousarray(pixels[..., 0])
    return pixels, warnings


def to_unsigned(pixels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """(H, W) of any real type to uint8 or uint16 in the same order, and a mask of the finite ones (None: all).

    8 and 16 bits keep every level; wider integers keep them where their range fits 16 bits. The rest is squeezed
    linearly.
    Raises InputError(NOT_FINITE) if no pixel is finite, or their range is not.
    """
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels, None
    if pixels.dtype == np.int8:
        return pixels.view(np.uint8) ^ np.uint8(0x80), None
    if pixels.dtype == np.int16:
        return pixels.view(np.uint16) ^ np.uint16(0x8000), None
    valid: NDArray[np.bool_] | None = None
    if pixels.dtype.kind == "f":
        finite = np.isfinite(pixels)
        if not finite.any():
            raise InputError(Reason.NOT_FINITE, "no pixel is a finite number; export the radiograph again as 16 bit")
        if not finite.all():
            valid, pixels = finite, np.where(finite, pixels, pixels[finite].min())
    wide = pixels.astype(np.float64)
    low, high = float(wide.min()), float(wide.max())
    if not np.isfinite(high - low):
        raise InputError(Reason.NOT_FINITE, "the range of the pixels overflows; export the radiograph again as 16 bit")
    wide -= low
    if high > low and (pixels.dtype.kind == "f" or high - low > 65535):
        wide /= high - low
        wide *= 65535.0
    return np.rint(wide).astype(np.uint16), valid
