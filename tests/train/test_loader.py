"""Batches: their content, and that (seed, epoch, image) decides it all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cxrvit_edge.preprocess import PreprocessConfig
from train.augment import Augmentation
from train.cache import ImageCache
from train.data.record import Record
from train.loader import CONVENTIONS, Batch, Loader

pytestmark = pytest.mark.usefixtures("one_torch_thread")

Drawn = tuple[list[Record], ImageCache]
CONFIG = PreprocessConfig(size=64)


def loader(drawn: Drawn, index: range | list[int] = range(10), **options: object) -> Loader:
    settings: dict[str, object] = {"size": 64, "batch": 4, **options}
    return Loader(*drawn, index, CONFIG, **settings)  # type: ignore[arg-type]


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(torch.nan_to_num(x, -7.0), torch.nan_to_num(y, -7.0))
        for p, q in zip(a, b, strict=True)
        for x, y in zip(vars(p).values(), vars(q).values(), strict=True)
    )


def test_plain_batches_are_the_records_in_order(drawn: Drawn) -> None:
    records, cache = drawn
    batches = list(loader(drawn).epoch(0))
    assert [len(b.image) for b in batches] == [4, 4, 2]
    image, label = torch.cat([b.image for b in batches]), torch.cat([b.label for b in batches])
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image[:, 0].numpy(), (cache.images.astype(np.float32) - 128) / 64, atol=1e-6)
    assert label.tolist() == [-1 if r.label is None else r.label for r in records]
    np.testing.assert_array_equal(torch.cat([b.lungs for b in batches]).numpy(), cache.lungs / np.float32(255))
    assert torch.cat([b.has_lungs for b in batches]).tolist() == [r.lungs is not None for r in records]
    assert not torch.cat([b.is_negative for b in batches]).any()
    np.testing.assert_array_equal(
        torch.cat([b.findings for b in batches]).numpy(), np.stack([r.findings for r in records])
    )


def test_what_is_known_of_zones_has_a_weight(drawn: Drawn) -> None:
    records = drawn[0]
    for threshold in (1.0, 2.0):
        (b,) = loader(drawn, batch=10, brixia_threshold=threshold, normal_weight=0.25).epoch(0)
        for i, r in enumerate(records):
            if r.brixia is not None:
                np.testing.assert_array_equal(b.zones[i].numpy(), (r.brixia >= threshold).astype(np.float32))
                assert (b.zone_weight[i] == 1.0).all()
            else:
                assert not b.zones[i].any()
                assert (b.zone_weight[i] == (0.25 if r.label == 0 else 0.0)).all()
    assert {r.label for r in records if r.brixia is None} == {0, 1}  # both cases were there


def test_an_index_chooses_and_orders(drawn: Drawn) -> None:
    (b,) = loader(drawn, [7, 2, 4]).epoch(0)
    np.testing.assert_allclose(b.image[:, 0].numpy(), (drawn[1].images[[7, 2, 4]].astype(np.float32) - 128) / 64)


def test_a_smaller_size_is_an_area_average(drawn: Drawn) -> None:
    (b,) = loader(drawn, size=32, batch=10).epoch(0)
    averaged = drawn[1].images.reshape(10, 32, 2, 32, 2).mean((2, 4))
    assert b.lungs.shape == (10, 2, 16, 16)
    np.testing.assert_allclose(b.image[:, 0].numpy() * 64 + 128, averaged, atol=0.51)


def test_an_empty_index_gives_no_batch(drawn: Drawn) -> None:
    assert list(loader(drawn, []).epoch(0)) == []
    assert list(loader(drawn, range(3), augmentation=Augmentation()).epoch(0)) == []  # fewer than a batch


def test_training_batches_are_whole_and_each_record_comes_once(drawn: Drawn) -> None:
    records, _ = drawn
    still = Augmentation(0, 0, 0, 0, 0, 0, 0, 0)
    train = loader(drawn, batch=3, augmentation=still, seed=5)
    assert train.batches() == 3
    orders = []
    for epoch in range(3):
        batches = list(train.epoch(epoch))
        assert [len(b.image) for b in batches] == [3, 3, 3]
        lungs = torch.cat([b.findings for b in batches]).nan_to_num(-1).sum(1).tolist()
        labels = torch.cat([b.label for b in batches]).tolist()
        orders.append(list(zip(labels, lungs, strict=True)))
        every = sorted((-1 if r.label is None else r.label) for r in records)
        assert all(labels.count(v) <= every.count(v) for v in set(labels))
    assert orders[0] != orders[1]


def test_seed_and_epoch_decide_everything(drawn: Drawn) -> None:
    def batches(seed: int, epoch: int) -> list[Batch]:
        return list(loader(drawn, augmentation=Augmentation(), seed=seed).epoch(epoch))

    wanted = batches(1, 2)
    train = loader(drawn, augmentation=Augmentation(), seed=1)
    for epoch in (0, 1):
        list(train.epoch(epoch))  # what came before does not matter
    assert same(list(train.epoch(2)), wanted)
    assert not same(batches(1, 3), wanted)
    assert not same(batches(2, 2), wanted)


def test_an_images_augmentation_does_not_depend_on_its_batch(drawn: Drawn) -> None:
    def films(batch: int) -> set[bytes]:
        train = loader(drawn, batch=batch, augmentation=Augmentation(), seed=4)
        return {film.numpy().tobytes() for b in train.epoch(1) for film in b.image}

    assert films(5) == films(2)
    assert len(films(5)) == 10


def test_a_left_iteration_ends_its_thread(drawn: Drawn) -> None:
    import threading

    before = threading.active_count()
    epoch = loader(drawn, batch=1).epoch(0)
    next(epoch)
    epoch.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def masked(drawn: Drawn) -> Drawn:
    return [replace(r, lungs=Path("mask.png")) for r in drawn[0]], drawn[1]


def test_negatives_teach_no_lungs_and_nothing_else(drawn: Drawn) -> None:
    every = Augmentation(negative=1.0)
    for b in loader(masked(drawn), augmentation=every).epoch(0):
        assert b.is_negative.all()
        assert b.has_lungs.all()
        assert not b.lungs.any()
        assert (b.label == -1).all()
        assert b.findings.isnan().all()
        assert not b.zone_weight.any()


def test_a_film_without_masks_is_never_a_negative(drawn: Drawn) -> None:
    """Shown upright without a target and turned with an empty one, its source would mean no lungs."""
    records, cache = drawn
    without = [replace(r, lungs=None) if i % 2 else r for i, r in enumerate(masked((records, cache))[0])]
    every = Augmentation(negative=1.0)
    for b in loader((without, cache), batch=10, augmentation=every, training=False).epoch(0):
        has = torch.tensor([r.lungs is not None for r in without])
        assert b.is_negative.sum() == has.sum() and b.has_lungs.sum() == has.sum()
        assert (b.label[~b.is_negative] != -1).any()
        assert not b.has_lungs[~b.is_negative].any()


def test_negatives_are_as_frequent_as_asked(drawn: Drawn) -> None:
    train = loader(masked(drawn), batch=10, augmentation=Augmentation(negative=0.3))
    share = np.mean([b.is_negative.float().mean().item() for e in range(40) for b in train.epoch(e)])
    assert 0.22 < share < 0.38


def test_training_without_augmentation_is_shuffled(drawn: Drawn) -> None:
    """Order does not hang on augmentation: torchrun's equality with one process is tested without it."""
    plain = loader(drawn, batch=5, training=True, seed=2)
    films = [torch.cat([b.image for b in plain.epoch(e)]) for e in range(2)]
    still = torch.cat([b.image for b in loader(drawn).epoch(0)])
    for shuffled in films:
        assert not torch.equal(shuffled, still)
        assert sorted(f.numpy().tobytes() for f in shuffled) == sorted(f.numpy().tobytes() for f in still)
    assert not torch.equal(films[0], films[1])


