"""Lung masks -> six zones, ROI pooling, severity array and score (paper, section 3.3 and Fig. 4).

Zones are rows upper, middle, lower and columns image-left, image-right lung.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

UPPER, MIDDLE = 5 / 12, 2 / 3  # of a lung's height, from its top
LEAST_LUNG = 0.01  # of the image: a smaller lung gives no zones
LEAST_PART = 0.05  # of the largest component: smaller ones are specks


def clean_lung(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(h, w) bool -> its largest component and those over 5 % of it; the mask itself where that is all of it."""
    import cv2

    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))  # labelling costs by the pixel
    box = np.ascontiguousarray(mask[top : top + height, left : left + width])
    if not width or cv2.connectedComponents(box.view(np.uint8), connectivity=8, ltype=cv2.CV_16U)[0] <= 2:
        return mask
    _, labels, stats, _ = cv2.connectedComponentsWithStats(box.view(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    keep = np.concatenate([[False], areas > LEAST_PART * areas.max()])
    out = np.zeros(mask.shape, bool)
    out[top : top + height, left : left + width] = keep[labels]
    return out


def lung_extent(lung_mask: NDArray[np.floating]) -> tuple[float, float]:
    """(2, h, w) in [0, 1] over the radiograph -> area of both lungs as a fraction of it, mean mask value inside."""
    inside = lung_mask >= 0.5
    area = np.count_nonzero(inside.any(axis=0)) / inside[0].size
    return area, float(lung_mask[inside].mean()) if area else 0.0


def lung_separation(lung_mask: NDArray[np.floating]) -> float | None:
    """(2, h, w) -> how far the image-right lung's centre lies to the right of the other's, as a fraction of the width.

    None if either is under 1 % of the image. Upright it is about 0.4; a turned film has it near 0 or negative.
    """
    import cv2

    centres = []
    for side in lung_mask:
        inside = (side >= 0.5).view(np.uint8)
        left, top, width, height = cv2.boundingRect(inside)
        m = cv2.moments(inside[top : top + height, left : left + width], binaryImage=True) if width else {"m00": 0.0}
        if m["m00"] < LEAST_LUNG * inside.size:
            return None
        centres.append(left + m["m10"] / m["m00"])
    return float(centres[1] - centres[0]) / lung_mask.shape[2]


def split_rows(lung: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Rows (top, end of upper, end of middle, bottom + 1) of a lung; None if it has no pixel."""
    rows = np.flatnonzero(lung.any(axis=1))
    if rows.size == 0:
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    height = bottom - top
    return top, top + round(height * UPPER), top + round(height * MIDDLE), bottom


def zone_masks(lung_mask: NDArray[np.floating], *, threshold: float = 0.5) -> NDArray[np.bool_] | None:
    """lung_mask (2, h, w) in [0, 1] -> (3, 2, h, w) bool; None if either lung is under 1 % of the image."""
    _, h, w = lung_mask.shape
    zones = np.zeros((3, 2, h, w), bool)
    for side in range(2):
        lung = clean_lung(lung_mask[side] >= threshold)
        rows = split_rows(lung)
        if rows is None or np.count_nonzero(lung) < LEAST_LUNG * h * w:
            return None
        for zone in range(3):
            zones[zone, side, rows[zone] : rows[zone + 1]] = lung[rows[zone] : rows[zone + 1]]
    return zones


def severity_array(
    severity_map: NDArray[np.floating], zones: NDArray[np.bool_], *, pooling: Literal["max", "average"] = "max"
) -> NDArray[np.float32]:
    """ROI pooling: map (h, w) in [0, 1] and zones (3, 2, h, w) -> array (3, 2) in [0, 1]; its sum is the score.

    A zone is its largest value, or its mean (the ablation of Table 10); one without a pixel is 0.
    """
    import cv2

    out = np.zeros((3, 2), np.float32)
    for zone in range(3):
        for side in range(2):
            at = zones[zone, side]
            if pooling == "max":
                out[zone, side] = cv2.minMaxLoc(severity_map, at.view(np.uint8))[1]  # 0 of no pixel
            elif at.any():
                out[zone, side] = severity_map[at].mean()
    return out
