"""Batches from the cache: seeded by (seed, epoch, image), so a resumed run sees what an uninterrupted one would."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxrvit_edge.preprocess import PreprocessConfig
from train.augment import Augmentation, augment, negative
from train.cache import ImageCache
from train.data.record import Record

CONVENTIONS = ("generalblockchain", "shenzhen", "hospital", "lungvae", "v7")  # of lung masks, by Batch.convention;
OWN = CONVENTIONS.index("hospital")  # a hospital's own, and any other name
AHEAD = 2  # batches that are made while the network runs


@dataclass
class Batch:
    """image (B, 1, S, S) normalised, other_view the same differently augmented (empty unless asked for);
    lungs (B, 2, S/2, S/2) in 0-1; has_lungs, is_negative (B,) bool; convention (B,) of CONVENTIONS, -1 without masks;
    label (B,), -1 unknown; findings (B, 10), NaN unknown; zones, zone_weight (B, 3, 2), weight 0 unknown."""

    image: Tensor
    other_view: Tensor
    lungs: Tensor
    has_lungs: Tensor
    is_negative: Tensor
    convention: Tensor
    label: Tensor
    findings: Tensor
    zones: Tensor
    zone_weight: Tensor

    def to(self, device: torch.device) -> Batch:
        """There, images channels-last."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        for name in ("image", "other_view"):
            moved[name] = moved[name].contiguous(memory_format=torch.channels_last)
        return Batch(**moved)


class _Sample(NamedTuple):
    views: list[NDArray[np.uint8]]
    lungs: NDArray[np.uint8]
    negative: bool


