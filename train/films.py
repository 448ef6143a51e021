"""Films as networks see them, read and preprocessed as on the edge, a few ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import InputError
from cxrvit_edge.preprocess import Geometry, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Radiograph
from train.cache import read_record
from train.data.masks import read_lungs
from train.data.record import Record

Broken = Literal["error", "skip"]
Float32 = NDArray[np.float32]


class Film(NamedTuple):
    """tensors: (1, S, S) for each preprocessing; lungs (2, s, s) true masks in 0-1, zeros where there are none."""

    record: Record
    radiograph: Radiograph
    geometry: Geometry
    tensors: list[Float32]
    lungs: Float32


def films(
    records: Iterable[Record],
    configs: Sequence[PreprocessConfig],
    *,
    workers: int = 0,
    lungs: bool = False,
    broken: Broken = "error",
) -> Iterator[Film]:
    """In order, a few read ahead. geometry is that of the first of `configs`; lungs on half its size.

    A file that cannot be read is an InputError, or left out.
    """
    workers = workers or min(8, os.cpu_count() or 1)

    def one(record: Record) -> Film | None:
        try:
            radiograph = read_record(record)
        except InputError:
            if broken == "error":
                raise
            return None
        made = [preprocess(radiograph, config) for config in configs]
        geometry = made[0][1]
        truth: Float32 = np.zeros((2, geometry.size // 2, geometry.size // 2), np.float32)
        if lungs and record.lungs is not None:
            mask = read_lungs(record.lungs, geometry, geometry.size // 2)
            truth = mask.astype(np.float32) / np.float32(255)
        return Film(record, radiograph, geometry, [m[0] for m in made], truth)

    rest = iter(records)
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Film | None]] = deque(pool.submit(one, r) for r in islice(rest, 2 * workers))
        try:
            while ahead:
                film = ahead.popleft().result()
                ahead.extend(pool.submit(one, r) for r in islice(rest, 1))
                if film is not None:
                    yield film
        finally:
            for future in ahead:
                future.cancel()
