"""Augmentation: image and lungs move together, nothing changes sides, everything is seeded."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from train.augment import PAD, Augmentation, augment, negative

U8 = NDArray[np.uint8]
MOVES = Augmentation(gamma=0.0, border=0.0, boxes=0.0, noise=0.0)
STILL = Augmentation(rotation=0.0, scale=0.0, shift=0.0, gamma=0.0, border=0.0, boxes=0.0, noise=0.0)
SIZE = 128


def disc(x: int, y: int, radius: int = 14) -> tuple[U8, U8]:
    """A bright disc on the padding's gray, and the same disc as the image-left lung on half the grid."""
    full = np.zeros((SIZE, SIZE), np.uint8)
    cv2.circle(full, (x, y), radius, 255, -1)
    image = np.where(full > 0, 230, PAD).astype(np.uint8)
    half = cv2.resize(full, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
    return image, np.stack([half, np.zeros_like(half)])


def centroid(weights: NDArray[np.generic]) -> NDArray[np.float64]:
    """(x, y) from pixel edges."""
    w = weights.astype(float)
    y, x = np.mgrid[: w.shape[0], : w.shape[1]] + 0.5
    return np.array([(w * x).sum(), (w * y).sum()]) / w.sum()


def bright(image: U8) -> NDArray[np.float64]:
    """How far each pixel is from the background to the disc, 0 to 1; the tone curve is monotone."""
    low, high = np.percentile(image, 20), float(image.max())
    return np.clip((image - low) / (high - low), 0, 1)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(40, 88), st.integers(40, 88))
def test_image_and_lungs_move_together(seed: int, x: int, y: int) -> None:
    image, lungs = augment(*disc(x, y), MOVES, np.random.default_rng(seed))
    assert image.shape == (SIZE, SIZE)
    assert lungs.shape == (2, SIZE // 2, SIZE // 2)
    assert image.dtype == lungs.dtype == np.uint8
    difference = centroid(bright(image)) - 2 * centroid(lungs[0])
    assert np.abs(difference).max() <= 1.0
    assert 4 * lungs[0].sum() / 255 == pytest.approx(bright(image).sum(), rel=0.1)
    assert not lungs[1].any()


def test_the_moves_are_as_wide_as_they_say() -> None:
    """Rotation within 10 degrees about the centre, scale within 15 %, shift within 6 % of the side; all of it used."""
    centres, areas, angles = [], [], []
    image, lungs = disc(64, 64, 20)
    film = np.full((SIZE, SIZE), PAD, np.uint8)
    film[44:84, 62:66] = 230  # an upright bar
    for seed in range(150):
        _, moved = augment(image, lungs, MOVES, np.random.default_rng(seed))
        centres.append(2 * centroid(moved[0]) - 64)
        areas.append(moved[0].sum() / lungs[0].sum())
        bar = bright(augment(film, lungs * 0, MOVES, np.random.default_rng(seed))[0])
        y, x = np.mgrid[:SIZE, :SIZE]
        slope = np.polyfit(y[bar > 0.5], x[bar > 0.5], 1)[0]
        angles.append(np.degrees(np.arctan(slope)))
    shifts = np.abs(centres)
    assert 0.8 * 0.06 * SIZE < shifts.max() < 0.06 * SIZE + 1.5
    assert 0.85**2 * 0.98 < min(areas) < 0.85**2 * 1.15
    assert 1.15**2 * 0.88 < max(areas) < 1.15**2 * 1.02
    assert 8.0 < np.abs(angles).max() < 10.5
    assert np.abs(np.mean(angles)) < 2.0


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_left_stays_left(seed: int) -> None:
    """Zones and the heart have sides: no flip, ever."""
    _, lungs = augment(*disc(36, 64), Augmentation(), np.random.default_rng(seed))
    assert centroid(lungs[0])[0] < SIZE // 4


def test_without_any_change_the_film_stays() -> None:
    """Half of the seeds bend the tones; the other half leave all but the contrast."""
    rng = np.random.default_rng(0)
    film = rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    lungs = rng.integers(0, 256, (2, 64, 64), dtype=np.uint8)
    for seed in range(20):
        out, out_lungs = augment(film, lungs, STILL, np.random.default_rng(seed))
        np.testing.assert_array_equal(out_lungs, lungs)
        order = np.array([out[film == v].mean() for v in range(256)])
        assert all(np.ptp(out[film == v]) == 0 for v in range(256))  # one tone curve for all pixels
        assert (np.diff(order) >= 0).all()  # and it never turns round


def test_it_is_seeded() -> None:
    rng = np.random.default_rng(3)
    film = rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    lungs = np.zeros((2, 64, 64), np.uint8)
    lungs[:, 10:50, 10:50] = 255
    before = film.copy(), lungs.copy()
    seen = set()
    for seed in range(12):
        a = augment(film, lungs, Augmentation(), np.random.default_rng(seed))
        b = augment(film, lungs, Augmentation(), np.random.default_rng(seed))
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
        seen.add(a[0].tobytes())
    assert len(seen) == 12
    np.testing.assert_array_equal(film, before[0])
    np.testing.assert_array_equal(lungs, before[1])


def test_whether_there_are_lungs_does_not_change_the_film() -> None:
    image, lungs = disc(50, 60)
    for seed in range(5):
        with_lungs, _ = augment(image, lungs, Augmentation(), np.random.default_rng(seed))
        without, none = augment(image, lungs * 0, Augmentation(), np.random.default_rng(seed))
        np.testing.assert_array_equal(with_lungs, without)
        assert not none.any()


@pytest.mark.parametrize("cue", ["border", "boxes", "noise"])
def test_each_source_cue_is_drawn(cue: str) -> None:
    """Always, where its chance is one; the lungs do not move for it."""
    film, lungs = np.full((SIZE, SIZE), 100, np.uint8), np.full((2, 64, 64), 255, np.uint8)
    flat = sum(np.ptp(augment(film, lungs, STILL, np.random.default_rng(s))[0]) == 0 for s in range(10))
    one = Augmentation(**{**vars(STILL), cue: 1.0})
    drawn = [augment(film, lungs, one, np.random.default_rng(s)) for s in range(10)]
    assert flat == 10
    assert sum(np.ptp(image) > 0 for image, _ in drawn) >= 9
    assert all((moved == 255).all() for _, moved in drawn)


def test_a_negative_is_turned_or_inverted() -> None:
    film = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    before = film.copy()
    kinds = {"inverted": 255 - film, **{f"turned {k}": np.rot90(film, k) for k in (1, 2, 3)}}
    seen = set()
    for seed in range(40):
        found = negative(film, np.random.default_rng(seed))
        (kind,) = (k for k, v in kinds.items() if np.array_equal(found, v))
        seen.add(kind)
        assert found.flags.c_contiguous
    assert seen == set(kinds)
    np.testing.assert_array_equal(film, before)
