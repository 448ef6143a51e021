"""A session over records, through the same reading and preprocessing as on the edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.metrics import dice
from cxrvit_edge.preprocess import Geometry, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import read
from cxrvit_edge.runtime.session import Float32, Session
from cxrvit_edge.zones import lung_extent, lung_separation, severity_array, zone_masks
from train.data.masks import read_lungs
from train.data.record import Record
from train.evaluate import Predictions


class Extent(NamedTuple):
    """Area of the lungs as a fraction of the radiograph, mean mask value inside, distance of their centres, (N,) each.

    separation is NaN where a lung is not seen.
    """

    area: NDArray[np.float64]
    confidence: NDArray[np.float64]
    separation: NDArray[np.float64]


def predict(
    session: Session,
    records: Sequence[Record],
    config: PreprocessConfig,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Predictions, Extent]:
    """InputError if an image cannot be read: a data set that measures must be whole."""
    logits, zones, dices, extents = [], [], [], []

    def load(record: Record) -> tuple[Float32, Geometry]:
        return preprocess(read(record.path), config)

    with ThreadPoolExecutor(1) as pool:
        for done, (record, (tensor, geometry)) in enumerate(zip(records, pool.map(load, records), strict=True), 1):
            out = session.run(tensor[None])
            lungs = out.lung_mask[0]
            logits.append(out.logits[0])
            found = zone_masks(lungs)
            zones.append(np.full((3, 2), np.nan) if found is None else severity_array(out.severity_map[0, 0], found))
            dices.append(np.nan if record.lungs is None else _dice(lungs, record, geometry))
            content = geometry.content(lungs)
            apart = lung_separation(content)
            extents.append((*lung_extent(content), np.nan if apart is None else apart))
            if progress:
                progress(done, len(records))
    area, confidence, separation = np.array(extents, np.float64).T
    predictions = Predictions(
        list(records), np.stack(logits), np.stack(zones).astype(np.float32), np.array(dices, np.float32)
    )
    return predictions, Extent(area, confidence, separation)


def _dice(lungs: Float32, record: Record, geometry: Geometry) -> float:
    """Dice of the union of both lungs on the map's grid."""
    assert record.lungs is not None
    truth = read_lungs(record.lungs, geometry, lungs.shape[-1]).max(axis=0) >= 128
    return dice(cv2.max(lungs[0], lungs[1]) >= 0.5, truth)
