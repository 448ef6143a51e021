"""Thumbnails: what is shown, where the overlay lies, and that no half-written file is ever used."""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cxrvit_edge.phantom import make_phantom
from cxrvit_edge.preprocess import Geometry
from cxrvit_edge.radiograph import Radiograph
from cxrvit_edge.report import thumbnails as t

SHAPES = [(1024, 896), (600, 1000), (384, 384), (200, 150), (64, 5000)]


def ramp(height: int, width: int, top: int = 4095) -> NDArray[np.uint16]:
    return np.tile(np.linspace(0, top, width).astype(np.uint16), (height, 1))


def lungs_and_blob(geometry: Geometry) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[float, float]]:
    """Two rectangular lungs and a severe blob in the image-left one, as maps; the blob's centre as source fractions."""
    cell = geometry.size / 256
    top, left = geometry.top / cell, geometry.left / cell
    height, width = geometry.content_height / cell, geometry.content_width / cell
    y, x = np.mgrid[0:256, 0:256].astype(np.float32)
    v, u = (y + 0.5 - top) / height, (x + 0.5 - left) / width  # fractions of the source image
    lungs = np.stack([(abs(u - c) < 0.16) & (abs(v - 0.5) < 0.35) for c in (0.28, 0.72)]).astype(np.float32)
    centre = (0.3, 0.6)
    blob = np.exp(-(((u - centre[0]) / 0.05) ** 2) - ((v - centre[1]) / 0.05) ** 2).astype(np.float32)
    return lungs, blob, centre


def decode(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return np.asarray(image)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_thumbnail_keeps_the_aspect_and_is_never_enlarged(shape: tuple[int, int], dtype: type) -> None:
    thumb = t.thumbnail(Radiograph(ramp(*shape, top=255).astype(dtype)))
    assert thumb.dtype == np.uint8
    assert max(thumb.shape) == min(t.LONGEST_SIDE, max(shape))
    ratio = min(1.0, t.LONGEST_SIDE / max(shape))
    assert thumb.shape == tuple(max(1, round(side * ratio)) for side in shape)
    assert thumb.min() < 8 and thumb.max() > 247  # the whole gray scale is used


@pytest.mark.parametrize("height", [400, 700, 1024, 2900])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_thumbnail_looks_like_area_averages_between_percentiles(height: int, dtype: type) -> None:
    pixels = make_phantom(2, height=height, width=height * 7 // 8).pixels
    pixels = pixels if dtype is np.uint16 else cv2.convertScaleAbs(pixels, alpha=255 / int(pixels.max()))
    thumb = t.thumbnail(Radiograph(pixels)).astype(float)
    small = cv2.resize(pixels, thumb.shape[::-1], interpolation=cv2.INTER_AREA).astype(float)
    low, high = np.percentile(small, (0.5, 99.5))
    assert np.abs(thumb - np.clip((small - low) / (high - low) * 255, 0, 255)).mean() < 4


def test_the_stored_window_decides_what_is_black_and_white() -> None:
    thumb = t.thumbnail(Radiograph(ramp(300, 300), window=(2048.0, 1024.0)))
    at = np.linspace(0, 4095, 300)
    assert (thumb[:, at < 1530] == 0).all()
    assert (thumb[:, at > 2565] == 255).all()
    assert 120 < thumb[0, 150] < 136


@pytest.mark.parametrize("window", [(60000.0, 20.0), (2048.0, 1.0), (float("nan"), 100.0), (2048.0, 10_000_000.0)])
def test_a_window_that_shows_nothing_is_not_used(window: tuple[float, float]) -> None:
    thumb = t.thumbnail(Radiograph(ramp(300, 300), window=window))
    assert np.array_equal(thumb, t.thumbnail(Radiograph(ramp(300, 300))))


def test_padding_is_black_and_does_not_spoil_the_gray_scale() -> None:
    pixels = ramp(400, 400, top=1000)
    valid = np.ones(pixels.shape, bool)
    valid[:, :120] = False
    pixels[~valid] = 65535
    thumb = t.thumbnail(Radiograph(pixels, valid=valid))
    assert (thumb[:, :115] == 0).all()
    assert thumb[:, 118:].max() > 247
    inside = thumb[0, 120:].astype(int)
    assert inside[0] < 12 and (np.diff(inside) >= 0).all()


@pytest.mark.parametrize("value", [0, 77, 65535])
def test_an_image_of_one_value_is_drawn(value: int) -> None:
    assert t.thumbnail(Radiograph(np.full((100, 100), value, np.uint16))).shape == (100, 100)


def test_a_phantom_is_a_small_readable_jpeg(tmp_path: Path) -> None:
    phantom = make_phantom(1, height=1024, width=896)
    thumb = t.thumbnail(Radiograph(phantom.pixels))
    t.save(tmp_path / "new" / "folder", "ab12", thumb, None, None, None)
    picture, over = t.paths(tmp_path / "new" / "folder", "ab12")
    shown = decode(picture)
    assert shown.shape == thumb.shape == (384, 336)
    assert np.abs(shown.astype(int) - thumb).mean() < 4
    assert picture.stat().st_size < 20_000
    assert not over.exists()


@pytest.mark.parametrize("shape", [(1024, 896), (600, 1000), (300, 280), (645, 715)])
@pytest.mark.parametrize("aspect", ["pad", "squash"])
def test_the_overlay_lies_where_the_blob_is(tmp_path: Path, shape: tuple[int, int], aspect: str) -> None:
    geometry = Geometry.fit(*shape, 512, aspect)
    lungs, blob, (u, v) = lungs_and_blob(geometry)
    thumb = t.thumbnail(Radiograph(ramp(*shape)))
    t.save(tmp_path, "k", thumb, geometry, blob, lungs)
    over = decode(t.paths(tmp_path, "k")[1])  # (h, w, 4) BGRA
    assert over.shape == (*thumb.shape, 4)
    line = (over[..., :3] == t.palette()[t.CONTOUR, [2, 1, 0]]).all(axis=2)
    weight = np.where(line, 0, over[..., 3]).astype(float)
    y, x = np.mgrid[0 : thumb.shape[0], 0 : thumb.shape[1]]
    assert (weight * (x + 0.5)).sum() / weight.sum() == pytest.approx(u * thumb.shape[1], abs=1.5)
    assert (weight * (y + 0.5)).sum() / weight.sum() == pytest.approx(v * thumb.shape[0], abs=1.5)
    # redder where it is worse
    peak = over[round(v * thumb.shape[0]), round(u * thumb.shape[1])]
    assert peak[2] > 190 and peak[1] < 60 and peak[3] > 150


def test_contours_and_zone_lines_are_drawn_and_nothing_outside_the_lungs(tmp_path: Path) -> None:
    geometry = Geometry.fit(768, 768, 512, "pad")
    lungs, _, _ = lungs_and_blob(geometry)
    t.save(tmp_path, "k", np.zeros((384, 384), np.uint8), geometry, np.ones((256, 256), np.float32), lungs)
    over = decode(t.paths(tmp_path, "k")[1])
    line = (over[..., :3] == t.palette()[t.CONTOUR, [2, 1, 0]]).all(axis=2)
    mask = cv2.resize(lungs.max(axis=0), (384, 384), interpolation=cv2.INTER_LINEAR) >= 0.5
    assert (over[..., 3][~cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))).astype(bool)] == 0).all()
    assert (over[..., 3][cv2.erode(mask.astype(np.uint8), np.ones((5, 5))).astype(bool)] > 0).all()
    top, bottom = np.flatnonzero(mask.any(axis=1))[[0, -1]]
    height = bottom + 1 - top
    middle = line[:, round(0.28 * 384) - 30 : round(0.28 * 384) + 30]  # clear of the vertical contours
    crossed = np.flatnonzero(middle.sum(axis=1) > 20)
    expected = [top, top + round(height * 5 / 12), top + round(height * 2 / 3), bottom]
    assert len(crossed) == 4 and np.abs(crossed - expected).max() <= 1


