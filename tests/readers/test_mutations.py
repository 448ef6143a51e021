from __future__ import annotations

import io
import random
import struct
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mutations_dicom import elements, hostile_dicom, nested
from reader_files import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG_BASELINE,
    P8,
    P12,
    S12,
    compressed,
    data_set,
    get,
    part10,
    raster,
    refused,
)

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.radiograph import Limits
from cxrvit_edge.readers import decode
from cxrvit_edge.readers.dicom import read_header
from cxrvit_edge.readers.dicom_elements import KNOWN, Elements

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
REAL = [SHARED / name for name in ("dicom", "dicom_negative", "originals")]
OUTCOMES = {"ok"} | {reason.value for reason in Reason} - {Reason.INTERNAL.value}


def check(count: int, seed: int, folders: list[Path], most_mb: int) -> None:
    results = list(mutations.read_all(seed, count, folders))
    assert [result["index"] for result in results] == list(range(count))
    assert [result for result in results if result["outcome"] not in OUTCOMES] == []
    assert max(result["peak_mb"] for result in results) < most_mb
    counts = Counter(result["outcome"] for result in results)
    assert counts["ok"] > count // 10
    assert counts["ok"] < count // 2  # they are damaged


def test_mutated_files_are_results() -> None:
    check(300, 0, [], 1200)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
def test_mutated_real_files_are_results() -> None:
    check(5000, 2026, REAL, 1500)


def test_a_seed_gives_the_same_files() -> None:
    first, again = (list(mutations.mutations(3, 17, 20)) for _ in range(2))
    assert first == again
    assert first[5:] == list(mutations.mutations(3, 22, 15))
    assert first != list(mutations.mutations(4, 17, 20))


# --- headers of any content

WORDS = st.one_of(
    st.sampled_from(
        [b"", b"\\", b"1\\2\\3", b"nan", b"-inf", b"1e400", b"1_0", b" 12 ", b"0x10", b"L\\F", b"R\\F", b"H\\L"]
    ),
    st.sampled_from(
        [b"CHEST", b"CR", b"PA", b"lateral", b"MONOCHROME1", b"RGB", b"PALETTE COLOR", b"YBR_FULL", b"SIGMOID"]
    ),
    st.floats().map(lambda value: repr(value).encode()),
    st.integers(-(10**25), 10**25).map(lambda value: str(value).encode()),
    st.integers(0, 65535).map(lambda value: struct.pack("<H", value)),
    st.lists(st.integers(0, 65535), max_size=4).map(lambda values: struct.pack(f"<{len(values)}H", *values)),
    st.floats().map(lambda value: struct.pack("<d", value)),
    st.floats(width=32).map(lambda value: struct.pack("<f", value)),
    st.binary(max_size=40),
)
VRS = st.sampled_from(
    [b"US", b"SS", b"UL", b"SL", b"FL", b"FD", b"DS", b"IS", b"CS", b"LO", b"LT", b"UI", b"PN", b"AT", b"ZZ"]
)
KEYWORDS = sorted(keyword for keyword in KNOWN if "Sequence" not in keyword and "UID" not in keyword)


