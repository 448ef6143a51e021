"""Radiograph -> network input, in the paper's order (section 4.4): equalisation, blur, normalisation, resize.

Parameters come from the bundle; the same function serves training, export and the edge.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import UsageError

if TYPE_CHECKING:
    from cxrvit_edge.radiograph import Radiograph

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class PreprocessConfig:
    """offset and scale apply to 255 x equalised (the PCAM code's constants; the paper states none)."""

    size: int = 512
    blur_kernel: int = 3
    blur_sigma: float = 0.8
    offset: float = 128.0
    scale: float = 64.0
    aspect: Literal["pad", "squash"] = "pad"

    def __post_init__(self) -> None:
        if self.aspect not in ("pad", "squash"):
            raise UsageError(f"preprocessing aspect is {self.aspect!r}: use 'pad' or 'squash'")
        numbers = (self.blur_sigma, self.offset, self.scale)
        if not (
            isinstance(self.size, int)
            and self.size >= 32
            and isinstance(self.blur_kernel, int)
            and self.blur_kernel > 0
            and self.blur_kernel % 2 == 1
            and all(isinstance(v, (int, float)) and math.isfinite(v) for v in numbers)
            and self.scale > 0
        ):
            raise UsageError(
                f"preprocessing parameters out of range: {self}; whole size >= 32, odd blur_kernel >= 1, "
                "finite blur_sigma, offset and scale, scale > 0"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PreprocessConfig:
        known = {f.name for f in fields(cls)}
        if unknown := set(values) - known:
            raise UsageError(f"unknown preprocessing parameters {sorted(unknown)}: this bundle needs a newer version")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Geometry:
    """Where the source image of (height, width) lies inside the square of `size`, in pixels of that square."""

    height: int
    width: int
    size: int
    top: int
    left: int
    content_height: int
    content_width: int

    @classmethod
    def fit(cls, height: int, width: int, size: int, aspect: str) -> Geometry:
        if aspect == "squash":
            return cls(height, width, size, 0, 0, size, size)
        ratio = size / max(height, width)
        content_height = min(size, max(1, round(height * ratio)))
        content_width = min(size, max(1, round(width * ratio)))
        top, left = (size - content_height) // 2, (size - content_width) // 2
        return cls(height, width, size, top, left, content_height, content_width)

    def content(self, grid: NDArray[Any]) -> NDArray[Any]:
        """The part of a (h, h) map over the square that covers the source image; a view, rounded outwards."""
        scale = grid.shape[-1] / self.size
        top, left = int(self.top * scale), int(self.left * scale)
        bottom = int(np.ceil((self.top + self.content_height) * scale))
        right = int(np.ceil((self.left + self.content_width) * scale))
        return grid[..., top:bottom, left:right]

    def to_source(self, grid: Float32, height: int | None = None, width: int | None = None) -> Float32:
        """A (h, h) map over the square, resampled onto the source image (or onto height x width of it)."""
        import cv2

        out_h, out_w = height or self.height, width or self.width
        cell = self.size / grid.shape[-1]
        # affine from output pixel centres to map pixel centres
        sy, sx = self.content_height / out_h / cell, self.content_width / out_w / cell
        ty = (self.top + 0.5 * self.content_height / out_h) / cell - 0.5
        tx = (self.left + 0.5 * self.content_width / out_w) / cell - 0.5
        matrix = np.array([[sx, 0, tx], [0, sy, ty]], dtype=np.float64)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warped = cv2.warpAffine(grid, matrix, (out_w, out_h), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(warped, dtype=np.float32)


def equalisation_table(pixels: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> Float32:
    """Table (256 or 65536,) float32 in [0, 1]: (cdf(v) - cdf_min) / (N - cdf_min) over the valid pixels.

    On 8 bits it equals cv2.equalizeHist / 255 within 1/255. All zeros for an image of one value.
    """
    import cv2

    bins = 256 if pixels.dtype == np.uint8 else 65536
    mask = None if valid is None else valid.view(np.uint8)
    counts = cv2.calcHist([pixels], [0], mask, [bins], [0, bins]).ravel()
    cdf = np.cumsum(counts, dtype=np.float64)
    total = cdf[-1]
    occupied = counts > 0
    first = counts[np.argmax(occupied)] if total else 0.0
    if total <= first:
        return np.zeros(bins, np.float32)
    return np.clip((cdf - first) / (total - first), 0.0, 1.0).astype(np.float32)


def preprocess(radiograph: Radiograph, config: PreprocessConfig) -> tuple[Float32, Geometry]:
    """Network input (1, size, size) float32, about [-2, 2], and its geometry. Padding is 0 after normalisation.

    Within 1e-4 of float64 arithmetic, whether the image is done whole or in strips of rows.
    """
    pixels = radiograph.pixels  # (H, W)
    table = equalisation_table(pixels, radiograph.valid)
    # Blur and resize are linear with weights that sum to one, so the normalisation is folded into the table:
    # one pass over the full-size image less, equal up to float rounding.
    table = (255.0 * table - config.offset) / config.scale
    g = Geometry.fit(pixels.shape[0], pixels.shape[1], config.size, config.aspect)
    out = np.zeros((1, config.size, config.size), np.float32)
    content = out[0, g.top : g.top + g.content_height, g.left : g.left + g.content_width]
    if pixels.size <= _WHOLE:
        _resize(_soft(pixels, table, config, 0, g.height), content)
        return out, g
    # strips stay in the processor's cache and full-size float images are never made; resizing is separable
    narrow = _scratch("narrow", g.height, g.content_width)  # (H, content_width)
    rows = max(config.blur_kernel, _STRIP // g.width)
    for top in range(0, g.height, rows):
        bottom = min(top + rows, g.height)
        _resize(_soft(pixels, table, config, top, bottom), narrow[top:bottom])
    _resize(narrow, content)
    return out, g


_WHOLE = 1 << 20  # pixels: an image up to this size is done at once
_STRIP = 1 << 17  # pixels of a strip: two float buffers of it fit into a second-level cache
_KEPT = 1 << 22  # floats: larger buffers are not kept for the next image

_buffers = threading.local()


def _scratch(name: str, height: int, width: int) -> Float32:
    """(height, width) of this thread's buffer `name`, content undefined.

    Fresh pages from the system would cost as much as the arithmetic on them.
    """
    size = height * width
    buffer: Float32 | None = getattr(_buffers, name, None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, np.float32)
        if size <= _KEPT:
            setattr(_buffers, name, buffer)
    return buffer[:size].reshape(height, width)


def _soft(pixels: NDArray[Any], table: Float32, config: PreprocessConfig, top: int, bottom: int) -> Float32:
    """Rows top to bottom of the image after table and blur, (bottom - top, W); valid until the thread's next call."""
    import cv2

    halo = config.blur_kernel // 2
    first, last = max(0, top - halo), min(len(pixels), bottom + halo)
    sharp = _look_up(pixels[first:last], table, _scratch("sharp", last - first, pixels.shape[1]))
    soft = _scratch("soft", *sharp.shape)
    kernel = (config.blur_kernel, config.blur_kernel)
    soft = cv2.GaussianBlur(sharp, kernel, config.blur_sigma, dst=soft, borderType=cv2.BORDER_REFLECT_101)
    return soft[top - first : bottom - first]


def _look_up(pixels: NDArray[Any], table: Float32, out: Float32) -> Float32:
    import cv2

    try:
        return np.asarray(
            cv2.LUT(pixels, table, dst=out), np.float32
        )  # 16 bit since OpenCV 4.12, 3 times as fast
    except cv2.error:
        return np.take(table, pixels, out=out, mode="clip")


def _resize(image: Float32, out: Float32) -> None:
    """image to the shape of out: area averages on an axis that shrinks, linear on one that grows.

    cv2 averages only if both shrink.
    """
    import cv2

    (h, w), (height, width) = image.shape, out.shape
    if height > h and width < w:
        image = np.asarray(cv2.resize(image, (width, h), interpolation=cv2.INTER_AREA), np.float32)
    elif height < h and width > w:
        image = np.asarray(cv2.resize(image, (w, height), interpolation=cv2.INTER_AREA), np.float32)
    how = cv2.INTER_AREA if height <= h and width <= w else cv2.INTER_LINEAR
    made = cv2.resize(image, (width, height), dst=out, interpolation=how)
    if made is not out:
        out[...] = made
