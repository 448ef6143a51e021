"""What pixels alone say against an input: before the network is asked, and in a description that is judged after it."""

from __future__ import annotations

import numpy as np

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.preprocess import Float32, Geometry
from cxrvit_edge.radiograph import Radiograph

LEAST_LEVELS = 16  # a radiograph of fewer gray levels is none: text, a mask, a chart
BLANK_SPAN = 0.02  # of full scale: 98 % of the pixels within it show nothing
SIDE, CELLS, WAYS = 96, 6, 8  # a description's raster, its gradient cells a side, the directions told apart
THUMB = 24
DESCRIBED = THUMB * THUMB + CELLS * CELLS * WAYS + 26  # length of a description
FLAT = 0.004  # gradient a pixel, in units of the network input: nothing is drawn there
_LINE = np.arange(SIDE) * CELLS // SIDE
_CELL = (_LINE[:, None] * CELLS + _LINE) * WAYS


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


def describe(tensor: Float32, geometry: Geometry) -> Float32:
    """A film in DESCRIBED numbers: (1, S, S) network input -> (DESCRIBED,) float32, for `findings.judge`.

    Of the radiograph without its padding, squeezed to 96 x 96: a 24 x 24 picture, signed gradient directions in 6 x 6
    cells (as shares of the mean cell), then aspect, histogram, flat areas, contrasts and symmetries. Nothing finer than
    96 pixels a side, so that the size at which a film was sent does not show.
    """
    import cv2

    content = np.ascontiguousarray(geometry.content(tensor[0]))
    small = np.asarray(cv2.resize(content, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.float32)
    thumb = np.asarray(cv2.resize(small, (THUMB, THUMB), interpolation=cv2.INTER_AREA), np.float32)
    gx = cv2.Sobel(small, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    gy = cv2.Sobel(small, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    size, angle = cv2.cartToPolar(gx, gy)
    way = np.minimum(angle * np.float32(WAYS / (2 * np.pi)), WAYS - 1).astype(np.intp)
    counts = np.bincount((_CELL + way).ravel(), weights=size.ravel(), minlength=CELLS * CELLS * WAYS)
    gradients = np.minimum(counts / (counts.mean() + 1e-3), 8.0) ** 0.5
    flat = cv2.resize((size < FLAT).astype(np.float32), (3, 3), interpolation=cv2.INTER_AREA)
    levels = np.bincount(np.clip((small + 2) * 2, 0, 7).astype(np.intp).ravel(), minlength=8) / small.size
    half = cv2.resize(small, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA)
    rest = [
        np.log(geometry.content_width / geometry.content_height),
        float(size.mean()) * 4,
        float(np.abs(np.diff(half, axis=0)).mean()) * 4,
        float(np.abs(np.diff(half, axis=1)).mean()) * 4,
        float(small.std()),
        float(small.mean()),
        _alike(thumb, thumb[:, ::-1]),
        _alike(thumb, thumb[::-1]),
        _alike(thumb, thumb.T),
    ]
    return np.concatenate([thumb.ravel(), gradients, flat.ravel(), levels, rest]).astype(np.float32)


def _alike(a: Float32, b: Float32) -> float:
    """Correlation, 0 for a flat image."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (np.sqrt((a * a).sum() * (b * b).sum()) + 1e-6))
