from __future__ import annotations

import builtins
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reader_files import (
    DEFLATED,
    ENCODERS,
    EXPLICIT,
    IMPLICIT,
    JPEG_BASELINE,
    compressed,
    data_set,
    part10,
    picture,
    raster,
    tiff,
)

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.radiograph import Limits, Radiograph, read
from cxrvit_edge.readers import decode, sniff

GRAY = picture()
DEEP = picture(top=4095, dtype=np.uint16)
RASTERS = {
    "png": raster(GRAY, "PNG"),
    "png16": raster(DEEP, "PNG"),
    "jpeg": raster(GRAY, "JPEG"),
    "jpeg rgb": raster(np.stack([GRAY] * 3, axis=-1), "JPEG"),
    "jpeg progressive": raster(GRAY, "JPEG", progressive=True),
    "jpeg restart": raster(GRAY, "JPEG", restart_marker_rows=1),
    "tiff": raster(GRAY, "TIFF"),
    "tiff directory first": tiff(DEEP),
    "tiff lzw": raster(GRAY, "TIFF", compression="tiff_lzw"),
    "bmp": raster(GRAY, "BMP"),
}
DICOMS = {syntax: part10(data_set(DEEP, BitsStored=12), syntax) for syntax in (IMPLICIT, EXPLICIT, DEFLATED)}
DICOMS |= {
    syntax: compressed(data_set(DEEP, BitsStored=12), syntax, [encode(DEEP, 12)]) for syntax, encode in ENCODERS.items()
}
DICOMS[JPEG_BASELINE] = compressed(data_set(GRAY), JPEG_BASELINE, [raster(GRAY, "JPEG")])
FILES = RASTERS | DICOMS


def refused(path: Path, limits: Limits | None = None) -> Reason:
    with pytest.raises(InputError) as caught:
        read(path, limits=limits)
    assert str(caught.value).startswith(f"{path.name}: ")
    assert ";" in str(caught.value)  # cause; next step
    return caught.value.reason


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def outcome(data: bytes, name: str = "x.dcm") -> Radiograph | Reason:
    """What reading gives; anything but a Radiograph or an InputError that is not a fault of ours fails the test."""
    try:
        result = decode(data, name, Limits(min_side=8))
    except InputError as error:
        assert error.reason is not Reason.INTERNAL, repr(error.__cause__)
        assert "SECRET" not in str(error)
        return error.reason
    assert result.pixels.dtype in (np.uint8, np.uint16)
    assert result.pixels.ndim == 2
    return result


def test_the_path_itself(tmp_path: Path) -> None:
    assert refused(tmp_path / "missing.png") is Reason.NOT_FOUND
    (tmp_path / "x.png").mkdir()
    assert refused(tmp_path / "x.png") is Reason.IS_DIRECTORY
    assert refused(write(tmp_path, "empty.png", b"")) is Reason.EMPTY_FILE
    assert refused(tmp_path / "empty.png" / "below.png") is Reason.NOT_FOUND
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert refused(tmp_path / "loop.png") is Reason.UNREADABLE
    with pytest.raises(InputError, match=r"a\?b\.png: not a path") as caught:
        read(tmp_path / "a\0b.png")
    assert caught.value.reason is Reason.UNREADABLE


def test_a_name_that_cannot_be_printed_is_shown_printably(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path / os.fsdecode(b"bad\xff\n\x1b.png"))
    str(caught.value).encode()
    assert str(caught.value).startswith("bad???.png: ")


@pytest.mark.parametrize("kind", ["stat", "open"])
def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = write(tmp_path, "x.png", RASTERS["png"])

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", denied) if kind == "stat" else patch.setattr(builtins, "open", denied)
        assert refused(path) is Reason.NO_PERMISSION


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission_on_disk(tmp_path: Path) -> None:
    path = write(tmp_path, "x.png", RASTERS["png"])
    path.chmod(0)
    assert refused(path) is Reason.NO_PERMISSION


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "x.png", RASTERS["png"])

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", broken)
        assert refused(path) is Reason.UNREADABLE


def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.dcm")  # opening it would wait for a writer for ever
    assert refused(tmp_path / "x.dcm") is Reason.UNREADABLE
    assert refused(Path("/dev/null")) is Reason.UNREADABLE


def test_files_over_the_size_limit(tmp_path: Path) -> None:
    path = write(tmp_path, "x.png", RASTERS["png"])
    assert refused(path, Limits(max_bytes=100)) is Reason.TOO_LARGE
    assert read(path, limits=Limits(max_bytes=path.stat().st_size)).pixels.shape == GRAY.shape


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>not logged in", "HTML"),
        (b"\n  <html><body>", "HTML"),
        (b"patient,finding\n1,normal\n", "text"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04", "ZIP"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"GIF89a", "GIF"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "WebP"),
        (b"\x00\x00\x00\x18ftypheic", "HEIC"),
        (bytes(500), "zeros"),
        (b"\x01\x02\x03", "no image known here"),
    ],
)
def test_other_files_are_named_by_what_they_start_with(tmp_path: Path, content: bytes, said: str) -> None:
    for name, reason in (
        ("x.dcm", Reason.UNREADABLE),
        ("x.png", Reason.UNREADABLE),
        ("x.txt", Reason.NOT_AN_IMAGE),
        ("README", Reason.NOT_AN_IMAGE),
    ):
        path = write(tmp_path, name, content)
        assert refused(path) is reason
        with pytest.raises(InputError, match=said):
            read(path)


