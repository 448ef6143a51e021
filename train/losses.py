"""Losses of the stages, each as a Term: a sum and what it is divided by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cxrvit_edge.zones import zone_masks
from train.objective import Term

Zones = NDArray[np.bool_] | None  # (3, 2, h, w) of one image; None where it has no lungs


def class_loss(logits: Tensor, label: Tensor, class_weight: Tensor, label_smoothing: float = 0.0) -> Term:
    """Cross-entropy; logits (B, K), label (B,) with -1 for unknown, class_weight (K,)."""
    total = F.cross_entropy(
        logits.float(), label, class_weight, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
    )
    known = label >= 0
    return Term(total, (class_weight[label.clamp_min(0)] * known).sum())


def lung_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over images of cross-entropy plus soft Dice; (B, 2, h, w) both."""
    return _lung_losses(logits, target).mean()


def lung_term(logits: Tensor, target: Tensor, known: Tensor) -> Term:
    """As lung_loss, of the images that are `known` (B,)."""
    return Term((_lung_losses(logits, target) * known).sum(), known.sum().float())


def _lung_losses(logits: Tensor, target: Tensor) -> Tensor:
    """(B,): Dice is the mean over an image's lungs; an empty lung counts in the cross-entropy only."""
    logits = logits.float()
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2, 3))
    p = logits.sigmoid()
    overlap = 2 * (p * target).sum((2, 3)) + 1.0
    dice = 1 - overlap / (p.sum((2, 3)) + target.sum((2, 3)) + 1.0)  # (B, 2)
    present = (target.sum((2, 3)) > 0).float()
    return bce + (dice * present).sum(1) / present.sum(1).clamp_min(1.0)


def zone_term(
    map_logits: Tensor,
    zones: Sequence[Zones],
    target: Tensor,
    weight: Tensor,
    roi: Literal["max", "average"] = "max",
    smoothing: float = 0.0,
) -> Term:
    """ROI pooling of the map over each zone against 0/1 targets, by cross-entropy.

    map_logits (B, h, w); zones of each image; target and weight (B, 3, 2). A zone without pixels has no weight.
    smoothing: how far targets are from 0 and 1, so that few films do not make a map too sure of itself.
    """
    target = smoothing + (1 - 2 * smoothing) * target
    inside = _stack(zones, map_logits)
    empty = ~inside.flatten(3).any(-1)  # (B, 3, 2)
    weight = weight.masked_fill(empty, 0.0)
    if roi == "max":  # max and sigmoid commute: the loss is taken on the largest logit
        loss = F.binary_cross_entropy_with_logits(_largest(map_logits, inside), target, reduction="none")
    else:
        area = inside.flatten(3).sum(-1).clamp_min(1)
        mean = (map_logits.float().sigmoid()[:, None, None] * inside).flatten(3).sum(-1) / area
        with torch.autocast(map_logits.device.type, enabled=False):
            loss = F.binary_cross_entropy(mean, target, reduction="none")
    return Term((loss * weight).sum(), weight.sum())


def largest_in_zones(map_logits: Tensor, zones: Sequence[Zones]) -> Tensor:
    """(B, h, w) -> the largest logit of each zone (B, 3, 2), 0 of a zone without pixels."""
    return _largest(map_logits, _stack(zones, map_logits))


def _largest(map_logits: Tensor, inside: Tensor) -> Tensor:
    pooled = map_logits.float()[:, None, None].masked_fill(~inside, -1e4).flatten(3).amax(-1)
    return pooled.masked_fill(~inside.flatten(3).any(-1), 0.0)


def _stack(zones: Sequence[Zones], map_logits: Tensor) -> Tensor:
    none = np.zeros((3, 2, *map_logits.shape[-2:]), bool)
    return torch.from_numpy(np.stack([none if z is None else z for z in zones])).to(map_logits.device)


def zones_of(lungs: Tensor) -> list[Zones]:
    """Zones of each image from masks (B, 2, h, w) in 0-1."""
    return [zone_masks(mask) if mask.any() else None for mask in lungs.cpu().numpy()]


def zones_for(lung_logits: Tensor, truth: Tensor) -> list[Zones]:
    """Zones of each image on the map's grid: from its true masks where it has any, else from the predicted ones."""
    predicted = lung_logits.detach().float().sigmoid()
    has = truth.flatten(1).any(1)[:, None, None, None]
    return zones_of(torch.where(has, truth, predicted))


def findings_term(logits: Tensor, target: Tensor) -> Term:
    """Binary cross-entropy over the findings that are known (NaN: not known); (B, K) both."""
    known = torch.isfinite(target)
    loss = F.binary_cross_entropy_with_logits(logits.float(), target.nan_to_num(0.0), reduction="none")
    return Term((loss * known).sum(), known.sum().float())
