"""The cache of preprocessed films: what it holds, and when it is made again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from train_files import Folder

from cxrvit_edge.errors import InputError
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
    (images,) = (p for p in opener.folder.glob("*.npy") if "lungs" not in p.name)
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
