"""Generated images that are no upright frontal chest radiograph: bodies (guard_bodies.py) and other pictures."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from train.guard_bodies import SIDE, Canvas, Gray, Rng, abdomen, axial, box, hand, lateral, limb, skull


def page(rng: Rng) -> Gray:
    """Text, a table, a form or a chart, dark on light or light on dark."""
    h, w = (SIDE, int(SIDE * rng.uniform(0.6, 1.0))) if rng.random() < 0.6 else (int(SIDE * rng.uniform(0.5, 1)), SIDE)
    out = np.full((h, w), int(rng.integers(215, 256)), np.uint8)
    kind = rng.integers(4)
    ink, x0 = int(rng.integers(0, 90)), int(rng.integers(8, 50))
    if kind in (0, 1):
        step = int(rng.integers(9, 22))
        for row in range(int(rng.integers(10, 60)), h - 10, step):
            if rng.random() < 0.85:
                text = "".join(rng.choice(list("abcdefghiklmnoprstuvw 0123"), int(rng.integers(8, 70))))
                cv2.putText(out, text, (x0, row), cv2.FONT_HERSHEY_SIMPLEX, step / 45, ink, 1, cv2.LINE_AA)
    if kind in (1, 2):
        for _ in range(int(rng.integers(2, 14))):
            a, b = (
                (int(rng.integers(0, w)), int(rng.integers(0, h))),
                (int(rng.integers(0, w)), int(rng.integers(0, h))),
            )
            cv2.rectangle(out, a, b, int(rng.integers(0, 256)), -1 if rng.random() < 0.5 else int(rng.integers(1, 3)))
    if kind == 3:
        cv2.line(out, (x0, h - 30), (w - 10, h - 30), ink, 2)
        cv2.line(out, (x0, 10), (x0, h - 30), ink, 2)
        xs = np.linspace(x0, w - 12, int(rng.integers(5, 40)))
        ys = h - 30 - np.abs(np.cumsum(rng.normal(0, 1, len(xs)))) / 6 * (h - 60)
        for x, y in zip(xs, np.clip(ys, 8, h - 30), strict=True):
            cv2.rectangle(out, (int(x), int(y)), (int(x) + 5, h - 30), int(rng.integers(0, 200)), -1)
    if rng.random() < 0.35:
        out = (255 - out).astype(np.uint8)
    return cv2.GaussianBlur(
        np.clip(out + rng.normal(0, rng.uniform(0.5, 4), out.shape), 0, 255).astype(np.uint8), (0, 0), 0.6
    )


def noise(rng: Rng) -> Gray:
    """1/f noise of any slope, gradients, stripes, checks."""
    h, w = SIDE, int(SIDE * rng.uniform(0.6, 1.0))
    kind = rng.integers(4)
    y, x = np.mgrid[:h, :w] / SIDE
    if kind < 2:
        f = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None]) + 1 / SIDE
        value = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((h, w))) / f ** rng.uniform(0, 2.6), (h, w))
    elif kind == 2:
        a = rng.uniform(0, 2 * np.pi)
        value = (
            (np.cos(a) * x + np.sin(a) * y) ** rng.choice([1, 2])
            if rng.random() < 0.5
            else np.hypot(x - rng.random(), y - rng.random())
        )
        value = value + rng.normal(0, 0.01, (h, w))
    else:
        n, m = rng.uniform(4, 60, 2)
        value = np.sin(x * n + rng.random() * 6) * (np.sin(y * m) if rng.random() < 0.6 else 1) + rng.normal(
            0, 0.05, (h, w)
        )
        value = np.tanh(value * rng.uniform(0.5, 6))
    value = (value - value.min()) / np.ptp(value)
    return np.asarray(value * 255, np.uint8)


def scene(rng: Rng) -> Gray:
    """Photograph-like: shaded things of a power law of sizes, one before the other (dead leaves), sky and ground."""
    c = Canvas(rng, rng.uniform(0.6, 1.6))
    value = 0.5 + 0.25 * c.noise(0.5) + rng.normal(0, 0.4) * (c.y - 0.5)
    for _ in range(int(rng.integers(3, 160))):
        r = min(0.5, 0.02 / rng.random())
        x, y, angle = rng.random() * c.width, rng.random(), rng.uniform(0, np.pi)
        chord = c.ball(x, y, r, r * rng.uniform(0.3, 1), angle)
        there = chord > 0 if rng.random() < 0.6 else box(c, x, y, r, r * rng.uniform(0.2, 1)) > 0
        shade = rng.random() + rng.normal(0, 0.3) * (c.x - x) / r * 0.5 + rng.uniform(0, 0.3) * chord
        value = np.where(there, shade + rng.uniform(0, 0.1) * c.noise(rng.uniform(0.01, 0.1)), value)
    value = cv2.GaussianBlur(value.astype(np.float32), (0, 0), rng.uniform(0.4, 2))
    return np.clip(value * 255, 0, 255).astype(np.uint8)


def thing(rng: Rng) -> Gray:
    """One object on a plain ground, or two."""
    c = Canvas(rng, rng.uniform(0.6, 1.6))
    value = np.full(c.shape, rng.random(), np.float32) + np.float32(rng.normal(0, 0.1)) * c.y
    for _ in range(int(rng.integers(2, 9))):
        x, y = (0.5 + rng.normal(0, 0.12)) * c.width, 0.5 + rng.normal(0, 0.15)
        chord = c.ball(x, y, rng.uniform(0.05, 0.35), rng.uniform(0.05, 0.35), rng.uniform(0, 3))
        value = np.where(chord > 0, rng.random() + rng.normal(0, 0.4) * chord + 0.08 * c.noise(0.03), value)
    return np.clip(cv2.GaussianBlur(value.astype(np.float32), (0, 0), 1) * 255, 0, 255).astype(np.uint8)


KINDS: dict[str, Callable[[Rng], Gray]] = {
    f.__name__: f for f in (limb, hand, abdomen, skull, lateral, axial, page, noise, scene, thing)
}


def draw(kind: str, seed: int) -> Gray:
    """(H, W) uint8 of one of KINDS; the same for the same arguments."""
    return KINDS[kind](np.random.default_rng([seed, sorted(KINDS).index(kind)]))