def test_sniff() -> None:
    for data in RASTERS.values():
        assert sniff(data[:256], "x.dcm") == "raster"
    for data in DICOMS.values():
        assert sniff(data[:256], "x.png") == "dicom"
    for syntax in (IMPLICIT, EXPLICIT):
        bare = part10(data_set(GRAY), syntax, preamble=False)
        for name in ("x.dcm", "IM0001", "1.2.840.113.7"):
            assert sniff(bare[:256], name) == "dicom"
    assert sniff(b"", "x.dcm") is None
    assert sniff(b"BM is a text that starts like a bitmap", "x.bmp") is None
    assert sniff(b"\x08\x00\x00\x00\x04\x00\x00\x00 any old binary", "x.bin") is None


@pytest.mark.parametrize("name", RASTERS)
def test_a_raster_cut_anywhere_is_refused_silently(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = RASTERS[name]
    trailer = 2 if name in ("tiff", "tiff lzw") else 1
    cuts = {
        *range(1, len(data), max(1, len(data) // 40)),
        *(len(data) - n for n in (trailer, 2, 3, 4, 8, 12, 13, 14, 100)),
    }
    for cut in sorted(cuts):
        assert isinstance(outcome(data[:cut], "x.png"), Reason), f"cut at {cut} of {len(data)}"
    assert outcome(data[: len(data) // 2], "x.png") is Reason.TRUNCATED
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", DICOMS)
def test_a_dicom_file_cut_anywhere_is_refused_silently(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = DICOMS[name]
    cuts = {*range(1, len(data) - 10, max(1, len(data) // 40)), *(len(data) - n for n in (10, 12, 50, 100))}
    for cut in sorted(cuts):
        assert isinstance(outcome(data[:cut]), Reason), f"cut at {cut} of {len(data)}"
    assert outcome(data[: len(data) // 2]) is Reason.TRUNCATED
    for cut in range(len(data) - 9, len(data)):  # the end mark alone may be missing
        outcome(data[:cut])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", FILES)
def test_random_damage_never_escapes(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(name)
    for _ in range(60):
        data = bytearray(FILES[name])
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            start = rng.randrange(len(data))
            del data[start : start + rng.randrange(1, 60)]
        outcome(bytes(data))
    capfd.readouterr()  # libjpeg reports broken Huffman codes on stderr, whatever OpenCV's logger is set to


def test_png_damage_is_found_by_its_checksums(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(RASTERS["png"])
    data[len(data) // 2] ^= 1
    assert outcome(bytes(data)) is Reason.CANNOT_DECODE
    assert capfd.readouterr() == ("", "")


def test_jpeg_damage_that_leaves_a_stray_marker(capfd: pytest.CaptureFixture[str]) -> None:
    for stray in (b"\xff\xd3", b"\xff\x5a", b"\xff\xc0"):
        data = bytearray(RASTERS["jpeg"])
        data[len(data) // 2 : len(data) // 2 + 2] = stray
        assert outcome(bytes(data)) is Reason.CANNOT_DECODE
    assert capfd.readouterr() == ("", "")


def test_bytes_after_the_end_of_a_picture_are_allowed() -> None:
    for name in ("png", "jpeg", "jpeg progressive", "bmp", "tiff"):
        assert isinstance(outcome(RASTERS[name] + b"camera trailer \xff\xd8 and more"), Radiograph)


def test_errors_and_radiographs_cross_processes() -> None:
    with pytest.raises(InputError) as caught:
        decode(part10(data_set(GRAY, BodyPartExamined="HIP")), "x.dcm", Limits())
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.reason, str(copy)) == (Reason.WRONG_BODY_PART, str(caught.value))
    result = decode(RASTERS["png"], "x.png", Limits())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(result)).pixels, result.pixels)


def test_heavy_libraries_wait_until_they_are_needed(tmp_path: Path) -> None:
    path = write(tmp_path, "x.png", RASTERS["png"])
    native, jpeg = (write(tmp_path, f"{name}.dcm", DICOMS[name]) for name in (EXPLICIT, JPEG_BASELINE))
    script = (
        "import sys\n"
        "from cxrvit_edge.radiograph import read\n"
        "import cxrvit_edge.readers\n"
        "assert not {'cv2', 'pydicom', 'gdcm'} & set(sys.modules)\n"
        f"read({str(path)!r})\n"
        f"read({str(native)!r})\n"
        f"read({str(jpeg)!r})\n"
        "assert not {'pydicom', 'gdcm'} & set(sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root, timeout=60)
