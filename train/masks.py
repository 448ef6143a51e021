"""Lung masks where no human drew any: a segmenter's, made once and kept beside the image cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cxrvit_edge.preprocess import PreprocessConfig
from train.cache import ImageCache, sum_of
from train.data.record import Record
from train.loader import Loader

BATCH = 8


def segmented(
    records: Sequence[Record],
    cache: ImageCache,
    segmenter: nn.Module,
    config: PreprocessConfig,
    folder: Path,
    *,
    size: int,
    device: torch.device,
    say: Callable[[str], None],
) -> ImageCache:
    """The cache with the masks of `segmenter` (a method `segment`, run at `size` pixels) where a record has none."""
    broken = set(cache.broken)
    missing = [i for i, r in enumerate(records) if r.lungs is None and i not in broken]
    if not missing:
        return cache
    path = folder / f"{_key(segmenter, cache, size)}.segmented.npy"
    if not path.is_file():
        say(f"lung masks of {len(missing)} images: segmented once, kept in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        lungs = np.lib.format.open_memmap(part, "w+", np.uint8, cache.lungs.shape)
        half = cache.lungs.shape[-1]
        loader = Loader(records, cache, missing, config, size=size, batch=BATCH)
        rows = iter(missing)
        segmenter.to(device).eval()
        with torch.inference_mode():
            for batch in loader.epoch(0):
                masks = segmenter.segment(batch.image.to(device)).float().sigmoid()  # type: ignore[operator]
                masks = nn.functional.interpolate(masks, (half, half), mode="bilinear", align_corners=False)
                for mask in (masks * 255).round().byte().cpu().numpy():
                    lungs[next(rows)] = mask
        for i, r in enumerate(records):
            if r.lungs is not None:
                lungs[i] = cache.lungs[i]
        lungs.flush()
        np.save(path.with_suffix(".sums.npy"), np.array([sum_of(mask) for mask in lungs], np.uint64))
        del lungs
        part.replace(path)  # last: its presence says that both are whole
    sums = None
    if cache.sums is not None:
        sums = np.stack([cache.sums[:, 0], np.load(path.with_suffix(".sums.npy"))], 1)
    return ImageCache(cache.images, np.load(path, mmap_mode="r"), cache.geometries, sums, str(path))


def _key(segmenter: nn.Module, cache: ImageCache, size: int) -> str:
    digest = hashlib.sha256(f"{cache.where} {size}".encode())
    for name, value in segmenter.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
