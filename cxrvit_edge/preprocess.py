"""Radiograph -> network input, in the paper's order (section 4.4): equalisation, blur, normalisation, resize.

Parameters come from the bundle; the same function serves training, export and the edge.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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

    def to_source(
        self,
        grid: Float32,
        height: int | None = None,
        width: int | None = None,
        part: tuple[int, int, int, int] | None = None,
    ) -> Float32:
        """A (h, h) map over the square, resampled onto the source image (or onto height x width of it).

        part: (top, left, bottom, right), the only pixels of that wanted.
        """
        import cv2

        out_h, out_w = height or self.height, width or self.width
        above, before, bottom, right = part or (0, 0, out_h, out_w)
        cell = self.size / grid.shape[-1]
        # affine from output pixel centres to map pixel centres
        sy, sx = self.content_height / out_h / cell, self.content_width / out_w / cell
        ty = (self.top + (above + 0.5) * self.content_height / out_h) / cell - 0.5
        tx = (self.left + (before + 0.5) * self.content_width / out_w) / cell - 0.5
        matrix = np.array([[sx, 0, tx], [0, sy, ty]], dtype=np.float64)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = (right - before, bottom - above)
        warped = cv2.warpAffine(grid, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
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


def preprocess(
    radiograph: Radiograph, config: PreprocessConfig, out: Float32 | None = None
) -> tuple[Float32, Geometry]:
    """Network input (1, size, size) float32, about [-2, 2], and its geometry. Padding is 0 after normalisation.

    Within 1e-5 of float64 arithmetic. out: an array of that shape to be overwritten and returned.
    """
    pixels = radiograph.pixels  # (H, W)
    table = equalisation_table(pixels, radiograph.valid)
    # Blur and resize are linear with weights that sum to one, so the normalisation is folded into the table.
    table = (255.0 * table - config.offset) / config.scale
    g = Geometry.fit(pixels.shape[0], pixels.shape[1], config.size, config.aspect)
    kernel, sigma = config.blur_kernel, config.blur_sigma
    if out is None:
        out = np.zeros((1, config.size, config.size), np.float32)
    elif (g.content_height, g.content_width) != (config.size, config.size):
        out.fill(0)
    content = out[0, g.top : g.top + g.content_height, g.left : g.left + g.content_width]
    flat = _scratch("flat", g.content_height, g.width)
    step = _outputs(g.height, g.content_height, g.width, kernel)
    for rows in bands(g.height, g.content_height, kernel, sigma, step):
        sharp = _look_up(pixels[rows.source], table, _scratch("sharp", rows.weights.shape[1], g.width))
        np.matmul(rows.weights, sharp, out=flat[rows.target])
    step = _outputs(g.width, g.content_width, g.content_height, kernel)
    for columns in bands(g.width, g.content_width, kernel, sigma, step):
        np.matmul(flat[:, columns.source], columns.transposed, out=content[:, columns.target])
    return out, g


class Band(NamedTuple):
    """Neighbouring outputs of one axis as a product: target = weights (outputs, sources) @ source."""

    target: slice
    source: slice
    weights: Float32
    transposed: Float32  # (sources, outputs), contiguous as BLAS likes it


@lru_cache(maxsize=128)  # of some 100 kB
def bands(source: int, target: int, kernel: int, sigma: float, step: int) -> tuple[Band, ...]:
    """Gaussian blur (reflected about the border's pixel), then resize of an axis from source to target pixels.

    Area averages where it shrinks, linear between pixel centres where it grows; `step` outputs a band. Half the time
    of cv2.GaussianBlur and cv2.INTER_AREA, whose inner loop has no vector instructions, and no image between them.
    """
    import cv2

    ratio, halo = source / target, kernel // 2
    i = np.arange(0, target, step)[:, None] + np.arange(step)  # (bands, step)
    if target <= source:
        start = i * ratio
        first = np.floor(start[:, 0]).astype(np.int64)
        j = (first[:, None] + np.arange(math.ceil(step * ratio) + 1))[:, None]  # (bands, 1, sources)
        low, high = start[..., None], start[..., None] + ratio
        plain = np.maximum(np.minimum(high, j + 1) - np.maximum(low, j), 0) / ratio
    else:
        at = np.clip((i + 0.5) * ratio - 0.5, 0, source - 1)
        first = np.floor(at[:, 0]).astype(np.int64)
        j = (first[:, None] + np.arange(math.ceil(step * ratio) + 2))[:, None]
        plain = np.maximum(1 - np.abs(at[..., None] - j), 0)
    weights = np.zeros((*plain.shape[:2], plain.shape[2] + 2 * halo))
    for tap, weight in enumerate(cv2.getGaussianKernel(kernel, sigma, cv2.CV_64F).ravel()):
        weights[..., tap : tap + plain.shape[2]] += weight * plain
    narrow = weights.astype(np.float32)
    transposed = np.ascontiguousarray(narrow.transpose(0, 2, 1))
    out = []
    for n, begin in enumerate((first - halo).tolist()):
        outputs, end = slice(n * step, min((n + 1) * step, target)), begin + weights.shape[2]
        kept = outputs.stop - outputs.start
        if begin >= 0 and end <= source:
            out.append(Band(outputs, slice(begin, end), narrow[n, :kept], transposed[n, :, :kept]))
        else:
            out.append(_at_border(outputs, begin, source, weights[n, :kept]))
    return tuple(out)


def _at_border(outputs: slice, begin: int, source: int, weights: NDArray[np.float64]) -> Band:
    """Band of weights (outputs, sources) from pixel `begin` on; those beyond the border go to their mirror image."""
    used = weights.any(axis=0)
    place = np.arange(begin, begin + weights.shape[1])[used]
    period = max(1, 2 * (source - 1))
    place = np.minimum(place % period, -place % period)
    low, high = int(place.min()), int(place.max()) + 1
    folded = np.zeros((high - low, len(weights)))
    np.add.at(folded, place - low, weights.T[used])
    transposed = folded.astype(np.float32)
    return Band(outputs, slice(low, high), np.ascontiguousarray(transposed.T), transposed)


def _outputs(source: int, target: int, across: int, kernel: int) -> int:
    """Outputs a band: few enough that most weights are not zero, and that BLAS does it in the calling thread.

    OpenBLAS wakes its other threads from 2^18 multiplications on; they would spin beside the session's.
    """
    ratio = source / target
    for step in (12, 8, 6, 4, 3, 2):
        if step * ratio <= 24 and step * (step * ratio + kernel) * across < 240_000:
            return step
    return 1


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


def _look_up(pixels: NDArray[Any], table: Float32, out: Float32) -> Float32:
    import cv2

    try:
        return np.asarray(cv2.LUT(pixels, table, dst=out), np.float32)  # 16 bit since OpenCV 4.12, 3 times as fast
    except cv2.error:
        return np.take(table, pixels, out=out, mode="clip")
