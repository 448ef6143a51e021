from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from reader_files import claims, picture, raster, tiff

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.radiograph import Limits, Radiograph, read
from cxrvit_edge.readers import decode
from cxrvit_edge.readers.colour import chroma_census
from cxrvit_edge.readers.raster import to_unsigned

GRAY = picture()
DEEP = picture(top=65535, dtype=np.uint16)
RGB = np.stack([GRAY] * 3, axis=-1)
ORIGINALS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "originals"


def reason(data: bytes, name: str = "x.png", limits: Limits | None = None) -> Reason:
    with pytest.raises(InputError) as caught:
        decode(data, name, limits or Limits())
    assert str(caught.value).startswith(f"{name}: ")
    return caught.value.reason


def get(data: bytes, name: str = "x.png") -> Radiograph:
    result = decode(data, name, Limits())
    assert result.pixels.flags.c_contiguous
    assert result.view == "unknown"
    return result


def rgba(alpha: Any) -> np.ndarray[Any, Any]:
    return np.dstack([RGB, np.broadcast_to(np.asarray(alpha, np.uint8), GRAY.shape)])


LOSSLESS = {
    "png gray": (raster(GRAY, "PNG"), GRAY),
    "png 16 bit": (raster(DEEP, "PNG"), DEEP),
    "png rgb": (raster(RGB, "PNG"), GRAY),
    "png rgba opaque": (raster(rgba(255), "PNG"), GRAY),
    "png constant alpha": (raster(rgba(90), "PNG"), GRAY),
    "png 1 bit": (raster(GRAY > 128, "PNG"), np.where(GRAY > 128, 255, 0)),
    "tiff": (raster(GRAY, "TIFF"), GRAY),
    "tiff 16 bit": (raster(DEEP, "TIFF"), DEEP),
    "tiff lzw": (raster(DEEP, "TIFF", compression="tiff_lzw"), DEEP),
    "tiff deflate": (raster(GRAY, "TIFF", compression="tiff_deflate"), GRAY),
    "tiff packbits": (raster(GRAY, "TIFF", compression="packbits"), GRAY),
    "tiff rgb": (raster(RGB, "TIFF"), GRAY),
    "tiff 1 bit": (raster(GRAY > 128, "TIFF"), np.where(GRAY > 128, 255, 0)),
    "bigtiff": (raster(GRAY, "TIFF", big_tiff=True), GRAY),
    "tiff big endian": (tiff(DEEP, end=">"), DEEP),
    "tiff white is zero": (tiff(GRAY, photometric=0), 255 - GRAY),
    "tiff 16 bit white is zero": (tiff(DEEP, photometric=0), 65535 - DEEP),
    "tiff signed": (tiff((DEEP.astype(np.int32) - 32768).astype(np.int16)), DEEP),
    "bmp": (raster(GRAY, "BMP"), GRAY),
    "bmp rgb": (raster(RGB, "BMP"), GRAY),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_keep_every_pixel_and_their_depth(name: str) -> None:
    data, expected = LOSSLESS[name]
    result = get(data)
    assert result.pixels.dtype == (np.uint16 if "16 bit" in name or expected is DEEP else np.uint8)
    np.testing.assert_array_equal(result.pixels, expected)
    assert result.warnings == ()
    assert result.valid is None
    assert result.window is None


def test_palette_of_grays() -> None:
    out = io.BytesIO()
    image = Image.fromarray(GRAY).convert("P")
    image.putpalette([level for i in range(256) for level in (255 - i,) * 3])
    image.save(out, "PNG")
    np.testing.assert_array_equal(get(out.getvalue()).pixels, 255 - GRAY)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}])
def test_jpeg_gray(options: dict[str, Any]) -> None:
    data = raster(GRAY, "JPEG", quality=92, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)), np.int16)
    assert np.abs(get(data).pixels - expected).max() <= 1


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_rgb_gives_its_luma(subsampling: int, progressive: bool) -> None:
    data = raster(RGB, "JPEG", quality=95, subsampling=subsampling, progressive=progressive)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("L"), np.int16)
    assert np.abs(get(data).pixels - expected).max() <= 2


def test_jpeg_cmyk_and_rgb_without_transform() -> None:
    out = io.BytesIO()
    Image.fromarray(RGB).convert("CMYK").save(out, "JPEG", quality=95)
    assert np.abs(get(out.getvalue()).pixels.astype(np.int16) - GRAY).max() <= 12
    data = raster(RGB, "JPEG", quality=95, keep_rgb=True)
    assert np.abs(get(data).pixels.astype(np.int16) - GRAY).max() <= 12


