"""A packed data set: what its reader finds in it, beside what it finds in the data it was made of."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from train_files import Folder
from typer.testing import CliRunner

from cxrvit_edge.errors import InputError, UsageError
from cxrvit_edge.preprocess import PreprocessConfig, preprocess
from cxrvit_edge.radiograph import read
from train.__main__ import app
from train.data import manifest
from train.data.record import Record
from train.data.sources import open_records
from train.pack import pack


def quiet(_: str) -> None:
    pass


def key(r: Record, root: Path) -> str:
    return r.path.relative_to(root).as_posix().removesuffix(".jpg").removesuffix(".png")


def learned(root: Path) -> dict[str, Record]:
    """What weights may learn from, by path without suffixes."""
    return {key(r, root): r for r in manifest.read(root, reuse=manifest.REUSABLE) if r.split != "test"}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_the_reader_finds_the_same_in_it(folder: Folder, tmp_path: Path) -> None:
    for row in folder.manifest:
        row |= {"width": "96", "height": "0", "note": 'a, "b"'}
    folder.write()
    packed = pack(folder.root, tmp_path / "small", size=64, say=quiet)
    before, after = learned(folder.root), {key(r, tmp_path / "small"): r for r in open_records([tmp_path / "small"])}
    assert list(after) == list(before) and len(before) == packed.images == 10
    for name, old in before.items():
        new = after[name]
        for field in ("source", "patient", "split", "view", "label", "lungs_kind", "day", "reuse", "sex"):
            assert getattr(new, field) == getattr(old, field)
        for zones in ("brixia", "second_brixia", "findings"):
            np.testing.assert_array_equal(getattr(new, zones), getattr(old, zones))
        assert (new.lungs is None) == (old.lungs is None)
    rows = table(tmp_path / "small" / "manifest.csv")
    assert list(rows[0]) == list(folder.manifest[0]) and rows[0]["note"] == 'a, "b"'
    files = sum(p.stat().st_size for p in (tmp_path / "small").rglob("*") if p.is_file())
    assert files == packed.size
    assert packed.masks == len(table(tmp_path / "small" / "masks" / "masks.csv"))


def test_images_and_masks_are_small_and_alike(folder: Folder, tmp_path: Path) -> None:
    for row in folder.manifest:
        row |= {"width": "96", "height": "0"}
    folder.write()
    pack(folder.root, tmp_path / "small", size=64, quality=95, say=quiet)
    before = learned(folder.root)
    sizes = {r["path"]: (int(r["height"]), int(r["width"])) for r in table(tmp_path / "small" / "manifest.csv")}
    masks = 0
    for name, new in ((key(r, tmp_path / "small"), r) for r in manifest.read(tmp_path / "small")):
        pixels = cv2.imread(str(new.path), cv2.IMREAD_UNCHANGED)
        assert pixels is not None and pixels.ndim == 2 and max(pixels.shape) == 64
        assert new.path.read_bytes()[:2] == b"\xff\xd8"
        assert sizes[new.path.relative_to(tmp_path / "small").as_posix()] == pixels.shape
        old = before[name]
        source = read(old.path).pixels
        shape = pixels.shape
        wanted = cv2.resize(source, shape[::-1], interpolation=cv2.INTER_AREA)
        assert abs(shape[0] / shape[1] - source.shape[0] / source.shape[1]) < 0.02
        assert float(np.abs(pixels.astype(float) - wanted).mean()) < 3
        if new.lungs is None or old.lungs is None:
            continue
        masks += 1
        assert new.lungs.read_bytes()[24] == 1  # IHDR's bit depth
        mask = cv2.imread(str(new.lungs), cv2.IMREAD_UNCHANGED)
        full = cv2.imread(str(old.lungs), cv2.IMREAD_GRAYSCALE)
        assert mask is not None and full is not None and mask.shape == shape
        share = cv2.resize((full > 0).astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA)
        clear = np.abs(share - 0.5) > 0.01
        np.testing.assert_array_equal(mask[clear] > 0, share[clear] > 0.5)
    assert masks > 4


def test_a_small_image_keeps_its_size(folder: Folder, tmp_path: Path) -> None:
    pack(folder.root, tmp_path / "small", say=quiet)
    for name, new in ((key(r, tmp_path / "small"), r) for r in manifest.read(tmp_path / "small")):
        assert read(new.path).pixels.shape == read(learned(folder.root)[name].path).pixels.shape


def test_more_than_eight_bits_lose_nothing_that_the_network_sees(folder: Folder, tmp_path: Path) -> None:
    """A film that uses a tenth of 16 bits, most of it near one end."""
    rng = np.random.default_rng(0)
    film = (40_000 + 6_000 * rng.beta(1, 6, (96, 96))).astype(np.uint16)
    film = cv2.GaussianBlur(film, (0, 0), 3)
    row = next(r for r in folder.manifest if r["path"].endswith(".png"))
    cv2.imwrite(str(folder.root / row["path"]), film)
    pack(folder.root, tmp_path / "small", quality=98, say=quiet)
    config = PreprocessConfig(size=96)
    seen = [
        preprocess(read(p), config)[0] for p in (folder.root / row["path"], tmp_path / "small" / f"{row['path']}.jpg")
    ]
    assert float(np.abs(seen[0] - seen[1]).mean()) < 0.03 * float(seen[0].std())


def test_all_licences_but_never_the_test_split(folder: Folder, tmp_path: Path) -> None:
    assert pack(folder.root, tmp_path / "all", all_licences=True, say=quiet).images == 11
    kept = {key(r, tmp_path / "all") for r in manifest.read(tmp_path / "all")}
    assert kept == {key(r, folder.root) for r in manifest.read(folder.root) if r.split != "test"}
    held = {Path(r["path"]).stem for r in folder.manifest if r["split"] == "test"}
    assert held and not any(p.name.split(".")[0] in held for p in (tmp_path / "all").rglob("*.*"))
    assert not held & {Path(r["path"]).name.split(".")[0] for r in table(tmp_path / "all" / "severity.csv")}


def test_a_zip_holds_the_same_and_is_counted_as_it_is(folder: Folder, tmp_path: Path) -> None:
    barred = next(r["path"] for r in folder.manifest if r["reuse"] == "unknown")
    folder.masks.append({**folder.masks[0], "image_path": barred})
    folder.write()
    out = tmp_path / "new" / "small.zip"
    result = CliRunner().invoke(app, ["pack", str(folder.root), str(out), "--size", "64"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == f"{out}: 10 images, 9 masks, {out.stat().st_size / 1e6:.1f} MB"
    with zipfile.ZipFile(out) as archive:
        archive.extractall(tmp_path / "there")
    pack(folder.root, tmp_path / "small", size=64, say=quiet)
    files = {p.relative_to(tmp_path / "small"): p.read_bytes() for p in (tmp_path / "small").rglob("*.*")}
    assert {p.relative_to(tmp_path / "there"): p.read_bytes() for p in (tmp_path / "there").rglob("*.*")} == files
    assert [p.name for p in out.parent.iterdir()] == ["small.zip"]


@pytest.mark.parametrize("name", ["small", "small.zip"])
def test_over_the_limit_nothing_is_left(name: str, folder: Folder, tmp_path: Path) -> None:
    out = tmp_path / "new" / name
    with pytest.raises(
        UsageError, match=r"10 images of at most 512 .* MB, more than --limit-mb 0.005; lower --quality"
    ):
        pack(folder.root, out, limit_mb=0.005, say=quiet)
    assert list(out.parent.iterdir()) == []


def test_what_cannot_be_packed_is_told_and_leaves_nothing(folder: Folder, tmp_path: Path) -> None:
    out = tmp_path / "new" / "small"
    with pytest.raises(UsageError, match=r"pack copies a folder that has manifest\.csv"):
        pack(tmp_path, out, say=quiet)
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        pack(folder.root, tmp_path / "taken", say=quiet)
    mask = folder.root / folder.masks[0]["mask_path"]
    whole = mask.read_bytes()
    mask.write_bytes(b"none")
    with pytest.raises(UsageError, match="cannot read this mask"):
        pack(folder.root, out, say=quiet)
    mask.write_bytes(whole)
    (folder.root / folder.manifest[1]["path"]).write_bytes(b"none")
    with pytest.raises(InputError):
        pack(folder.root, out, say=quiet)
    for row in folder.manifest:
        row["split"] = "test"
    with pytest.raises(UsageError, match="no image in train or val"):
        pack(folder.write(), out, say=quiet)
    assert list(out.parent.iterdir()) == []


def test_a_path_out_of_the_folder_is_not_written(folder: Folder, tmp_path: Path) -> None:
    image = folder.root / folder.manifest[0]["path"]
    image.rename(tmp_path / "beside.jpg")
    folder.manifest[0]["path"] = "../beside.jpg"
    folder.masks = [m for m in folder.masks if "/00." not in m["mask_path"]]
    with pytest.raises(UsageError, match=r"\.\./beside\.jpg: lies outside the data's folder"):
        pack(folder.write(), tmp_path / "new" / "small", say=quiet)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.slow
def test_the_real_data_fits_under_the_limit(shared_data: Path, tmp_path: Path) -> None:
    packed = pack(shared_data, tmp_path / "small.zip", say=quiet)
    before = learned(shared_data)
    assert packed.images == len(before) > 700 and packed.size < 50_000_000
    assert packed.masks >= sum(r.lungs is not None for r in before.values())
    with zipfile.ZipFile(tmp_path / "small.zip") as archive:
        archive.extractall(tmp_path / "small")
    assert {key(r, tmp_path / "small") for r in open_records([tmp_path / "small"])} == before.keys()
