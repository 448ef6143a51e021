"""Small pictures for the report: the radiograph as a JPEG, its severity overlay as a PNG to lay over it, and, from a
session that explains itself, a JPEG of the radiograph with the relevance drawn over it."""

from __future__ import annotations

import math
import shutil
import struct
import threading
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.preprocess import Geometry
from cxrvit_edge.radiograph import Radiograph
from cxrvit_edge.readers.quiet import quiet_cv2
from cxrvit_edge.zones import clean_lung, split_rows

LONGEST_SIDE = 384
UNFINISHED = ".part"  # folder of files that are being written: there they are found again without a search
JPEG_QUALITY = 80
LEVELS = 24  # shades of the overlay, after index 0, which is transparent
CONTOUR = LEVELS + 1
_STOPS = (0.0, 0.25, 0.6, 1.0)  # severity
_COLOURS = ((255, 222, 130, 0), (252, 184, 66, 70), (240, 110, 28, 130), (206, 30, 44, 165))  # RGBA at each stop
_CONTOUR_RGBA = (96, 214, 240, 255)
_DASH = 4  # pixels of a dash of the zone lines
_PERCENTILES = (0.5, 99.5)
_WHOLE = ((b"\xff\xd8\xff", b"\xff\xd9"), (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"))  # first and last bytes
_LEAST_SPAN = 26  # gray levels of 255 that a stored window must spread the middle 90 % over


def thumbnail(radiograph: Radiograph) -> NDArray[np.uint8]:
    """(h, w) uint8 for display, longest side at most 384, never enlarged; padding is black.

    Gray levels follow the stored window (DICOM PS3.3 C.11.2.1.2.1), or percentiles of the valid pixels where there is
    none or it leaves nothing to see.
    """
    import cv2

    pixels = radiograph.pixels
    height, width = pixels.shape
    ratio = min(1.0, LONGEST_SIDE / max(height, width))
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))  # (w, h), as OpenCV wants it
    small = _shrink(pixels, size)
    valid: NDArray[np.bool_] | None = None
    if radiograph.valid is not None:
        valid = np.asarray(_shrink((~radiograph.valid).view(np.uint8) * 255, size) == 0)
    step = max(1, round(max(small.shape) / 128))
    sample = small[::step, ::step]
    low, high = _display_range(sample if valid is None else sample[valid[::step, ::step]], radiograph.window)
    gain = 255 / max(high - low, 1e-6)
    shown = np.asarray(cv2.addWeighted(small, gain, small, 0.0, -low * gain, dtype=cv2.CV_8U))  # rounded, saturated
    return shown if valid is None else shown * valid


def _shrink(pixels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """(H, W) to size (w, h), no larger. Past a ratio of 2 the mean of 4 samples of 2 x 2 pixels each: for the eye.

    Area averaging, which the network gets, takes 7 times as long, a fifth of all host time of a large JPEG.
    """
    import cv2

    width, height = size
    if pixels.shape[0] > 2 * height and pixels.shape[1] > 2 * width:
        pixels = cv2.resize(pixels, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR))


def save(
    folder: Path,
    key: str,
    thumb: NDArray[np.uint8],
    geometry: Geometry | None,
    severity_map: NDArray[np.float32] | None,
    lung_mask: NDArray[np.float32] | None,
    relevance: NDArray[np.float32] | None = None,
) -> None:
    """Write folder/<key>.jpg and, if there are maps, folder/<key>.overlay.png and .relevance.jpg of the same size.

    severity_map (256, 256) and lung_mask (2, 256, 256) are the network's, in [0, 1], over the square of `geometry`;
    relevance (g, g), 0 or more, lies over it too.
    Each file appears whole or not at all. OSError if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    picture, over = paths(folder, key)
    relevant = relevance_path(folder, key)
    if geometry is None or severity_map is None or lung_mask is None:
        over.unlink(missing_ok=True)  # of an earlier run that did judge it
    else:
        _write(over, _palette_png(_overlay(geometry, thumb.shape, severity_map, lung_mask), palette()))
    if geometry is None or relevance is None:
        relevant.unlink(missing_ok=True)
    else:
        _write(relevant, _jpeg(overlay(thumb, geometry.to_source(relevance, *thumb.shape))[..., ::-1]))
    _write(picture, _jpeg(thumb))


def overlay(radiograph: NDArray[np.uint8], values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """radiograph (h, w) with a map of it (h, w), 0 or more, drawn over it -> RGB (h, w, 3); the map's maximum is red.

    A map of zeros leaves the radiograph as it is.
    """
    colours = palette()[:CONTOUR].astype(np.float32)  # (LEVELS + 1, 4)
    most = float(values.max())
    at = np.rint(values / np.float32(most) * LEVELS) if most > 0 else np.zeros_like(values)
    drawn = colours[np.clip(at, 0, LEVELS).astype(np.intp)]  # (h, w, 4)
    weight = drawn[..., 3:] / np.float32(255)
    mixed = radiograph[..., None] * (1 - weight) + drawn[..., :3] * weight
    return np.asarray(np.rint(mixed), np.uint8)


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    """Gray (h, w) or BGR (h, w, 3)."""
    import cv2

    _, data = cv2.imencode(".jpg", np.ascontiguousarray(image), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return data.tobytes()


def relevance_path(folder: Path, key: str) -> Path:
    """Where `save` puts the radiograph with its relevance."""
    return folder / f"{key}.relevance.jpg"


def paths(folder: Path, key: str) -> tuple[Path, Path]:
    """Where `save` puts the JPEG and the overlay of a key."""
    return folder / f"{key}.jpg", folder / f"{key}.overlay.png"


def load(path: Path) -> tuple[bytes, int, int] | None:
    """A saved picture's bytes, height and width; None if it is missing or broken."""
    cv2 = quiet_cv2()
    try:
        data = path.read_bytes()
    except OSError:
        return None
    # a file cut short is turned away first: the decoder would fill it up with gray
    if not any(data.startswith(head) and data.endswith(tail) for head, tail in _WHOLE):
        return None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if image is None or max(image.shape[:2]) > LONGEST_SIDE:
        return None
    return data, int(image.shape[0]), int(image.shape[1])