def test_the_content_decides_not_the_name() -> None:
    np.testing.assert_array_equal(get(raster(GRAY, "PNG"), "film.jpg").pixels, GRAY)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_exif_orientation_is_applied_and_said(kind: str, orientation: int, deep: bool) -> None:
    if deep and kind == "JPEG":
        pytest.skip("no 16-bit JPEG")
    tag: dict[str, Any] = {"tiffinfo": {274: orientation}} if kind == "TIFF" else {"exif": Image.Exif()}
    if "exif" in tag:
        tag["exif"][274] = orientation
    data = raster(DEEP if deep else GRAY, kind, **tag)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    result = get(data)
    assert result.pixels.shape == expected.shape
    assert np.abs(result.pixels.astype(np.int32) - expected).max() <= 1
    assert len(result.warnings) == (orientation != 1)


def test_a_varying_alpha_is_laid_over_black() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, GRAY.shape[1]).astype(np.uint8), GRAY.shape)
    result = get(raster(rgba(ramp), "PNG"))
    assert np.abs(result.pixels - GRAY * (ramp / 255.0)).max() <= 1
    assert result.warnings == ("transparent parts were laid over black",)


def colours(name: str) -> np.ndarray[Any, Any]:
    """(256, 320, 3) R, G, B pictures that are radiographs to a human, or are not."""
    gray = picture(256, 320)
    level = gray / 255.0
    rgb = np.stack([gray] * 3, axis=-1)
    rng = np.random.default_rng(1)
    if name == "sepia":
        rgb = np.stack([255 * level, 230 * level**1.15, 190 * level**1.3], axis=-1).astype(np.uint8)
    elif name == "blue film":
        rgb = np.stack([20 + 160 * level, 40 + 180 * level, 90 + 165 * level], axis=-1).astype(np.uint8)
    elif name == "arrows":
        for x in (40, 120, 200):
            cv2.arrowedLine(rgb, (x, 60), (x + 40, 110), (255, 0, 0), 4)
            cv2.putText(rgb, "A", (x, 200), cv2.FONT_HERSHEY_SIMPLEX, 1, (255, 255, 0), 3)
    elif name == "colour map":
        rgb = cv2.cvtColor(cv2.applyColorMap(gray, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    elif name == "heat overlay":
        rgb = cv2.addWeighted(rgb, 0.6, cv2.applyColorMap(gray[::-1].copy(), cv2.COLORMAP_JET), 0.4, 0)
    elif name == "coloured blobs":
        blobs = np.stack([cv2.GaussianBlur(rng.normal(size=gray.shape), (0, 0), 12) for _ in range(3)], axis=-1)
        rgb = np.clip(128 + 50 * blobs / blobs.std(), 0, 255).astype(np.uint8)
    elif name == "sky and meadow":
        rgb[:140], rgb[140:] = (90, 150, 230), (70, 110, 40)
        rgb = np.clip(rgb + rng.normal(0, 10, rgb.shape), 0, 255).astype(np.uint8)
    return rgb


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
@pytest.mark.parametrize("name", ["colour map", "heat overlay", "coloured blobs", "sky and meadow"])
def test_colour_pictures_are_rejected(name: str, kind: str) -> None:
    assert reason(raster(colours(name), kind)) is Reason.COLOUR
    assert Reason.COLOUR.status == "rejected"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("sepia", "a colour tint was removed"),
        ("blue film", "a colour tint was removed"),
        ("arrows", "coloured marks were turned to gray"),
    ],
)
def test_tinted_and_annotated_radiographs_are_taken(name: str, warning: str, kind: str) -> None:
    result = get(raster(colours(name), kind, **({"quality": 95} if kind == "JPEG" else {})))
    assert result.warnings == (warning,)
    expected = cv2.cvtColor(colours(name), cv2.COLOR_RGB2GRAY).astype(np.int16)
    assert np.percentile(np.abs(result.pixels - expected), 95) <= (6 if kind == "JPEG" else 0)


def test_gray_has_no_chroma() -> None:
    assert chroma_census(RGB) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["sepia", "blue film", "arrows", "colour map", "heat overlay", "coloured blobs"])
