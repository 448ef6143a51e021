from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from reader_files import (
    BIG_ENDIAN,
    DEFLATED,
    ENCODERS,
    EXPLICIT,
    IMPLICIT,
    J2K,
    J2K_LOSSLESS,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_LS,
    JPEG_LS_NEAR,
    P8,
    P12,
    P16,
    RLE,
    S12,
    compressed,
    data_set,
    get,
    j2k_stream,
    jpeg_lossless_stream,
    jpeg_ls_stream,
    part10,
    picture,
    raster,
    refused,
    why,
)

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.radiograph import Limits, read

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
HTJ2K_RAMP = (  # our 64 x 64 ramp (40 row + 3 column), HTJ2K lossless
    "|4;u>04YEK0000$0000$00000000000000$0000$0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdTm&kdTm&kdTmwh=~7W"
    "02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*000015C8%HlfVEg0RMlH^dtW@=K_JW0KfnfKmZefEc*b0bO5%s?Es@x0Kfnh5C8>O)>`|jZ~}Dz+G^9L"
    "?Z83-?6v^F02Pn`1*WR1s;cL}r>CdFcmQnK*x1<E*x3I4j9`2AF@fy50KfnioB#oIKqN_$BuSF_{{W|_r>Cc<r$T)IvND-WCX>lzGMP*!lga-7cwmGF"
    "zhV#`{fIz&_8|f6vjM;WE!Y4B-T(jq000000092K{3+?_>FMd|>FMd|>FMd|;&lN|$8j9TaU92S9LI4S$8j9TaU92S9LI6~|9{&6LI=NL2p;`}Aba)@"
    "f$!Kt2ftwm9{q$Md-f24?6U&@*#"
)


# --- transfer syntaxes


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN])
@pytest.mark.parametrize("pixels", [P8, P16, S12], ids=["8", "16", "signed"])
def test_uncompressed(syntax: str, pixels: Any) -> None:
    result = get(part10(data_set(pixels), syntax))
    expected = pixels if pixels.dtype.kind == "u" else pixels.view(np.uint16) ^ 0x8000
    np.testing.assert_array_equal(result.pixels, expected)
    assert result.pixels.dtype == expected.dtype
    assert (result.view, result.warnings, result.valid, result.window) == ("PA", (), None, None)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
def test_without_preamble(syntax: str) -> None:
    np.testing.assert_array_equal(get(part10(data_set(P16), syntax, preamble=False)).pixels, P16)


def test_big_endian_bytes_in_words() -> None:
    data = part10(data_set(P8), EXPLICIT)
    at = data.index(b"\xe0\x7f\x10\x00OB")
    swapped = P8.tobytes()
    big = bytearray(part10(data_set(P8), BIG_ENDIAN))
    start = big.index(b"\x7f\xe0\x00\x10OB")
    assert at > 0
    big[start + 4 : start + 6] = b"OW"
    big[start + 12 :] = np.frombuffer(swapped, "<u2").astype(">u2").tobytes()
    np.testing.assert_array_equal(get(bytes(big)).pixels, P8)


@pytest.mark.parametrize("syntax", ENCODERS)
@pytest.mark.parametrize(("bits", "pixels"), [(8, P8), (12, P12), (16, P16)])
def test_lossless_compression(syntax: str, bits: int, pixels: Any) -> None:
    stream = ENCODERS[syntax](pixels, bits)
    np.testing.assert_array_equal(get(compressed(data_set(pixels, BitsStored=bits), syntax, [stream])).pixels, pixels)


@pytest.mark.parametrize("syntax", [RLE, JPEG_LS, J2K])
def test_signed_compression(syntax: str) -> None:
    encoded = ENCODERS[syntax](S12 & 0xFFF if syntax == JPEG_LS else S12, 12)
    np.testing.assert_array_equal(get(compressed(data_set(S12, BitsStored=12), syntax, [encoded])).pixels, P12)


def test_signed_pixels_in_an_unsigned_jpeg_2000_stream() -> None:
    stream = j2k_stream((S12 & 0xFFF).astype(np.uint16), 12)
    np.testing.assert_array_equal(get(compressed(data_set(S12, BitsStored=12), J2K, [stream])).pixels, P12)