def test_no_lungs_give_an_empty_overlay(tmp_path: Path) -> None:
    geometry = Geometry.fit(500, 400, 512, "pad")
    empty = np.zeros((2, 256, 256), np.float32)
    t.save(tmp_path, "k", np.zeros((384, 307), np.uint8), geometry, np.ones((256, 256), np.float32), empty)
    assert (decode(t.paths(tmp_path, "k")[1])[..., 3] == 0).all()


def test_saving_again_without_maps_drops_the_old_overlay(tmp_path: Path) -> None:
    geometry = Geometry.fit(500, 400, 512, "pad")
    lungs, blob, _ = lungs_and_blob(geometry)
    thumb = np.zeros((384, 307), np.uint8)
    t.save(tmp_path, "k", thumb, geometry, blob, lungs)
    assert t.load(t.paths(tmp_path, "k")[1]) is not None
    t.save(tmp_path, "k", thumb, None, None, None)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["k.jpg"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t.save(tmp_path, "k", np.zeros((90, 90), np.uint8), None, None, None)
    before = t.paths(tmp_path, "k")[0].read_bytes()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as f:
            f.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        t.save(tmp_path, "k", np.full((90, 90), 200, np.uint8), None, None, None)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["k.jpg"]
    assert t.paths(tmp_path, "k")[0].read_bytes() == before


def test_broken_pictures_are_told_from_whole_ones(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    geometry = Geometry.fit(500, 400, 512, "pad")
    lungs, blob, _ = lungs_and_blob(geometry)
    t.save(tmp_path, "k", t.thumbnail(Radiograph(ramp(500, 400))), geometry, blob, lungs)
    for path in t.paths(tmp_path, "k"):
        data = path.read_bytes()
        assert t.load(path) == (data, 384, 307)
        for cut in (0, 1, 10, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:cut])
            assert t.load(path) is None, (path.name, cut)
        assert capfd.readouterr() == ("", "")
        path.write_bytes(data[:40] + bytes(len(data) - 52) + data[-12:])
        assert t.load(path) is None
        capfd.readouterr()  # libjpeg itself may speak of damage in the middle
    assert t.load(tmp_path / "absent.jpg") is None
    assert t.load(tmp_path) is None


def test_the_png_is_indexed_with_alpha_and_its_checksums_hold(tmp_path: Path) -> None:
    geometry = Geometry.fit(500, 400, 512, "pad")
    lungs, blob, _ = lungs_and_blob(geometry)
    t.save(tmp_path, "k", np.zeros((384, 307), np.uint8), geometry, blob, lungs)
    data = t.paths(tmp_path, "k")[1].read_bytes()
    assert len(data) < 12_000
    at, names = 8, []
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + length]
        assert zlib.crc32(body) == int.from_bytes(data[at + 8 + length : at + 12 + length], "big")
        names.append(body[:4])
        at += 12 + length
    assert names == [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"]
