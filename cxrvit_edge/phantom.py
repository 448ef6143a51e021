"""Generated frontal chest radiographs: line integrals of attenuation through a drawn thorax, exposed and tone mapped.

Lengths are centimetres in the detector plane: x to image-right from the midline, y downwards from the lung apex. Layers
are water-equivalent thickness. No pixel comes from a patient; the shapes show what a reader or a network must find, not
how any disease looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Points = NDArray[np.float64]  # (N, 2): x, y in cm

FIELD_CM = (37.0, 32.4)  # height, width that every image shows at least
MAX_VALUE = 4095
_SHIFT = 4  # fractional bits of the vertices given to OpenCV
_BONE_UNIT = 0.02  # cm of water a grey level of an 8 bit drawing layer stands for
_LEFT, _RIGHT = -1, 1  # image sides; image-left is the patient's right


@dataclass(frozen=True)
class Phantom:
    """One generated film.

    pixels: (H, W) uint16, 0-4095, brighter = denser
    lungs: (2, H, W) bool, visible lung fields: image-left, image-right
    lesions: (H, W) bool, opacities, inside the lungs
    """

    pixels: NDArray[np.uint16]
    lungs: NDArray[np.bool_]
    lesions: NDArray[np.bool_]
    view: Literal["PA", "AP"]


@dataclass(frozen=True)
class _Thorax:
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
    def draw(cls, rng: np.random.Generator, view: str) -> _Thorax:
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


class _Film:
    """The raster: maps centimetres to pixels and draws layers."""

    def __init__(self, height: int, width: int, body: _Thorax) -> None:
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
        return np.rint(np.stack([x, y], -1) * (1 << _SHIFT)).astype(np.int32)

    def layer(self) -> NDArray[np.uint8]:
        return np.zeros(self.shape, np.uint8)

    def fill(self, layer: NDArray[np.uint8], points: Points, cm: float) -> None:
        cv2.fillPoly(layer, [self.pixels(points)], round(cm / _BONE_UNIT), cv2.LINE_8, _SHIFT)

    def mask(self, points: Points) -> NDArray[np.bool_]:
        layer = self.layer()
        self.fill(layer, points, _BONE_UNIT)
        return layer > 0

    def ribbon(
        self, layer: NDArray[np.uint8], line: Points, width: NDArray[np.floating], cm: NDArray[np.floating]
    ) -> None:
        """A strip about `line`, `width` wide and `cm` thick at each of its points."""
        step = np.gradient(line, axis=0)
        normal = np.stack([-step[:, 1], step[:, 0]], -1) / np.maximum(np.hypot(step[:, 0], step[:, 1]), 1e-6)[:, None]
        one, two = (self.pixels(line + sign * normal * width[:, None] / 2) for sign in (-1, 1))
        value = np.clip(np.rint(cm / _BONE_UNIT), 0, 255).astype(int).tolist()
        for k in range(len(line) - 1):
            quad = np.stack([one[k], one[k + 1], two[k + 1], two[k]])
            cv2.fillConvexPoly(layer, quad, value[k], cv2.LINE_8, _SHIFT)

    def blur(self, layer: NDArray[np.uint8], cm: float) -> F32:
        """A drawn layer as thickness, its edges softened."""
        return cv2.GaussianBlur(layer.astype(np.float32) * np.float32(_BONE_UNIT), (0, 0), max(cm * self.scale, 0.5))

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> F32:
        """Chord of a unit ellipsoid, 1 in its centre."""
        r = ((self.x - np.float32(x)) / np.float32(rx)) ** 2 + ((self.y - np.float32(y)) / np.float32(ry)) ** 2
        return np.sqrt(np.maximum(1 - r, 0))

    def noise(self, rng: np.random.Generator, cm: float) -> F32:
        """Smooth noise of unit variance about, with features `cm` across."""
        height, width = (max(2, round(n / self.scale / cm) + 2) for n in self.shape)
        coarse = rng.standard_normal((height, width), dtype=np.float32)
        return cv2.resize(coarse, self.shape[::-1], interpolation=cv2.INTER_CUBIC)


def _curve(points: list[tuple[float, float]], n: int = 10) -> Points:
    """An open Catmull-Rom spline through the points."""
    p = np.array(points, np.float64)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = np.linspace(0, 1, n, endpoint=False)[:, None]
    parts = []
    for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True):
        parts.append(b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))))
    return np.concatenate([*parts, p[-2:-1]])


def _smoothstep(v: NDArray[np.floating], low: float, high: float) -> F32:
    t = np.clip((v - np.float32(low)) * np.float32(1 / (high - low)), 0, 1).astype(np.float32)
    return t * t * (3 - 2 * t)


def _lung_outline(b: _Thorax, side: int) -> Points:
    """The visible lung field: chest wall, diaphragm, heart and mediastinum."""
    y = np.array([0.03, 0.07, 0.13, 0.25, 0.42, 0.6, 0.8, 0.93]) * b.length
    wall = [(0.33 * b.half, 0.0), *zip(b.wall(y).tolist(), y.tolist(), strict=True), (0.975 * b.half, b.length)]
    d, h, turn = b.dome, b.heart, b.turn / b.half
    if side == _LEFT:
        base = [(0.975, 1.0), (0.90, 1 - 0.45 * d), (0.75, 1 - 0.85 * d), (0.55, 1 - d), (0.38, 1 - 0.95 * d)]
        base.append((0.22, 1 - 0.80 * d))
        mid = [(0.23 * h, 1 - 0.95 * d), (0.27 * h, 0.72), (0.245 * h, 0.62), (0.19, 0.52), (0.20, 0.43), (0.165, 0.34)]
        mid += [(0.16, 0.22), (0.15, 0.11), (0.20, 0.035), (0.33, 0.0)]
    else:
        low = 0.79 * d  # this dome stands lower
        edge = 0.62 * h
        base = [
            (0.975, 1.0),
            (0.92, 1 - 0.5 * low),
            (0.82, 1 - 0.86 * low),
            (0.41 + edge / 2, 1 - low),
            (edge, 1 - 0.97 * low),
        ]
        mid = [
            (edge, 1 - 0.97 * low),
            (0.615 * h, 1 - 1.45 * low),
            (0.56 * h, 0.67),
            (0.455 * h, 0.57),
            (0.34 * h, 0.48),
            (0.275, 0.415),
        ]
        mid += [(0.225, 0.355), (0.25, 0.31), (0.255, 0.265), (0.19, 0.20), (0.16, 0.11), (0.20, 0.035), (0.33, 0.0)]
    to = np.array([b.half, b.length])
    heart = _curve([(x + side * turn * (v > 0.4), v) for x, v in mid]) * to  # the heart lies in front
    outline = np.concatenate([_curve(wall), _curve(base) * to, heart])
    return outline * np.array([side, 1.0])


def _soft_tissue(film: _Film, b: _Thorax, ap: bool) -> F32:
    """Neck, shoulders, trunk, arms and breasts, lungs not yet taken out."""
    y, x = film.y, np.abs(film.x)
    rows = y[:, 0].astype(np.float64)
    trunk = b.half + b.fat + 0.7
    at = np.array([-12, -5.0, -3.4, -2.2, -1.0, 0.2, 2.0, 4.5, 8, 11, 14, 20, 26, 36])
    width = np.array(
        [5.2, 5.5, 7.0, 10.2, 14.2, 16.8, 18.4, 18.8, 17.4, trunk + 0.9, trunk + 0.3, trunk, trunk, trunk + 0.6]
    )
    depth = np.interp(rows, [-12, -4, -1, 3, 8, 14, 20, 28, 36], [11.5, 12, 13, 14.5, 17.5, 20, 21.5, 23.5, 25])
    half = cv2.GaussianBlur(np.interp(rows, at, width)[:, None], (1, 0), 0, sigmaY=0.35 * film.scale)
    r = np.minimum(x / half.astype(np.float32), 1)
    r *= r
    r *= r * r  # a sixth-power superellipse: flat in front and behind, round at the flanks
    out = np.sqrt(1 - r) * (depth * (1 + 0.03 * b.fat)).astype(np.float32)[:, None]
    a, e = np.array([16.2, 4.5]), np.array([18.8, 24.0] if ap else [22.5, 15.0])
    axis = e - a
    t = np.clip(((x - a[0]) * axis[0] + (y - a[1]) * axis[1]) / (axis @ axis), 0, 1).astype(np.float32)
    gap = (x - a[0] - t * axis[0]) ** 2 + (y - a[1] - t * axis[1]) ** 2
    radius = 4.0 + 0.25 * b.fat
    np.maximum(out, 2 * np.sqrt(np.maximum(radius**2 - gap, 0)).astype(np.float32), out=out)
    if b.breast:
        for side in (_LEFT, _RIGHT):
            dome = film.ellipse(side * 0.57 * b.half, 0.74 * b.length, 6.6, 6.2)
            out += np.float32(b.breast) * dome * _smoothstep(y, 0.45 * b.length, 0.80 * b.length)
    return out


def _ribs(film: _Film, b: _Thorax) -> F32:
    back, front = film.layer(), film.layer()
    spacing = 0.83 * b.length / 9.0
    for i in range(10):
        y0 = -1.0 + spacing * i
        drop = b.rib_drop * (0.55 + 0.06 * min(i, 7))
        reach = float(b.wall(np.array([y0 + drop / 2 - 0.4]))[0]) - 0.25
        end = np.deg2rad(122 if i else 140) + 0.02 * i
        for side in (_LEFT, _RIGHT):
            phi = np.linspace(0.0, end, 40)
            z = np.cos(phi)
            x = np.where(phi < np.pi / 2, 2.0 + (reach - 2.0) * np.sin(phi) ** 0.9, reach * np.sin(phi) ** 1.3)
            y = y0 + drop * (1 - z) / 2 - 0.35 * np.sin(np.minimum(phi * 4, np.pi))
            line = np.stack([side * x, y], -1)
            plane = np.hypot(np.gradient(x), np.gradient(y))
            along = np.clip(np.hypot(plane, np.gradient(z * 8.0)) / np.maximum(plane, 1e-3), 1, 1.9)
            anterior = phi > np.pi / 2
            width = np.where(anterior, 1.35, 1.0 + 0.02 * i) * (0.85 if i == 0 else 1.0)
            for layer, part, cm in ((back, phi < np.pi / 2 + 0.1, 1.15), (front, phi > np.pi / 2 - 0.1, 0.65)):
                film.ribbon(layer, line[part], width[part], cm * along[part])
                film.ribbon(layer, line[part], width[part] - 0.26, 0.72 * cm * along[part])
    return film.blur(back, 0.05) + film.blur(front, 0.08)


def _girdle(film: _Film, b: _Thorax) -> F32:
    """Clavicles, scapulae and humeri."""
    out = np.zeros(film.shape, np.float32)
    plate, rod, arm = film.layer(), film.layer(), film.layer()
    c, s = 3.4 + b.clavicle, b.shoulders
    for side in (_LEFT, _RIGHT):
        flip, rolled = np.array([side, 1.0]), np.array([s, 0.0])
        edge = _curve([(11.0, 1.0), (10.3, 5.0), (11.6, 10.0), (12.9, 14.0), (13.4, 13.0), (13.7, 9.0), (15.0, 5.4)])
        film.fill(plate, (np.concatenate([edge, [[14.6, 3.4]]]) + rolled) * flip, 0.8)
        border = (_curve([(14.4, 6.4), (13.7, 8.8), (13.4, 12.0), (12.9, 14.0)]) + rolled) * flip
        film.ribbon(rod, border, np.linspace(0.9, 0.4, len(border)), np.linspace(1.2, 0.6, len(border)))
        spine = (_curve([(10.8, 3.8), (13.0, 2.4), (15.8, 0.9), (17.2, 1.2)]) + 0.8 * rolled) * flip
        film.ribbon(rod, spine, np.linspace(0.5, 1.5, len(spine)), np.full(len(spine), 1.2))
        t = np.linspace(0, 2 * np.pi, 40)
        head = np.array([16.5 + s * 0.6, 4.4])
        shaft = head + _curve([(0.0, 0.0), (1.4, 8.0), (2.6, 20.0)])
        film.ribbon(arm, shaft * flip, np.linspace(3.4, 2.1, len(shaft)), np.full(len(shaft), 3.4))
        film.ribbon(arm, shaft * flip, np.linspace(2.4, 1.1, len(shaft)), np.full(len(shaft), 2.2))
        film.fill(arm, (head + 2.35 * np.stack([np.cos(t), np.sin(t)], -1)) * flip, 3.0)
        bone = _curve([(1.5, c), (3.2, c - 0.7), (6.5, c - 2.0), (10.0, c - 3.3), (13.5, c - 3.9), (16.6, c - 3.5)])
        bone = bone * flip + [b.turn, 0]
        swell = 1.25 + 0.55 * np.linspace(1, -1, len(bone)) ** 4
        film.ribbon(rod, bone, swell, np.full(len(bone), 2.2))
        film.ribbon(rod, bone, swell - 0.4, np.full(len(bone), 1.5))
    for layer, cm in ((plate, 0.12), (rod, 0.07), (arm, 0.1)):
        out += film.blur(layer, cm)
    return out


def _spine(film: _Film, b: _Thorax) -> F32:
    bodies, arches = film.layer(), film.layer()
    y, t = -9.0, np.linspace(0, 2 * np.pi, 16)
    circle = np.stack([np.cos(t), np.sin(t)], -1)
    while y < 37:
        high = float(np.interp(y, [-9, -1, 12, 36], [1.5, 1.75, 2.15, 2.9]))
        wide = float(np.interp(y, [-9, -1, 12, 36], [1.25, 1.55, 1.6, 2.3]))
        gap = 0.08 * high
        side = [(wide, y + gap), (wide * 0.88, y + high / 2), (wide, y + high - gap)]
        right = _curve(side, 5)
        film.fill(bodies, np.concatenate([right, right[::-1] * [-1, 1]]), 2.4)
        film.fill(bodies, np.concatenate([right * [0.9, 1], right[::-1] * [-0.9, 1]]), 2.0)
        for sign in (-1, 1):
            film.fill(arches, circle * [0.28, 0.42] + [sign * wide * 0.68, y + 0.4 * high], 1.1)
            wing = np.array([[sign * wide * 0.8, y + 0.2], [sign * (wide + 1.0), y], [sign * (wide + 1.0), y + 0.8]])
            film.fill(arches, np.concatenate([wing, [[sign * wide * 0.8, y + 1.0]]]), 0.7)
        film.fill(arches, circle * [0.22, 0.65] + [-b.turn * 0.5, y + 0.85 * high], 1.1)
        y += high
    return film.blur(bodies, 0.07) + film.blur(arches, 0.08)


def _vessels(film: _Film, b: _Thorax, rng: np.random.Generator) -> F32:
    """Two branching trees a lung, thinning from the hilum to the pleura."""
    strokes: list[tuple[float, Points]] = []

    def grow(start: Points, angle: float, radius: float, length: float, depth: int) -> None:
        bend = rng.normal(0, 0.25, 4).cumsum() * 0.5
        steps = np.stack([np.cos(angle + bend), np.sin(angle + bend)], -1) * length / 4
        line = np.concatenate([start[None], start + steps.cumsum(0)])
        strokes.append((radius, line))
        if depth == 0:
            return
        turn = rng.uniform(0.2, 0.55)
        split = rng.uniform(0.66, 0.86)
        for sign in (-1, 1):
            share = split if sign * turn > 0 else 1.5 - split
            grow(
                line[-1],
                angle + bend[-1] + sign * turn,
                radius * share * 0.93,
                length * rng.uniform(0.7, 0.95),
                depth - 1,
            )

    for side, hilum in ((_LEFT, (0.215, 0.43)), (_RIGHT, (0.255, 0.40))):
        root = np.array([side * hilum[0] * b.half + b.turn * 0.4, hilum[1] * b.length])
        for angle in np.deg2rad([-78, -58, -35, -12, 8, 26, 42, 56, 68, 80, 92]) + rng.normal(0, 0.07, 11):
            start = root + rng.normal(0, 0.35, 2) + [0, 1.2 * np.sin(angle)]
            lower = 1.0 + 0.35 * np.sin(angle)
            facing = angle if side == _RIGHT else np.pi - angle
            grow(start, facing, 0.30 * lower, 3.0 * (0.9 + 0.2 * lower), 5)
    layers = [film.layer(), film.layer(), film.layer()]
    for k, (radius, line) in enumerate(sorted(strokes, key=lambda s: s[0])):
        thick = max(2 * radius * film.scale, 1.0)
        cm = (3.4 * radius + 0.16) * min(1.0, 2 * radius * film.scale)
        points = film.pixels(line).reshape(-1, 1, 2)
        cv2.polylines(layers[k % 3], [points], False, round(cm / _BONE_UNIT), round(thick), cv2.LINE_AA, _SHIFT)
    hila = film.layer()
    for side, x, y in ((_LEFT, 0.17, 0.40), (_RIGHT, 0.21, 0.365)):
        root = np.array([side * x * b.half + b.turn * 0.4, y * b.length])
        for trunk in (
            [(-0.6, 0.2), (0.9, 0.5), (1.5, 1.8), (1.8, 3.4), (2.3, 5.2)],
            [(-0.6, 0.3), (0.7, -0.3), (1.4, -1.6), (2.2, -3.0)],
            [(-0.9, 1.8), (0.9, 2.0), (2.0, 2.9), (3.4, 3.9)],
        ):
            line = root + _curve(trunk) * [side, 1]
            film.ribbon(hila, line, np.linspace(1.5, 0.5, len(line)), np.linspace(2.6, 0.8, len(line)))
    return film.blur(layers[0], 0.04) + film.blur(layers[1], 0.04) + film.blur(layers[2], 0.06) + film.blur(hila, 0.28)


def _airway(film: _Film, b: _Thorax) -> F32:
    layer = film.layer()
    carina = 0.34 * b.length
    x = b.turn * 0.5
    tube = _curve([(x * 0.4, -9.0), (x * 0.7, 0.0), (x - 0.2, carina * 0.7), (x - 0.15, carina)])
    film.ribbon(layer, tube, np.full(len(tube), 1.8), np.full(len(tube), 3.2))
    for end in ((-3.0, carina + 2.6), (3.6, carina + 2.2)):
        branch = _curve([(x - 0.15, carina - 0.5), (x + end[0] * 0.5, carina + 1.1), (x + end[0], end[1])])
        film.ribbon(layer, branch, np.linspace(1.6, 0.9, len(branch)), np.linspace(2.0, 0.8, len(branch)))
    return film.blur(layer, 0.10)


def _opacities(
    film: _Film, b: _Thorax, lungs: NDArray[np.bool_], lesions: str | float, rng: np.random.Generator
) -> tuple[F32, NDArray[np.bool_]]:
    """Share of the air that is filled (H, W), and the mask of the opacities (H, W)."""
    filled = np.zeros(film.shape, np.float32)
    mask = np.zeros(film.shape, np.bool_)
    if lesions == "none" or lesions == 0:
        return filled, mask
    texture = 0.6 * film.noise(rng, 2.2) + 0.4 * film.noise(rng, 0.9)
    if lesions == "focal":
        side = int(rng.integers(2))
        sign = (_LEFT, _RIGHT)[side]
        cx = sign * rng.uniform(0.56, 0.68) * b.half
        cy = rng.uniform(0.30, 0.50 if side else 0.68) * b.length  # image-right: above the heart
        rx, ry = rng.uniform(2.4, 3.6), rng.uniform(2.4, 3.8)
        r = ((film.x - np.float32(cx)) / np.float32(rx)) ** 2 + ((film.y - np.float32(cy)) / np.float32(ry)) ** 2
        level = np.exp(-0.7 * r) * (1 + 0.35 * texture)
        mask = (level > 0.5) & lungs[side]
        return (0.62 * _smoothstep(level, 0.25, 0.85)).astype(np.float32), mask
    extent = float(rng.uniform(0.25, 0.45)) if lesions == "diffuse" else float(lesions)
    lateral = np.abs(film.x) / film.body.wall(film.y).astype(np.float32)
    level = 1.3 * lateral + 1.1 * film.y / np.float32(b.length) + 0.45 * texture
    for lung in lungs:
        if lung.any():
            cut = float(np.quantile(level[lung], 1 - min(extent * rng.uniform(0.9, 1.1), 1.0)))
            mask |= lung & (level >= cut)
            filled = np.where(lung, _smoothstep(level, cut - 0.35, cut + 0.55), filled)
    filled = cv2.GaussianBlur(filled, (0, 0), 0.25 * film.scale)
    return filled * (0.38 + 0.07 * film.noise(rng, 0.5)), mask


def _expose(film: _Film, water: F32, ap: bool, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Beer-Lambert, scatter, quantum noise, and the tone curve of a digital detector."""
    primary = np.exp(np.float32(-0.19) * water)
    small = cv2.resize(primary, None, fx=0.125, fy=0.125, interpolation=cv2.INTER_AREA)
    haze = cv2.GaussianBlur(small, (0, 0), 2.2 * film.scale / 8)
    dose = cv2.resize(haze, film.shape[::-1], interpolation=cv2.INTER_LINEAR)
    dose *= np.float32(0.22 if ap else 0.12)
    dose += cv2.GaussianBlur(primary, (0, 0), max(0.035 * film.scale, 0.4))
    dose += rng.standard_normal(film.shape, dtype=np.float32) * np.sqrt(dose) * np.float32(0.011 if ap else 0.008)
    density = -np.log(np.maximum(dose, 1e-3))
    middle, power = (2.75, 1.5) if ap else (2.5, 1.6)
    value = 1 - np.exp(-((np.maximum(density, 0) / np.float32(middle)) ** np.float32(power)))
    pixels = np.clip(np.rint(value * MAX_VALUE * 0.97 + 40), 0, MAX_VALUE).astype(np.uint16)
    if rng.random() < 0.5:  # a collimator blade, not quite upright
        side, edge, slant = rng.choice([-1, 1]), rng.uniform(15.2, 16.1), rng.uniform(-0.02, 0.02)
        columns = (np.arange(film.shape[1]) - film.shape[1] / 2) / film.scale
        pixels[side * columns + slant * film.y > edge + max(0.0, film.shape[1] / film.scale - FIELD_CM[1]) / 2] = 0
    return pixels