def test_near_lossless_jpeg_ls() -> None:
    stream = jpeg_ls_stream(P12, 12, error=3)
    result = get(compressed(data_set(P12, BitsStored=12), JPEG_LS_NEAR, [stream]))
    assert 0 < np.abs(result.pixels.astype(np.int32) - P12).max() <= 3


@pytest.mark.parametrize("syntax", [JPEG_BASELINE, JPEG_EXTENDED])
@pytest.mark.parametrize("progressive", [False, True])
def test_8_bit_jpeg_as_its_own_decoder_has_it(syntax: str, progressive: bool) -> None:
    stream = raster(P8, "JPEG", quality=90, progressive=progressive)
    expected = cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(get(compressed(data_set(P8), syntax, [stream])).pixels, expected)


def test_htj2k() -> None:
    rows, columns = np.mgrid[0:64, 0:64]
    ramp = (40 * rows + 3 * columns).astype(np.uint16)
    data = compressed(data_set(ramp, BitsStored=12), "1.2.840.10008.1.2.4.201", [base64.b85decode(HTJ2K_RAMP)])
    np.testing.assert_array_equal(get(data).pixels, ramp)


def test_12_bit_jpeg_cannot_be_decoded() -> None:
    stream = bytearray(raster(P8, "JPEG"))
    at = stream.index(b"\xff\xc0")
    stream[at + 1], stream[at + 4] = 0xC1, 12
    data = compressed(data_set(P12, BitsStored=12), JPEG_EXTENDED, [bytes(stream)])
    assert refused(data) == (
        Reason.CANNOT_DECODE,
        "x.dcm: JPEG of 12 bits cannot be decoded here; ask the sender for uncompressed or lossless JPEG",
    )


def test_a_transfer_syntax_that_no_decoder_has() -> None:
    data = compressed(data_set(P8), "1.2.840.10008.1.2.4.100", [b"\x00" * 64])
    reason, message = refused(data)
    assert reason is Reason.CANNOT_DECODE
    assert "MPEG2" in message


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("syntax", [RLE, JPEG_LS, J2K_LOSSLESS, JPEG_LOSSLESS])
def test_first_of_several_compressed_frames(syntax: str, table: bool) -> None:
    frames = [ENCODERS[syntax](pixels, 12) for pixels in (P12, P12[::-1].copy(), P12[:, ::-1].copy())]
    result = get(compressed(data_set(P12, BitsStored=12), syntax, frames, table=table))
    np.testing.assert_array_equal(result.pixels, P12)
    assert result.warnings == ("first of 3 frames",)


def test_first_of_several_uncompressed_frames() -> None:
    ds = data_set(P12, NumberOfFrames=2)
    ds.PixelData = P12.tobytes() + P12[::-1].tobytes()
    result = get(part10(ds))
    np.testing.assert_array_equal(result.pixels, P12)
    assert result.warnings == ("first of 2 frames",)


@pytest.mark.parametrize("frames", [1, 2])
def test_a_frame_in_many_fragments(frames: int) -> None:
    ds = data_set(P12, BitsStored=12, NumberOfFrames=frames)
    stream = jpeg_ls_stream(P12, 12)
    ds.PixelData = pydicom.encaps.encapsulate([stream] * frames, fragments_per_frame=5, has_bot=False)
    np.testing.assert_array_equal(get(part10(ds, JPEG_LS)).pixels, P12)


def test_a_stream_larger_than_its_header_is_not_decoded() -> None:
    for syntax, stream in (
        (JPEG_BASELINE, raster(picture(500, 500), "JPEG")),
        (J2K, j2k_stream(picture(500, 500), 8)),
        (JPEG_LS, jpeg_ls_stream(picture(500, 500), 8)),
        (JPEG_LOSSLESS, jpeg_lossless_stream(picture(100, 100), 8)),
    ):
        reason, message = refused(compressed(data_set(P8), syntax, [stream]))
        assert reason is Reason.CANNOT_DECODE
        assert "its header says 80 x 96" in message


# --- sizes and broken formats


def test_size_limits_come_before_pixels() -> None:
    data = part10(data_set(P12, Rows=30_000, Columns=30_000))
    reason, message = refused(data)
    assert reason is Reason.TOO_LARGE
    assert "100,000,000" in message
    assert refused(part10(data_set(P12[:1, :1])))[0] is Reason.TOO_SMALL


