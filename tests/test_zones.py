"""Six zones of two lungs, and the severity array, against slow rules written out here."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from cxrvit_edge.zones import clean_lung, lung_extent, lung_separation, severity_array, split_rows, zone_masks

Bool = NDArray[np.bool_]
UNIT = st.floats(0, 1, width=32)


def box(shape: tuple[int, int], top: int, bottom: int, left: int, right: int) -> Bool:
    out = np.zeros(shape, bool)
    out[top:bottom, left:right] = True
    return out


def components(mask: Bool) -> list[set[tuple[int, int]]]:
    """8-connected components, by flood fill."""
    todo = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    out = []
    while todo:
        seeds, part = [todo.pop()], set()
        while seeds:
            y, x = seeds.pop()
            part.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & todo
            todo -= near
            seeds.extend(near)
        out.append(part)
    return out


@pytest.mark.parametrize("height", [*range(1, 200), 255, 256, 511, 512, 1024])
def test_rows_are_split_at_five_twelfths_and_two_thirds(height: int) -> None:
    lung = box((height + 7, 5), 4, 4 + height, 1, 3)
    upper, middle = round(Fraction(5 * height, 12)), round(Fraction(2 * height, 3))
    assert split_rows(lung) == (4, 4 + upper, 4 + middle, 4 + height)


def test_no_lung_has_no_rows() -> None:
    assert split_rows(np.zeros((9, 9), bool)) is None


def test_zones_of_a_plain_pair() -> None:
    """A lung of 120 rows from row 10: 50 upper, 30 middle, 40 lower; the other lung has rows of its own."""
    masks = np.stack([box((200, 200), 10, 130, 20, 80), box((200, 200), 40, 100, 110, 190)]).astype(np.float32)
    zones = zone_masks(masks)
    assert zones is not None
    assert zones.shape == (3, 2, 200, 200)
    for zone, (top, bottom) in enumerate([(10, 60), (60, 90), (90, 130)]):
        np.testing.assert_array_equal(zones[zone, 0], box((200, 200), top, bottom, 20, 80))
    for zone, (top, bottom) in enumerate([(40, 65), (65, 80), (80, 100)]):
        np.testing.assert_array_equal(zones[zone, 1], box((200, 200), top, bottom, 110, 190))


def test_the_mask_threshold_is_inclusive() -> None:
    half = np.full((2, 40, 40), 0.5, np.float32)
    assert zone_masks(half) is not None
    assert zone_masks(np.nextafter(half, np.float32(0))) is None
    assert zone_masks(half, threshold=0.6) is None


@pytest.mark.parametrize(("pixels", "kept"), [(6, True), (4, False)])
def test_parts_over_five_per_cent_of_the_largest_stay(pixels: int, kept: bool) -> None:
    lung = box((40, 40), 5, 15, 5, 15)  # 100 pixels
    part = box((40, 40), 30, 31, 20, 20 + pixels)
    cleaned = clean_lung(lung | part)
    assert bool(cleaned[part].all()) == kept == bool(cleaned[part].any())
    assert cleaned[lung].all()


def test_a_speck_below_the_lung_does_not_stretch_it() -> None:
    left, right = box((200, 200), 10, 130, 20, 80), box((200, 200), 10, 130, 110, 190)
    clean = np.stack([left, right]).astype(np.float32)
    specked = clean.copy()
    specked[0, 190:195, 150:155] = 1
    np.testing.assert_array_equal(zone_masks(specked), zone_masks(clean))


@pytest.mark.parametrize("side", [0, 1])
def test_a_lung_under_one_per_cent_gives_no_zones(side: int) -> None:
    masks = np.stack([box((100, 100), 10, 90, 5, 45), box((100, 100), 10, 90, 55, 95)]).astype(np.float32)
    masks[side] = 0
    masks[side, 10:20, 10:20] = 1  # 100 of 10,000: just enough
    assert zone_masks(masks) is not None
    masks[side, 19, 19] = 0
    assert zone_masks(masks) is None
    masks[side] = 0
    assert zone_masks(masks) is None


def test_specks_do_not_add_up_to_a_lung() -> None:
    """200 single pixels and one block of 60: only the block counts, and that is under 1 % of the image."""
    masks = np.zeros((2, 100, 100), np.float32)
    masks[0, 10:90, 5:45] = 1
    masks[1, 0:40:2, 50:70:2] = 1
    masks[1, 60:70, 60:66] = 1
    assert (masks[1].sum()) > 100
    assert zone_masks(masks) is None


@settings(max_examples=60)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.booleans()))
def test_cleaning_keeps_what_flood_fill_says(mask: Bool) -> None:
    """Up to 81 pixels 5 % is at most four: a scale on which single pixels beside a large block are kept or not."""
    big = np.zeros((mask.shape[0] + 12, max(mask.shape[1], 10)), bool)
    big[: mask.shape[0], : mask.shape[1]] = mask
    big[-10:] = True  # 100 or so pixels, apart from the rest by two rows
    parts = components(big)
    largest = max(map(len, parts))
    kept: set[tuple[int, int]] = set().union(*(p for p in parts if len(p) * 20 >= largest))
    assert {(int(y), int(x)) for y, x in np.argwhere(clean_lung(big))} == kept


@settings(max_examples=60)
@given(arrays(np.float32, (2, 24, 24), elements=UNIT))
def test_zones_part_each_lung(masks: NDArray[np.float32]) -> None:
    masks[:, 4:20, 4:20] = np.maximum(masks[:, 4:20, 4:20], 0.6)  # enough of a lung
    zones = zone_masks(masks)
    assert zones is not None
    for side in range(2):
        lung = clean_lung(masks[side] >= 0.5)
        np.testing.assert_array_equal(zones[:, side].sum(0), lung.astype(int))  # once each, and no other pixel
        rows = np.flatnonzero(lung.any(axis=1))
        top, height = int(rows[0]), int(rows[-1] - rows[0]) + 1
        for y in rows:
            zone = 0 if y < top + round(5 * height / 12) else 1 if y < top + round(2 * height / 3) else 2
            np.testing.assert_array_equal(zones[zone, side, y], lung[y])


@given(arrays(np.float32, (6, 6), elements=UNIT), arrays(bool, (3, 2, 6, 6)))
def test_severity_is_the_largest_value_of_a_zone(severity_map: NDArray[np.float32], zones: Bool) -> None:
    found = severity_array(severity_map, zones)
    assert found.shape == (3, 2)
    for zone in range(3):
        for side in range(2):
            values = [float(severity_map[y, x]) for y, x in np.argwhere(zones[zone, side])]
            assert found[zone, side] == max(values, default=0.0)


def test_what_lies_outside_the_lungs_does_not_count() -> None:
    masks = np.stack([box((64, 64), 8, 56, 4, 28), box((64, 64), 8, 56, 36, 60)]).astype(np.float32)
    zones = zone_masks(masks)
    assert zones is not None
    severity_map = np.full((64, 64), 0.125, np.float32)
    severity_map[~zones.any((0, 1))] = 1.0
    severity_map[50, 40] = 0.75  # lower zone, image-right lung
    expected = np.full((3, 2), 0.125, np.float32)
    expected[2, 1] = 0.75
    np.testing.assert_array_equal(severity_array(severity_map, zones), expected)


def test_average_pooling_is_the_mean_of_each_zone() -> None:
    masks = np.stack([box((64, 64), 8, 56, 4, 28), box((64, 64), 8, 56, 36, 60)]).astype(np.float32)
    zones = zone_masks(masks)
    assert zones is not None
    severity_map = np.zeros((64, 64), np.float32)
    severity_map[8:18, 4:28] = 0.5  # half of the upper zone (rows 8 to 27), image-left
    expected = np.zeros((3, 2), np.float32)
    expected[0, 0] = 0.25
    np.testing.assert_allclose(severity_array(severity_map, zones, pooling="average"), expected)
    assert severity_array(severity_map, zones)[0, 0] == 0.5
    zones[1, 1] = False
    assert severity_array(severity_map, zones, pooling="average")[1, 1] == 0  # of no pixel there is no mean


def test_extent_of_lungs() -> None:
    """Pixels of either lung over all pixels; the mean of the mask values that count."""
    masks = np.zeros((2, 10, 10), np.float32)
    masks[0, 2:6, 1:4] = 0.75  # 12 pixels
    masks[1, 2:6, 3:6] = 1.0  # 12 pixels, 4 of them of both lungs
    masks[1, 9, :] = 0.25  # not lung
    area, mean = lung_extent(masks)
    assert area == pytest.approx(0.20)
    assert mean == pytest.approx((12 * 0.75 + 12 * 1.0) / 24)
    assert lung_extent(np.full((2, 8, 8), 0.49, np.float32)) == (0.0, 0.0)


def test_lung_separation_is_signed_and_undefined_without_both_lungs() -> None:
    masks = np.zeros((2, 20, 40), np.float32)
    masks[0, 4:16, 4:12] = 1
    masks[1, 4:16, 26:36] = 1
    assert lung_separation(masks) == pytest.approx((30.5 - 7.5) / 40)
    assert lung_separation(masks[::-1]) == pytest.approx(-(30.5 - 7.5) / 40)
    turned = np.stack([np.rot90(m) for m in masks])
    assert abs(lung_separation(turned) or 0.0) < 0.05
    masks[1] = 0
    assert lung_separation(masks) is None


@pytest.mark.parametrize(("pixels", "kept"), [(5, False), (6, True)])
def test_a_part_of_exactly_five_per_cent_is_a_speck(pixels: int, kept: bool) -> None:
    mask = np.zeros((20, 40), bool)
    mask[2:12, 2:12] = True  # 100 pixels
    mask[15, 20 : 20 + pixels] = True
    assert clean_lung(mask)[15].any() == kept