def make_phantom(
    seed: int,
    *,
    height: int = 1024,
    width: int = 896,
    lesions: Literal["none", "focal", "diffuse"] | float = "none",
    view: Literal["PA", "AP"] = "PA",
) -> Phantom:
    """A synthetic frontal chest radiograph, the same for the same arguments.

    lesions: "focal" is one consolidation, "diffuse" bilateral peripheral ground glass; a number from 0 to 1 is diffuse
        disease over about that share of each lung
    view: AP has a larger heart, higher diaphragm, scapulae over the lungs and more scatter
    Raises ValueError when a side is under 64 pixels or an argument is unknown.

    Other processors or OpenCV versions may round a pixel differently; store the pixels where they must not change.
    """
    if min(height, width) < 64:
        raise ValueError(f"phantom of {height} x {width} pixels: each side must be at least 64")
    if view not in ("PA", "AP"):
        raise ValueError(f"view {view!r}: must be PA or AP")
    if isinstance(lesions, str) and lesions not in ("none", "focal", "diffuse"):
        raise ValueError(f"lesions {lesions!r}: must be none, focal, diffuse or a number from 0 to 1")
    if not isinstance(lesions, str) and not 0 <= lesions <= 1:
        raise ValueError(f"lesions {lesions!r}: must be from 0 to 1")
    ap = view == "AP"
    shape_rng, texture_rng, lesion_rng, noise_rng = (
        np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence(seed).spawn(4)
    )
    b = _Thorax.draw(shape_rng, view)
    film = _Film(height, width, b)

    lungs = np.stack([film.mask(_lung_outline(b, side)) for side in (_LEFT, _RIGHT)])
    lungs[1] &= ~lungs[0]
    visible = cv2.GaussianBlur(lungs.any(0).astype(np.float32), (0, 0), 0.08 * film.scale)
    behind = film.layer()  # lung behind the heart and below the domes
    for side in (_LEFT, _RIGHT):
        y = np.linspace(0.1, 1.0, 12) * b.length
        wall = np.stack([b.wall(y) - 0.3, y], -1)
        film.fill(
            behind,
            np.concatenate([wall, [[0.8 * b.half, b.length + 2], [1.8, b.length * 0.98], [1.8, y[0]]]]) * [side, 1],
            1.0,
        )
    hidden = cv2.GaussianBlur(film.blur(behind, 0.3), (0, 0), 0.5 * film.scale)
    share = visible + (1 - visible) * (0.3 - 0.2 * _smoothstep(film.y, 0.75 * b.length, 0.92 * b.length)) * hidden

    chord = np.sqrt(np.maximum(1 - (np.abs(film.x) / (b.wall(film.y) + 0.35).astype(np.float32)) ** 2, 0)) ** 0.6
    depth = np.interp(film.y, np.array([-1, 2, 8, 16, 24, 30]), [6.5, 9.0, 14.0, 16.5, 16.5, 14]).astype(np.float32)
    air = share * chord * depth * (1 + np.float32(0.02) * film.noise(texture_rng, 3.0))

    water = _soft_tissue(film, b, ap)
    filled, mask = _opacities(film, b, lungs, lesions, lesion_rng)
    water -= np.float32(0.80) * air * (1 - filled)
    fine = film.noise(texture_rng, 0.16) * 0.16 + film.noise(texture_rng, 0.6) * 0.16
    water += (_vessels(film, b, texture_rng) + fine) * np.minimum(share, 1) * (1 - 0.6 * filled)
    water += _ribs(film, b) + _girdle(film, b) + _spine(film, b) - _airway(film, b)
    # gas in the stomach
    water -= np.float32(shape_rng.uniform(1.5, 6.0)) * film.ellipse(
        0.46 * b.half + b.turn, b.length * (1 - 0.79 * b.dome) + 3.2, shape_rng.uniform(1.8, 3.2), 1.6
    )
    pixels = _expose(film, np.maximum(water, 0), ap, noise_rng)
    return Phantom(pixels=pixels, lungs=lungs, lesions=mask, view=view)
