"""The cache of preprocessed films: what it holds, and when it is made again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from train_files import Folder

from cxrvit_edge.errors import InputError, UsageError
from cxrvit_edge.preprocess import PreprocessConfig, preprocess
from cxrvit_edge.radiograph import read
from train.cache import ImageCache, open_cache
from train.data import manifest
from train.data.masks import read_lungs
from train.data.record import Record

CONFIG = PreprocessConfig(size=64)


class Opener:
    """open_cache, and how many films the last call preprocessed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, 0

    def __call__(self, records: list[Record], config: PreprocessConfig = CONFIG) -> ImageCache:
        self.made = 0
        return open_cache(records, self.folder, config, progress=self._count)

    def _count(self, done: int, total: int) -> None:
        self.made += 1
        assert (done, total) == (self.made, 12)


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    return Opener(tmp_path / "cache")


def test_the_cache_holds_the_networks_input(folder: Folder, opener: Opener) -> None:
    records = manifest.read(folder.root)
    cache = opener(records)
    assert opener.made == 12
    assert (cache.images.shape, cache.images.dtype) == ((12, 64, 64), np.uint8)
    assert (cache.lungs.shape, cache.lungs.dtype) == ((12, 2, 32, 32), np.uint8)
    for i, record in enumerate(records):
        tensor, geometry = preprocess(read(record.path), CONFIG)
        assert cache.geometries[i] == geometry
        again = (cache.images[i].astype(np.float32) - CONFIG.offset) / CONFIG.scale
        np.testing.assert_allclose(again, tensor[0], rtol=0, atol=0.501 / CONFIG.scale)
        assert (again[tensor[0] == 0] == 0).all()  # padding is exact
        if record.lungs is None:
            assert not cache.lungs[i].any()
        else:
            np.testing.assert_array_equal(cache.lungs[i], read_lungs(record.lungs, geometry, 32))
            assert cache.lungs[i].reshape(2, -1).any(1).all()


def test_it_is_made_once(folder: Folder, opener: Opener) -> None:
    records = manifest.read(folder.root)
    first = opener(records).images.copy()
    second = opener(manifest.read(folder.root))
    assert opener.made == 0
    np.testing.assert_array_equal(second.images, first)
    with pytest.raises(ValueError, match="read-only"):
        second.images[0] = 0


def change_film(folder: Folder) -> None:
    path = folder.root / folder.manifest[4]["path"]
    film = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert film is not None
    cv2.imwrite(str(path), film[::-1])


def change_mask(folder: Folder) -> None:
    path = folder.root / folder.masks[2]["mask_path"]
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    cv2.imwrite(str(path), np.roll(mask, 9, axis=0))


def touch_film(folder: Folder) -> None:
    """The same bytes at another time: may be another file, so it is read again."""
    path = folder.root / folder.manifest[0]["path"]
    time = path.stat().st_mtime_ns + 1_000_000
    os.utime(path, ns=(time, time))


@pytest.mark.parametrize("change", [change_film, change_mask, touch_film])
def test_it_is_made_again_when_a_file_changes(folder: Folder, opener: Opener, change: Callable[[Folder], None]) -> None:
    records = manifest.read(folder.root)
    before = opener(records)
    change(folder)
    after = opener(records)
    assert opener.made == 12
    films = [i for i in range(12) if not np.array_equal(before.images[i], after.images[i])]
    masks = [i for i in range(12) if not np.array_equal(before.lungs[i], after.lungs[i])]
    assert films == ([4] if change is change_film else [])
    assert len(masks) == (1 if change is change_mask else 0)


def test_it_is_made_again_for_other_parameters_or_records(folder: Folder, opener: Opener) -> None:
    records = manifest.read(folder.root)
    opener(records)
    other = opener(records, replace(CONFIG, aspect="squash"))
    assert opener.made == 12
    assert other.geometries[0] is not None
    assert other.geometries[0].left == 0
    opener(records[::-1])
    assert opener.made == 12
    opener(records)
    assert opener.made == 0  # the first one is still there


def test_an_unfinished_cache_is_made_again(folder: Folder, opener: Opener) -> None:
    records = manifest.read(folder.root)
    wanted = opener(records).images.copy()
    (index,) = opener.folder.glob("*.json")
    index.unlink()
    (images,) = opener.folder.glob(index.stem + ".npy")
    images.write_bytes(images.read_bytes()[:1000])
    again = opener(records)
    assert opener.made == 12
    np.testing.assert_array_equal(again.images, wanted)
    assert not list(opener.folder.glob("*.part"))


def test_a_film_that_cannot_be_read_ends_it_with_its_name(folder: Folder, opener: Opener) -> None:
    records = manifest.read(folder.root)
    records[5].path.write_bytes(b"")
    with pytest.raises(InputError, match=records[5].path.name):
        opener(records)
    assert not list(opener.folder.glob("*.json"))
    assert not list(opener.folder.glob("*.part"))


def test_or_is_left_out_where_that_is_allowed(folder: Folder, opener: Opener) -> None:
    records = manifest.read(folder.root)
    for i in (5, 8):
        records[i].path.write_bytes(b"")
    cache = open_cache(records, opener.folder, CONFIG, broken="skip")
    assert cache.broken == [5, 8]
    for i in range(12):
        image, lungs = cache.row(i)
        assert image.any() == (i not in (5, 8))
        if i in (5, 8):
            assert not lungs.any()
    assert open_cache(records, opener.folder, CONFIG, broken="skip").broken == [5, 8]
    with pytest.raises(InputError, match=records[5].path.name):
        open_cache(records, opener.folder, CONFIG)  # what was skipped once is no whole cache for one that must be


