"""What pixels alone say against an input, before the network is asked."""

from __future__ import annotations

import numpy as np

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.radiograph import Radiograph

LEAST_LEVELS = 16  # a radiograph of fewer gray levels is none: text, a mask, a chart
BLANK_SPAN = 0.02  # of full scale: 98 % of the pixels within it show nothing


def check_pixels(radiograph: Radiograph) -> None:
    """InputError blank if the image holds nothing to look at."""
    pixels = radiograph.pixels if radiograph.valid is None else radiograph.pixels[radiograph.valid]
    step = max(1, int(np.sqrt(pixels.size / 65536)))  # about 256 x 256 of them tell
    sample = pixels[::step, ::step] if pixels.ndim == 2 else pixels[:: step * step]
    if sample.size == 0:
        raise InputError(Reason.BLANK, "every pixel is padding; export the image again")
    counts = np.bincount(sample.ravel())
    levels = int(np.count_nonzero(counts))
    low, high = np.searchsorted(np.cumsum(counts), [0.01 * sample.size, 0.99 * sample.size])
    span = float(high - low) / max(len(counts) - 1, 1)  # of the brightest pixel
    if levels < LEAST_LEVELS or span < BLANK_SPAN:
        raise InputError(
            Reason.BLANK, f"blank: {levels} gray levels, 98 % of the pixels within {span:.1%} of the brightest"
        )
