"""The guard's head: real outputs of the embedded bundle for generated films and for what is none; its file."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cxrvit_edge.bundle import MANIFEST, Bundle
from cxrvit_edge.errors import BundleError, InputError, Reason
from cxrvit_edge.findings import judge
from cxrvit_edge.guard import DESCRIBED, describe
from cxrvit_edge.guard_head import (
    KINDS,
    SEEN,
    Expert,
    Head,
    describe_outputs,
    head_of,
    log_odds,
    read_head,
    write_head,
)
from cxrvit_edge.phantom import make_phantom
from cxrvit_edge.preprocess import Geometry, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Radiograph
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession

Pixels = NDArray[Any]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open()


@pytest.fixture(scope="module")
def reason(bundle: Bundle) -> Callable[[Pixels], tuple[Reason | None, str]]:
    """Why the embedded bundle turns pixels away, read to judged; None if it does not."""
    config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
    session = OnnxRuntimeSession(bundle.file("fp32.onnx"), precision="fp32")

    def of(pixels: Pixels) -> tuple[Reason | None, str]:
        tensor, geometry = preprocess(Radiograph(np.ascontiguousarray(pixels)), config)
        try:
            judge(session.run(tensor[None]), 0, bundle, "PA", geometry, describe(tensor, geometry))
        except InputError as error:
            return error.reason, str(error)
        return None, ""

    return of


def film(seed: int = 3, **changes: Any) -> NDArray[np.uint16]:
    return make_phantom(seed, **{"height": 512, "width": 460, **changes}).pixels


@pytest.mark.parametrize(
    ("seed", "lesions", "view"), [(3, "none", "PA"), (31, "focal", "AP"), (32, "diffuse", "PA"), (33, 0.7, "AP")]
)
def test_upright_films_are_let_in(reason: Any, seed: int, lesions: Any, view: Any) -> None:
    assert reason(film(seed, lesions=lesions, view=view))[0] is None


def test_a_mirrored_a_tilted_and_a_framed_film_are_let_in(reason: Any) -> None:
    pixels = film(34)
    assert reason(pixels[:, ::-1])[0] is None
    h, w = pixels.shape
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), 8, 1.0)
    assert reason(cv2.warpAffine(pixels, matrix, (w, h)))[0] is None
    assert reason(cv2.copyMakeBorder(pixels, 20, 90, 60, 30, cv2.BORDER_CONSTANT, value=0))[0] is None


@pytest.mark.parametrize("way", ["90", "180", "270", "upside down"])
def test_turned_films_are_turned_away_with_what_to_do(reason: Any, way: str) -> None:
    pixels = film(35)
    pixels = pixels[::-1] if way == "upside down" else np.rot90(pixels, int(way) // 90)
    code, message = reason(pixels)
    assert code is Reason.ROTATED
    assert "turn it upright and send it again" in message


def test_inverted_films_are_turned_away(reason: Any) -> None:
    code, message = reason(4095 - film(36))
    assert code is Reason.INVERTED
    assert "bone bright" in message
    assert reason(np.rot90(4095 - film(36)))[0] is not None


def collimated() -> Pixels:
    pixels = film(37)
    out = np.zeros_like(pixels)
    out[100:260, 60:200] = pixels[100:260, 60:200]
    return out


def page() -> Pixels:
    out = np.full((700, 500), 240, np.uint8)
    for row in range(40, 690, 18):
        cv2.putText(
            out, "Discharge letter, page 1 of 2, continued", (30, row), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 20, 1, 16
        )
    return cv2.GaussianBlur(out, (0, 0), 0.7)


def noise() -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (512, 480)).astype(np.uint8)


def natural() -> Pixels:
    """1/f noise with a horizon: the statistics of a photograph."""
    rng = np.random.default_rng(2)
    f = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(600)[None]) + 1 / 512
    value = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((512, 600))) / f**1.2, (512, 600))
    value = value / value.std() + 3 * (np.arange(512) < 250)[:, None]
    return np.asarray(255 * (value - value.min()) / np.ptp(value), np.uint8)


def bone() -> Pixels:
    out = np.full((600, 400), 10, np.float32)
    cv2.line(out, (190, -50), (230, 700), 110, 170)
    cv2.line(out, (195, -50), (225, 700), 220, 60)
    cv2.line(out, (195, -50), (225, 700), 150, 30)
    return np.asarray(cv2.GaussianBlur(out, (0, 0), 5), np.uint8)


@pytest.mark.parametrize("make", [collimated, page, noise, natural, bone])
def test_what_is_no_whole_chest_is_turned_away(reason: Any, make: Callable[[], Pixels]) -> None:
    code, message = reason(make())
    assert code is Reason.NOT_A_CHEST
    assert "look at it" in message


def test_a_film_is_described_alike_at_any_size_and_depth() -> None:
    pixels, config = film(38), PreprocessConfig()
    others = (pixels, cv2.resize(pixels, None, fx=3, fy=3), (pixels >> 4).astype(np.uint8), pixels << 4)
    seen = [describe(*preprocess(Radiograph(np.ascontiguousarray(other)), config)) for other in others]
    assert all(s.shape == (DESCRIBED,) and s.dtype == np.float32 for s in seen)
    for other in seen[1:]:
        assert np.corrcoef(seen[0], other)[0, 1] > 0.99


@pytest.mark.parametrize("shape", [(64, 3000), (3000, 64), (64, 64), (5, 512)])
@pytest.mark.parametrize("value", ["flat", "noise"])
def test_any_shape_can_be_described(shape: tuple[int, int], value: str) -> None:
    tensor = np.zeros((1, 512, 512), np.float32)
    geometry = Geometry.fit(*shape, 512, "pad")
    if value == "noise":
        tensor += np.random.default_rng(0).normal(0, 1, tensor.shape).astype(np.float32)
    assert np.isfinite(describe(tensor, geometry)).all()


def test_padding_is_not_described() -> None:
    tensor, geometry = preprocess(Radiograph(film(39, width=300)), PreprocessConfig())
    assert geometry.left > 50
    other = tensor.copy()
    other[:, :, : geometry.left] = 2.0
    other[:, :, geometry.left + geometry.content_width :] = -2.0
    np.testing.assert_array_equal(describe(tensor, geometry), describe(other, geometry))


def a_head(threshold: float = 0.5, rng: int = 0) -> Head:
    draw = np.random.default_rng(rng)

    def expert(n: int, k: int) -> Expert:
        shapes = [(n,), (n,), (n, k), (k,), (k, len(KINDS)), (len(KINDS),)]
        values = [draw.normal(0, 0.1, s).astype(np.float16).astype(np.float32) for s in shapes]
        return Expert(values[0], np.abs(values[1]) + 1, *values[2:])

    return Head(expert(DESCRIBED, 6), expert(SEEN, 4), threshold)


def test_a_head_survives_its_file(tmp_path: Path) -> None:
    head = a_head()
    write_head(tmp_path / "guard.npz", head)
    again = read_head(tmp_path / "guard.npz")
    seen = np.random.default_rng(1).normal(size=DESCRIBED + SEEN).astype(np.float32)
    film, outputs = seen[:DESCRIBED], seen[DESCRIBED:]
    np.testing.assert_array_equal(head.logits(film, outputs), again.logits(film, outputs))
    assert again.threshold == head.threshold


def test_the_threshold_decides_and_the_likeliest_kind_is_told() -> None:
    film, outputs = np.zeros(DESCRIBED, np.float32), np.zeros(SEEN, np.float32)
    head = a_head()
    odds = float(log_odds(head.logits(film, outputs)))
    Head(head.film, head.outputs, odds).check(film, outputs)
    expected = [Reason.LATERAL_VIEW, Reason.ROTATED, Reason.INVERTED, Reason.NOT_A_CHEST]
    for k, reason in enumerate(expected, 1):
        bias = head.film.out_bias + 50 * np.eye(len(KINDS), dtype=np.float32)[k]
        likely = Head(Expert(**{**vars(head.film), "out_bias": bias}), head.outputs, odds)
        with pytest.raises(InputError) as caught:
            likely.check(film, outputs)
        assert caught.value.reason is reason
        assert reason.status == "rejected"


def saved(path: Path, **changes: Any) -> None:
    write_head(path, a_head())
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
    with path.open("wb") as f:
        np.savez(f, **arrays)


@pytest.mark.parametrize(
    "changes",
    [
        {"kinds": np.array(["frontal", "lateral"])},
        {"threshold": np.float64("nan")},
        {"threshold": None},
        {"film.hidden": np.zeros((3, 6), np.float16)},
        {"film.hidden": np.full((DESCRIBED, 6), np.inf, np.float16)},
        {"film.scale": np.zeros(DESCRIBED, np.float32)},
        {"outputs.out_bias": np.zeros(len(KINDS), np.int64)},
        {"outputs.hidden_bias": np.zeros(100_000, np.float32)},
        {"outputs.centre": np.array([object()] * SEEN, dtype=object)},
        {"more": np.zeros(1 << 20, np.float32)},
    ],
)
def test_a_file_that_is_no_head_is_a_bundle_error(tmp_path: Path, changes: dict[str, Any]) -> None:
    saved(tmp_path / "guard.npz", **changes)
    with pytest.raises(BundleError, match="no input guard that this version reads"):
        read_head(tmp_path / "guard.npz")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "absent", "array"])
def test_a_damaged_file_is_a_bundle_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "guard.npz"
    write_head(path, a_head())
    data = path.read_bytes()
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    path.write_bytes(
        {"cut": data[: len(data) // 2], "empty": b"", "text": b"{}", "array": array.getvalue()}.get(damage, b"")
    )
    if damage == "absent":
        path.unlink()
    with pytest.raises(BundleError):
        read_head(path)


@pytest.fixture
def copied(tmp_path: Path, bundle: Bundle) -> Path:
    """The embedded bundle, its files linked."""
    out = tmp_path / "bundle"
    out.mkdir()
    for name in (*bundle.manifest.files, MANIFEST):
        shutil.copyfile(bundle.root / name, out / name)
    return out


def put(folder: Path, **guard: Any) -> Bundle:
    raw = json.loads((folder / MANIFEST).read_bytes())
    raw["guard"] = {**raw["guard"], **guard}
    name = "guard.npz"
    raw["files"][name] = sha256((folder / name).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(raw))
    return Bundle.open(folder)


def test_a_bundle_without_a_head_judges_by_lungs_alone(copied: Path, bundle: Bundle) -> None:
    plain = put(copied, head=None)
    assert head_of(plain) is None
    assert head_of(bundle) is not None
    inputs, geometry = np.zeros((1, 1, 512, 512), np.float32), Geometry.fit(512, 460, 512, "pad")
    tensor, geometry = preprocess(Radiograph(film(40)), PreprocessConfig())
    inputs[0] = tensor
    session = OnnxRuntimeSession(bundle.file("fp32.onnx"), precision="fp32")
    assert judge(session.run(inputs), 0, plain, "PA", geometry, describe(tensor, geometry)) == judge(
        session.run(inputs), 0, plain, "PA", geometry
    )


def test_a_changed_head_is_seen_when_the_bundle_is_opened(copied: Path) -> None:
    data = bytearray((copied / "guard.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (copied / "guard.npz").write_bytes(data)
    with pytest.raises(BundleError, match=r"guard\.npz: its SHA-256"):
        Bundle.open(copied)


def test_a_listed_file_that_is_no_head_is_a_bundle_error(copied: Path) -> None:
    (copied / "guard.npz").write_bytes(b"nothing")
    with pytest.raises(BundleError, match="no input guard"):
        head_of(put(copied))


@pytest.mark.parametrize("name", ["other.npz", "", 3, ["guard.npz"]])
def test_a_head_that_is_not_listed_is_a_bundle_error(copied: Path, name: Any) -> None:
    with pytest.raises(BundleError):
        put(copied, head=name)


def test_outputs_are_described_whatever_they_are() -> None:
    from cxrvit_edge.runtime.session import Outputs

    rng, geometry = np.random.default_rng(0), Geometry.fit(100, 300, 512, "pad")
    for lungs in (np.zeros((1, 2, 256, 256)), np.ones((1, 2, 256, 256)), rng.random((1, 2, 256, 256))):
        out = Outputs(np.zeros((1, 3), np.float32), np.zeros((1, 1, 256, 256), np.float32), lungs.astype(np.float32))
        seen = describe_outputs(out, 0, geometry)
        assert seen.shape == (SEEN,) and np.isfinite(seen).all()