def flip(path: Path, row: int, rows: int) -> None:
    """One bit in the middle of a row of a .npy file."""
    raw = bytearray(path.read_bytes())
    header = len(raw) - np.load(path, mmap_mode="r").nbytes
    size = (len(raw) - header) // rows
    raw[header + row * size + size // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("part", ["", ".lungs"])
def test_a_flipped_bit_is_noticed_when_its_row_is_first_read(folder: Folder, opener: Opener, part: str) -> None:
    records = manifest.read(folder.root)
    opener(records)
    (index,) = opener.folder.glob("*.json")
    flip(opener.folder / f"{index.stem}{part}.npy", 6, 12)
    cache = opener(records)
    assert opener.made == 0
    for i in range(12):
        if i != 6:
            cache.row(i)
    for _ in range(2):  # nor is it taken the second time
        with pytest.raises(UsageError, match=rf"{index.stem}.*: row 6 is damaged; delete this cache"):
            cache.row(6)


@pytest.mark.parametrize("part", [".npy", ".lungs.npy", ".sums.npy"])
def test_a_cache_that_is_deleted_in_part_is_made_again(folder: Folder, opener: Opener, part: str) -> None:
    """As the message about a damaged row has it, which names one file."""
    records = manifest.read(folder.root)
    wanted = opener(records).images.copy()
    (index,) = opener.folder.glob("*.json")
    index.with_name(index.stem + part).unlink()
    again = opener(records)
    assert opener.made == 12
    np.testing.assert_array_equal(np.stack([again.row(i)[0] for i in range(12)]), wanted)


@pytest.mark.parametrize("part", [".npy", ".lungs.npy", ".sums.npy", ".json"])
def test_a_cache_that_was_cut_short_is_made_again(folder: Folder, opener: Opener, part: str) -> None:
    records = manifest.read(folder.root)
    wanted = opener(records).images.copy()
    (index,) = opener.folder.glob("*.json")
    path = index.with_name(index.stem + part)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    again = opener(records)
    assert opener.made == 12
    np.testing.assert_array_equal(again.images, wanted)


BUILD = """
import sys
sys.path[:0] = [{root!r}]
from pathlib import Path
from cxrvit_edge.preprocess import PreprocessConfig
from train.cache import open_cache
from train.data import manifest
records = manifest.read(Path(sys.argv[1]))
cache = open_cache(records, Path(sys.argv[2]), PreprocessConfig(size=64))
print(sum(int(cache.row(i)[0].sum()) for i in range(12)))
"""


def test_two_that_build_at_once_end_with_a_whole_cache(folder: Folder, opener: Opener, tmp_path: Path) -> None:
    """Another process, and this one, which waits in the middle of its own until the other has finished."""
    records = manifest.read(folder.root)
    wanted = int(open_cache(records, tmp_path / "alone", CONFIG).images.astype(np.int64).sum())
    other: list[str] = []

    def progress(done: int, total: int) -> None:
        if done == 6:
            code = BUILD.format(root=str(Path(__file__).resolve().parents[2]))
            command = [sys.executable, "-c", code, str(folder.root), str(opener.folder)]
            other.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())

    cache = open_cache(records, opener.folder, CONFIG, progress=progress)
    assert other == [str(wanted)]
    assert sum(int(cache.row(i)[0].astype(np.int64).sum()) for i in range(12)) == wanted
    again = opener(records)
    assert opener.made == 0
    assert [again.row(i)[1].any() for i in range(12)] == [r.lungs is not None for r in records]
    assert sorted(p.suffix for p in opener.folder.iterdir()) == [".json", ".npy", ".npy", ".npy"]


def test_masks_that_nobody_drew_cost_nothing(folder: Folder, opener: Opener) -> None:
    """The file is as long as all masks, and holes where there are none."""
    records = [replace(r, lungs=None) if i else r for i, r in enumerate(manifest.read(folder.root))]
    cache = opener(records, PreprocessConfig(size=512))
    (path,) = opener.folder.glob("*.lungs.npy")
    stat = path.stat()
    assert stat.st_size > 12 * 2 * 256 * 256
    if stat.st_blocks * 512 >= stat.st_size:
        pytest.skip("this file system keeps no holes")
    assert stat.st_blocks * 512 < 3 * 2 * 256 * 256
    assert [bool(cache.row(i)[1].any()) for i in range(12)] == [True] + [False] * 11


def test_stored_values_of_monochrome1_are_turned(folder: Folder, opener: Opener) -> None:
    """A PNG of them is brighter where it is less dense; its cache row is that of the turned picture."""
    plain = manifest.read(folder.root)
    wanted = opener(plain).images.copy()
    for i in (4, 7):  # PNGs: JPEG would not be turned exactly
        film = cv2.imread(str(plain[i].path), cv2.IMREAD_GRAYSCALE)
        assert film is not None
        assert cv2.imwrite(str(plain[i].path), (255 - film).astype(np.uint16) * 257 if i == 7 else 255 - film)
    records = [replace(r, inverted=i in (4, 7)) for i, r in enumerate(plain)]
    found = opener(records)
    assert opener.made == 12
    np.testing.assert_array_equal(found.images, wanted)
    assert not np.array_equal(opener(plain).images[4], wanted[4])
    assert opener.made == 12  # another cache: what is marked is part of its key
