"""A thorax that differs between films, and the canvas in centimetres that its parts are drawn on."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Points = NDArray[np.float64]  # (N, 2): x, y in cm

FIELD_CM = (37.0, 32.4)  # height, width that every image shows at least
SHIFT = 4  # fractional bits of the vertices given to OpenCV
BONE_UNIT = 0.02  # cm of water a grey level of an 8 bit drawing layer stands for
LEFT, RIGHT = -1, 1  # image sides; image-left is the patient's right


@dataclass(frozen=True)
class Thorax:
    """What differs between patients and films."""

    half: float  # inner half-width of the thorax
    length: float  # apex to costophrenic angle
    apex: float  # distance of the apex from the top of the field
    lean: float  # dx / dy of the midline
    turn: float  # shift of anterior structures against posterior ones
    heart: float  # 1 gives a cardiothoracic ratio of about 0.48
    dome: float  # height of the diaphragm domes over the costophrenic angle, a share of length
    fat: float  # soft tissue outside the ribs
    breast: float  # thickness, 0 for none
    rib_drop: float
    shoulders: float  # how far the scapulae and humeri are rolled off the lungs
    clavicle: float  # height of the clavicles

    @classmethod
    def draw(cls, rng: np.random.Generator, view: str) -> Thorax:
        ap = view == "AP"
        length = rng.uniform(22.5, 25.5) - (2.5 if ap else 0.0)
        return cls(
            half=rng.uniform(12.6, 14.0),
            length=length,
            apex=rng.uniform(3.5, 5.5) + (1.5 if ap else 0.0),
            lean=rng.uniform(-0.03, 0.03),
            turn=rng.uniform(-0.5, 0.5),
            heart=rng.uniform(0.92, 1.06) + (0.12 if ap else 0.0),
            dome=rng.uniform(0.15, 0.20) + (0.03 if ap else 0.0),
            fat=rng.uniform(1.3, 3.0),
            breast=rng.uniform(1.5, 3.5) if rng.random() < 0.5 else 0.0,
            rib_drop=rng.uniform(7.5, 9.5) - (1.0 if ap else 0.0),
            shoulders=0.2 if ap else rng.uniform(0.6, 1.6),
            clavicle=rng.uniform(-0.4, 0.4) - (0.9 if ap else 0.0),
        )

    def wall(self, y: NDArray[np.floating]) -> NDArray[np.float64]:
        """Inner half-width of the thorax at each y."""
        at = np.array([-0.03, 0.0, 0.03, 0.07, 0.13, 0.25, 0.42, 0.6, 0.8, 0.93, 1.1, 1.3, 1.7])
        width = np.array([0.25, 0.41, 0.53, 0.64, 0.745, 0.865, 0.945, 0.985, 1.0, 1.0, 0.99, 0.97, 0.95])
        return np.interp(y / self.length, at, width) * self.half


class Film:
    """The raster: maps centimetres to pixels and draws layers."""

    def __init__(self, height: int, width: int, body: Thorax) -> None:
        self.shape = (height, width)
        self.scale = min(height / FIELD_CM[0], width / FIELD_CM[1])  # px / cm
        self.body = body
        top = body.apex + max(0.0, height / self.scale - FIELD_CM[0]) / 2
        self.y = ((np.arange(height, dtype=np.float32) + 0.5) / self.scale - np.float32(top))[:, None]  # (H, 1)
        columns = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / self.scale
        self.x = columns[None].astype(np.float32) - np.float32(body.lean) * (self.y - 12)  # (H, W)
        self.top = top

    def pixels(self, points: Points) -> NDArray[np.int32]:
        x = (points[..., 0] + self.body.lean * (points[..., 1] - 12)) * self.scale + self.shape[1] / 2 - 0.5
        y = (points[..., 1] + self.top) * self.scale - 0.5
        return np.rint(np.stack([x, y], -1) * (1 << SHIFT)).astype(np.int32)

    def layer(self) -> NDArray[np.uint8]:
        return np.zeros(self.shape, np.uint8)

    def fill(self, layer: NDArray[np.uint8], points: Points, cm: float) -> None:
        cv2.fillPoly(layer, [self.pixels(points)], round(cm / BONE_UNIT), cv2.LINE_8, SHIFT)

    def mask(self, points: Points) -> NDArray[np.bool_]:
        layer = self.layer()
        self.fill(layer, points, BONE_UNIT)
        return layer > 0

    def ribbon(
        self, layer: NDArray[np.uint8], line: Points, width: NDArray[np.floating], cm: NDArray[np.floating]
    ) -> None:
        """A strip about `line`, `width` wide and `cm` thick at each of its points."""
        step = np.gradient(line, axis=0)
        normal = np.stack([-step[:, 1], step[:, 0]], -1) / np.maximum(np.hypot(step[:, 0], step[:, 1]), 1e-6)[:, None]
        one, two = (self.pixels(line + sign * normal * width[:, None] / 2) for sign in (-1, 1))
        value = np.clip(np.rint(cm / BONE_UNIT), 0, 255).astype(int).tolist()
        for k in range(len(line) - 1):
            quad = np.stack([one[k], one[k + 1], two[k + 1], two[k]])
            cv2.fillConvexPoly(layer, quad, value[k], cv2.LINE_8, SHIFT)

    def blur(self, layer: NDArray[np.uint8], cm: float) -> F32:
        """A drawn layer as thickness, its edges softened."""
        return cv2.GaussianBlur(layer.astype(np.float32) * np.float32(BONE_UNIT), (0, 0), max(cm * self.scale, 0.5))

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> F32:
        """Chord of a unit ellipsoid, 1 in its centre."""
        r = ((self.x - np.float32(x)) / np.float32(rx)) ** 2 + ((self.y - np.float32(y)) / np.float32(ry)) ** 2
        return np.sqrt(np.maximum(1 - r, 0))

    def noise(self, rng: np.random.Generator, cm: float) -> F32:
        """Smooth noise of unit variance about, with features `cm` across."""
        height, width = (max(2, round(n / self.scale / cm) + 2) for n in self.shape)
        coarse = rng.standard_normal((height, width), dtype=np.float32)
        return cv2.resize(coarse, self.shape[::-1], interpolation=cv2.INTER_CUBIC)


def curve(points: list[tuple[float, float]], n: int = 10) -> Points:
    """An open Catmull-Rom spline through the points."""
    p = np.array(points, np.float64)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = np.linspace(0, 1, n, endpoint=False)[:, None]
    parts = []
    for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True):
        parts.append(b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))))
    return np.concatenate([*parts, p[-2:-1]])


def smoothstep(v: NDArray[np.floating], low: float, high: float) -> F32:
    t = np.clip((v - np.float32(low)) * np.float32(1 / (high - low)), 0, 1).astype(np.float32)
    return t * t * (3 - 2 * t)
