"""The parts of the chest as layers of water-equivalent thickness in centimetres."""

from __future__ import annotations

import cv2
import numpy as np

from cxrvit_edge.phantom.thorax import BONE_UNIT, F32, LEFT, RIGHT, SHIFT, Film, Points, Thorax, curve, smoothstep


def lung_outline(b: Thorax, side: int) -> Points:
    """The visible lung field: chest wall, diaphragm, heart and mediastinum."""
    y = np.array([0.03, 0.07, 0.13, 0.25, 0.42, 0.6, 0.8, 0.93]) * b.length
    wall = [(0.33 * b.half, 0.0), *zip(b.wall(y).tolist(), y.tolist(), strict=True), (0.975 * b.half, b.length)]
    d, h, turn = b.dome, b.heart, b.turn / b.half
    if side == LEFT:
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
    heart = curve([(x + side * turn * (v > 0.4), v) for x, v in mid]) * to  # the heart lies in front
    outline = np.concatenate([curve(wall), curve(base) * to, heart])
    return outline * np.array([side, 1.0])


def soft_tissue(film: Film, b: Thorax, ap: bool) -> F32:
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
        for side in (LEFT, RIGHT):
            dome = film.ellipse(side * 0.57 * b.half, 0.74 * b.length, 6.6, 6.2)
            out += np.float32(b.breast) * dome * smoothstep(y, 0.45 * b.length, 0.80 * b.length)
    return out


def ribs(film: Film, b: Thorax) -> F32:
    back, front = film.layer(), film.layer()
    spacing = 0.83 * b.length / 9.0
    for i in range(10):
        y0 = -1.0 + spacing * i
        drop = b.rib_drop * (0.55 + 0.06 * min(i, 7))
        reach = float(b.wall(np.array([y0 + drop / 2 - 0.4]))[0]) - 0.25
        end = np.deg2rad(122 if i else 140) + 0.02 * i
        for side in (LEFT, RIGHT):
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


def girdle(film: Film, b: Thorax) -> F32:
    """Clavicles, scapulae and humeri."""
    out = np.zeros(film.shape, np.float32)
    plate, rod, arm = film.layer(), film.layer(), film.layer()
    c, s = 3.4 + b.clavicle, b.shoulders
    for side in (LEFT, RIGHT):
        flip, rolled = np.array([side, 1.0]), np.array([s, 0.0])
        edge = curve([(11.0, 1.0), (10.3, 5.0), (11.6, 10.0), (12.9, 14.0), (13.4, 13.0), (13.7, 9.0), (15.0, 5.4)])
        film.fill(plate, (np.concatenate([edge, [[14.6, 3.4]]]) + rolled) * flip, 0.8)
        border = (curve([(14.4, 6.4), (13.7, 8.8), (13.4, 12.0), (12.9, 14.0)]) + rolled) * flip
        film.ribbon(rod, border, np.linspace(0.9, 0.4, len(border)), np.linspace(1.2, 0.6, len(border)))
        spine = (curve([(10.8, 3.8), (13.0, 2.4), (15.8, 0.9), (17.2, 1.2)]) + 0.8 * rolled) * flip
        film.ribbon(rod, spine, np.linspace(0.5, 1.5, len(spine)), np.full(len(spine), 1.2))
        t = np.linspace(0, 2 * np.pi, 40)
        head = np.array([16.5 + s * 0.6, 4.4])
        shaft = head + curve([(0.0, 0.0), (1.4, 8.0), (2.6, 20.0)])
        film.ribbon(arm, shaft * flip, np.linspace(3.4, 2.1, len(shaft)), np.full(len(shaft), 3.4))
        film.ribbon(arm, shaft * flip, np.linspace(2.4, 1.1, len(shaft)), np.full(len(shaft), 2.2))
        film.fill(arm, (head + 2.35 * np.stack([np.cos(t), np.sin(t)], -1)) * flip, 3.0)
        bone = curve([(1.5, c), (3.2, c - 0.7), (6.5, c - 2.0), (10.0, c - 3.3), (13.5, c - 3.9), (16.6, c - 3.5)])
        bone = bone * flip + [b.turn, 0]
        swell = 1.25 + 0.55 * np.linspace(1, -1, len(bone)) ** 4
        film.ribbon(rod, bone, swell, np.full(len(bone), 2.2))
        film.ribbon(rod, bone, swell - 0.4, np.full(len(bone), 1.5))
    for layer, cm in ((plate, 0.12), (rod, 0.07), (arm, 0.1)):
        out += film.blur(layer, cm)
    return out