def test_the_census_is_of_medians(name: str) -> None:
    """Of a third of the pixels, an odd and an even number of them, against numpy's medians band by band."""
    for rows in (71, 72):
        sample = np.ascontiguousarray(colours(name)[:rows, ::3, ::-1])
        luma = cv2.cvtColor(sample, cv2.COLOR_BGR2GRAY)
        chroma = sample[..., [0, 2]].astype(int) - luma[..., None]
        stray, tint = 0, 0.0
        for band in range(16):
            here = chroma[luma >> 4 == band]
            if len(here):
                middle = np.median(here, axis=0)
                stray += int((np.abs(here - middle).max(axis=1) > 32).sum())
                tint = max(tint, np.abs(middle).max()) if len(here) > 0.02 * luma.size else tint
        found = chroma_census(sample)
        assert found[1] == tint
        assert found[0] in (1.0, stray / luma.size)
        assert found[0] == 1.0 if name == "colour map" else found[0] < 1.0 or name != "sepia"


def test_16_bit_colour_keeps_its_depth() -> None:
    ok, data = cv2.imencode(".png", np.stack([DEEP] * 3, axis=-1))
    assert ok
    np.testing.assert_array_equal(get(data.tobytes()).pixels, DEEP)


def test_float_tiff_is_squeezed_in_order_and_its_nan_is_not_valid() -> None:
    values = picture(top=4000, dtype=np.uint16).astype(np.float32) / 7 - 100
    values[:5, :7] = np.nan
    result = get(tiff(values))
    assert result.pixels.dtype == np.uint16
    assert result.valid is not None
    np.testing.assert_array_equal(result.valid, np.isfinite(values))
    order = np.argsort(values[result.valid], kind="stable")
    assert (np.diff(result.pixels[result.valid][order].astype(np.int32)) >= 0).all()
    assert len(np.unique(result.pixels[result.valid])) == len(np.unique(values[result.valid]))


def test_float_tiff_without_a_number() -> None:
    assert reason(tiff(np.full((80, 80), np.nan, np.float32))) is Reason.NOT_FINITE


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.float64])
def test_wide_pixels_are_squeezed_to_16_bits(dtype: Any) -> None:
    narrow = picture(top=50000, dtype=dtype) + dtype(7)
    if dtype is not np.float64:
        np.testing.assert_array_equal(to_unsigned(narrow)[0], narrow - 7)
    wide, valid = to_unsigned(narrow * dtype(40000))
    assert valid is None
    assert wide.dtype == np.uint16
    assert (wide.min(), wide.max()) == (0, 65535)
    np.testing.assert_array_equal(
        np.argsort(wide, axis=None, kind="stable"), np.argsort(narrow, axis=None, kind="stable")
    )


def test_constant_float_pixels() -> None:
    pixels, valid = to_unsigned(np.full((4, 4), 3.5, np.float32))
    assert valid is None
    assert not pixels.any()


def test_first_page_of_a_tiff_and_said() -> None:
    out = io.BytesIO()
    Image.fromarray(GRAY).save(out, "TIFF", save_all=True, append_images=[Image.fromarray(255 - GRAY)] * 2)
    result = get(out.getvalue())
    np.testing.assert_array_equal(result.pixels, GRAY)
    assert result.warnings == ("first of 3 pages",)


HUGE = {kind: claims(raster(GRAY, kind), 30_000, 30_000) for kind in ("PNG", "JPEG")} | {
    "TIFF": claims(tiff(GRAY), 30_000, 30_000)
}


@pytest.mark.parametrize("kind", HUGE)
def test_30000_x_30000_is_refused_before_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoder(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", decoder)
    with pytest.raises(InputError, match=r"x\.png: 30000 x 30000 .* 100,000,000") as caught:
        decode(HUGE[kind], "x.png", Limits())
    assert caught.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_one_pixel_is_too_small(kind: str) -> None:
    assert reason(raster(GRAY[:1, :1], kind)) is Reason.TOO_SMALL
    assert reason(raster(picture(400, 63), kind)) is Reason.TOO_SMALL


def test_limits_are_the_callers() -> None:
    data = raster(GRAY, "PNG")
    assert reason(data, limits=Limits(max_pixels=GRAY.size - 1)) is Reason.TOO_LARGE
    decode(data, "x.png", Limits(max_pixels=GRAY.size))


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="the real files are not here")
def test_real_originals() -> None:
    files = [path for path in sorted(ORIGINALS.iterdir()) if path.suffix != ".csv"]
    assert len(files) == 13
    for path in files:
        result = read(path)
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB").convert("L"), np.int16)
        assert result.pixels.shape == expected.shape, path.name
        assert np.abs(result.pixels - expected).max() <= 2, path.name
