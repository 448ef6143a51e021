"""Generated films: anatomy that a lung segmenter relies on, repeatability, and the files of examples/."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from cxrvit_edge.phantom import MAX_VALUE, Phantom, make_phantom

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
IMAGES = ("phantom_diffuse_ap.jpg", "phantom_focal_pa.png", "phantom_normal_pa.png")
DICOMS = ("phantom_diffuse_mono1.dcm", "phantom_lateral.dcm", "phantom_normal_mono2.dcm")
CASES = [
    (0, "none", "PA"),
    (1, "focal", "PA"),
    (2, "diffuse", "AP"),
    (3, "focal", "AP"),
    (4, 0.7, "PA"),
    (5, "none", "AP"),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda c: "-".join(map(str, c)))
def phantom(request: pytest.FixtureRequest) -> Phantom:
    seed, lesions, view = request.param
    return make_phantom(seed, height=512, width=448, lesions=lesions, view=view)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_phantoms", EXAMPLES / "make_phantoms.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples, written again by the script as its user runs it."""
    out = tmp_path_factory.mktemp("examples")
    subprocess.run([sys.executable, str(EXAMPLES / "make_phantoms.py"), "--out", str(out)], check=True, cwd=out)
    return out


def load(path: Path) -> NDArray[Any]:
    """(H, W) in [0, 1], brighter = denser."""
    if path.suffix != ".dcm":
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert pixels is not None and pixels.ndim == 2
        return pixels / np.iinfo(pixels.dtype).max
    ds = pydicom.dcmread(path)
    pixels = ds.pixel_array / MAX_VALUE
    return 1 - pixels if ds.PhotometricInterpretation == "MONOCHROME1" else pixels


