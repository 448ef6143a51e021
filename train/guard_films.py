"""Frontal films as other hospitals would send them, and what they become turned, inverted or cut to a part."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Gray = NDArray[np.uint8]


def vary(film: Gray, rng: Rng, *, turn: float = 10.0, crop: float = 0.08) -> Gray:
    """Another crop, frame, contrast, sharpness and set of letters; it stays what it was. (H, W) uint8 to another.

    turn: largest rotation in degrees; crop: largest share that is cut off a side.
    """
    h, w = film.shape
    crop *= 2.2 if rng.random() < 0.2 else 1.0
    top, bottom, left, right = rng.uniform(0, crop, 4) * (h, h, w, w) * (rng.random(4) < 0.6)
    out = film[int(top) : h - int(bottom), int(left) : w - int(right)]
    stretch = np.exp(rng.uniform(-0.07, 0.07))
    out = cv2.resize(out, None, fx=float(stretch), fy=1.0, interpolation=cv2.INTER_AREA)
    if turn and rng.random() < 0.6:
        out = tilted(out, float(rng.normal(0, turn / 2.5)), int(rng.choice([0, int(np.median(out)), 255])))
    if rng.random() < 0.15:
        out = np.ascontiguousarray(out[:, ::-1])
    out = _contrast(out, rng)
    if rng.random() < 0.5:
        out = _framed(out, rng)
    for _ in range(int(rng.integers(0, 4))):
        _mark(out, rng)
    if rng.random() < 0.4:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.3, 1.6))
    if rng.random() < 0.4:
        out = np.clip(out + rng.normal(0, rng.uniform(1, 10), out.shape), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(out)


def tilted(image: Gray, degrees: float, border: int) -> Gray:
    h, w = image.shape
    matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), degrees, 1.0)
    return np.asarray(cv2.warpAffine(image, matrix, (w, h), flags=cv2.INTER_LINEAR, borderValue=(border,)), np.uint8)


def turned(film: Gray, way: int) -> Gray:
    """way 0 to 2: by 90, 180 or 270 degrees; 3 to 5: upside down, and that turned by 90 or 270 degrees."""
    out = film[::-1] if way >= 3 else film
    return np.ascontiguousarray(np.rot90(out, (1, 2, 3, 0, 1, 3)[way]))


def part(film: Gray, rng: Rng) -> Gray:
    """A part too small to judge: a corner, a strip, one side, or all but a small field collimated away."""
    h, w = film.shape
    kind = rng.integers(5)
    if kind == 0:  # a corner or a spot
        a, b = (rng.uniform(0.18, 0.42, 2) * (h, w)).astype(int)
        y, x = int(rng.uniform(0, h - a)), int(rng.uniform(0, w - b))
        return np.ascontiguousarray(film[y : y + a, x : x + b])
    if kind == 1:  # what lies above or below
        a = int(rng.uniform(0.15, 0.33) * h)
        return np.ascontiguousarray(film[:a] if rng.random() < 0.4 else film[h - a :])
    if kind == 2:  # one side
        a = int(rng.uniform(0.25, 0.5) * w)
        return np.ascontiguousarray(film[:, :a] if rng.random() < 0.5 else film[:, w - a :])
    out = np.full_like(film, int(rng.choice([0, 0, 255, int(np.median(film))])))
    a, b = (rng.uniform(0.2, 0.5, 2) * (h, w)).astype(int)
    y, x = int(rng.uniform(0, h - a)), int(rng.uniform(0, w - b))
    out[y : y + a, x : x + b] = film[y : y + a, x : x + b]
    return np.clip(out + rng.normal(0, 1.5, out.shape), 0, 255).astype(np.uint8)


def inverted(image: Gray) -> Gray:
    return np.asarray(255 - image, np.uint8)


def _contrast(image: Gray, rng: Rng) -> Gray:
    level = (np.arange(256) / 255.0) ** np.exp(rng.uniform(-0.6, 0.6))
    if rng.random() < 0.3:  # a window that clips
        low, high = rng.uniform(0, 0.15), rng.uniform(0.85, 1.0)
        level = (level - low) / (high - low)
    if rng.random() < 0.25:  # equalised in tiles, as some devices send it
        image = cv2.createCLAHE(rng.uniform(1.0, 3.0), (8, 8)).apply(image)
    return np.asarray(cv2.LUT(image, np.clip(level * 255, 0, 255).astype(np.uint8)))


def _framed(image: Gray, rng: Rng) -> Gray:
    """Collimated, or with a border of the detector or the page."""
    value, wide = int(rng.choice([0, 0, 255, int(rng.integers(256))])), 0.3 if rng.random() < 0.3 else 0.1
    sides = rng.uniform(0, wide, 4) * (rng.random(4) < 0.6)
    h, w = image.shape
    top, bottom, left, right = (sides * (h, h, w, w)).astype(int).tolist()
    if rng.random() < 0.5:
        border = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(value,))
        return np.asarray(border, np.uint8)
    out = np.full_like(image, value)
    inner = np.s_[top // 2 : h - bottom // 2, left // 2 : w - right // 2]
    out[inner] = image[inner]
    return out


def _mark(image: Gray, rng: Rng) -> None:
    h, w = image.shape
    value = int(rng.choice([0, 255, 255]))
    x = int(rng.choice([rng.uniform(0, 0.15), rng.uniform(0.75, 0.95)]) * w)
    y = int(rng.uniform(0.03, 0.3 if rng.random() < 0.7 else 1.0) * h)
    text = str(rng.choice(["L", "R", "A", "PORTABLE", "AP UPRIGHT", "12:31", "Fig. 2", "b"]))
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, h / 900 * rng.uniform(0.8, 3), value, 1 + h // 400)
