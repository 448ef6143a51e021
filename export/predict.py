"""A session over records, through the same reading and preprocessing as on the edge."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.guard import check_pixels
from cxrvit_edge.metrics import dice
from cxrvit_edge.preprocess import Geometry, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Limits, View
from cxrvit_edge.readers import decode, load, view_from_text
from cxrvit_edge.runtime.session import Float32, Session
from cxrvit_edge.zones import lung_extent, lung_separation, severity_array, zone_masks
from train.data.masks import read_lungs
from train.data.record import Record
from train.evaluate import Predictions

AHEAD = 4  # images read while one is run


class Film(NamedTuple):
    """A record as the network gets it.

    sha256: of the file's bytes; view: as triage takes it, the record's word before the header's;
    refused: why triage would turn it away unseen, None if it would not; tensor: (1, S, S).
    """

    record: Record
    sha256: str
    view: View
    refused: Reason | None
    tensor: Float32
    geometry: Geometry


def films(records: Sequence[Record], config: PreprocessConfig) -> Iterator[Film]:
    """In order, a few read ahead in a thread. InputError if one cannot be read: a data set that measures is whole."""
    rest = iter(records)
    with ThreadPoolExecutor(1) as pool:
        try:
            ahead = deque(pool.submit(_film, record, config) for record in islice(rest, AHEAD))
            while ahead:
                film = ahead.popleft().result()
                ahead.extend(pool.submit(_film, record, config) for record in islice(rest, 1))
                yield film
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _film(record: Record, config: PreprocessConfig) -> Film:
    limits = Limits()
    data = load(record.path, limits)
    radiograph = decode(data, record.path.name, limits)
    told = view_from_text(record.view)
    view = radiograph.view if told == "unknown" else told
    refused = Reason.LATERAL_VIEW if view == "lateral" else None
    try:
        check_pixels(radiograph)
    except InputError as error:
        refused = refused or error.reason
    return Film(record, hashlib.sha256(data).hexdigest(), view, refused, *preprocess(radiograph, config))


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
    """InputError if an image cannot be read."""
    logits, zones, dices, extents = [], [], [], []
    for done, film in enumerate(films(records, config), 1):
        out = session.run(film.tensor[None])
        lungs = out.lung_mask[0]
        logits.append(out.logits[0])
        found = zone_masks(lungs)
        zones.append(np.full((3, 2), np.nan) if found is None else severity_array(out.severity_map[0, 0], found))
        dices.append(np.nan if film.record.lungs is None else _dice(lungs, film.record, film.geometry))
        content = film.geometry.content(lungs)
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
