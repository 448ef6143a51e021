from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from reader_files import (
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    J2K,
    JPEG_BASELINE,
    P8,
    P12,
    P16,
    S12,
    SC_CLASS,
    compressed,
    data_set,
    get,
    j2k_stream,
    of,
    part10,
    raster,
    refused,
)

from cxrvit_edge.errors import Reason
from cxrvit_edge.radiograph import Limits

# --- from stored values to presentation values


@settings(max_examples=60, deadline=None)
@given(
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    stored=st.integers(8, 16),
    signed=st.booleans(),
    wide=st.booleans(),
    slope=st.sampled_from([None, 2.5, -1.0]),
    shape=st.sampled_from([None, "INVERSE", "IDENTITY"]),
    syntax=st.sampled_from([IMPLICIT, EXPLICIT, BIG_ENDIAN]),
    seed=st.integers(0, 2**16),
)
def test_order_is_kept_and_inverted_once(
    photometric: str,
    stored: int,
    signed: bool,
    wide: bool,
    slope: float | None,
    shape: str | None,
    syntax: str,
    seed: int,
) -> None:
    low = -(1 << (stored - 1)) if signed else 0
    values = np.random.default_rng(seed).integers(low, low + (1 << stored), (16, 16))
    values[0, :2] = low, low + (1 << stored) - 1  # both ends
    allocated = 16 if wide or stored > 8 else 8
    pixels = values.astype(np.dtype(f"{'i' if signed else 'u'}{allocated // 8}"))
    tags: dict[str, Any] = {"PhotometricInterpretation": photometric, "BitsStored": stored}
    if slope is not None:
        tags |= {"RescaleSlope": slope, "RescaleIntercept": -100}
    if shape is not None:
        tags["PresentationLUTShape"] = shape
    result = get(part10(data_set(pixels, **tags), syntax), Limits(min_side=8))
    inverted = (photometric == "MONOCHROME1" or shape == "INVERSE") != (slope is not None and slope < 0)
    levels = values - low
    expected = (1 << stored) - 1 - levels if inverted else levels
    np.testing.assert_array_equal(result.pixels, expected)
    assert result.pixels.dtype == (np.uint8 if stored == 8 else np.uint16)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_32_bits_and_floats_are_squeezed_in_order(photometric: str, signed: bool) -> None:
    wide = (P16.astype(np.int64) * 60000 - (2**31 if signed else 0)).astype(np.int32 if signed else np.uint32)
    order = np.argsort(P16, axis=None, kind="stable")
    for result in (of(wide, PhotometricInterpretation=photometric), get(float_file(wide, photometric))):
        assert result.pixels.dtype == np.uint16
        steps = np.diff(result.pixels.ravel()[order].astype(np.int32))
        assert (steps <= 0).all() if photometric == "MONOCHROME1" else (steps >= 0).all()
        assert np.ptp(result.pixels) == 65535
        assert any("16 bits" in warning for warning in result.warnings)


def float_file(pixels: Any, photometric: str) -> bytes:
    ds = data_set(pixels, PhotometricInterpretation=photometric)
    del ds.PixelData
    ds.FloatPixelData = pixels.astype("<f4").tobytes()
    return part10(ds)


def test_32_bits_allocated_for_12() -> None:
    result = of(P12.astype(np.uint32), BitsStored=12)
    np.testing.assert_array_equal(result.pixels, P12)
    assert result.pixels.dtype == np.uint16


@pytest.mark.parametrize("signed", [False, True])
def test_annotations_in_high_bits_are_cut(signed: bool) -> None:
    words = P12 ^ (0x800 if signed else 0)
    words[3, 4:9] |= 0xF000
    result = of(words.view(np.int16) if signed else words, BitsStored=12)
    np.testing.assert_array_equal(result.pixels, P12)
    assert result.warnings == ()


def test_a_large_declared_overlay_in_high_bits_is_cut() -> None:
    words = P12 | np.uint16(0x1000) * (P12 > 2000)
    ds = data_set(words, BitsStored=12)
    ds.add_new((0x6000, 0x0100), "US", 16)
    ds.add_new((0x6000, 0x0102), "US", 12)
    np.testing.assert_array_equal(get(part10(ds)).pixels, P12)


def test_bits_stored_that_is_too_small_is_not_believed() -> None:
    result = of(P12, BitsStored=10)
    np.testing.assert_array_equal(result.pixels, P12)
    assert result.warnings == ("BitsStored says 10, the pixels use 12: taken as 12",)


def test_low_bits_below_the_stored_ones() -> None:
    result = of((P12 << 4) | 5, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(result.pixels, P12)


def lut(first: int, entries: Any, bits: int, vr: str = "US") -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(entries) % 65536, first, bits])
    values = [int(v) for v in entries]
    item.add_new("LUTData", vr, np.asarray(values, "<u2").tobytes() if vr == "OW" else values)
    return Sequence([item])


@pytest.mark.parametrize("vr", ["US", "OW"])
def test_modality_lut_is_applied(vr: str) -> None:
    table = np.minimum(np.arange(4096) ** 2 >> 9, 4095)
    result = of(P12, BitsStored=12, ModalityLUTSequence=lut(0, table, 12, vr))
    np.testing.assert_array_equal(result.pixels, table[P12])


