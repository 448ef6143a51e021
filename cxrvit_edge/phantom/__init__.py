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

from cxrvit_edge.phantom.anatomy import airway, girdle, lung_outline, ribs, soft_tissue, spine, vessels
from cxrvit_edge.phantom.thorax import F32, FIELD_CM, LEFT, RIGHT, Film, Thorax, smoothstep

MAX_VALUE = 4095


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


def _opacities(
    film: Film, b: Thorax, lungs: NDArray[np.bool_], lesions: str | float, rng: np.random.Generator
) -> tuple[F32, NDArray[np.bool_]]:
    """Share of the air that is filled (H, W), and the mask of the opacities (H, W)."""
    filled = np.zeros(film.shape, np.float32)
    mask = np.zeros(film.shape, np.bool_)
    if lesions == "none" or lesions == 0:
        return filled, mask
    texture = 0.6 * film.noise(rng, 2.2) + 0.4 * film.noise(rng, 0.9)
    if lesions == "focal":
        side = int(rng.integers(2))
        sign = (LEFT, RIGHT)[side]
        cx = sign * rng.uniform(0.56, 0.68) * b.half
        cy = rng.uniform(0.30, 0.50 if side else 0.68) * b.length  # image-right: above the heart
        rx, ry = rng.uniform(2.4, 3.6), rng.uniform(2.4, 3.8)
        r = ((film.x - np.float32(cx)) / np.float32(rx)) ** 2 + ((film.y - np.float32(cy)) / np.float32(ry)) ** 2
        level = np.exp(-0.7 * r) * (1 + 0.35 * texture)
        mask = (level > 0.5) & lungs[side]
        return (0.62 * smoothstep(level, 0.25, 0.85)).astype(np.float32), mask
    extent = float(rng.uniform(0.25, 0.45)) if lesions == "diffuse" else float(lesions)
    lateral = np.abs(film.x) / film.body.wall(film.y).astype(np.float32)
    level = 1.3 * lateral + 1.1 * film.y / np.float32(b.length) + 0.45 * texture
    for lung in lungs:
        if lung.any():
            cut = float(np.quantile(level[lung], 1 - min(extent * rng.uniform(0.9, 1.1), 1.0)))
            mask |= lung & (level >= cut)
            filled = np.where(lung, smoothstep(level, cut - 0.35, cut + 0.55), filled)
    filled = cv2.GaussianBlur(filled, (0, 0), 0.25 * film.scale)
    return filled * (0.38 + 0.07 * film.noise(rng, 0.5)), mask


def _expose(film: Film, water: F32, ap: bool, rng: np.random.Generator) -> NDArray[np.uint16]:
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
    b = Thorax.draw(shape_rng, view)
    film = Film(height, width, b)

    lungs = np.stack([film.mask(lung_outline(b, side)) for side in (LEFT, RIGHT)])
    lungs[1] &= ~lungs[0]
    visible = cv2.GaussianBlur(lungs.any(0).astype(np.float32), (0, 0), 0.08 * film.scale)
    behind = film.layer()  # lung behind the heart and below the domes
    for side in (LEFT, RIGHT):
        y = np.linspace(0.1, 1.0, 12) * b.length
        wall = np.stack([b.wall(y) - 0.3, y], -1)
        film.fill(
            behind,
            np.concatenate([wall, [[0.8 * b.half, b.length + 2], [1.8, b.length * 0.98], [1.8, y[0]]]]) * [side, 1],
            1.0,
        )
    hidden = cv2.GaussianBlur(film.blur(behind, 0.3), (0, 0), 0.5 * film.scale)
    share = visible + (1 - visible) * (0.3 - 0.2 * smoothstep(film.y, 0.75 * b.length, 0.92 * b.length)) * hidden

    chord = np.sqrt(np.maximum(1 - (np.abs(film.x) / (b.wall(film.y) + 0.35).astype(np.float32)) ** 2, 0)) ** 0.6
    depth = np.interp(film.y, np.array([-1, 2, 8, 16, 24, 30]), [6.5, 9.0, 14.0, 16.5, 16.5, 14]).astype(np.float32)
    air = share * chord * depth * (1 + np.float32(0.02) * film.noise(texture_rng, 3.0))

    water = soft_tissue(film, b, ap)
    filled, mask = _opacities(film, b, lungs, lesions, lesion_rng)
    water -= np.float32(0.80) * air * (1 - filled)
    fine = film.noise(texture_rng, 0.16) * 0.16 + film.noise(texture_rng, 0.6) * 0.16
    water += (vessels(film, b, texture_rng) + fine) * np.minimum(share, 1) * (1 - 0.6 * filled)
    water += ribs(film, b) + girdle(film, b) + spine(film, b) - airway(film, b)
    # gas in the stomach
    water -= np.float32(shape_rng.uniform(1.5, 6.0)) * film.ellipse(
        0.46 * b.half + b.turn, b.length * (1 - 0.79 * b.dome) + 3.2, shape_rng.uniform(1.8, 3.2), 1.6
    )
    pixels = _expose(film, np.maximum(water, 0), ap, noise_rng)
    return Phantom(pixels=pixels, lungs=lungs, lesions=mask, view=view)
