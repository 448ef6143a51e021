"""Images out of packages: pictures as files hold them, volumes as slices and projections."""

import gzip
import io
import plistlib
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from train import negatives
from train.negatives import LEAST, MOST, SOURCES, Source, images_of, invesalius, nifti, opened, views


def volume() -> np.ndarray:
    z, y, x = np.mgrid[0:30, 0:40, 0:50]
    return ((((z - 15) / 15) ** 2 + ((y - 20) / 20) ** 2 + ((x - 25) / 25) ** 2 < 0.9) * 1000).astype(np.int16)


def written_nifti(path: Path, data: np.ndarray) -> Path:
    """(X, Y, Z) as NIfTI-1 has it: x runs first."""
    header = bytearray(352)
    header[0:4] = np.int32(348).tobytes()
    header[40:56] = np.array([3, *data.shape, 1, 1, 1, 1], "<i2").tobytes()
    header[70:72] = np.int16(4).tobytes()
    header[108:112] = np.float32(352).tobytes()
    path.write_bytes(gzip.compress(bytes(header) + data.astype("<i2").tobytes(order="F")))
    return path


def written_invesalius(path: Path, data: np.ndarray) -> Path:
    matrix = {"dtype": "int16", "filename": "matrix.dat", "shape": list(data.shape)}
    with tarfile.open(path, "w:gz") as tar:
        for name, content in (("main.plist", plistlib.dumps({"matrix": matrix})), ("matrix.dat", data.tobytes())):
            info = tarfile.TarInfo(f"tmp/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_volumes_are_read_as_they_were_written(tmp_path: Path) -> None:
    data = volume()
    np.testing.assert_array_equal(nifti(written_nifti(tmp_path / "a.nii.gz", data)), data)
    np.testing.assert_array_equal(invesalius(written_invesalius(tmp_path / "a.inv3", data)), data)


def test_a_volume_gives_as_many_views_as_are_asked_for(tmp_path: Path) -> None:
    planes = list(views(volume().astype(np.float32), 12))
    assert len(planes) == 12
    assert all(p.shape == (512, 512) and p.dtype == np.uint8 and p.max() > p.min() for p in planes)


def test_pictures_are_put_on_white_and_reduced_and_icons_left_out(tmp_path: Path) -> None:
    clear = np.zeros((LEAST, LEAST, 4), np.uint8)
    clear[:50, :, 3] = 255
    cv2.imwrite(str(tmp_path / "clear.png"), clear)
    image = opened(tmp_path / "clear.png")
    assert image is not None
    assert image[:50].max() == 0 and image[50:].min() == 255
    cv2.imwrite(str(tmp_path / "wide.png"), np.full((600, 2 * MOST), 60_000, np.uint16))
    image = opened(tmp_path / "wide.png")
    assert image is not None and image.shape == (300, MOST) and image.dtype == np.uint8 and image.min() == 60_000 >> 8
    cv2.imwrite(str(tmp_path / "icon.png"), np.zeros((LEAST - 1, 500), np.uint8))
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    for name in ("icon", "empty", "text"):
        assert opened(tmp_path / f"{name}.png") is None


def test_no_more_than_asked_and_each_image_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(6):
        cv2.imwrite(str(tmp_path / f"{k}.png"), rng.integers(0, 255, (LEAST, LEAST), np.uint8))
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "link.png").symlink_to(tmp_path / "1.png")
    (tmp_path / "read.me").write_text("hello")
    assert len(list(images_of(Source("fit", "x", "p", "*", 99), tmp_path))) == 6
    assert len(list(images_of(Source("fit", "x", "p", "*", 4), tmp_path))) == 4
    written_nifti(tmp_path / "head.nii.gz", volume())
    assert len(list(images_of(Source("kept", "mr", "p", "*.nii.gz", 9), tmp_path))) == 9


def test_what_is_measured_on_was_not_fitted_to() -> None:
    fitted = {(s.package, s.glob) for s in SOURCES if s.use == "fit"}
    kept = {(s.package, s.glob) for s in SOURCES if s.use == "kept"}
    assert not fitted & kept
    assert {p for p, _ in fitted} & {p for p, _ in kept} == {"tuxpaint-stamps-default"}  # its animals alone


def test_the_whole_command_with_one_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    share = tmp_path / "deb" / "usr" / "share" / "pictures"
    share.mkdir(parents=True)
    cv2.imwrite(str(share / "a.png"), np.arange(LEAST * LEAST, dtype=np.uint16).reshape(LEAST, LEAST))

    def fetched(package: str, folder: Path) -> Path | None:
        return tmp_path / "deb" / "usr" / "share" if package == "pictures" else None

    monkeypatch.setattr(negatives, "fetched", fetched)
    sources = (Source("fit", "photograph", "pictures", "pictures/*", 9), Source("kept", "ct", "absent", "*", 9))
    monkeypatch.setattr(negatives, "SOURCES", sources)
    assert negatives.main([str(tmp_path / "out")]) == 0
    assert [p.parent.relative_to(tmp_path / "out").as_posix() for p in tmp_path.glob("out/**/*.png")] == [
        "fit/photograph/pictures"
    ]
    said = capsys.readouterr().out
    assert "absent: not to be had" in said and "fit: 1 of photograph from pictures" in said


def test_a_package_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert negatives.fetched("no-such-package-anywhere", tmp_path) is None