def test_a_deflated_bomb_is_not_unpacked() -> None:
    ds = data_set(np.zeros((2000, 2000), np.uint16))
    assert refused(part10(ds, DEFLATED), Limits(max_bytes=1_000_000))[0] is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "tags",
    [
        {"PhotometricInterpretation": None},
        {"PhotometricInterpretation": "CMYK"},
        {"BitsStored": 0, "HighBit": 0},
        {"BitsStored": 17, "HighBit": 16},
        {"SamplesPerPixel": 4},
        {"BitsAllocated": 12, "BitsStored": 12},
    ],
)
def test_senseless_pixel_formats(tags: dict[str, Any]) -> None:
    assert why(P12, **tags) is Reason.CANNOT_DECODE


def test_no_pixels() -> None:
    ds = data_set(P12)
    del ds.PixelData
    assert refused(part10(ds))[0] is Reason.NO_PIXELS
    assert why(P12, Rows=None) is Reason.NO_PIXELS


def test_short_pixels() -> None:
    ds = data_set(P12)
    ds.PixelData = ds.PixelData[:-100]
    assert refused(part10(ds))[0] is Reason.TRUNCATED


def test_odd_optional_values_are_ignored_silently(capfd: pytest.CaptureFixture[str]) -> None:
    data = part10(data_set(P12, WindowCenter="100", WindowWidth="200", StudyDate="20200101"))
    data = data.replace(b"20200101", b"SECRETxx").replace(b"DS\x04\x00100 ", b"DS\x04\x00abc ")
    assert get(data).window is None
    assert capfd.readouterr() == ("", "")


# --- real files


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
def test_real_chests() -> None:
    expected = {  # view, bits
        "gdcm-CR-MONO1-10-chest.dcm": ("PA", 10),
        "nema_RG1_J2KI.dcm": ("PA", 15),
        "nema_RG1_JLSN.dcm": ("PA", 15),
        "nih_nhsx_covid0000.dcm": ("unknown", 8),
        "rsna_c64d5667.dcm": ("AP", 8),
        "siim_1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm": ("PA", 8),
    }
    for name, (view, bits) in expected.items():
        result = read(SHARED / "dicom" / name)
        assert result.view == view
        assert int(result.pixels.max()).bit_length() == bits
        assert result.warnings == ()
        height, width = result.pixels.shape  # the mediastinum is brighter than the lungs beside it
        row = result.pixels[int(0.4 * height) : int(0.5 * height)].mean(axis=0)
        middle = row[int(0.45 * width) : int(0.55 * width)].mean()
        assert middle > row[int(0.2 * width) : int(0.35 * width)].mean()
        assert middle > row[int(0.65 * width) : int(0.8 * width)].mean()
    jpeg_2000, jpeg_ls = (read(SHARED / "dicom" / f"nema_RG1_{kind}.dcm").pixels for kind in ("J2KI", "JLSN"))
    assert np.abs(jpeg_2000.astype(np.int32) - jpeg_ls).mean() < 100  # the same radiograph, twice compressed


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
def test_real_files_that_are_no_chests() -> None:
    for path in sorted((SHARED / "dicom_negative").iterdir()):
        with pytest.raises(InputError) as caught:
            read(path)
        wanted = Reason.WRONG_MODALITY if path.name.startswith("ct") else Reason.WRONG_BODY_PART
        assert caught.value.reason is wanted, path.name


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
def test_hip_without_words_fails_at_its_jpeg() -> None:
    ds = pydicom.dcmread(SHARED / "dicom_negative" / "nema_RG2_JPLY_hip.dcm")
    del ds.BodyPartExamined
    del ds.StudyDescription
    reason, _ = refused(part10(ds, JPEG_EXTENDED))
    assert reason is Reason.CANNOT_DECODE
    assert reason.status == "failed"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
def test_real_extremities_taken_for_chests_decode() -> None:
    """The same radiograph in three lossless syntaxes: the decoders must agree."""
    found = []
    for path in sorted((SHARED / "dicom_negative").glob("nema_RG3_*")):
        ds = pydicom.dcmread(path)
        ds.BodyPartExamined = "CHEST"
        found.append(get(part10(ds, ds.file_meta.TransferSyntaxUID)).pixels)
    assert len(found) == 3
    assert found[0].dtype == np.uint16
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
