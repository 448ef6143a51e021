"""Batches from the cache: seeded by (seed, epoch, image), so a resumed run sees what an uninterrupted one would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from cxrvit_edge.preprocess import PreprocessConfig
from train.augment import Augmentation, augment, negative
from train.cache import ImageCache
from train.data.record import Record


@dataclass
class Batch:
    """image (B, 1, S, S) normalised; lungs (B, 2, S/2, S/2); has_lungs, is_negative (B,) bool; label (B,), -1 unknown;
    findings (B, 10), NaN unknown; zones, zone_weight (B, 3, 2), weight 0 unknown."""

    image: Tensor
    lungs: Tensor
    has_lungs: Tensor
    is_negative: Tensor
    label: Tensor
    findings: Tensor
    zones: Tensor
    zone_weight: Tensor


class Loader:
    """Iterates batches of the records at `index`, augmented if `augmentation`, at `size` pixels."""

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
        seed: int = 0,
        brixia_threshold: float = 1.0,
        normal_weight: float = 0.3,
    ) -> None:
        self.records, self.cache, self.index, self.config = records, cache, list(index), config
        self.size, self.batch, self.augmentation, self.seed = size, batch, augmentation, seed
        self.brixia_threshold, self.normal_weight = brixia_threshold, normal_weight

    def batches(self) -> int:
        whole, rest = divmod(len(self.index), self.batch)
        return whole if self.augmentation else whole + bool(rest)  # a short last batch upsets BatchNorm

    def epoch(self, epoch: int) -> Iterator[Batch]:
        order = np.array(self.index)
        if self.augmentation:
            np.random.default_rng([self.seed, epoch]).shuffle(order)
        chunks = [order[i * self.batch : (i + 1) * self.batch] for i in range(self.batches())]
        with ThreadPoolExecutor(1) as pool:  # the next batch is made while the network runs
            pending = pool.submit(self._make, epoch, chunks[0]) if chunks else None
            for following in [*chunks[1:], None]:
                if pending is None:
                    return
                ready = pending.result()
                pending = pool.submit(self._make, epoch, following) if following is not None else None
                yield ready

    def _make(self, epoch: int, chunk: np.ndarray) -> Batch:
        n, half = len(chunk), self.size // 2
        image = np.zeros((n, 1, self.size, self.size), np.float32)
        lungs = np.zeros((n, 2, half, half), np.float32)
        has_lungs, is_negative = np.zeros(n, bool), np.zeros(n, bool)
        label = np.full(n, -1)
        findings = np.full((n, 10), np.nan, np.float32)
        zones, weight = np.zeros((n, 3, 2), np.float32), np.zeros((n, 3, 2), np.float32)
        for j, i in enumerate(chunk):
            record, pixels, mask = self.records[i], self.cache.images[i], self.cache.lungs[i]
            if self.size != pixels.shape[0]:
                pixels = cv2.resize(pixels, (self.size, self.size), interpolation=cv2.INTER_AREA)
                mask = np.stack([cv2.resize(m, (half, half), interpolation=cv2.INTER_AREA) for m in mask])
            if self.augmentation:
                rng = np.random.default_rng([self.seed, epoch, int(i)])
                is_negative[j] = rng.random() < self.augmentation.negative
                pixels, mask = augment(np.asarray(pixels), np.asarray(mask), self.augmentation, rng)
                if is_negative[j]:
                    pixels, mask = negative(pixels, rng), np.zeros_like(mask)
            image[j, 0] = (pixels.astype(np.float32) - self.config.offset) / self.config.scale
            lungs[j] = mask.astype(np.float32) / 255
            has_lungs[j] = is_negative[j] or record.lungs is not None
            if is_negative[j]:
                continue
            label[j] = -1 if record.label is None else record.label
            findings[j] = record.findings
            if record.brixia is not None:
                zones[j], weight[j] = record.brixia >= self.brixia_threshold, 1.0
            elif record.label == 0:  # ours: a normal film has no lesion in any zone
                weight[j] = self.normal_weight
        arrays = (image, lungs, has_lungs, is_negative, label, findings, zones, weight)
        return Batch(*(torch.from_numpy(a) for a in arrays))
