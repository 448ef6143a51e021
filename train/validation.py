"""The few figures that a stage is judged by while it trains; the paper's, with intervals, are train/evaluate.py's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from cxrvit_edge.metrics import auc, dice, softmax
from cxrvit_edge.zones import severity_array, zone_masks
from train.loader import CONVENTIONS, Batch


def judge(
    net: nn.Module,
    batches: Iterable[Batch],
    *,
    diagnosis: bool = False,
    severity: bool = False,
    lungs: bool = False,
    findings: bool = False,
    roi: Literal["max", "average"] = "max",
) -> dict[str, float]:
    """Figures of what is asked for: auc (mean over the classes that are there), severity_mse (0-6, images with lungs),
    dice_<convention> and dice, findings_auc (mean over findings with both outcomes). NaN where nothing is known.

    Zones come from the batch's masks, or from the network's own where `lungs` is asked for and an image has none.
    """
    kept: dict[str, list[NDArray[np.generic]]] = defaultdict(list)
    overlap: dict[str, list[float]] = defaultdict(list)
    for batch in batches:
        masks = batch.lungs
        if diagnosis and not severity and not lungs:
            _keep(kept, logits=net.diagnose(batch.image), label=batch.label)  # type: ignore[operator]
        elif diagnosis:  # all heads in one pass
            out = net.training_forward(batch.image)  # type: ignore[operator]
            _keep(kept, logits=out.logits, label=batch.label)
            found = out.lungs.sigmoid()
            _overlaps(overlap, found, batch)
            masks = masks.where(batch.has_lungs[:, None, None, None], found)
            _scores(kept, out.severity, masks, batch, roi)
        elif severity:
            _scores(kept, net.grade(batch.image), masks, batch, roi)  # type: ignore[operator]
        elif lungs:
            _overlaps(overlap, net.segment(batch.image).sigmoid(), batch)  # type: ignore[operator]
        if findings:
            _keep(kept, found=net.find(batch.image), findings=batch.findings)  # type: ignore[operator]
    data = {k: np.concatenate(v) for k, v in kept.items()}
    figures: dict[str, float] = {}
    if diagnosis:
        known = data["label"] >= 0
        p = softmax(data["logits"][known]) if known.any() else np.zeros((0, 3))
        areas = [_area((data["label"][known] == k).astype(np.float64), p[:, k]) for k in range(p.shape[1])]
        figures["auc"] = float(np.nanmean(areas)) if np.isfinite(areas).any() else np.nan
    if severity:
        known = np.isfinite(data["score"]) & np.isfinite(data["truth"])
        figures["severity_mse"] = float(((data["score"] - data["truth"])[known] ** 2).mean()) if known.any() else np.nan
        figures["no_lungs"] = float(np.isnan(data["score"]).mean())
    if lungs:
        figures |= {f"dice_{kind}": float(np.mean(values)) for kind, values in sorted(overlap.items())}
        figures["dice"] = float(np.mean([v for values in overlap.values() for v in values])) if overlap else np.nan
    if findings:
        areas = [_area(t, p) for t, p in zip(data["findings"].T, data["found"].T, strict=True)]
        figures["findings_auc"] = float(np.nanmean(areas)) if np.isfinite(areas).any() else np.nan
    return figures


def _keep(kept: dict[str, list[NDArray[np.generic]]], **tensors: Tensor) -> None:
    for name, value in tensors.items():
        kept[name].append(value.float().cpu().numpy())


def _scores(
    kept: dict[str, list[NDArray[np.generic]]],
    map_logits: Tensor,
    masks: Tensor,
    batch: Batch,
    roi: Literal["max", "average"],
) -> None:
    maps = map_logits.float().sigmoid().cpu().numpy()[:, 0]
    zones = [zone_masks(m) for m in masks.float().cpu().numpy()]
    scores = [
        np.nan if z is None else severity_array(m, z, pooling=roi).sum() for m, z in zip(maps, zones, strict=True)
    ]
    known = (batch.zone_weight == 1).flatten(1).all(1)
    truth = batch.zones.sum((1, 2)).where(known, batch.zones.new_tensor(float("nan")))
    kept["score"].append(np.array(scores, np.float64))
    _keep(kept, truth=truth)


def _overlaps(overlap: dict[str, list[float]], found: Tensor, batch: Batch) -> None:
    both, truth = found.amax(1).cpu().numpy() >= 0.5, batch.lungs.amax(1).cpu().numpy() >= 0.5
    for i in np.flatnonzero(batch.convention.cpu().numpy() >= 0):
        overlap[CONVENTIONS[int(batch.convention[i])]].append(dice(both[i], truth[i]))


def _area(truth: NDArray[np.floating], value: NDArray[np.floating]) -> float:
    known = np.isfinite(truth)
    positive = truth[known] > 0.5
    return auc(positive, value[known]) if 0 < positive.sum() < positive.size else np.nan
