"""Lung masks that a segmenter makes where no human drew any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cxrvit_edge.errors import UsageError
from cxrvit_edge.preprocess import PreprocessConfig
from train.cache import ImageCache, sum_of
from train.data.record import Record
from train.masks import segmented

pytestmark = pytest.mark.usefixtures("one_torch_thread")

CONFIG = PreprocessConfig(size=64)
NONE = (3, 7)  # drawn's records without a mask

Drawn = tuple[list[Record], ImageCache]


class Bright(nn.Module):
    """Lungs are what is brighter than `level`, the left half one and the right half the other; counts its images."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))
        self.seen: list[Tensor] = []

    def segment(self, image: Tensor) -> Tensor:
        assert not self.training
        self.seen += list(image)
        half = image.shape[-1] // 2
        small = nn.functional.avg_pool2d(image, 2)[:, 0]
        side = torch.arange(half) < half // 2
        logits = 50 * (small - self.level)
        return torch.stack([logits.where(side, -50.0), logits.where(~side, -50.0)], 1)


@pytest.fixture
def films(drawn: Drawn, tmp_path: Path) -> Drawn:
    """drawn, as a cache that open_cache made would be: each its own name."""
    records, cache = drawn
    return records, ImageCache(cache.images, cache.lungs, list(cache.geometries), where=str(tmp_path / "key.npy"))


def run(films: Drawn, net: nn.Module, folder: Path, size: int = 64, said: list[str] | None = None) -> ImageCache:
    say = (said if said is not None else []).append
    return segmented(*films, net, CONFIG, folder, size=size, device=torch.device("cpu"), say=say)


def test_masks_are_made_only_where_there_is_none(films: Drawn, tmp_path: Path) -> None:
    records, cache = films
    assert [i for i, r in enumerate(records) if r.lungs is None] == list(NONE)
    net, said = Bright(0.2), list[str]()
    found = run(films, net, tmp_path, said=said)
    assert len(net.seen) == 2
    assert said == [f"lung masks of 2 images: segmented once, kept in {tmp_path}"]
    for i in range(10):
        image, lungs = found.row(i)
        np.testing.assert_array_equal(image, cache.images[i])
        if i not in NONE:
            np.testing.assert_array_equal(lungs, cache.lungs[i])
            continue
        bright = cv2.resize(cache.images[i].astype(np.float32), (32, 32), interpolation=cv2.INTER_AREA) > 128 + 0.2 * 64
        assert bright.any()
        np.testing.assert_array_equal(lungs.max(0) >= 128, bright)
        assert not lungs[0, :, 16:].any()
        assert not lungs[1, :, :16].any()
    assert found.geometries == cache.geometries


def test_they_are_made_once(films: Drawn, tmp_path: Path) -> None:
    first = run(films, Bright(0.2), tmp_path)
    net, said = Bright(0.2), list[str]()
    again = run(films, net, tmp_path, said=said)
    assert net.seen == said == []
    np.testing.assert_array_equal(again.lungs, first.lungs)
    assert sorted(p.suffixes[1:] for p in tmp_path.iterdir()) == [[".npy"], [".sums", ".npy"]]
    with pytest.raises(ValueError, match="read-only"):
        again.lungs[0] = 0


def test_another_segmenter_size_or_cache_makes_another_file(films: Drawn, tmp_path: Path) -> None:
    records, cache = films
    run(films, Bright(0.2), tmp_path)
    others: list[tuple[Drawn, float, int]] = [
        (films, 0.5, 64),
        (films, 0.2, 32),
        ((records, ImageCache(cache.images, cache.lungs, cache.geometries, where="another")), 0.2, 64),
    ]
    for number, (given, level, size) in enumerate(others, 2):
        net = Bright(level)
        run(given, net, tmp_path, size)
        assert [tuple(image.shape) for image in net.seen] == [(1, size, size)] * 2
        assert len(list(tmp_path.glob("*.segmented.npy"))) == number


def test_a_smaller_size_gives_masks_of_the_caches_size(films: Drawn, tmp_path: Path) -> None:
    found = run(films, Bright(0.2), tmp_path, 32)
    assert found.lungs.shape == (10, 2, 32, 32)
    whole = run(films, Bright(0.2), tmp_path, 64)
    a, b = found.lungs[3].max(0) >= 128, whole.lungs[3].max(0) >= 128
    assert (a == b).mean() > 0.9


def test_films_that_cannot_be_read_are_passed_over(films: Drawn, tmp_path: Path) -> None:
    records, cache = films
    broken = ImageCache(cache.images, cache.lungs, [None if i == 3 else g for i, g in enumerate(cache.geometries)])
    net = Bright(0.2)
    found = run((records, broken), net, tmp_path)
    assert len(net.seen) == 1
    assert not found.lungs[3].any()
    assert found.lungs[7].any()
    assert found.broken == [3]


def test_where_every_film_has_a_mask_nothing_is_made(films: Drawn, tmp_path: Path) -> None:
    records, cache = films
    records = [replace(r, lungs=Path("there.png")) for r in records]
    net = Bright(0.2)
    assert run((records, cache), net, tmp_path / "new") is cache
    assert net.seen == []
    assert not (tmp_path / "new").exists()


def test_a_run_that_breaks_off_leaves_nothing_that_is_taken_for_whole(films: Drawn, tmp_path: Path) -> None:
    class Breaks(Bright):
        def segment(self, image: Tensor) -> Tensor:
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        run(films, Breaks(0.2), tmp_path)
    net = Bright(0.2)
    found = run(films, net, tmp_path)
    assert len(net.seen) == 2
    assert found.lungs[3].any()


def test_a_damaged_mask_is_noticed(films: Drawn, tmp_path: Path) -> None:
    """Images by the sums of the cache, masks by those made with them."""
    records, cache = films
    sums = np.array([[sum_of(a), sum_of(b)] for a, b in zip(cache.images, cache.lungs, strict=True)], np.uint64)
    films = records, ImageCache(cache.images, cache.lungs, list(cache.geometries), sums, cache.where)
    made = run(films, Bright(0.2), tmp_path)
    for i in range(len(records)):
        made.row(i)
    (path,) = tmp_path.glob("*.segmented.npy")
    with path.open("r+b") as f:
        f.seek(-10, 2)
        f.write(b"\x07")
    again = run(films, Bright(0.2), tmp_path)
    with pytest.raises(UsageError, match="row 9 is damaged"):
        again.row(9)
