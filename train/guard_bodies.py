"""Generated radiographs of what is no frontal chest, for the input guard: no pixel comes from a patient.

They are thickness of water on a canvas of a unit height, exposed and tone mapped; they show what a guard must
tell apart, not anatomy.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Gray = NDArray[np.uint8]
F32 = NDArray[np.float32]

SIDE = 384  # longest side of what is drawn


class Canvas:
    """height 1, x from 0 to `width`; layers are float32 (H, W)."""

    def __init__(self, rng: Rng, width: float) -> None:
        ratio = SIDE / max(1.0, width)
        self.rng, self.width, self.scale = rng, width, ratio
        self.shape = (round(ratio), round(ratio * width))
        y, x = np.mgrid[: self.shape[0], : self.shape[1]].astype(np.float32) / np.float32(ratio)
        self.x, self.y = x, y

    def ball(self, x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> F32:
        """Chord of an ellipsoid, 1 in its centre."""
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u, v = self.x - np.float32(x), self.y - np.float32(y)
        r = ((c * u + s * v) / np.float32(rx)) ** 2 + ((c * v - s * u) / np.float32(ry)) ** 2
        return np.sqrt(np.maximum(1 - r, 0)).astype(np.float32)

    def tube(self, points: NDArray[np.floating], radius: float) -> F32:
        """Chord of a tube about a line (N, 2) of x, y; 1 on the line."""
        line = np.full(self.shape, 255, np.uint8)
        cv2.polylines(line, [np.rint(points * self.scale).astype(np.int32)], False, 0, 1)
        away = cv2.distanceTransform(line, cv2.DIST_L2, 3) / np.float32(self.scale * radius)
        away = np.minimum(away, 2)  # a line off the canvas is infinitely far
        return np.sqrt(np.maximum(1 - away**2, 0)).astype(np.float32)

    def bone(self, points: NDArray[np.floating], radius: float) -> F32:
        """A tube with marrow, its ends thicker."""
        hollow = self.tube(points, radius) - np.float32(0.6) * self.tube(points, 0.7 * radius)
        for end in (points[0], points[-1]):
            hollow = np.maximum(hollow, 0.7 * self.ball(end[0], end[1], 1.6 * radius, 1.5 * radius))
        return np.asarray(hollow, np.float32)

    def noise(self, size: float) -> F32:
        cells = [max(2, round(n / self.scale / size) + 2) for n in self.shape]
        coarse = self.rng.standard_normal(cells, dtype=np.float32)
        return np.asarray(cv2.resize(coarse, self.shape[::-1], interpolation=cv2.INTER_CUBIC), np.float32)

    def expose(self, water: F32) -> Gray:
        """Blur, scatter, tone curve, noise."""
        rng = self.rng
        water = np.maximum(water * (1 + np.float32(0.05) * self.noise(0.02)), 0)
        water = cv2.GaussianBlur(water, (0, 0), rng.uniform(0.6, 2.0))
        water = water / np.float32(max(float(np.percentile(water, 99.5)), 1e-3))
        value = 1 - np.exp(-((np.float32(rng.uniform(1.0, 2.2)) * water) ** np.float32(rng.uniform(0.7, 1.6))))
        value = value / value.max() + rng.normal(0, rng.uniform(0.002, 0.02), self.shape)
        return np.clip(value * rng.uniform(200, 255), 0, 255).astype(np.uint8)


def limb(rng: Rng) -> Gray:
    """One or two long bones with a joint, soft tissue about them, in any direction."""
    c = Canvas(rng, rng.uniform(0.4, 1.3))
    water = np.zeros(c.shape, np.float32)
    for _ in range(int(rng.choice([1, 1, 1, 2]))):
        middle = np.array([rng.uniform(0.35, 0.65) * c.width, rng.uniform(0.35, 0.65)])
        angle, bend = rng.normal(np.pi / 2, 0.5), rng.normal(0, 0.35)
        reach = rng.uniform(0.6, 1.0)
        ways = [np.array([np.cos(a), np.sin(a)]) for a in (angle + np.pi + bend, angle)]
        flesh, thick = rng.uniform(0.08, 0.26), rng.uniform(0.02, 0.06)
        joint = rng.uniform(0.012, 0.03)
        water += 0.8 * c.tube(np.stack([middle + ways[0] * reach, middle, middle + ways[1] * reach]), flesh)
        for way in ways:
            across = np.array([-way[1], way[0]])
            for shift in (0.0,) if rng.random() < 0.5 else (-1.4 * thick, 1.4 * thick):
                start = middle + way * joint * 1.5 + across * shift
                water += rng.uniform(0.8, 1.6) * c.bone(np.stack([start, start + way * reach]), thick)
    return c.expose(water + rng.uniform(0, 0.1))


def hand(rng: Rng) -> Gray:
    c = Canvas(rng, rng.uniform(0.55, 1.0))
    water = np.zeros(c.shape, np.float32)
    wrist = np.array([0.5 * c.width, rng.uniform(0.75, 0.9)])
    water += 0.6 * c.ball(wrist[0], wrist[1] - 0.22, 0.19, 0.24) + 0.6 * c.tube(
        np.stack([wrist, wrist + np.array([rng.normal(0, 0.05), 0.5])]), 0.11
    )
    for angle, length in zip(
        np.linspace(-0.85, 0.5, 5) + rng.normal(0, 0.05, 5), (0.8, 1.0, 1.08, 1.0, 0.85), strict=True
    ):
        way = np.array([np.sin(angle), -np.cos(angle)])
        at = wrist + way * 0.1
        water += 0.45 * c.tube(np.stack([at, at + way * 0.68 * length]), 0.045)
        for part in (0.27, 0.16, 0.1, 0.08):
            end = at + way * part * length
            water += 0.8 * c.bone(np.stack([at + way * 0.012, end]), rng.uniform(0.012, 0.02))
            at = end
    for _ in range(9):
        water += 0.5 * c.ball(wrist[0] + rng.normal(0, 0.06), wrist[1] + rng.normal(-0.02, 0.03), 0.03, 0.03)
    return _turned(c.expose(water), rng, 0.3)


def abdomen(rng: Rng) -> Gray:
    """Soft tissue, lumbar spine, pelvis, bowel gas."""
    c = Canvas(rng, rng.uniform(0.7, 1.1))
    mid = 0.5 * c.width + rng.normal(0, 0.02)
    water = 2.2 * c.ball(mid, 0.5, rng.uniform(0.42, 0.65) * c.width, rng.uniform(0.7, 1.4))
    for k in range(6):
        water += 0.5 * box(c, mid, 0.02 + k * 0.115 + rng.normal(0, 0.004), 0.055, 0.045)
    water += 0.4 * c.tube(np.array([[mid, -0.1], [mid, 0.72]]), 0.05)
    if rng.random() < 0.75:
        low = rng.uniform(0.68, 0.85)
        for side in (-1, 1):
            wing = c.ball(mid + side * 0.22, low, 0.17, 0.13, side * 0.6)
            water += 0.7 * wing - 0.35 * c.ball(mid + side * 0.22, low, 0.13, 0.09, side * 0.6)
            water += 0.9 * c.ball(mid + side * 0.32, low + 0.22, 0.07, 0.07)
        water += 0.6 * c.ball(mid, low + 0.02, 0.08, 0.12)
    for _ in range(int(rng.integers(4, 30))):
        x, y = mid + rng.normal(0, 0.2), rng.uniform(0.08, 0.9)
        r = rng.uniform(0.015, 0.07)
        water -= rng.uniform(0.3, 1.2) * c.ball(x, y, r * rng.uniform(0.7, 1.8), r, rng.uniform(0, 3))
    if rng.random() < 0.4:  # lung bases above the domes
        for side in (-1, 1):
            water -= 1.1 * c.ball(mid + side * 0.22, -0.05, 0.2, rng.uniform(0.1, 0.2))
    return c.expose(np.asarray(water + 0.1 * c.noise(0.2), np.float32))


def skull(rng: Rng) -> Gray:
    c = Canvas(rng, rng.uniform(0.75, 1.1))
    x, y = 0.5 * c.width, rng.uniform(0.36, 0.48)
    rx, ry = rng.uniform(0.28, 0.4), rng.uniform(0.33, 0.42)
    water = 1.4 * c.ball(x, y, rx, ry) + 1.2 * (c.ball(x, y, rx, ry) - c.ball(x, y, 0.94 * rx, 0.94 * ry))
    water += 0.9 * c.ball(x + rng.normal(0, 0.1), y + 0.3, 0.2, 0.2) + 0.8 * c.tube(np.array([[x, y], [x, 1.2]]), 0.12)
    for side in (-1, 1):
        water -= 0.5 * c.ball(x + side * 0.11, y + 0.14, 0.07, 0.06)
    water -= 0.6 * c.ball(x, y + 0.24, 0.04, 0.08)
    return c.expose(np.asarray(water + 0.05 * c.noise(0.05), np.float32))


def lateral(rng: Rng) -> Gray:
    """A chest from the side: one lung field between sternum and spine, the heart low in front."""
    c = Canvas(rng, rng.uniform(0.7, 1.05))
    front, back = rng.uniform(0.06, 0.2) * c.width, rng.uniform(0.8, 0.95) * c.width
    depth = back - front
    spine = np.array([[back - 0.22 * depth, -0.05], [back - 0.14 * depth, 0.35], [back - 0.2 * depth, 1.05]])
    spine[:, 0] += rng.normal(0, 0.01)
    body = c.ball((front + back) / 2, 0.55, 0.56 * depth, rng.uniform(0.75, 1.1))
    water = 2.6 * np.sqrt(body)
    top, base = rng.uniform(0.06, 0.16), rng.uniform(0.66, 0.84)
    field = c.tube(
        np.array([[(front + back) / 2 + 0.06 * depth, top + 0.18], [(front + back) / 2, base - 0.1]]), 0.40 * depth
    )
    dome = base - rng.uniform(0.05, 0.12) + (c.x - front) / np.float32(depth) * rng.uniform(0.06, 0.18)
    dome = dome + 0.05 * ((c.x - (front + back) / 2) / np.float32(0.4 * depth)) ** 2
    air = field * np.clip((dome - c.y) * 40, 0, 1) * np.clip((c.y - top) * 12, 0, 1)
    water -= rng.uniform(1.4, 2.1) * cv2.GaussianBlur(air.astype(np.float32), (0, 0), 2.5)
    water += rng.uniform(0.7, 1.3) * c.ball(front + 0.3 * depth, base - 0.17, 0.2 * depth, 0.17, rng.normal(0.5, 0.2))
    water += 0.35 * c.ball((front + back) / 2, top + 0.32, 0.1 * depth, 0.1)
    water += rng.uniform(0.2, 0.6) * c.tube(spine, 0.075 * depth)
    for t in np.linspace(0, 1, 13):
        x, y = np.interp(t, [0, 0.4, 1], spine[:, 0]), np.interp(t, [0, 0.4, 1], spine[:, 1])
        water += rng.uniform(0.15, 0.4) * box(c, x, y, 0.065 * depth, 0.03)
    for y in np.arange(top, base + 0.1, rng.uniform(0.06, 0.08)):
        rib = np.array([[back - 0.1 * depth, y - 0.02], [(front + back) / 2, y + 0.08], [front + 0.1 * depth, y + 0.2]])
        water += 0.16 * c.bone(rib, 0.013)
    water += rng.uniform(0.3, 1.2) * c.ball(
        (front + back) / 2 + 0.1 * depth, rng.uniform(-0.08, 0.06), 0.4 * depth, 0.16
    )
    water -= rng.uniform(0.1, 0.5) * c.tube(
        np.array([[(front + back) / 2 + 0.06 * depth, 0], [(front + back) / 2 + 0.1 * depth, top + 0.3]]), 0.025
    )
    out = c.expose(np.asarray(water + 0.06 * c.noise(0.06) + 0.04 * c.noise(0.02), np.float32))
    return np.ascontiguousarray(out[:, ::-1]) if rng.random() < 0.5 else out


def axial(rng: Rng) -> Gray:
    """A slice of CT: a body in the round field, with lungs or without."""
    c = Canvas(rng, 1.0)
    rx, ry = rng.uniform(0.32, 0.47), rng.uniform(0.22, 0.36)
    inside = c.ball(0.5, 0.5, rx, ry) > 0
    value = np.where(inside, 0.55, 0.0) + np.where(c.ball(0.5, 0.5, rx * 0.93, ry * 0.92) > 0, 0.12, 0.0)
    value = np.where(inside, value + 0.05 * c.noise(0.03), value)
    if rng.random() < 0.6:
        for side in (-1, 1):
            lung = c.ball(0.5 + side * rx * 0.47, 0.49, rx * rng.uniform(0.3, 0.4), ry * rng.uniform(0.5, 0.7)) > 0
            value = np.where(lung, 0.05 + 0.06 * np.abs(c.noise(0.02)), value)
        heart = c.ball(0.5 + rx * 0.12, 0.47, rx * 0.3, ry * 0.4, 0.5) > 0
        value = np.where(heart, 0.72, value)
    else:
        for _ in range(7):
            organ = c.ball(0.5 + rng.normal(0, rx * 0.4), 0.5 + rng.normal(0, ry * 0.4), 0.08, 0.06, rng.uniform(0, 3))
            value = np.where(inside & (organ > 0), rng.uniform(0.2, 0.95), value)
    bone = np.maximum(c.ball(0.5, 0.5 + ry * 0.62, 0.05, 0.04), c.ball(0.5, 0.5 + ry * 0.82, 0.02, 0.05))
    value = np.where(bone > 0, 0.95, value)
    for a in np.linspace(0, 2 * np.pi, 14):
        value = np.where(
            c.ball(0.5 + 0.85 * rx * np.cos(a), 0.5 + 0.85 * ry * np.sin(a), 0.02, 0.012, a) > 0, 0.9, value
        )
    if rng.random() < 0.7:
        value = np.maximum(value, 0.3 * (np.abs(c.y - (0.53 + ry) - 0.15 * (c.x - 0.5) ** 2) < 0.008))
    value = value + rng.normal(0, 0.02, c.shape)
    return cv2.GaussianBlur(np.clip(value * 255, 0, 255).astype(np.uint8), (0, 0), rng.uniform(0.5, 1.2))


def box(c: Canvas, x: float, y: float, rx: float, ry: float) -> F32:
    return ((np.abs(c.x - np.float32(x)) < rx) & (np.abs(c.y - np.float32(y)) < ry)).astype(np.float32)


def _turned(image: Gray, rng: Rng, chance: float) -> Gray:
    return np.ascontiguousarray(np.rot90(image, int(rng.integers(4)))) if rng.random() < chance else image
