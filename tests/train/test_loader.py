"""Batches: their content, and that (seed, epoch, image) decides it all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cxrvit_edge.preprocess import PreprocessConfig
from train.augment import Augmentation
from train.cache import ImageCache
from train.data.record import Record
from train.loader import Batch, Loader

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


def test_negatives_teach_no_lungs_and_nothing_else(drawn: Drawn) -> None:
    every = Augmentation(negative=1.0)
    for b in loader(drawn, augmentation=every).epoch(0):
        assert b.is_negative.all()
        assert b.has_lungs.all()
        assert not b.lungs.any()
        assert (b.label == -1).all()
        assert b.findings.isnan().all()
        assert not b.zone_weight.any()


def test_negatives_are_as_frequent_as_asked(drawn: Drawn) -> None:
    train = loader(drawn, batch=10, augmentation=Augmentation(negative=0.3))
    share = np.mean([b.is_negative.float().mean().item() for e in range(40) for b in train.epoch(e)])
    assert 0.22 < share < 0.38