class Loader:
    """Iterates batches of the records at `index`, augmented if `augmentation`, at `size` pixels.

    training: shuffled, whole batches only; else in order, the last one short (default: whether augmented)
    balance: classes are drawn equally often, with replacement; needs labels
    rank, ranks: this process's share of each batch; views: 2 adds a second augmentation of each image
    """

    def __init__(
        self,
        records: Sequence[Record],
        cache: ImageCache,
        index: Sequence[int],
        config: PreprocessConfig,
        *,
        size: int,
        batch: int,
        augmentation: Augmentation | None = None,
        training: bool | None = None,
        balance: bool = False,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        views: int = 1,
        workers: int = 2,
        brixia_threshold: float = 1.0,
        normal_weight: float = 0.3,
    ) -> None:
        self.records, self.cache, self.index, self.config = records, cache, list(index), config
        self.size, self.batch, self.augmentation, self.seed = size, batch, augmentation, seed
        self.training = augmentation is not None if training is None else training
        self.balance, self.rank, self.ranks, self.views, self.workers = balance, rank, ranks, views, workers
        self.brixia_threshold, self.normal_weight = brixia_threshold, normal_weight

    def batches(self) -> int:
        whole, rest = divmod(len(self.index), self.batch)
        return whole if self.training else whole + bool(rest)  # a short last batch upsets BatchNorm

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """This process's share of the batches of `epoch`, from batch number `start` on."""
        order = self._order(epoch)
        draws = np.stack([order, _times_before(order)], 1)  # (N, 2)
        chunks = [draws[i * self.batch : (i + 1) * self.batch] for i in range(start, self.batches())]
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            pending: deque[tuple[NDArray[np.int64], list[Future[_Sample]]]] = deque()
            try:
                for chunk in chunks:
                    own = chunk[self.rank :: self.ranks]
                    pending.append((own[:, 0], [pool.submit(self._sample, epoch, int(i), int(n)) for i, n in own]))
                    if len(pending) > AHEAD:
                        yield self._collate(*pending.popleft())
                while pending:
                    yield self._collate(*pending.popleft())
            finally:
                for _, futures in pending:
                    for future in futures:
                        future.cancel()

    def _order(self, epoch: int) -> NDArray[np.int64]:
        order = np.array(self.index, np.int64)
        if not self.training:
            return order
        rng = np.random.default_rng([self.seed, epoch])
        if self.balance:
            labels = np.array([-1 if self.records[i].label is None else self.records[i].label for i in order])
            kinds, which = np.unique(labels, return_inverse=True)
            chance = (1 / np.bincount(which))[which] / len(kinds)
            return np.asarray(rng.choice(order, len(order), p=chance / chance.sum()))
        rng.shuffle(order)
        return order

    def _sample(self, epoch: int, i: int, again: int) -> _Sample:
        """again: how often the image came before in this epoch, as it may when classes are balanced."""
        pixels, mask = self.cache.row(i)
        if self.size != pixels.shape[0]:
            half = self.size // 2
            pixels = cv2.resize(pixels, (self.size, self.size), interpolation=cv2.INTER_AREA)
            if mask.any():
                mask = np.stack([cv2.resize(m, (half, half), interpolation=cv2.INTER_AREA) for m in mask])
            else:
                mask = np.zeros((2, half, half), np.uint8)
        if self.augmentation is None:
            return _Sample([pixels] * self.views, mask, False)
        rng = np.random.default_rng([self.seed, epoch, i, *([again] if again else [])])
        # of films with masks alone: else a source without any shows itself only where no lungs are to be found
        turned = rng.random() < self.augmentation.negative and self.records[i].lungs is not None
        first, lungs = augment(pixels, mask, self.augmentation, rng)
        if turned:
            first, lungs = negative(first, rng), np.zeros_like(lungs)
        blank = np.zeros_like(mask)
        rest = [augment(pixels, blank, self.augmentation, rng)[0] for _ in range(self.views - 1)]
        return _Sample([first, *rest], lungs, bool(turned))

    def _collate(self, chunk: NDArray[np.int64], futures: list[Future[_Sample]]) -> Batch:
        n, half = len(chunk), self.size // 2
        views = np.zeros((2, n, 1, self.size, self.size), np.float32)
        lungs = np.zeros((n, 2, half, half), np.float32)
        has_lungs, is_negative = np.zeros(n, bool), np.zeros(n, bool)
        label, convention = np.full(n, -1), np.full(n, -1)
        findings = np.full((n, 10), np.nan, np.float32)
        zones, weight = np.zeros((n, 3, 2), np.float32), np.zeros((n, 3, 2), np.float32)
        for j, (i, future) in enumerate(zip(chunk, futures, strict=True)):
            record, sample = self.records[i], future.result()
            for k, pixels in enumerate(sample.views):
                np.subtract(pixels, np.float32(self.config.offset), out=views[k, j, 0])
            np.multiply(sample.lungs, np.float32(1 / 255), out=lungs[j])
            is_negative[j] = sample.negative
            has_lungs[j] = sample.negative or record.lungs is not None
            if sample.negative:
                continue
            if record.lungs is not None:
                kind = record.lungs_kind
                convention[j] = CONVENTIONS.index(kind) if kind in CONVENTIONS else OWN
            label[j] = -1 if record.label is None else record.label
            findings[j] = record.findings
            zones[j], weight[j] = self._zones(record)
        views *= np.float32(1 / self.config.scale)
        arrays = (views[0], views[1 : self.views], lungs, has_lungs, is_negative, convention, label, findings, zones)
        tensors = [torch.from_numpy(a) for a in (*arrays, weight)]
        tensors[1] = tensors[1].flatten(0, 1)
        return Batch(*tensors)

    def _zones(self, record: Record) -> tuple[NDArray[np.float32], NDArray[np.float32] | float]:
        """0 or 1 a zone (3, 2), and how much each counts."""
        if record.zones is not None:
            known = np.isfinite(record.zones)
            return np.where(known, record.zones, 0).astype(np.float32), known.astype(np.float32)
        if record.brixia is not None:
            return (record.brixia >= self.brixia_threshold).astype(np.float32), 1.0
        # ours: a normal film has no lesion in any zone
        return np.zeros((3, 2), np.float32), self.normal_weight if record.label == 0 else 0.0


def _times_before(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,): how often each entry of `order` came before it."""
    seen: Counter[int] = Counter()
    out = np.zeros_like(order)
    for k, i in enumerate(order.tolist()):
        out[k] = seen[i]
        seen[i] += 1
    return out
