"""Preprocessing against a slow float64 reference that is written here from the paper's order of steps.

equalisation on the native depth, Gaussian 3x3, normalisation, resize; every step separable and explicit.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from cxrvit_edge.errors import UsageError
from cxrvit_edge.preprocess import PreprocessConfig, equalisation_table, preprocess
from cxrvit_edge.radiograph import Radiograph

Float64 = NDArray[np.float64]


def equalised(pixels: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> Float64:
    """(number of valid pixels <= v, less those at the least value) / (valid pixels, less those), in [0, 1]."""
    kept = np.sort((pixels if valid is None else pixels[valid]).ravel())
    least = int((kept == kept[0]).sum())
    if least == kept.size:
        return np.zeros(pixels.shape)
    rank = np.searchsorted(kept, pixels.ravel(), side="right").reshape(pixels.shape)
    return np.clip((rank - least) / (kept.size - least), 0, 1)


def blurred(image: Float64, sigma: float) -> Float64:
    """3 taps each way; the border is reflected about its last pixel."""
    if min(image.shape) < 2:
        raise ValueError("the reflected border needs two pixels")
    side = np.exp(-0.5 / sigma**2)
    taps = np.array([side, 1, side]) / (1 + 2 * side)
    p = np.pad(image, 1, mode="reflect")
    rows = taps[0] * p[:-2] + taps[1] * p[1:-1] + taps[2] * p[2:]
    return taps[0] * rows[:, :-2] + taps[1] * rows[:, 1:-1] + taps[2] * rows[:, 2:]


def resampling(source: int, target: int) -> Float64:
    """(target, source) weights: area averages where the axis shrinks, else linear between pixel centres."""
    ratio = source / target
    out = np.zeros((target, source))
    for i in range(target):
        if target <= source:
            low, high = i * ratio, (i + 1) * ratio
            for j in range(int(low), min(source, int(np.ceil(high)))):
                out[i, j] = max(0.0, min(high, j + 1) - max(low, j)) / ratio
        else:
            x = min(max((i + 0.5) * ratio - 0.5, 0.0), source - 1.0)
            j = int(x)
            out[i, j] += 1 - (x - j)
            out[i, min(j + 1, source - 1)] += x - j
    return out


def reference(pixels: NDArray[Any], config: PreprocessConfig, valid: NDArray[np.bool_] | None = None) -> Float64:
    """The whole of it: (size, size)."""
    image = (255 * blurred(equalised(pixels, valid), config.blur_sigma) - config.offset) / config.scale
    h, w = pixels.shape
    if config.aspect == "squash":
        ch = cw = config.size
    else:
        ch = max(1, round(h * config.size / max(h, w)))
        cw = max(1, round(w * config.size / max(h, w)))
    out = np.zeros((config.size, config.size))
    top, left = (config.size - ch) // 2, (config.size - cw) // 2
    out[top : top + ch, left : left + cw] = resampling(h, ch) @ image @ resampling(w, cw).T
    return out


def pattern(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return ((x * x + 3 * y * x + 7 * y) % 97 + 2 * y).astype(np.uint8)


def structured() -> list[Any]:
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.random((90, 120)), (0, 0), 9)
    smooth = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    two = np.where(pattern(50, 40) > 80, 200, 3).astype(np.uint8)
    ramp = np.tile(np.arange(256, dtype=np.uint8), (3, 1))
    skewed = (255 * rng.random((70, 70)) ** 8).astype(np.uint8)
    names = ["smooth", "two levels", "ramp", "skewed", "narrow", "noise"]
    images = [smooth, two, ramp, skewed, 100 + smooth // 64, rng.integers(0, 256, (64, 65), dtype=np.uint8)]
    return [pytest.param(i, id=n) for i, n in zip(images, names, strict=True)]


# --- equalisation


@pytest.mark.parametrize("pixels", structured())
def test_equalisation_of_8_bits_is_opencvs(pixels: NDArray[np.uint8]) -> None:
    found = equalisation_table(pixels)[pixels]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, cv2.equalizeHist(pixels) / 255, rtol=0, atol=1 / 255)
    np.testing.assert_allclose(found, equalised(pixels), rtol=0, atol=1e-6)


@settings(max_examples=60)
@given(arrays(np.uint8, st.tuples(st.integers(2, 24), st.integers(2, 24)), elements=st.integers(0, 255)))
def test_equalisation_of_any_8_bits_is_opencvs(pixels: NDArray[np.uint8]) -> None:
    found = equalisation_table(pixels)[pixels]
    if np.ptp(pixels):  # cv2 leaves an image of one value as it is
        np.testing.assert_allclose(found, cv2.equalizeHist(pixels) / 255, rtol=0, atol=1 / 255)
    np.testing.assert_allclose(found, equalised(pixels), rtol=0, atol=1e-6)


def test_equalisation_spans_the_whole_range() -> None:
    found = equalisation_table(pattern(64, 64))[pattern(64, 64)]
    assert (found.min(), found.max()) == (0.0, 1.0)


@pytest.mark.parametrize(("a", "b"), [(1, 1000), (16, 0), (15, 123)])
def test_equalisation_of_16_bits_is_of_ranks(a: int, b: int) -> None:
    """No windowing, no rounding to 8 bits: neither offset nor gain of a detector changes anything."""
    pixels = np.random.default_rng(1).integers(0, 4096, (80, 70)).astype(np.uint16)
    other = (a * pixels.astype(np.int64) + b).astype(np.uint16)
    assert other.max() > 255
    np.testing.assert_array_equal(equalisation_table(pixels)[pixels], equalisation_table(other)[other])
    np.testing.assert_allclose(equalisation_table(pixels)[pixels], equalised(pixels), rtol=0, atol=1e-6)
    assert len(np.unique(equalisation_table(pixels)[pixels])) == len(np.unique(pixels))


@settings(max_examples=40)
@given(
    arrays(np.uint8, (12, 12), elements=st.integers(0, 40)),
    st.lists(st.integers(0, 65535), min_size=41, max_size=41, unique=True),
)
def test_a_monotone_remap_changes_nothing(pixels: NDArray[np.uint8], levels: list[int]) -> None:
    """Also across depths: an 8-bit image and its 16-bit remap are one image."""
    remapped = np.array(sorted(levels), np.uint16)[pixels]
    np.testing.assert_array_equal(equalisation_table(pixels)[pixels], equalisation_table(remapped)[remapped])


@pytest.mark.parametrize("padding", [0, 77, 65535])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_padding_pixels_are_left_out(padding: int, dtype: type[np.uint8] | type[np.uint16]) -> None:
    pixels = (20 + pattern(40, 60) // 2).astype(dtype)
    inner = pixels[:, 10:50].copy()
    valid = np.zeros(pixels.shape, bool)
    valid[:, 10:50] = True
    pixels[~valid] = min(padding, np.iinfo(dtype).max)
    found = equalisation_table(pixels, valid)[pixels]
    np.testing.assert_array_equal(found[:, 10:50], equalisation_table(inner)[inner])
    np.testing.assert_allclose(found, equalised(pixels, valid), rtol=0, atol=1e-6)
    assert found.min() >= 0.0
    assert found.max() <= 1.0
    if padding:  # counted as pixels they would show (at 0, the least value, they drop out of the formula by themselves)
        assert np.abs(equalisation_table(pixels)[pixels] - found)[:, 10:50].max() > 0.05


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("value", [0, 200])
def test_an_image_of_one_value_is_black(dtype: Any, value: int) -> None:
    tensor, _ = preprocess(Radiograph(np.full((64, 64), value, dtype)), PreprocessConfig(size=64))
    np.testing.assert_array_equal(tensor, np.full((1, 64, 64), -2.0, np.float32))


def test_no_valid_pixel_is_black() -> None:
    pixels = pattern(64, 64)
    tensor, _ = preprocess(Radiograph(pixels, valid=np.zeros(pixels.shape, bool)), PreprocessConfig(size=64))
    np.testing.assert_array_equal(tensor, np.full((1, 64, 64), -2.0, np.float32))


# --- the whole

# Rows and columns 8 to 15 of the 32x32 input that pattern(64, 64) becomes, x 1000, from the float64 reference above.
GOLDEN = np.array(
    [
        [-797, -800, -743, -474, -12, -380, -1388, -1188],
        [-460, -626, -659, -832, -579, -41, -643, -1000],
        [-303, -215, -126, -578, -1048, -513, -559, -761],
        [-652, -467, -766, -439, -365, -806, 44, -356],
        [-228, -450, -310, -633, -384, -577, 11, -362],
        [-103, -166, -508, -250, -274, -420, -91, -206],
        [-98, 47, -203, -231, 34, 46, 13, -5],
        [94, 39, 103, 127, -17, -146, -88, 189],
    ],
    np.float64,
)


def test_golden_pixels() -> None:
    config = PreprocessConfig(size=32)
    tensor, _ = preprocess(Radiograph(pattern(64, 64)), config)
    np.testing.assert_allclose(1000 * tensor[0, 8:16, 8:16], GOLDEN, rtol=0, atol=0.6)
    np.testing.assert_allclose(1000 * reference(pattern(64, 64), config)[8:16, 8:16], GOLDEN, rtol=0, atol=0.5001)


SIZES = [(64, 64), (128, 128), (50, 90), (90, 50), (33, 31), (200, 37), (37, 200), (300, 64), (30, 30), (2, 64)]


@pytest.mark.parametrize("aspect", ["pad", "squash"])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_pixel_is_the_references(shape: tuple[int, int], aspect: Any, dtype: Any) -> None:
    pixels = pattern(*shape).astype(dtype) * (200 if dtype is np.uint16 else 1)
    config = PreprocessConfig(size=64, aspect=aspect)
    tensor, _ = preprocess(Radiograph(pixels), config)
    assert (tensor.shape, tensor.dtype) == ((1, 64, 64), np.float32)
    np.testing.assert_allclose(tensor[0], reference(pixels, config), rtol=0, atol=2e-5)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_size_depth_mask_kernel_and_aspect_is_the_references(data: st.DataObject) -> None:
    """Far inside the stated 1e-4 of full scale, in units of the normalised tensor (4 of them)."""
    height, width = data.draw(st.integers(2, 400)), data.draw(st.integers(2, 400))
    top = data.draw(st.sampled_from([255, 4095, 65535]))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    dtype: Any = np.uint8 if top == 255 else np.uint16
    pixels = rng.integers(0, top, (height, width), dtype, endpoint=True)
    valid = None
    if data.draw(st.booleans()):
        valid = np.ones(pixels.shape, bool)
        valid[:, data.draw(st.integers(1, width)) :] = False
    aspect: Any = data.draw(st.sampled_from(["pad", "squash"]))
    config = PreprocessConfig(
        size=data.draw(st.integers(32, 96)), blur_sigma=data.draw(st.floats(0.3, 3)), aspect=aspect
    )
    tensor, _ = preprocess(Radiograph(pixels, valid=valid), config)
    np.testing.assert_allclose(tensor[0], reference(pixels, config, valid), rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(40, 5000), (5000, 40), (1700, 1500)])
@pytest.mark.parametrize("aspect", ["pad", "squash"])
def test_large_images_are_the_references(shape: tuple[int, int], aspect: Any) -> None:
    pixels = pattern(*shape).astype(np.uint16) * 200
    config = PreprocessConfig(size=256, aspect=aspect)
    tensor, _ = preprocess(Radiograph(pixels), config)
    np.testing.assert_allclose(tensor[0], reference(pixels, config), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kernel", [5, 9, 31])
@pytest.mark.parametrize("shape", [(90, 70), (20, 41), (1, 50)])
def test_wider_kernels_blur_as_opencv_does(shape: tuple[int, int], kernel: int) -> None:
    pixels = pattern(*shape)
    config = PreprocessConfig(size=40, blur_kernel=kernel, blur_sigma=2.5, aspect="squash")
    tensor, _ = preprocess(Radiograph(pixels), config)
    soft = cv2.GaussianBlur(equalised(pixels), (kernel, kernel), 2.5)
    wanted = resampling(shape[0], 40) @ soft @ resampling(shape[1], 40).T
    np.testing.assert_allclose(tensor[0], (255 * wanted - 128) / 64, rtol=0, atol=2e-5)


def test_an_opencv_without_16_bit_tables_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = pattern(120, 100).astype(np.uint16) * 200
    expected, _ = preprocess(Radiograph(pixels), PreprocessConfig(size=64))

    def refuse(*_: Any, **__: Any) -> None:
        raise cv2.error("LUT")

    monkeypatch.setattr(cv2, "LUT", refuse)
    found, _ = preprocess(Radiograph(pixels), PreprocessConfig(size=64))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(100, 100), (130, 70)])
def test_a_given_array_is_overwritten(shape: tuple[int, int]) -> None:
    config = PreprocessConfig(size=64)
    batch = np.full((3, 1, 64, 64), np.nan, np.float32)
    found, _ = preprocess(Radiograph(pattern(*shape)), config, out=batch[1])
    assert np.shares_memory(found, batch)
    np.testing.assert_array_equal(batch[1], preprocess(Radiograph(pattern(*shape)), config)[0])
    assert np.isnan(batch[[0, 2]]).all()


def test_threads_do_not_share_buffers() -> None:
    films = [Radiograph(pattern(300 + 10 * i, 280) ^ np.uint8(i)) for i in range(8)]
    config = PreprocessConfig(size=128)
    expected = [preprocess(film, config)[0] for film in films]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for (found, _g), wanted in zip(pool.map(lambda f: preprocess(f, config), films), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)


def test_other_constants_are_obeyed() -> None:
    config = PreprocessConfig(size=32, blur_sigma=1.7, offset=100.0, scale=50.0)
    tensor, _ = preprocess(Radiograph(pattern(70, 60)), config)
    np.testing.assert_allclose(tensor[0], reference(pattern(70, 60), config), rtol=0, atol=2e-5)


def test_kernel_of_one_does_not_blur() -> None:
    pixels = pattern(32, 32)
    tensor, _ = preprocess(Radiograph(pixels), PreprocessConfig(size=32, blur_kernel=1))
    np.testing.assert_allclose(tensor[0], (255 * equalised(pixels) - 128) / 64, rtol=0, atol=1e-6)


def test_equalisation_comes_before_blur() -> None:
    """On a skewed histogram the two orders differ by far more than rounding."""
    rng = np.random.default_rng(2)
    pixels = (255 * rng.random((64, 64)) ** 6).astype(np.uint8)
    tensor, _ = preprocess(Radiograph(pixels), PreprocessConfig(size=64))
    other = equalised(np.rint(blurred(pixels.astype(float), 0.8)).astype(np.uint8))
    np.testing.assert_allclose(tensor[0], (255 * blurred(equalised(pixels), 0.8) - 128) / 64, rtol=0, atol=2e-5)
    assert np.abs(tensor[0] - (255 * other - 128) / 64).max() > 0.5


def test_the_input_is_not_changed() -> None:
    pixels = pattern(64, 80)
    before = pixels.copy()
    preprocess(Radiograph(pixels), PreprocessConfig(size=64))
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize(
    ("shape", "rows", "columns"), [((300, 100), (0, 64), (21, 42)), ((100, 300), (21, 42), (0, 64))]
)
def test_padding_is_centred_and_zero(shape: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """64 x 21 of content; 21 and 22 of padding."""
    tensor, geometry = preprocess(Radiograph(pattern(*shape)), PreprocessConfig(size=64))
    inside = np.zeros((64, 64), bool)
    inside[slice(*rows), slice(*columns)] = True
    np.testing.assert_array_equal(tensor[0][~inside], 0.0)
    assert np.abs(tensor[0][inside]).min() > 0.0
    np.testing.assert_array_equal(geometry.content(tensor[0]), tensor[0][slice(*rows), slice(*columns)])


def test_squash_has_no_padding() -> None:
    tensor, geometry = preprocess(Radiograph(pattern(300, 100)), PreprocessConfig(size=64, aspect="squash"))
    assert geometry.content(tensor).shape == (1, 64, 64)
    assert (np.abs(tensor) > 0).mean() > 0.99


# --- parameters


def test_parameters_survive_a_manifest() -> None:
    import json

    config = PreprocessConfig(size=384, blur_sigma=1.0, aspect="squash")
    assert PreprocessConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_defaults_are_the_contracts() -> None:
    expected = {
        "size": 512, "blur_kernel": 3, "blur_sigma": 0.8, "offset": 128.0, "scale": 64.0, "aspect": "pad",
    }  # fmt: skip
    assert PreprocessConfig().to_dict() == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"aspect": "crop"}, {"size": 31}, {"size": 512.0}, {"size": "512"}, {"blur_kernel": 2}, {"blur_kernel": 0},
        {"blur_kernel": -1}, {"blur_kernel": 3.0}, {"scale": 0.0}, {"scale": -1.0}, {"scale": float("nan")},
        {"offset": float("inf")}, {"offset": None}, {"blur_sigma": "0.8"},
    ],
)  # fmt: skip
def test_wrong_parameters_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        PreprocessConfig.from_dict(wrong)


def test_unknown_parameters_are_named() -> None:
    with pytest.raises(UsageError, match=r"\['clip_limit', 'gamma'\].*newer version"):
        PreprocessConfig.from_dict({"size": 512, "gamma": 1.0, "clip_limit": 2})


# --- real films


def test_real_films_are_equalised_as_opencv_does(shared_data: Path) -> None:
    for source in ("nih", "cohen", "hannover", "shenzhen", "brixia"):
        path = sorted((shared_data / "images" / source).glob("*.jpg"))[0]
        pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert pixels is not None
        config = PreprocessConfig(size=512)
        tensor, g = preprocess(Radiograph(pixels), config)
        soft = cv2.GaussianBlur(cv2.equalizeHist(pixels).astype(np.float32), (3, 3), 0.8)
        inter = cv2.INTER_AREA if max(pixels.shape) > 512 else cv2.INTER_LINEAR
        wanted = cv2.resize(soft, (g.content_width, g.content_height), interpolation=inter)
        found = g.content(tensor[0]) * 64 + 128
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1.0, err_msg=path.name)
