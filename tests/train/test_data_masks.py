"""Lung masks: which lung is which, and where a mask lands on the network's square."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cxrvit_edge.errors import UsageError
from cxrvit_edge.preprocess import Geometry, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Radiograph
from train.data import manifest
from train.data.masks import read_lungs, split_lungs

Bool = NDArray[np.bool_]


def ellipse(shape: tuple[int, int], x: int, y: int, rx: int, ry: int, angle: float = 0) -> Bool:
    out = np.zeros(shape, np.uint8)
    cv2.ellipse(out, (x, y), (rx, ry), angle, 0, 360, 1, -1)
    return out > 0


def test_two_lungs_go_to_their_sides() -> None:
    left, right = ellipse((200, 220), 60, 100, 35, 80), ellipse((200, 220), 160, 95, 30, 70)
    found = split_lungs(left | right)
    np.testing.assert_array_equal(found[0], left)
    np.testing.assert_array_equal(found[1], right)


def test_no_mask_is_no_lung() -> None:
    assert not split_lungs(np.zeros((30, 40), bool)).any()


def test_off_centre_lungs_are_seen_from_their_own_middle() -> None:
    """Both lungs in the left half of the image."""
    left, right = ellipse((200, 400), 40, 100, 25, 80), ellipse((200, 400), 120, 95, 25, 70)
    np.testing.assert_array_equal(split_lungs(left | right), np.stack([left, right]))


def test_a_lung_in_two_parts_stays_one() -> None:
    left = ellipse((200, 220), 60, 60, 30, 40) | ellipse((200, 220), 62, 150, 30, 30)
    right = ellipse((200, 220), 160, 95, 30, 70)
    np.testing.assert_array_equal(split_lungs(left | right), np.stack([left, right]))


def test_touching_lungs_are_cut_where_they_are_thinnest() -> None:
    left, right = ellipse((200, 220), 60, 100, 35, 80), ellipse((200, 220), 160, 95, 30, 70)
    bridge = np.zeros_like(left)
    bridge[95:103, 80:140] = True
    found = split_lungs(left | right | bridge)
    np.testing.assert_array_equal(found.sum(0), (left | right | bridge).astype(int))
    assert found[0][left].all()
    assert found[1][right].all()
    assert found[0].any(axis=0).nonzero()[0].max() < 130


def test_tilted_lungs_that_overlap_in_columns_keep_their_sides() -> None:
    left, right = ellipse((240, 240), 85, 120, 28, 85, 20), ellipse((240, 240), 160, 120, 26, 80, 20)
    assert (left.any(axis=0) & right.any(axis=0)).any()
    np.testing.assert_array_equal(split_lungs(left | right), np.stack([left, right]))


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 24), st.integers(1, 24))
def test_every_pixel_goes_to_one_side(seed: int, height: int, width: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    np.testing.assert_array_equal(split_lungs(mask).sum(0), mask.astype(int))


@pytest.mark.parametrize("aspect", ["pad", "squash"])
@pytest.mark.parametrize("shape", [(200, 160), (160, 200), (301, 97), (97, 301), (64, 64), (600, 620)])
def test_a_mask_lands_where_its_film_does(tmp_path: Path, shape: tuple[int, int], aspect: str) -> None:
    """The film is its own mask: half the grid, the same centroid and area, a lung at a time."""
    h, w = shape
    left, right = (ellipse(shape, int(w * x), h // 2, w // 8, h // 3) for x in (0.25, 0.7))
    cv2.imwrite(str(tmp_path / "mask.png"), (left | right).astype(np.uint8) * 255)
    for side, lung in enumerate((left, right)):
        config = PreprocessConfig(size=128, aspect=aspect)  # type: ignore[arg-type]
        tensor, g = preprocess(Radiograph(lung.astype(np.uint8) * 255), config)
        weight = np.zeros((128, 128))
        weight[g.top : g.top + g.content_height, g.left : g.left + g.content_width] = g.content(tensor[0] + 2) / 4
        found = read_lungs(tmp_path / "mask.png", g, 64)
        assert found.shape == (2, 64, 64)
        assert found.dtype == np.uint8
        y, x = centroid(weight)
        my, mx = centroid(found[side])
        assert abs(my - y / 2) <= 0.75  # corners are rounded to the mask's grid
        assert abs(mx - x / 2) <= 0.75
        assert 4 * found[side].sum() / 255 == pytest.approx(weight.sum(), rel=0.08)


def centroid(weights: NDArray[np.generic]) -> tuple[float, float]:
    w = weights.astype(float)
    rows, columns = (np.arange(n) + 0.5 for n in w.shape)
    return float((w.sum(1) * rows).sum() / w.sum()), float((w.sum(0) * columns).sum() / w.sum())


def test_a_mask_of_another_size_is_fitted_to_its_film(tmp_path: Path) -> None:
    left, right = ellipse((400, 320), 80, 200, 50, 140), ellipse((400, 320), 230, 200, 50, 140)
    cv2.imwrite(str(tmp_path / "full.png"), (left | right).astype(np.uint8) * 255)
    cv2.imwrite(str(tmp_path / "half.png"), (left | right).astype(np.uint8)[::2, ::2] * 255)
    g = Geometry.fit(400, 320, 128, "pad")
    full, half = (read_lungs(tmp_path / f"{name}.png", g, 64).astype(float) for name in ("full", "half"))
    assert np.abs(full - half).mean() < 4


def test_a_mask_of_ones_counts_as_a_mask_of_255s(tmp_path: Path) -> None:
    mask = (ellipse((64, 64), 16, 32, 8, 20) | ellipse((64, 64), 48, 32, 8, 20)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "one.png"), mask)
    cv2.imwrite(str(tmp_path / "full.png"), mask * 255)
    g = Geometry.fit(64, 64, 64, "pad")
    one, full = (read_lungs(tmp_path / f"{name}.png", g, 32) for name in ("one", "full"))
    assert full.max() == 255
    np.testing.assert_array_equal(one, full)


def test_a_sliver_of_a_film_has_a_mask(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "m.png"), np.full((4, 2600), 255, np.uint8))
    assert read_lungs(tmp_path / "m.png", Geometry.fit(4, 2600, 512, "pad"), 256).any()


def test_a_damaged_mask_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(b"not a mask")
    with pytest.raises(UsageError, match=r"m\.png: cannot read this mask"):
        read_lungs(tmp_path / "m.png", Geometry.fit(64, 64, 64, "pad"), 32)


def test_real_masks_have_two_lungs(shared_data: Path) -> None:
    kinds = ("generalblockchain", "shenzhen")
    chosen = [r for r in manifest.read(shared_data, masks=kinds) if r.lungs is not None]
    balanced = 0
    for record in chosen[::4]:
        mask = cv2.imread(str(record.lungs), cv2.IMREAD_GRAYSCALE)
        assert mask is not None
        left, right = split_lungs(mask > 0)
        smaller = min(left.sum(), right.sum()) / max(1, (mask > 0).sum())
        balanced += smaller > 0.2
        if left.any() and right.any():
            assert np.argwhere(left)[:, 1].mean() < np.argwhere(right)[:, 1].mean(), record.path
    assert balanced >= 0.97 * len(chosen[::4])
