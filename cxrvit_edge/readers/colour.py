"""Gray from colour files, and the line between a tinted or annotated radiograph and a colour picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.readers.quiet import quiet_cv2

NEUTRAL = 10  # of 255: chroma that compression noise and 4:2:0 make of gray
STRAY = 32  # of 255: further than this from the tint of its luminance a pixel is a colour of its own
MARKS = 0.10  # share of stray pixels that arrows, letters and a coloured frame take; above it is a picture
TINT = 110  # of 255: chroma of the tint itself; blue film base and sepia stay under 90, colour maps go over


def chroma_census(sample: NDArray[np.uint8]) -> tuple[float, float]:
    """Share of pixels whose colour departs from the tint, and the strength of the tint (0 to 255).

    sample: (h, w, 3) uint8 B, G, R, some 10,000 to 50,000 pixels. The tint is the median chroma (B-Y, R-Y) in each of
    16 bands of luminance: film on a blue base or a sepia print, stronger in mid-gray than in black, has no
    stray pixels. Large areas of opposed hues (sky above a meadow) are no tint: all their pixels count as stray.
    """
    cv2 = quiet_cv2()
    blue, green, red = cv2.split(sample)
    spread = cv2.subtract(cv2.max(cv2.max(blue, green), red), cv2.min(cv2.min(blue, green), red))
    if int(spread.max()) <= NEUTRAL:
        return 0.0, 0.0
    luma = cv2.cvtColor(sample, cv2.COLOR_BGR2GRAY)
    band = luma >> 4
    away = np.zeros(luma.shape, bool)
    medians = np.empty((16, 2))  # of the bands, for B-Y and R-Y
    for channel, values in enumerate((blue, red)):
        chroma = cv2.subtract(values, luma, dtype=cv2.CV_16S)
        counts = np.bincount((chroma + (256 + 512 * band.astype(np.int16))).ravel(), minlength=16 * 512)
        ranks = counts.reshape(16, 512).cumsum(axis=1)
        n = ranks[:, -1]
        # twice the median: of an even number it lies between two values
        twice = sum((ranks > rank[:, None]).argmax(axis=1) for rank in ((n - 1) // 2, n // 2)) - 512
        medians[:, channel] = twice / 2
        away |= np.abs(2 * chroma - twice.astype(np.int16)[band]) > 2 * STRAY
    strong = np.abs(medians).max(axis=1)
    tint = float(strong[n > 0.02 * luma.size].max(initial=0.0))
    hues = medians[(n > 0.05 * luma.size) & (strong > STRAY)]
    if (hues @ hues.T < 0).any():
        return 1.0, tint
    return np.count_nonzero(away) / luma.size, tint


def judge_colour(sample: NDArray[np.uint8]) -> tuple[str, ...]:
    """Warnings for a picture that is gray but for a tint or a few marks; (h, w, 3) uint8 B, G, R.

    Raises InputError(COLOUR) for any other.
    """
    stray, tint = chroma_census(sample)
    if stray > MARKS or tint > TINT:
        raise InputError(
            Reason.COLOUR, "a colour picture, not a radiograph; send the gray original, without overlays or colour maps"
        )
    if stray > 0.0005:
        return ("coloured marks were turned to gray",)
    if tint > NEUTRAL:
        return ("a colour tint was removed",)
    return ()


def sample_of(colour: NDArray[Any]) -> NDArray[np.uint8]:
    """Every n-th pixel of (H, W, 3 or 4) uint8 or uint16, about 128 to 256 a side, as (h, w, 3) uint8."""
    step = max(1, min(colour.shape[:2]) // 128)
    few = colour[::step, ::step, :3]
    if few.dtype == np.uint16:
        few = few >> 8
    return np.ascontiguousarray(few, dtype=np.uint8)


def to_gray(colour: NDArray[Any]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """(H, W, 3) B, G, R or (H, W, 4) with alpha, uint8 or uint16, to (H, W) of the same depth, and warnings.

    Y = 0.299 R + 0.587 G + 0.114 B. A constant alpha is dropped; a varying one is laid over black, with a warning.
    Raises InputError(COLOUR).
    """
    cv2 = quiet_cv2()
    warnings = judge_colour(sample_of(colour))
    if colour.shape[2] == 3:
        return cv2.cvtColor(colour, cv2.COLOR_BGR2GRAY), warnings
    gray = cv2.cvtColor(colour, cv2.COLOR_BGRA2GRAY)
    alpha = cv2.extractChannel(colour, 3)
    low, high, _, _ = cv2.minMaxLoc(alpha)
    if low != high:
        gray = cv2.multiply(gray, alpha, scale=1.0 / np.iinfo(alpha.dtype).max)
        warnings = (*warnings, "transparent parts were laid over black")
    return gray, warnings
