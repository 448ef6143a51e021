from __future__ import annotations

import struct
from typing import Any

import numpy as np
import openjpeg
import pytest
from pydicom.pixels import get_decoder
from reader_files import (
    J2K,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    P8,
    P12,
    RLE,
    compressed,
    data_set,
    get,
    j2k_stream,
    jpeg_lossless_stream,
    part10,
    picture,
    raster,
    refused,
)

from cxrvit_edge.errors import Reason
from cxrvit_edge.readers.code_streams import MAX_SCANS, _unpack_bits


def blank(syntax: str, stream: bytes, height: int, width: int, dtype: Any = np.uint8) -> bytes:
    """A DICOM file that says height x width around any code stream."""
    ds = data_set(np.zeros((1, 1), dtype))
    ds.Rows, ds.Columns = height, width
    return compressed(ds, syntax, [stream])


def tiled(stream: bytes, side: int) -> bytes:
    """The same JPEG 2000 stream, which says that its tiles are so small; it still has only one."""
    out = bytearray(stream)
    struct.pack_into(">II", out, out.index(b"\xff\x51") + 22, side, side)
    return bytes(out)


@pytest.mark.parametrize(("side", "tiles"), [(48, 4), (1, 7680), (95, 2)])
def test_jpeg_2000_that_lacks_tiles(side: int, tiles: int) -> None:
    reason, message = refused(blank(J2K, tiled(j2k_stream(P8, 8), side), 96, 80))
    assert reason is Reason.TRUNCATED
    assert f"has 1 of {tiles} tiles" in message


def test_jpeg_2000_tiles_that_make_no_sense() -> None:
    assert refused(blank(J2K, tiled(j2k_stream(P8, 8), 0), 96, 80))[0] is Reason.CANNOT_DECODE
    stream = j2k_stream(P8, 8)
    at = stream.index(b"\xff\x90")
    for size, reason in ((5, Reason.CANNOT_DECODE), (1 << 20, Reason.TRUNCATED)):
        damaged = bytearray(stream)
        struct.pack_into(">I", damaged, at + 6, size)
        assert refused(blank(J2K, bytes(damaged), 96, 80))[0] is reason
    damaged = bytearray(stream)
    struct.pack_into(">I", damaged, at + 6, 0)  # up to the end of the stream
    np.testing.assert_array_equal(get(blank(J2K, bytes(damaged), 96, 80)).pixels, P8)


def test_jpeg_2000_of_16384_components() -> None:
    stream = bytearray(j2k_stream(P8, 8))
    struct.pack_into(">H", stream, stream.index(b"\xff\x51") + 38, 16384)
    reason, message = refused(blank(J2K, bytes(stream), 96, 80))
    assert reason is Reason.CANNOT_DECODE
    assert "16384 components" in message


def test_colour_jpeg_2000() -> None:
    tinted = np.stack([P8] * 3, axis=-1)
    options: dict[str, Any] = {"bits_stored": 8, "photometric_interpretation": 1, "use_mct": False}
    stream = bytes(openjpeg.encode(tinted, **options))
    np.testing.assert_array_equal(get(compressed(data_set(tinted), J2K, [stream])).pixels, P8)


@pytest.mark.parametrize("scans", [20, MAX_SCANS + 1, 20_000])
def test_a_jpeg_of_many_scans(scans: int) -> None:
    stream = raster(np.zeros((400, 400), np.uint8), "JPEG", progressive=True)
    last = stream[stream.rfind(b"\xff\xda") : -2]
    data = blank(JPEG_EXTENDED, stream[:-2] + last * (scans - stream.count(b"\xff\xda")) + stream[-2:], 400, 400)
    if scans > MAX_SCANS:
        reason, message = refused(data)
        assert reason is Reason.CANNOT_DECODE
        assert f"more than {MAX_SCANS} scans" in message
    else:
        assert get(data).pixels.shape == (400, 400)


def test_jpegs_too_short_for_their_picture() -> None:
    lossless, baseline = bytearray(jpeg_lossless_stream(P8, 8)), bytearray(raster(P8, "JPEG"))
    for stream, marker, syntax, side in (
        (lossless, b"\xff\xc3", JPEG_LOSSLESS, 1000),
        (baseline, b"\xff\xc0", JPEG_BASELINE, 9000),
    ):
        struct.pack_into(">HH", stream, stream.index(marker) + 5, side, side)
        reason, message = refused(blank(syntax, bytes(stream), side, side))
        assert reason is Reason.TRUNCATED
        assert "too short for its picture" in message


