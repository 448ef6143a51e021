"""Decoded and preprocessed images on disk, memory-mapped: training is never bound by decoding.

Stored as uint8 of 255 x the equalised, blurred, resized image (at most 1/510 off), padding 128, so that the same
offset and scale as on the edge give the network's input.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import InputError, UsageError
from cxrvit_edge.preprocess import Geometry, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Radiograph, read
from train.data.masks import read_lungs
from train.data.record import Record

VERSION = 3
Pixels = NDArray[np.uint8]
_ARRAYS = ("", "lungs.", "sums.")  # files beside the index


class ImageCache:
    """images: (N, S, S) uint8; lungs: (N, 2, S/2, S/2) uint8, zeros where a record has none. Read-only maps.

    sums: (N, 2) hashes of each row's image and lungs as they were made; `row` checks them when it first reads one.
    broken: rows whose file could not be read (only where that is allowed).
    """

    def __init__(
        self,
        images: Pixels,
        lungs: Pixels,
        geometries: list[Geometry | None],
        sums: NDArray[np.uint64] | None = None,
        where: str = "the cache",
    ) -> None:
        self.images, self.lungs, self.geometries = images, lungs, geometries
        self.sums, self.where = sums, where
        self._unchecked = np.full(len(images), sums is not None)

    @property
    def broken(self) -> list[int]:
        return [i for i, g in enumerate(self.geometries) if g is None]

    def row(self, i: int) -> tuple[Pixels, Pixels]:
        """image (S, S), lungs (2, S/2, S/2). UsageError if they are not what was written."""
        image, lungs = self.images[i], self.lungs[i]
        if self._unchecked[i]:
            assert self.sums is not None
            if (sum_of(image), sum_of(lungs)) != tuple(self.sums[i]):
                raise UsageError(f"{self.where}: row {i} is damaged; delete this cache, it is made again")
            self._unchecked[i] = False
        return np.asarray(image), np.asarray(lungs)


def open_cache(
    records: Sequence[Record],
    folder: Path,
    config: PreprocessConfig,
    *,
    broken: Literal["error", "skip"] = "error",
    progress: Callable[[int, int], None] | None = None,
) -> ImageCache:
    """The cache of these records, made when files, masks or parameters differ from those it was made of.

    broken: a file that cannot be read is an InputError, or an empty row listed in `ImageCache.broken`.
    """
    base = folder / f"{_key(records, config, broken)}.npy"
    cache = _open(base, len(records))
    if cache is None:
        folder.mkdir(parents=True, exist_ok=True)
        _build(records, base, config, broken, progress)
        cache = _open(base, len(records))
    assert cache is not None
    return cache


def _open(base: Path, n: int) -> ImageCache | None:
    """None if a file is absent or was cut short: it is made again."""
    try:
        rows = json.loads(base.with_suffix(".json").read_text())
        images, lungs, sums = (np.load(_beside(base, name), mmap_mode="r") for name in ("", "lungs.", "sums."))
    except (OSError, ValueError, EOFError):
        return None
    if not len(rows) == len(images) == len(lungs) == len(sums) == n:
        return None
    return ImageCache(images, lungs, [Geometry(**row) if row else None for row in rows], np.asarray(sums), str(base))


def read_record(record: Record) -> Radiograph:
    """Its image, brighter = denser also where the file holds the stored values of MONOCHROME1. Raises as `read`."""
    film = read(record.path)
    if not record.inverted:
        return film
    return replace(film, pixels=np.iinfo(film.pixels.dtype).max - film.pixels)  # equalised: the range does not matter


def _beside(base: Path, name: str) -> Path:
    return base.with_name(f"{base.stem}.{name}npy")


def _key(records: Sequence[Record], config: PreprocessConfig, broken: str) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, config.to_dict(), broken], sort_keys=True).encode())
    for r in records:
        digest.update(b"inverted" if r.inverted else b"")
        for path in (r.path, r.lungs):
            stat = path.stat() if path else None
            digest.update(f"{path}|{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:16]


def sum_of(pixels: Pixels) -> int:
    return int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest(), "little")


def _build(
    records: Sequence[Record],
    base: Path,
    config: PreprocessConfig,
    broken: Literal["error", "skip"],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Under names of this process until it is whole: two that build at once do not meet."""
    n, size = len(records), config.size
    parts = {name: _beside(base, name).with_suffix(f".{os.getpid()}.part") for name in _ARRAYS}
    images = np.lib.format.open_memmap(parts[""], "w+", np.uint8, (n, size, size))
    lungs = np.lib.format.open_memmap(
        parts["lungs."], "w+", np.uint8, (n, 2, size // 2, size // 2)
    )  # holes cost nothing
    sums = np.zeros((n, 2), np.uint64)

    def one(i: int) -> Geometry | None:
        try:
            tensor, geometry = preprocess(read_record(records[i]), config)
        except InputError:
            if broken == "error":
                raise
            sums[i] = sum_of(images[i]), sum_of(lungs[i])
            return None
        images[i] = np.clip(np.rint(tensor[0] * config.scale + config.offset), 0, 255).astype(np.uint8)
        mask = records[i].lungs
        if mask is not None:
            lungs[i] = read_lungs(mask, geometry, size // 2)
        sums[i] = sum_of(images[i]), sum_of(lungs[i])
        return geometry

    geometries = []
    try:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            try:
                for done, geometry in enumerate(pool.map(one, range(n)), 1):
                    geometries.append(geometry)
                    if progress:
                        progress(done, n)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        images.flush()
        lungs.flush()
        with parts["sums."].open("wb") as f:
            np.save(f, sums)
        for name, part in parts.items():
            part.replace(_beside(base, name))
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    part = base.with_suffix(f".json.{os.getpid()}.part")
    part.write_text(json.dumps([vars(g) if g else None for g in geometries]))
    part.replace(base.with_suffix(".json"))  # last: its presence says the cache is whole
