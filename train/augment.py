"""Augmentation that suits radiographs and their source cues: no left-right flip, since zones and heart have sides.

Ours: of the kept libraries that import without torchvision MONAI has these changes, at 14 times the time a film
(benchmarks/augmentation.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

PAD = 128  # uint8 value of the network's zero


@dataclass(frozen=True)
class Augmentation:
    """Largest rotation (degrees), relative scale and shift; chances of each intensity change and of a negative.

    negative: a sample turned by 90, 180 or 270 degrees or inverted, whose lungs must not be found: the input guard
    rests on it, and orientation is never guessed otherwise.
    """

    rotation: float = 10.0
    scale: float = 0.15
    shift: float = 0.06
    gamma: float = 0.35
    border: float = 0.3
    boxes: float = 0.4
    noise: float = 0.3
    negative: float = 0.06


CONTRAST = Augmentation(15.0, 0.35, 0.12, 0.6, 0.5, 0.6, 0.5, 0.0)  # SimCLR: two views of an image differ more


def negative(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    turn = int(rng.integers(4))
    return np.ascontiguousarray(np.rot90(image, turn)) if turn else 255 - image


def augment(
    image: NDArray[np.uint8], lungs: NDArray[np.uint8], a: Augmentation, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """image (S, S) and lungs (2, s, s), changed together."""
    size = image.shape[0]
    angle, ratio = rng.uniform(-a.rotation, a.rotation), 1 + rng.uniform(-a.scale, a.scale)
    dx, dy = rng.uniform(-a.shift, a.shift, 2)
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), angle, ratio)
    matrix[:, 2] += (dx * size, dy * size)
    image = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=PAD)
    if lungs.any():
        half = lungs.shape[-1]
        small = matrix.copy()
        r = half / size
        # pixel centres: x_small = (x + 0.5) r - 0.5
        small[:, 2] = r * matrix[:, 2] + (matrix[:, :2] @ np.full(2, 0.5 * (1 - r))) - 0.5 * (1 - r)
        lungs = np.stack([cv2.warpAffine(m, small, (half, half), flags=cv2.INTER_LINEAR) for m in lungs])
    return _intensity(image, a, rng), lungs


def _intensity(image: NDArray[np.uint8], a: Augmentation, rng: np.random.Generator) -> NDArray[np.uint8]:
    size = image.shape[0]
    level = np.arange(256, dtype=np.float32) / 255
    level = level ** np.exp(rng.uniform(-a.gamma, a.gamma))
    if rng.random() < 0.5:  # a smooth monotone bend: other processing, other histogram
        level = (
            level
            + rng.uniform(-0.12, 0.12) * np.sin(np.pi * level)
            + rng.uniform(-0.05, 0.05) * np.sin(2 * np.pi * level)
        )
    level = (level - 0.5) * rng.uniform(0.8, 1.15) + 0.5
    out = cv2.LUT(image, np.clip(level * 255, 0, 255).astype(np.uint8))
    if rng.random() < a.border:  # collimation and scanner borders tell the source
        top, bottom, left, right = (rng.uniform(0, 0.08, 4) * size).astype(int)
        value = int(rng.choice([0, PAD, 255]))
        out[:top], out[size - bottom :], out[:, :left], out[:, size - right :] = value, value, value, value
    if rng.random() < a.boxes:  # letters and markers lie near the corners
        for _ in range(int(rng.integers(1, 4))):
            h, w = (rng.uniform(0.03, 0.14, 2) * size).astype(int)
            y = int(rng.uniform(0, 0.25) * size) if rng.random() < 0.6 else int(rng.uniform(0, 0.9) * size)
            x = int(rng.choice([rng.uniform(0, 0.25), rng.uniform(0.65, 0.95)]) * size)
            out[y : y + h, x : x + w] = rng.integers(256)
    if rng.random() < a.noise:
        noise = rng.normal(0, rng.uniform(2, 9), out.shape)
        out = np.clip(out + noise, 0, 255).astype(np.uint8)
    if rng.random() < a.noise:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.4, 1.4) * size / 512)
    return np.asarray(out, np.uint8)