def test_the_shortest_jpegs_are_long_enough() -> None:
    for progressive in (False, True):
        gray = np.full((1600, 1600), 128, np.uint8)
        data = blank(JPEG_BASELINE, raster(gray, "JPEG", progressive=progressive, optimize=True), 1600, 1600)
        np.testing.assert_array_equal(get(data).pixels, gray)
    level = np.full((64, 64), 128, np.uint8)
    np.testing.assert_array_equal(get(blank(JPEG_LOSSLESS, jpeg_lossless_stream(level, 8), 64, 64)).pixels, level)


# --- RLE


@pytest.mark.parametrize("pixels", [P8, P12, picture(65, 67), np.stack([P8, P8, P8], axis=-1)])
def test_rle_as_pydicom_has_it(pixels: Any) -> None:
    ds = data_set(pixels)
    ds.compress(RLE, pixels, encoding_plugin="pydicom", generate_instance_uid=False)
    data = part10(ds, RLE)
    expected, _ = get_decoder(RLE).as_array(ds, raw=True, decoding_plugin="pydicom")
    np.testing.assert_array_equal(expected, pixels)
    np.testing.assert_array_equal(get(data).pixels, expected if pixels.ndim == 2 else P8)


def test_rle_is_unpacked_no_further_than_its_picture() -> None:
    assert _unpack_bits(b"\x81\x05" * 1_000_000, 300) == b"\x05" * 300
    assert _unpack_bits(b"\x80\x02abc\x80\xff\x07\x00", 5) == b"abc\x07\x07"
    head = struct.pack("<16I", 1, 64, *[0] * 14)
    assert get(blank(RLE, head + b"\x81\x05" * 1_000_000, 64, 64)).pixels.max() == 5


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"\x01", Reason.TRUNCATED),
        (struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x05" * 10, Reason.TRUNCATED),
        (struct.pack("<16I", 1, 0xFFFFFFFF, *[0] * 14) + b"\x81\x05" * 100, Reason.TRUNCATED),
        (struct.pack("<16I", 2, 64, 64, *[0] * 13) + b"\x81\x05" * 100, Reason.CANNOT_DECODE),
        (struct.pack("<16I", 0xFFFFFFFF, 64, *[0] * 14) + b"\x81\x05" * 100, Reason.CANNOT_DECODE),
    ],
)
def test_broken_rle(frame: bytes, reason: Reason) -> None:
    assert refused(blank(RLE, frame, 64, 64))[0] is reason


# --- lossless JPEG, which gdcm decodes


def lossless(changes: dict[int, int], after: bytes = b"\xff\xc3") -> bytes:
    """A lossless JPEG with bytes changed, by their offset from a marker."""
    stream = bytearray(jpeg_lossless_stream(P12, 12))
    at = stream.index(after)
    for offset, value in changes.items():
        stream[at + offset] = value
    return bytes(stream)


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (lossless({1: 0}, b"\xff\xc4"), "marker 0x00"),  # on this gdcm aborts the process
        (lossless({1: 0xFE}, b"\xff\xc4"), "marker 0xDA"),  # no table
        (lossless({4: 17}), "marker 0xC3"),
        (lossless({9: 2}), "marker 0xC3"),
        (lossless({11: 0x21}), "marker 0xC3"),
        (lossless({4: 0x10}, b"\xff\xc4"), "marker 0xC4"),
        (lossless({5: 3}, b"\xff\xc4"), "marker 0xC4"),
        (lossless({21: 17}, b"\xff\xc4"), "marker 0xC4"),
        (lossless({21: 1}, b"\xff\xc4"), "marker 0xC4"),
        (lossless({5: 9}, b"\xff\xda"), "marker 0xDA"),
        (lossless({6: 0x10}, b"\xff\xda"), "marker 0xDA"),
        (lossless({7: 0}, b"\xff\xda"), "marker 0xDA"),
        (lossless({9: 12}, b"\xff\xda"), "marker 0xDA"),
    ],
)
def test_lossless_jpegs_that_gdcm_never_sees(stream: bytes, said: str) -> None:
    reason, message = refused(blank(JPEG_LOSSLESS, stream, 96, 80, np.uint16))
    assert reason is Reason.CANNOT_DECODE
    assert said in message
