"""Losses of the joint stage."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cxrvit_edge.zones import zone_masks


def lung_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice per image and lung; (B, 2, h, w) both. Empty targets count in the first only."""
    bce = F.binary_cross_entropy_with_logits(logits, target)
    p = logits.sigmoid()
    overlap = 2 * (p * target).sum((2, 3)) + 1.0
    dice = 1 - overlap / (p.sum((2, 3)) + target.sum((2, 3)) + 1.0)  # (B, 2)
    present = (target.sum((2, 3)) > 0).float()
    return bce + (dice * present).sum() / present.sum().clamp_min(1.0)


def zone_loss(map_logits: Tensor, zones: NDArray[np.bool_], target: Tensor, weight: Tensor) -> Tensor:
    """ROI max pooling of the map over each zone against 0/1 targets.

    map_logits (B, h, w); zones (B, 3, 2, h, w); target and weight (B, 3, 2). max and sigmoid commute, so the loss is
    taken on the largest logit.
    """
    inside = torch.from_numpy(zones).to(map_logits.device)
    empty = ~inside.flatten(3).any(-1)  # (B, 3, 2)
    masked = map_logits[:, None, None].masked_fill(~inside, -1e4)
    largest = masked.flatten(3).amax(-1)
    weight = weight.masked_fill(empty, 0.0)
    largest = largest.masked_fill(empty, 0.0)
    loss = F.binary_cross_entropy_with_logits(largest, target, reduction="none")
    return (loss * weight).sum() / weight.sum().clamp_min(1.0)


def zones_for(lung_logits: Tensor, truth: Tensor) -> list[NDArray[np.bool_] | None]:
    """Zones of each image on the map's grid: from its true masks where it has any, else from the predicted ones."""
    predicted = lung_logits.detach().sigmoid().cpu().numpy()
    known = truth.cpu().numpy()
    return [zone_masks(known[i] if known[i].any() else predicted[i]) for i in range(len(known))]


def findings_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy over the findings that are known (NaN: not known)."""
    known = torch.isfinite(target)
    loss = F.binary_cross_entropy_with_logits(logits, target.nan_to_num(0.0), reduction="none")
    return (loss * known).sum() / known.sum().clamp_min(1)
