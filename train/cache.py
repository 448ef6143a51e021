"""Decoded and preprocessed images on disk, memory-mapped: training is never bound by decoding.

Stored as uint8 of 255 x the equalised, blurred, resized image (at most 1/510 off), padding 128, so that the same
offset and scale as on the edge give the network's input.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.preprocess import Geometry, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import read
from train.data.masks import read_lungs
from train.data.record import Record

VERSION = 1


class ImageCache:
    """images: (N, S, S) uint8; lungs: (N, 2, S/2, S/2) uint8, zeros where a record has none. Read-only maps."""

    def __init__(self, images: NDArray[np.uint8], lungs: NDArray[np.uint8], geometries: list[Geometry]) -> None:
        self.images, self.lungs, self.geometries = images, lungs, geometries


def open_cache(
    records: Sequence[Record],
    folder: Path,
    config: PreprocessConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> ImageCache:
    """The cache of these records, made when files, masks or parameters differ from those it was made of."""
    key = _key(records, config)
    base = folder / f"{key}.npy"
    lungs_path, index = folder / f"{key}.lungs.npy", folder / f"{key}.json"
    if not index.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _build(records, base, lungs_path, index, config, progress)
    rows = json.loads(index.read_text())
    geometries = [Geometry(**row) for row in rows]
    return ImageCache(np.load(base, mmap_mode="r"), np.load(lungs_path, mmap_mode="r"), geometries)


def _key(records: Sequence[Record], config: PreprocessConfig) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, config.to_dict()], sort_keys=True).encode())
    for r in records:
        for path in (r.path, r.lungs):
            stat = path.stat() if path else None
            digest.update(f"{path}|{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:16]


def _build(
    records: Sequence[Record],
    base: Path,
    lungs_path: Path,
    index: Path,
    config: PreprocessConfig,
    progress: Callable[[int, int], None] | None,
) -> None:
    n, size = len(records), config.size
    images = np.lib.format.open_memmap(base, "w+", np.uint8, (n, size, size))
    lungs = np.lib.format.open_memmap(lungs_path, "w+", np.uint8, (n, 2, size // 2, size // 2))

    def one(i: int) -> Geometry:
        tensor, geometry = preprocess(read(records[i].path), config)
        images[i] = np.clip(np.rint(tensor[0] * config.scale + config.offset), 0, 255).astype(np.uint8)
        mask = records[i].lungs
        if mask is not None:
            lungs[i] = read_lungs(mask, geometry, size // 2)
        return geometry

    geometries = []
    with ThreadPoolExecutor(2) as pool:
        for done, geometry in enumerate(pool.map(one, range(n)), 1):
            geometries.append(geometry)
            if progress:
                progress(done, n)
    images.flush()
    lungs.flush()
    part = index.with_name(index.name + ".part")
    part.write_text(json.dumps([vars(g) for g in geometries]))
    part.replace(index)  # last: its presence says the cache is whole
