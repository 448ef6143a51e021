"""What is blank and what is not, before any network is asked."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.guard import check_pixels
from cxrvit_edge.phantom import make_phantom
from cxrvit_edge.radiograph import Radiograph

Pixels = NDArray[Any]


def refused(pixels: Pixels, valid: NDArray[np.bool_] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        check_pixels(Radiograph(pixels, valid=valid))
    assert caught.value.reason is Reason.BLANK
    return str(caught.value)


@pytest.fixture(scope="module")
def film() -> NDArray[np.uint16]:
    return make_phantom(3, height=320, width=288, lesions="focal").pixels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("value", [0, 1, 200, -1])
def test_one_value_is_blank(dtype: type, value: int) -> None:
    assert "1 gray levels" in refused(np.full((300, 400), value % (np.iinfo(dtype).max + 1), dtype))


def test_text_and_masks_are_blank() -> None:
    page = np.full((600, 500), 255, np.uint8)
    for row in range(40, 600, 40):
        cv2.putText(page, "Discharge letter", (20, row), cv2.FONT_HERSHEY_SIMPLEX, 1.0, 0, 2)
    assert "2 gray levels" in refused(np.where(page > 127, 255, 0).astype(np.uint8))
    refused(np.kron(np.eye(4, dtype=np.uint16) * 4095, np.ones((80, 80), np.uint16)))
    refused(np.tile(np.repeat(np.arange(15, dtype=np.uint8) * 17, 30), (200, 1)))  # a step wedge


@pytest.mark.parametrize(("noise", "blank"), [(3, True), (60, False)])
def test_a_dark_frame_with_sensor_noise(noise: int, blank: bool) -> None:
    """16 bits, an offset of 4,000: more than 16 levels, but nothing on it unless they spread."""
    rng = np.random.default_rng(0)
    pixels = np.clip(rng.normal(4000, noise, (300, 300)), 0, 65535).astype(np.uint16)
    if blank:
        refused(pixels)
    else:
        check_pixels(Radiograph(pixels))


def test_a_name_plate_on_a_blank_film_is_blank() -> None:
    pixels = np.full((1000, 1000), 30, np.uint8)
    pixels[:60, :60] = np.arange(60, dtype=np.uint8) * 4  # 0.4 % of the film
    refused(pixels)


@pytest.mark.parametrize("bits", [16, 12, 8])
@pytest.mark.parametrize("size", [(64, 64), (320, 288), (2400, 2000)])
def test_films_pass_at_each_depth_and_size(film: NDArray[np.uint16], size: tuple[int, int], bits: int) -> None:
    pixels = cv2.resize(film, size[::-1], interpolation=cv2.INTER_LINEAR)
    check_pixels(Radiograph((pixels >> 4).astype(np.uint8) if bits == 8 else pixels << (bits - 12)))


def test_a_film_of_low_contrast_passes(film: NDArray[np.uint16]) -> None:
    check_pixels(Radiograph((30000 + film // 4).astype(np.uint16)))


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(["none", "focal", "diffuse"]), st.sampled_from(["PA", "AP"]))
def test_every_generated_film_passes(seed: int, lesions: Any, view: Any) -> None:
    check_pixels(Radiograph(make_phantom(seed, height=80, width=72, lesions=lesions, view=view).pixels))


def test_padding_is_not_looked_at(film: NDArray[np.uint16]) -> None:
    """DICOM pixel padding: a film inside a blank frame passes, a blank field inside a busy frame does not."""
    valid = np.zeros((800, 800), bool)
    valid[240:560, 256:544] = True
    framed = np.full(valid.shape, 65535, np.uint16)
    framed[240:560, 256:544] = film
    check_pixels(Radiograph(framed, valid=valid))

    busy = np.random.default_rng(0).integers(0, 65536, valid.shape, np.uint16)
    check_pixels(Radiograph(busy))
    busy[valid] = 700
    assert "1 gray levels" in refused(busy, valid)
    check_pixels(Radiograph(busy, valid=~valid))


def test_all_padding_is_blank(film: NDArray[np.uint16]) -> None:
    assert "every pixel is padding" in refused(film, np.zeros(film.shape, bool))


def test_a_strip_of_valid_pixels_is_enough_to_tell(film: NDArray[np.uint16]) -> None:
    valid = np.zeros(film.shape, bool)
    valid[100:180] = True
    check_pixels(Radiograph(film, valid=valid))