def test_augmented_validation_keeps_the_order(drawn: Drawn) -> None:
    """As SimCLR is judged."""
    batches = list(loader(drawn, augmentation=Augmentation(negative=0.0), training=False).epoch(0))
    assert [len(b.image) for b in batches] == [4, 4, 2]
    assert torch.cat([b.label for b in batches]).tolist() == [-1 if r.label is None else r.label for r in drawn[0]]
    assert not same(batches, list(loader(drawn).epoch(0)))


# Many processes, and going on


@pytest.mark.parametrize(("batch", "ranks"), [(4, 2), (6, 3), (4, 4)])
def test_shares_of_the_ranks_make_up_the_batch(drawn: Drawn, batch: int, ranks: int) -> None:
    settings: dict[str, Any] = {"batch": batch, "augmentation": Augmentation(), "seed": 3}
    whole = list(loader(drawn, **settings).epoch(1))
    parts = [list(loader(drawn, **settings, rank=r, ranks=ranks).epoch(1)) for r in range(ranks)]
    assert [len(p) for p in parts] == [len(whole)] * ranks
    for k, b in enumerate(whole):
        assert all(len(p[k].image) == batch // ranks for p in parts)
        for name, value in vars(b).items():
            shares = [vars(p[k])[name] for p in parts]
            for r, share in enumerate(shares):
                assert torch.equal(share.nan_to_num(-7.0), value[r::ranks].nan_to_num(-7.0)), name
    films = [f.numpy().tobytes() for p in parts for b in p for f in b.image]
    assert len(set(films)) == len(films)  # disjoint


@pytest.mark.parametrize("start", [0, 1, 2, 3])
@pytest.mark.parametrize("balance", [False, True])
def test_an_epoch_goes_on_where_it_was(drawn: Drawn, start: int, balance: bool) -> None:
    labelled = [i for i, r in enumerate(drawn[0]) if r.label is not None]
    train = loader(drawn, labelled, batch=3, augmentation=Augmentation(), seed=6, balance=balance)
    whole = list(train.epoch(2))
    assert len(whole) == 3
    assert same(list(train.epoch(2, start=start)), whole[start:])


def test_workers_change_nothing(drawn: Drawn) -> None:
    settings: dict[str, Any] = {"augmentation": Augmentation(), "seed": 3}
    assert same(
        list(loader(drawn, **settings, workers=1).epoch(0)), list(loader(drawn, **settings, workers=4).epoch(0))
    )


# What is drawn


def test_balance_draws_classes_equally(drawn: Drawn) -> None:
    """Labels 0 six times, 1 twice and 2 once: without it two thirds are of class 0."""
    records, cache = drawn
    given = [0, 0, 0, 0, 0, 0, 1, 1, 2]
    records = [replace(r, label=k) for r, k in zip(records, [*given, None], strict=True)]

    def shares(balance: bool) -> list[float]:
        train = loader((records, cache), range(9), batch=9, training=True, balance=balance, size=32)
        labels = torch.cat([b.label for e in range(120) for b in train.epoch(e)])
        assert len(labels) == 120 * 9
        return [(labels == k).float().mean().item() for k in range(3)]

    assert shares(False) == pytest.approx([6 / 9, 2 / 9, 1 / 9], abs=1e-6)
    assert shares(True) == pytest.approx([1 / 3, 1 / 3, 1 / 3], abs=0.05)


def test_an_image_drawn_twice_in_an_epoch_is_augmented_twice(drawn: Drawn) -> None:
    records, cache = drawn
    records = [replace(r, label=int(i > 0)) for i, r in enumerate(records)]  # the first makes up half of the draws
    still = replace(Augmentation(), noise=1.0, negative=0.0)
    train = loader((records, cache), range(10), batch=10, augmentation=still, balance=True, seed=1)
    (b,) = train.epoch(0)
    first = [film.numpy().tobytes() for film, label in zip(b.image, b.label.tolist(), strict=True) if label == 0]
    assert len(first) > 2 and len(set(first)) == len(first)


# Two views


def test_two_views_differ_and_come_from_one_image(drawn: Drawn) -> None:
    """Images whose quadrants spell their number in bits: a view is told by which of them it is most like."""
    records, cache = drawn
    bits = np.array([[[i + 1 & 1, i + 1 & 2], [i + 1 & 4, i + 1 & 8]] for i in range(10)]) > 0  # (10, 2, 2)
    images = np.where(bits.repeat(32, 1).repeat(32, 2), 200, 60).astype(np.uint8)
    drawn = records, ImageCache(images, cache.lungs, cache.geometries)
    geometry = Augmentation(rotation=3, scale=0.02, shift=0.02, gamma=0.3, border=0, boxes=0, noise=1, negative=0)
    still = torch.cat([b.image for b in loader(drawn, batch=10).epoch(0)])[:, 0].flatten(1)
    train = loader(drawn, batch=10, augmentation=geometry, training=False, views=2)
    (b,) = train.epoch(0)
    assert b.image.shape == b.other_view.shape == (10, 1, 64, 64)
    first, second = b.image[:, 0].flatten(1), b.other_view[:, 0].flatten(1)
    for i in range(10):
        assert not torch.equal(first[i], second[i])
        for view in (first, second):
            likeness = torch.corrcoef(torch.cat([view[i : i + 1], still]))[0, 1:]
            assert int(likeness.argmax()) == i
    one = next(iter(loader(drawn, batch=10, augmentation=geometry, training=False).epoch(0)))
    assert torch.equal(one.image, b.image)  # the first is the one that is always drawn
    assert len(one.other_view) == 0


def test_two_views_without_augmentation_are_one(drawn: Drawn) -> None:
    (b,) = loader(drawn, batch=10, views=2).epoch(0)
    assert torch.equal(b.image, b.other_view)


# What is known of an image


def test_conventions_of_masks_are_numbered(drawn: Drawn) -> None:
    records, cache = drawn
    kinds = [*CONVENTIONS, "elsewhere", None, *CONVENTIONS[:3]]
    records = [replace(r, lungs_kind=k) for r, k in zip(records, kinds, strict=True)]
    (b,) = loader((records, cache), batch=10).epoch(0)
    own = CONVENTIONS.index("hospital")
    assert b.convention.tolist() == [0, 1, 2, -1, 4, own, own, -1, 1, 2]  # the fourth and the eighth have no mask


def test_a_radiologists_zones_win_over_brixia(drawn: Drawn) -> None:
    """And a zone that was not scored has no weight, nor a value that a loss could trip over."""
    records, cache = drawn
    scored = np.array([[0, 1], [np.nan, 1], [0, np.nan]], np.float32)
    assert records[2].brixia is not None
    records = [replace(r, zones=scored) if i in (2, 3) else r for i, r in enumerate(records)]
    (b,) = loader((records, cache), batch=10, brixia_threshold=1.0).epoch(0)
    for i in (2, 3):
        np.testing.assert_array_equal(b.zones[i].numpy(), [[0, 1], [0, 1], [0, 0]])
        np.testing.assert_array_equal(b.zone_weight[i].numpy(), [[1, 1], [0, 1], [1, 0]])
    assert torch.isfinite(b.zones).all()
    np.testing.assert_array_equal(b.zones[5].numpy(), np.ones((3, 2)))  # Brixia 1 everywhere, still used


def test_a_batch_moves_with_its_images_channels_last(drawn: Drawn) -> None:
    (b,) = loader(drawn, batch=10, views=2).epoch(0)
    moved = b.to(torch.device("cpu"))
    assert same([moved], [b])
    for image in (moved.image, moved.other_view):
        assert image.is_contiguous(memory_format=torch.channels_last)
