"""Makes the files that the reader tests read: raster variants, and every transfer syntax that can be written here."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any, Literal

import jpeg_ls  # type: ignore[import-untyped]
import numpy as np
import openjpeg
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import UID

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.radiograph import Limits, Radiograph
from cxrvit_edge.readers import decode

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR = "1.2.840.10008.1.2.4.81"
J2K_LOSSLESS = "1.2.840.10008.1.2.4.90"
J2K = "1.2.840.10008.1.2.4.91"
CR_CLASS = "1.2.840.10008.5.1.4.1.1.1"
SC_CLASS = "1.2.840.10008.5.1.4.1.1.7"


def picture(height: int = 96, width: int = 80, top: int = 255, dtype: Any = np.uint8, seed: int = 0) -> NDArray[Any]:
    """A smooth, asymmetric gray picture (H, W), 0 to top: brighter to the right and below, with some noise."""
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = 0.55 * columns / width + 0.3 * rows / height + 0.1 * np.sin(columns / 9.0) * np.cos(rows / 7.0)
    noise = np.random.default_rng(seed).normal(0.0, 0.01, smooth.shape)
    values = smooth + noise
    values = (values - values.min()) / np.ptp(values)
    return np.rint(values * top).astype(dtype)


def raster(pixels: NDArray[Any], kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def data_set(pixels: NDArray[Any] | None, **tags: Any) -> pydicom.Dataset:
    """A CR data set of a frontal chest around (H, W) or (H, W, 3) pixels; `tags` by keyword, None removes one."""
    ds = pydicom.Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CR_CLASS, "1.2.3.4"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.2", "1.2.3.3"
    ds.PatientName, ds.PatientID = "SECRET^NAME", "SECRETID"
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "CR", "CHEST", "PA"
    if pixels is not None:
        bits = 8 * pixels.dtype.itemsize
        ds.Rows, ds.Columns = pixels.shape[:2]
        ds.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
        ds.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
        if pixels.ndim == 3:
            ds.PlanarConfiguration = 0
        ds.BitsAllocated = ds.BitsStored = bits
        ds.PixelRepresentation = int(pixels.dtype.kind == "i")
        ds.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values that break their VR's rules are wanted
        for keyword, value in tags.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)
    if pixels is not None and "HighBit" not in tags:
        ds.HighBit = ds.BitsStored - 1
    return ds


def part10(ds: pydicom.Dataset, syntax: str = EXPLICIT, *, preamble: bool = True) -> bytes:
    """The data set as a DICOM file; for big endian its PixelData is swapped here."""
    ds = pydicom.Dataset(ds)
    if "PixelData" in ds:
        ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
        if syntax == BIG_ENDIAN and ds.BitsAllocated == 16:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        if UID(syntax).is_compressed and not UID(syntax).is_deflated:
            ds["PixelData"].is_undefined_length = True
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", CR_CLASS)
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    out = io.BytesIO()
    if preamble:
        ds.save_as(out, enforce_file_format=True)
    else:
        ds.file_meta = FileMetaDataset()
        ds.save_as(out, implicit_vr=syntax == IMPLICIT, little_endian=syntax != BIG_ENDIAN)
    return out.getvalue()


def compressed(ds: pydicom.Dataset, syntax: str, frames: list[bytes], *, table: bool = True) -> bytes:
    """The data set with its pixels replaced by these code streams."""
    ds = pydicom.Dataset(ds)
    ds.PixelData = encapsulate(frames, has_bot=table)
    if len(frames) > 1:
        ds.NumberOfFrames = len(frames)
    return part10(ds, syntax)


def rle(pixels: NDArray[Any], bits: int) -> bytes:
    return RLELosslessEncoder.encode(pixels, encoding_plugin="pydicom", **_encoding(pixels, bits))


def jpeg_ls_stream(pixels: NDArray[Any], bits: int, error: int = 0) -> bytes:
    return bytes(jpeg_ls.encode_pixel_data(pixels.tobytes(), lossy_error=error, **_encoding(pixels, bits)))


def j2k_stream(pixels: NDArray[Any], bits: int) -> bytes:
    photometric = 2 if pixels.ndim == 2 else 1
    return bytes(openjpeg.encode(pixels, bits_stored=bits, photometric_interpretation=photometric, use_mct=False))


def _encoding(pixels: NDArray[Any], bits: int) -> dict[str, Any]:
    return {
        "rows": pixels.shape[0],
        "columns": pixels.shape[1],
        "samples_per_pixel": 1,
        "bits_allocated": 8 * pixels.dtype.itemsize,
        "bits_stored": bits,
        "pixel_representation": int(pixels.dtype.kind == "i"),
        "photometric_interpretation": "MONOCHROME2",
        "number_of_frames": 1,
    }


def jpeg_lossless_stream(pixels: NDArray[Any], bits: int) -> bytes:
    """Process 14, selection value 1 (ISO 10918-1 Annex H): 17 Huffman codes of 5 bits, one a size of difference."""
    height, width = pixels.shape
    values = pixels.astype(np.int64)
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 1 << (bits - 1)
    stream: list[str] = []
    differences = (values - predicted + 32767) % 65536 - 32767  # modulo 2^16, -32767 to 32768
    for difference in differences.ravel().tolist():
        size = abs(difference).bit_length()
        stream.append(f"{size:05b}")
        if 0 < size < 16:
            stream.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    text = "".join(stream)
    text += "1" * (-len(text) % 8)
    body = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")
    head = b"\xff\xd8\xff\xc3\x00\x0b" + bytes([bits]) + height.to_bytes(2, "big") + width.to_bytes(2, "big")
    head += b"\x01\x01\x11\x00"
    head += b"\xff\xc4\x00\x24\x00" + bytes([0, 0, 0, 0, 17] + [0] * 11) + bytes(range(17))
    head += b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00"
    return head + body + b"\xff\xd9"


ENCODERS: dict[str, Callable[[NDArray[Any], int], bytes]] = {
    RLE: rle,
    JPEG_LOSSLESS: jpeg_lossless_stream,
    JPEG_LOSSLESS_SV1: jpeg_lossless_stream,
    JPEG_LS: jpeg_ls_stream,
    JPEG_LS_NEAR: jpeg_ls_stream,
    J2K_LOSSLESS: j2k_stream,
    J2K: j2k_stream,
}


def tiff(
    pixels: NDArray[Any], *, photometric: int = 1, end: Literal["<", ">"] = "<", extra: dict[int, int] | None = None
) -> bytes:
    """A one-strip TIFF 6.0 with its directory before its pixels; sample format by dtype."""
    height, width = pixels.shape
    body = pixels.astype(pixels.dtype.newbyteorder(end)).tobytes()
    tags = {256: width, 257: height, 258: 8 * pixels.dtype.itemsize, 259: 1, 262: photometric, 277: 1, 278: height}
    tags |= {339: {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind], 279: len(body)} | (extra or {})
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    tags[273] = start
    head = (b"II" if end == "<" else b"MM") + struct.pack(end + "HIH", 42, 8, len(tags))
    entries = b"".join(struct.pack(end + "HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return head + entries + struct.pack(end + "I", 0) + body


def claims(data: bytes, width: int, height: int) -> bytes:
    """The same PNG, JPEG, BMP or TIFF of `tiff` with another size in its header."""
    out = bytearray(data)
    if data.startswith(b"\x89PNG"):
        out[16:24] = struct.pack(">II", width, height)
        out[29:33] = struct.pack(">I", zlib.crc32(out[12:29]))
    elif data.startswith(b"\xff\xd8"):
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        out[at + 5 : at + 9] = struct.pack(">HH", height, width)
    elif data.startswith(b"BM"):
        out[18:26] = struct.pack("<ii", width, height)
    else:
        for entry in range(10, 10 + 24, 12):
            tag = struct.unpack_from("<H", data, entry)[0]
            struct.pack_into("<I", out, entry + 8, width if tag == 256 else height)
    return bytes(out)


P8 = picture()
P12 = picture(top=4095, dtype=np.uint16)
P16 = picture(top=65535, dtype=np.uint16)
S12 = (P12.astype(np.int32) - 2048).astype(np.int16)


def get(data: bytes, limits: Limits | None = None) -> Radiograph:
    """Radiograph of a DICOM file's content."""
    result = decode(data, "x.dcm", limits or Limits())
    assert result.pixels.flags.c_contiguous
    assert result.pixels.flags.writeable
    assert result.pixels.dtype in (np.uint8, np.uint16)
    return result


def refused(data: bytes, limits: Limits | None = None) -> tuple[Reason, str]:
    """Reason and message of a DICOM file's refusal."""
    with pytest.raises(InputError) as caught:
        decode(data, "x.dcm", limits or Limits())
    message = str(caught.value)
    assert message.startswith("x.dcm: ")
    assert "SECRET" not in message
    return caught.value.reason, message


def of(pixels: Any = P12, **tags: Any) -> Radiograph:
    return get(part10(data_set(pixels, **tags)))


def why(pixels: Any = P12, **tags: Any) -> Reason:
    return refused(part10(data_set(pixels, **tags)))[0]