def _display_range(sample: NDArray[Any], window: tuple[float, float] | None) -> tuple[float, float]:
    """Values shown as black and white."""
    if not sample.size:
        return 0.0, 1.0
    ranked = np.sort(sample, axis=None, kind="stable")  # of whole numbers by radix, a sixth of np.percentile's time
    if window is not None and all(np.isfinite(window)) and window[1] > 1:
        centre, width = window
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
        dark, bright = (min(max((_percentile(ranked, p) - low) / (high - low), 0.0), 1.0) for p in (5, 95))
        if (bright - dark) * 255 >= _LEAST_SPAN:
            return low, high
    return _percentile(ranked, _PERCENTILES[0]), _percentile(ranked, _PERCENTILES[1])


def _percentile(ranked: NDArray[Any], percent: float) -> float:
    at, part = divmod(percent / 100 * (ranked.size - 1), 1)
    low, high = float(ranked[int(at)]), float(ranked[min(int(at) + 1, ranked.size - 1)])
    return low + part * (high - low)


def _overlay(
    geometry: Geometry,
    shape: tuple[int, ...],
    severity_map: NDArray[np.float32],
    lung_mask: NDArray[np.float32],
) -> NDArray[np.uint8]:
    """Palette indices (h, w): severity inside the lungs, their contours, and dashed lines between the zones."""
    import cv2

    h, w = shape
    index = np.zeros((h, w), np.uint8)
    lines: list[tuple[NDArray[np.uint8], NDArray[np.bool_]]] = []
    dashes = np.arange(w) % (2 * _DASH) < _DASH
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    for side in range(2):
        box = _lung_box(geometry, (h, w), lung_mask[side])  # the work is per pixel, and a lung fills a quarter
        if box is None:
            continue
        cells, at = box
        here = index[at]
        size = (here.shape[1], here.shape[0])
        lung = clean_lung(cv2.resize(lung_mask[side][cells], size, interpolation=cv2.INTER_LINEAR) >= 0.5)
        rows = split_rows(lung)
        if rows is None:
            continue
        severity = np.clip(cv2.resize(severity_map[cells], size, interpolation=cv2.INTER_LINEAR), 0, 1)
        shades = cv2.convertScaleAbs(severity, alpha=LEVELS)  # rounded
        np.maximum(here, shades * lung, out=here)
        inner = cv2.erode(lung.view(np.uint8), cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        line = lung & (inner == 0)
        for row in rows[1:3]:
            line[row] |= lung[row] & dashes[: size[0]]
        lines.append((here, line))
    for here, line in lines:
        here[line] = CONTOUR
    return index


def _lung_box(
    geometry: Geometry, shape: tuple[int, int], mask: NDArray[np.float32]
) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Cells of a mask (g, g) with all of a lung, over the source image only, and the pixels of (h, w) they cover.

    Both are whole numbers: the picture of the lung is shifted by up to half a pixel.
    """
    import cv2

    x, y, width, height = cv2.boundingRect((mask >= 0.5).view(np.uint8))
    if not width:
        return None
    cell = geometry.size / mask.shape[-1]
    cells, pixels = [], []
    for first, count, before, content, length in (
        (y, height, geometry.top, geometry.content_height, shape[0]),
        (x, width, geometry.left, geometry.content_width, shape[1]),
    ):
        scale = length / content
        low, high = max(first - 1, math.ceil(before / cell)), min(first + count + 1, int((before + content) / cell))
        start, end = round((low * cell - before) * scale), round((high * cell - before) * scale)
        if low >= high or start >= end:
            return None
        cells.append(slice(low, high))
        pixels.append(slice(start, end))
    return (cells[0], cells[1]), (pixels[0], pixels[1])


@cache
def palette() -> NDArray[np.uint8]:
    """(LEVELS + 2, 4) RGBA of the overlay: transparent, the shades, the contour; read only."""
    at = np.arange(LEVELS + 1) / LEVELS
    shades = np.stack([np.interp(at, _STOPS, channel) for channel in zip(*_COLOURS, strict=True)], axis=1)
    out = np.rint(np.vstack([shades, _CONTOUR_RGBA])).astype(np.uint8)
    out.flags.writeable = False
    return out


def _palette_png(index: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """Indexed-colour PNG with alpha (PNG specification, 11.2.1 PLTE, 11.3.1.1 tRNS); OpenCV writes none."""
    h, w = index.shape
    lines = np.zeros((h, w + 1), np.uint8)  # each line starts with filter type 0
    lines[:, 1:] = index
    chunks: list[tuple[bytes, Any]] = [
        (b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 3, 0, 0, 0)),
        (b"PLTE", palette[:, :3].tobytes()),
        (b"tRNS", palette[:, 3].tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 1)),  # level 4 takes twice the time for a quarter less
        (b"IEND", b""),
    ]
    out = [b"\x89PNG\r\n\x1a\n"]
    for name, data in chunks:
        out.append(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    return b"".join(out)


def clear_unfinished(folder: Path) -> None:
    """Remove what a run that was killed had begun to write; for a folder that nobody else writes to. Never raises."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    # not tempfile: its files are closed to other users, whatever the umask says
    temporary = path.parent / UNFINISHED / f"{path.name}.{threading.get_ident()}"
    temporary.parent.mkdir(exist_ok=True)
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