def test_same_arguments_give_the_same_film() -> None:
    one, two = (make_phantom(7, height=256, width=224, lesions="diffuse", view="AP") for _ in range(2))
    for name in ("pixels", "lungs", "lesions"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_seeds_and_lesions_change_the_film_and_lesions_leave_the_anatomy() -> None:
    healthy, ill, other = (make_phantom(s, height=256, width=224, lesions=e) for s, e in ((7, 0), (7, 0.4), (8, 0)))
    assert (healthy.pixels != other.pixels).mean() > 0.5
    np.testing.assert_array_equal(healthy.lungs, ill.lungs)
    assert ill.pixels[ill.lesions].mean() > healthy.pixels[ill.lesions].mean() + 0.03 * MAX_VALUE
    away = ~cv2.dilate(ill.lungs.any(0).astype(np.uint8), np.ones((15, 15), np.uint8)).astype(bool)
    assert np.abs(ill.pixels[away].astype(int) - healthy.pixels[away]).mean() < 0.002 * MAX_VALUE


def test_arrays(phantom: Phantom) -> None:
    assert phantom.pixels.dtype == np.uint16 and phantom.pixels.shape == (512, 448)
    assert phantom.lungs.dtype == bool and phantom.lungs.shape == (2, 512, 448)
    assert phantom.lesions.dtype == bool and phantom.lesions.shape == (512, 448)
    assert phantom.pixels.max() <= MAX_VALUE
    assert len(np.unique(phantom.pixels)) > 1000  # the full depth is used


def test_lungs_are_two_disjoint_fields_each_on_its_side(phantom: Phantom) -> None:
    left, right = phantom.lungs
    assert not (left & right).any()
    for lung in (left, right):
        assert 0.05 < lung.mean() < 0.25
        assert cv2.connectedComponents(lung.astype(np.uint8))[0] == 2  # background and one piece
        rows, columns = np.nonzero(lung)
        assert rows.min() > 0 and rows.max() < 511 and columns.min() > 0 and columns.max() < 447  # none cut off
    assert np.nonzero(left)[1].max() < np.nonzero(right)[1].min()
    assert left.sum() > right.sum()  # the heart takes from image-right
    assert dome(left) < dome(right)  # the liver lifts image-left


def dome(lung: NDArray[np.bool_]) -> int:
    """Row of the highest point of the diaphragm, in the outer quarter of the lung, clear of the heart."""
    columns = np.flatnonzero(lung.any(0))
    inner = round(0.75 * len(columns))
    outer = columns[:-inner] if columns[0] < lung.shape[1] - columns[-1] else columns[inner:]
    bottoms = lung.shape[0] - 1 - lung[::-1].argmax(0)
    return int(bottoms[outer].min())


def test_heart_is_about_half_the_thorax() -> None:
    for view, low, high in (("PA", 0.40, 0.53), ("AP", 0.46, 0.60)):
        for seed in range(6):
            left, right = make_phantom(seed, height=256, width=224, view=view).lungs  # type: ignore[arg-type]
            rows = np.flatnonzero(left.any(1) & right.any(1))
            middle = rows[len(rows) // 2 : int(len(rows) * 0.8)]
            inner_left = np.array([np.flatnonzero(left[r]).max() for r in middle])
            inner_right = np.array([np.flatnonzero(right[r]).min() for r in middle])
            heart = inner_right.max() - inner_left.min()
            thorax = np.flatnonzero(right.any(0)).max() - np.flatnonzero(left.any(0)).min()
            assert low < heart / thorax < high, (view, seed)


def test_denser_is_brighter(phantom: Phantom) -> None:
    lungs = phantom.lungs.any(0)
    rows, columns = np.nonzero(lungs)
    middle = (columns.min() + columns.max()) // 2
    clear = phantom.pixels[lungs & ~phantom.lesions].mean()
    mediastinum = phantom.pixels[rows.min() + 150 : rows.max() - 60, middle - 8 : middle + 8].mean()
    abdomen = phantom.pixels[rows.max() + 10 : rows.max() + 60, middle - 100 : middle + 100].mean()
    air = np.percentile(phantom.pixels[:20], 1)
    assert air + 0.15 * MAX_VALUE < clear < mediastinum - 0.2 * MAX_VALUE
    assert clear < abdomen - 0.2 * MAX_VALUE


def test_lesions_lie_inside_the_lungs(phantom: Phantom, request: pytest.FixtureRequest) -> None:
    _, lesions, _ = request.node.callspec.params["phantom"]
    assert not (phantom.lesions & ~phantom.lungs.any(0)).any()
    shares = [float(phantom.lesions[lung].mean()) for lung in phantom.lungs]
    if lesions == "none":
        assert shares == [0, 0]
    elif lesions == "focal":
        assert min(shares) == 0 < 0.03 < max(shares)
    elif lesions == "diffuse":
        assert all(0.2 < s < 0.5 for s in shares)
    else:
        assert all(abs(s - lesions) < 0.1 * lesions + 0.01 for s in shares)


@pytest.mark.parametrize("shape", [(64, 64), (64, 200), (200, 64), (333, 512)])
def test_any_shape(shape: tuple[int, int]) -> None:
    film = make_phantom(3, height=shape[0], width=shape[1], lesions="focal")
    assert film.pixels.shape == shape and film.lungs.any((1, 2)).all()


@pytest.mark.parametrize(
    "arguments",
    [{"height": 63}, {"width": 0}, {"view": "LL"}, {"lesions": "severe"}, {"lesions": 1.01}, {"lesions": float("nan")}],
)
def test_impossible_arguments_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        make_phantom(0, **arguments)


def test_script_repeats_itself_byte_for_byte(script: ModuleType, made: Path, tmp_path: Path) -> None:
    again = script.write_all(tmp_path)
    assert sorted(p.name for p in again) == sorted(p.name for p in made.iterdir()) == sorted(IMAGES + DICOMS)
    for path in again:
        assert path.read_bytes() == (made / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", IMAGES + DICOMS)
def test_committed_examples_are_what_the_script_makes(made: Path, name: str) -> None:
    committed, fresh = load(EXAMPLES / name), load(made / name)
    assert committed.shape == fresh.shape
    difference = np.abs(committed - fresh)  # OpenCV versions round and draw edges differently
    assert difference.mean() < 1e-3 and np.quantile(difference, 0.99) < 0.02


def test_examples_stay_small() -> None:
    assert sum((EXAMPLES / name).stat().st_size for name in IMAGES + DICOMS) < 3_000_000


@pytest.mark.parametrize("name", IMAGES + DICOMS)
def test_label_is_burnt_in(script: ModuleType, name: str) -> None:
    pixels = load(EXAMPLES / name)
    strokes = script.label_mask(pixels.shape, side_marker="lateral" not in name)
    rim = cv2.dilate(strokes.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) & ~strokes
    assert pixels[strokes].mean() > 0.95 and pixels[rim].mean() < 0.1


def test_label_stays_off_the_lungs(script: ModuleType) -> None:
    for seed in range(8):
        for height, width in ((1024, 896), (960, 960), (640, 560)):
            film = make_phantom(seed, height=height, width=width)
            rim = cv2.dilate(script.label_mask((height, width)).astype(np.uint8), np.ones((5, 5), np.uint8)).astype(
                bool
            )
            assert not (rim & film.lungs.any(0)).any(), (seed, height, width)


def test_dicom_examples_say_what_they_are() -> None:
    expected = {
        "phantom_normal_mono2.dcm": ("DX", "MONOCHROME2", "PA", ["L", "F"]),
        "phantom_diffuse_mono1.dcm": ("CR", "MONOCHROME1", "AP", ["L", "F"]),
        "phantom_lateral.dcm": ("DX", "MONOCHROME2", "LL", ["P", "F"]),
    }
    uids = set()
    for name, (modality, photometric, view, orientation) in expected.items():
        ds = pydicom.dcmread(EXAMPLES / name)
        assert (ds.Modality, ds.PhotometricInterpretation, ds.ViewPosition) == (modality, photometric, view)
        assert list(ds.PatientOrientation) == orientation and ds.BodyPartExamined == "CHEST"
        assert (str(ds.PatientName), ds.PatientID, ds.BurnedInAnnotation) == ("SYNTHETIC^PHANTOM", "SYNTHETIC", "YES")
        assert (ds.BitsAllocated, ds.BitsStored, ds.HighBit) == (16, 12, 11)
        assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
        uids |= {ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.StudyInstanceUID}
    assert len(uids) == 9


def test_both_photometrics_show_dark_lungs() -> None:
    for name, seed, lesions, view in (
        ("phantom_normal_mono2.dcm", 3, "none", "PA"),
        ("phantom_diffuse_mono1.dcm", 6, 0.5, "AP"),
    ):
        pixels = load(EXAMPLES / name)
        film = make_phantom(seed, height=pixels.shape[0], width=pixels.shape[1], lesions=lesions, view=view)  # type: ignore[arg-type]
        assert pixels[film.lungs.any(0)].mean() < pixels[-100:, 200:-200].mean() - 0.2


@pytest.mark.parametrize("name", DICOMS)
def test_dicom_examples_are_valid(name: str) -> None:
    dciodvfy = shutil.which("dciodvfy")
    if dciodvfy is None:
        pytest.skip("dciodvfy (Debian package dicom3tools) is not installed")
    run = subprocess.run([dciodvfy, str(EXAMPLES / name)], capture_output=True, text=True, check=False)
    said = run.stdout + run.stderr
    assert "Image" in said  # the IOD was recognised
    assert "Error" not in said, said