def as_written(keyword: str, data: bytes) -> bytes:
    """The element of a known VR, so that the pixel description can be odd without being nonsense."""
    vr = KNOWN[keyword][1]
    return vr.encode() if len(vr) == 2 and vr not in ("OW", "SQ") else b"US"


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    st.dictionaries(st.sampled_from(KEYWORDS), st.tuples(st.none() | VRS, WORDS), min_size=1, max_size=6),
    st.sampled_from(["8 bits", "12 bits", "signed", "JPEG"]),
)
@example(
    {"BitsAllocated": (b"UL", struct.pack("<I", 1 << 31)), "BitsStored": (b"UL", struct.pack("<I", 1 << 31))}, "JPEG"
)
@example({"PixelPaddingValue": (b"FD", struct.pack("<d", 1e300)), "RescaleSlope": (b"DS", b"1e-320")}, "signed")
def test_any_header_is_a_result(tags: dict[str, tuple[bytes | None, bytes]], kind: str) -> None:
    whole = HEADERS[kind]
    new = {}
    for keyword, (vr, value) in tags.items():
        group, number = divmod(KNOWN[keyword][0], 1 << 16)
        code = vr or as_written(keyword, value)
        new[struct.pack("<HH", group, number)] = struct.pack("<HH2sH", group, number, code, len(value)) + value
    pieces = [whole[:132]]
    for start, _, end in elements(whole):
        tag = whole[start : start + 4]
        if tag == b"\xe0\x7f\x10\x00":
            pieces += [*new.values(), whole[start:]]
        else:
            pieces.append(new.pop(tag, whole[start:end]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a RuntimeWarning of numpy means that a value went where it should not
        try:
            result = decode(b"".join(pieces), "x.dcm", Limits())
        except InputError as error:
            assert error.reason is not Reason.INTERNAL, repr(error.__cause__)
        else:
            assert result.pixels.dtype in (np.uint8, np.uint16)
            assert result.pixels.flags.c_contiguous


HEADERS = {
    "8 bits": part10(data_set(P8)),
    "12 bits": part10(data_set(P12, BitsStored=12, WindowCenter=100, WindowWidth=50)),
    "signed": part10(data_set(S12, BitsStored=12, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1900)),
    "JPEG": compressed(data_set(P8), JPEG_BASELINE, [raster(P8, "JPEG")]),
}


# --- the walk against pydicom


def rich() -> pydicom.Dataset:
    code, lut = pydicom.Dataset(), pydicom.Dataset()
    code.CodeMeaning = "postero-anterior"
    code.AnatomicRegionSequence = [pydicom.Dataset()]  # one level further down
    lut.add_new("LUTDescriptor", "US", [4096, 0, 12])
    lut.add_new("LUTData", "US", list(range(4096)))
    ds = data_set(
        S12, BitsStored=12, PixelPaddingValue=-2000, RescaleSlope="1.5", RescaleIntercept=-3, PatientOrientation="L\\F"
    )
    ds.ViewCodeSequence, ds.VOILUTSequence = [code, code], [lut]
    ds.SpecificCharacterSet, ds.StudyDescription = (
        "ISO_IR 192",
        "Röntgen \uff23\uff28\uff25\uff33\uff34 胸部",
    )  # wide letters
    ds.WindowCenter, ds.WindowWidth = [1, 2], [3, 4]
    return ds


def agree(data: bytes) -> int:
    """Values that the walk and pydicom both see, which must be the same."""
    ds = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, force=True)
    explicit, little = not ds.original_encoding[0], bool(ds.original_encoding[1])
    found, meta = Elements(data, little, explicit, Limits()), Elements(data, True, True, Limits())
    found.read(meta.read(132, len(data), only_group=2), len(data))
    signed, seen = ds.get("PixelRepresentation", 0) == 1, 0
    for keyword, (_, vr) in KNOWN.items():
        if keyword.startswith("Overlay") or keyword not in ds or vr in ("SQ", "OW"):
            continue
        value = ds.get(keyword)
        wanted = [] if value is None else list(value) if isinstance(value, pydicom.multival.MultiValue) else [value]
        number = vr in ("DS", "IS", "US", "US or SS")
        got = [float(v) if number else str(v).rstrip(" ") for v in found.many(keyword, signed)]
        assert got == [float(v) if number else str(v) for v in wanted if v != ""], keyword
        seen += 1
    for keyword in ("ViewCodeSequence", "AnatomicRegionSequence"):
        meanings = [item.get("CodeMeaning", "") for item in ds.get(keyword, [])]
        assert [item.text("CodeMeaning") for item in found.items(keyword)] == meanings
    return seen


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("undefined", [False, True])
def test_the_walk_sees_what_pydicom_sees(syntax: str, undefined: bool) -> None:
    ds = rich()
    for keyword in ("ViewCodeSequence", "VOILUTSequence"):
        ds[keyword].is_undefined_length = undefined
        for item in ds[keyword].value:
            item.is_undefined_length_sequence_item = undefined
    assert agree(part10(ds, syntax)) > 20
    header = read_header(part10(ds, syntax), Limits())[0]
    assert header.view_codes == ("postero-anterior",) * 2
    assert header.voi_lut is not None
    np.testing.assert_array_equal(header.voi_lut.entries, np.arange(4096))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
def test_the_walk_sees_what_pydicom_sees_in_real_files() -> None:
    for path in sorted(SHARED.glob("dicom*/*.dcm")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert agree(path.read_bytes()) > 10, path.name


# --- limits


def with_sequences(depth: int, tag: tuple[int, int] = (8, 0x1111), defined: bool = False) -> bytes:
    whole = HEADERS["8 bits"]
    at = whole.index(b"\xe0\x7f\x10\x00")
    return whole[:at] + nested(depth, tag, defined) + whole[at:]


def test_nesting_limit() -> None:
    assert get(with_sequences(32)).pixels.shape == P8.shape
    for depth, limits in ((33, Limits()), (100_000, Limits()), (4, Limits(max_depth=3))):
        reason, message = refused(with_sequences(depth), limits)
        assert reason is Reason.TOO_LARGE
        assert f"limit of {limits.max_depth} (--max-depth)" in message


@pytest.mark.parametrize("tag", [(8, 0x1111), (0x54, 0x220), (0x28, 0x3010)])
def test_sequences_that_give_their_length_are_stepped_over(tag: tuple[int, int]) -> None:
    if tag == (0x28, 0x3010):
        assert refused(with_sequences(100_000, tag, True))[0] is Reason.CANNOT_DECODE  # a lookup table without entries
    else:
        assert get(with_sequences(100_000, tag, True)).pixels.shape == P8.shape


def test_frame_limit() -> None:
    data = part10(data_set(P8, NumberOfFrames=1000))
    assert get(data).warnings == ("first of 1000 frames",)
    for limits, frames in ((Limits(), 1001), (Limits(max_frames=4), 5)):
        reason, message = refused(part10(data_set(P8, NumberOfFrames=frames)), limits)
        assert reason is Reason.TOO_LARGE
        assert "(--max-frames)" in message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("1,200,000 elements", Reason.TOO_LARGE),
        ("a million items", Reason.TOO_LARGE),
        ("a million fragments", Reason.CANNOT_DECODE),
        ("deflate bomb", Reason.TOO_LARGE),
    ],
)
def test_floods(name: str, reason: Reason) -> None:
    limits = Limits(max_bytes=64 << 20)
    assert refused(hostile_dicom()[name](random.Random(0)), limits)[0] is reason


def test_a_deflated_file_larger_than_what_is_kept_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    data = part10(data_set(P12, BitsStored=12), DEFLATED)
    expected: Any = get(data).pixels
    with monkeypatch.context() as patch:
        patch.setattr("cxrvit_edge.readers.dicom._KEPT", 1000)
        np.testing.assert_array_equal(get(data).pixels, expected)
        patch.setattr("cxrvit_edge.readers.dicom._UNPACKED", 7)
        patch.setattr("cxrvit_edge.readers.dicom._PACKED", 3)
        np.testing.assert_array_equal(get(data).pixels, expected)
