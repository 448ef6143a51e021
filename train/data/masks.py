"""Lung masks on the network's grid, a channel a lung."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import UsageError
from cxrvit_edge.preprocess import Geometry

Mask = NDArray[np.uint8]


def split_lungs(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(H, W) union of both lungs -> (2, H, W): image-left, image-right.

    Components go to the side of their centroid, seen from the mask's centre; one that holds most of the area
    (the lungs touch) is cut at the emptiest column near the centre.
    """
    out = np.zeros((2, *mask.shape), bool)
    count, labels, _, centroids = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    columns = np.flatnonzero(mask.any(axis=0))
    if columns.size == 0:
        return out
    low, high = int(columns[0]), int(columns[-1]) + 1
    middle = (low + high) / 2
    span = np.arange(low + (high - low) // 3, high - (high - low) // 3)
    cut = int(span[np.argmin(mask[:, span].sum(axis=0))]) if span.size else int(middle)
    total = int(mask.sum())
    for i in range(1, count):
        part = labels == i
        crosses = part[:, :cut].sum() > 0.15 * total and part[:, cut:].sum() > 0.15 * total
        if crosses:
            out[0, :, :cut] |= part[:, :cut]
            out[1, :, cut:] |= part[:, cut:]
        else:
            out[0 if centroids[i][0] < middle else 1] |= part
    return out


def read_lungs(path: Path, geometry: Geometry, size: int) -> Mask:
    """Mask file -> (2, size, size) uint8 0 or 255 on the network's square, placed by `geometry`."""
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise UsageError(f"{path}: cannot read this mask; it must be a one-channel image")
    if mask.shape != (geometry.height, geometry.width):
        mask = cv2.resize(mask, (geometry.width, geometry.height), interpolation=cv2.INTER_NEAREST)
    ratio = size / geometry.size
    top, left = round(geometry.top * ratio), round(geometry.left * ratio)
    h, w = max(1, round(geometry.content_height * ratio)), max(1, round(geometry.content_width * ratio))
    out = np.zeros((2, size, size), np.uint8)
    for side, lung in enumerate(split_lungs(mask > 0)):
        small = cv2.resize(lung.astype(np.uint8) * 255, (w, h), interpolation=cv2.INTER_AREA)
        out[side, top : top + h, left : left + w] = small[: size - top, : size - left]
    return out