def spine(film: Film, b: Thorax) -> F32:
    bodies, arches = film.layer(), film.layer()
    y, t = -9.0, np.linspace(0, 2 * np.pi, 16)
    circle = np.stack([np.cos(t), np.sin(t)], -1)
    while y < 37:
        high = float(np.interp(y, [-9, -1, 12, 36], [1.5, 1.75, 2.15, 2.9]))
        wide = float(np.interp(y, [-9, -1, 12, 36], [1.25, 1.55, 1.6, 2.3]))
        gap = 0.08 * high
        side = [(wide, y + gap), (wide * 0.88, y + high / 2), (wide, y + high - gap)]
        right = curve(side, 5)
        film.fill(bodies, np.concatenate([right, right[::-1] * [-1, 1]]), 2.4)
        film.fill(bodies, np.concatenate([right * [0.9, 1], right[::-1] * [-0.9, 1]]), 2.0)
        for sign in (-1, 1):
            film.fill(arches, circle * [0.28, 0.42] + [sign * wide * 0.68, y + 0.4 * high], 1.1)
            wing = np.array([[sign * wide * 0.8, y + 0.2], [sign * (wide + 1.0), y], [sign * (wide + 1.0), y + 0.8]])
            film.fill(arches, np.concatenate([wing, [[sign * wide * 0.8, y + 1.0]]]), 0.7)
        film.fill(arches, circle * [0.22, 0.65] + [-b.turn * 0.5, y + 0.85 * high], 1.1)
        y += high
    return film.blur(bodies, 0.07) + film.blur(arches, 0.08)


def vessels(film: Film, b: Thorax, rng: np.random.Generator) -> F32:
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

    for side, hilum in ((LEFT, (0.215, 0.43)), (RIGHT, (0.255, 0.40))):
        root = np.array([side * hilum[0] * b.half + b.turn * 0.4, hilum[1] * b.length])
        for angle in np.deg2rad([-78, -58, -35, -12, 8, 26, 42, 56, 68, 80, 92]) + rng.normal(0, 0.07, 11):
            start = root + rng.normal(0, 0.35, 2) + [0, 1.2 * np.sin(angle)]
            lower = 1.0 + 0.35 * np.sin(angle)
            facing = angle if side == RIGHT else np.pi - angle
            grow(start, facing, 0.30 * lower, 3.0 * (0.9 + 0.2 * lower), 5)
    layers = [film.layer(), film.layer(), film.layer()]
    for k, (radius, line) in enumerate(sorted(strokes, key=lambda s: s[0])):
        thick = max(2 * radius * film.scale, 1.0)
        cm = (3.4 * radius + 0.16) * min(1.0, 2 * radius * film.scale)
        points = film.pixels(line).reshape(-1, 1, 2)
        cv2.polylines(layers[k % 3], [points], False, round(cm / BONE_UNIT), round(thick), cv2.LINE_AA, SHIFT)
    hila = film.layer()
    for side, x, y in ((LEFT, 0.17, 0.40), (RIGHT, 0.21, 0.365)):
        root = np.array([side * x * b.half + b.turn * 0.4, y * b.length])
        for trunk in (
            [(-0.6, 0.2), (0.9, 0.5), (1.5, 1.8), (1.8, 3.4), (2.3, 5.2)],
            [(-0.6, 0.3), (0.7, -0.3), (1.4, -1.6), (2.2, -3.0)],
            [(-0.9, 1.8), (0.9, 2.0), (2.0, 2.9), (3.4, 3.9)],
        ):
            line = root + curve(trunk) * [side, 1]
            film.ribbon(hila, line, np.linspace(1.5, 0.5, len(line)), np.linspace(2.6, 0.8, len(line)))
    return film.blur(layers[0], 0.04) + film.blur(layers[1], 0.04) + film.blur(layers[2], 0.06) + film.blur(hila, 0.28)


def airway(film: Film, b: Thorax) -> F32:
    layer = film.layer()
    carina = 0.34 * b.length
    x = b.turn * 0.5
    tube = curve([(x * 0.4, -9.0), (x * 0.7, 0.0), (x - 0.2, carina * 0.7), (x - 0.15, carina)])
    film.ribbon(layer, tube, np.full(len(tube), 1.8), np.full(len(tube), 3.2))
    for end in ((-3.0, carina + 2.6), (3.6, carina + 2.2)):
        branch = curve([(x - 0.15, carina - 0.5), (x + end[0] * 0.5, carina + 1.1), (x + end[0], end[1])])
        film.ribbon(layer, branch, np.linspace(1.6, 0.9, len(branch)), np.linspace(2.0, 0.8, len(branch)))
    return film.blur(layer, 0.10)