def test_voi_lut_follows_the_rescale_and_comes_before_the_inversion() -> None:
    table = (np.arange(2048)[::-1] // 3).astype(int)
    tags: dict[str, Any] = {"RescaleSlope": 0.5, "RescaleIntercept": -100, "VOILUTSequence": lut(-100, table, 10)}
    looked_up = table[np.clip(np.rint(0.5 * P12).astype(int), 0, 2047)]
    np.testing.assert_array_equal(of(P12, BitsStored=12, **tags).pixels, looked_up)
    inverse = of(P12, BitsStored=12, PhotometricInterpretation="MONOCHROME1", **tags)
    np.testing.assert_array_equal(inverse.pixels, 1023 - looked_up)


def test_voi_lut_of_8_bits_beyond_its_ends() -> None:
    result = of(P12, BitsStored=12, VOILUTSequence=lut(1000, np.arange(256), 8))
    assert result.pixels.dtype == np.uint8
    np.testing.assert_array_equal(result.pixels, np.clip(P12.astype(int) - 1000, 0, 255))


def test_a_broken_lut_is_named() -> None:
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 12]
    reason, message = refused(part10(data_set(P12, VOILUTSequence=Sequence([item]))))
    assert reason is Reason.CANNOT_DECODE
    assert "VOILUTSequence" in message


def test_sigmoid_is_applied() -> None:
    result = of(P12, BitsStored=12, VOILUTFunction="SIGMOID", WindowCenter=2000, WindowWidth=1500)
    expected = 65535 / (1 + np.exp(-4 * (P12 - 2000.0) / 1500))
    assert np.abs(result.pixels - expected).max() <= 0.5
    assert result.window is None


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT"])
def test_a_linear_window_is_kept_and_not_applied(function: str | None) -> None:
    tags: dict[str, Any] = {
        "WindowCenter": [300, 5],
        "WindowWidth": [200, 9],
        "RescaleSlope": 2,
        "RescaleIntercept": -100,
    }
    if function:
        tags["VOILUTFunction"] = function
    result = of(P12, BitsStored=12, **tags)
    np.testing.assert_array_equal(result.pixels, P12)
    assert result.window == (200.0, 100.0)
    assert of(P12, BitsStored=12, PhotometricInterpretation="MONOCHROME1", **tags).window == (4095 - 200.0, 100.0)
    signed = of(S12, BitsStored=12, **tags)
    assert signed.window == (2048 + 200.0, 100.0)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("padding", [0, 4095, 65535])
def test_padding_is_masked_by_its_stored_value(photometric: str, padding: int) -> None:
    words = np.clip(P12, 1, 4094)
    words[:7], words[:, :3] = padding, padding
    result = of(words, BitsStored=12, PhotometricInterpretation=photometric, PixelPaddingValue=padding)
    assert result.valid is not None
    np.testing.assert_array_equal(result.valid, words != padding)
    expected = words if photometric == "MONOCHROME2" else 4095 - words
    np.testing.assert_array_equal(result.pixels[result.valid], expected[result.valid])


@pytest.mark.parametrize("signed", [False, True])
def test_padding_range(signed: bool) -> None:
    pixels = S12 if signed else P12
    ds = data_set(pixels, BitsStored=12)
    vr = "SS" if signed else "US"
    low = -2048 if signed else 0
    ds.add_new("PixelPaddingValue", vr, low)
    ds.add_new("PixelPaddingRangeLimit", vr, low + 200)
    result = get(part10(ds))
    assert result.valid is not None
    np.testing.assert_array_equal(result.valid, P12 > 200)
    np.testing.assert_array_equal(result.pixels, P12)


def test_signed_padding_with_and_without_sign_extension() -> None:
    words = S12.copy()
    words[:4] = -2000
    for stored in (words, words & 0xFFF):
        ds = data_set(stored.astype(np.int16), BitsStored=12)
        ds.add_new("PixelPaddingValue", "SS", -2000)
        result = get(part10(ds))
        assert result.valid is not None
        np.testing.assert_array_equal(result.valid, words != -2000)


def test_padding_that_is_nowhere_or_everywhere() -> None:
    assert of(np.clip(P12, 1, 4000), BitsStored=12, PixelPaddingValue=0).valid is None
    everywhere = of(np.full_like(P12, 7), PixelPaddingValue=7)
    assert everywhere.valid is None
    assert everywhere.warnings == ("every pixel is PixelPaddingValue: padding ignored",)


# --- colour


def test_gray_in_colour_is_taken_and_colour_is_not() -> None:
    gray = np.stack([P8] * 3, axis=-1)
    colour = np.stack([P8, 255 - P8, P8[::-1]], axis=-1)
    for pixels, taken in ((gray, True), (colour, False)):
        files = [
            part10(data_set(pixels, SOPClassUID=SC_CLASS)),
            part10(data_set(pixels.transpose(2, 0, 1).reshape((*P8.shape, 3)), PlanarConfiguration=1)),
            compressed(data_set(pixels), J2K, [j2k_stream(pixels, 8)]),
        ]
        for data in files:
            if taken:
                np.testing.assert_array_equal(get(data).pixels, P8)
            else:
                assert refused(data)[0] is Reason.COLOUR


def test_colour_jpeg() -> None:
    stream = raster(np.stack([P8] * 3, axis=-1), "JPEG", quality=95)
    ds = data_set(P8, SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation="YBR_FULL_422")
    result = get(compressed(ds, JPEG_BASELINE, [stream]))
    assert np.abs(result.pixels.astype(np.int16) - P8).max() <= 10


def test_palette() -> None:
    ds = data_set(P8, PhotometricInterpretation="PALETTE COLOR")
    ramp = (np.arange(256)[::-1] * 257).astype("<u2")
    for name in ("Red", "Green", "Blue"):
        ds.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        ds.add_new(f"{name}PaletteColorLookupTableData", "OW", ramp.tobytes())
    np.testing.assert_array_equal(get(part10(ds)).pixels, (255 - P8.astype(np.uint16)) * 257)
