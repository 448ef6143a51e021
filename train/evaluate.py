"""Predictions of a network over records, and the figures the paper reports (section 4.4), with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cxrvit_edge.metrics import Estimate, auc, cluster_bootstrap, delong, dice, mean_auc, severity
from cxrvit_edge.model.config import CLASSES
from cxrvit_edge.model.triage_net import TriageNet
from cxrvit_edge.zones import severity_array, zone_masks
from train.data.record import Record
from train.loader import Loader


@dataclass(frozen=True)
class Predictions:
    """records (N), logits (N, 3), zones (N, 3, 2) with NaN where no lungs were found, dice (N,) NaN where unknown."""

    records: Sequence[Record]
    logits: NDArray[np.float32]
    zones: NDArray[np.float32]
    lung_dice: NDArray[np.float32]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        z = self.logits.astype(np.float64)
        z = np.exp(z - z.max(1, keepdims=True))
        return z / z.sum(1, keepdims=True)

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.array([-1 if r.label is None else r.label for r in self.records])


def predict(net: TriageNet, loader: Loader) -> Predictions:
    logits, zones, dices = [], [], []
    with torch.inference_mode():
        for batch in loader.epoch(0):
            out = net(batch.image.contiguous(memory_format=torch.channels_last))
            logits.append(out[0].float().cpu().numpy())
            maps, lungs = out[1].float().cpu().numpy(), out[2].float().cpu().numpy()
            for i in range(len(maps)):
                found = zone_masks(lungs[i])
                zones.append(np.full((3, 2), np.nan) if found is None else severity_array(maps[i, 0], found))
                truth = batch.lungs[i].numpy() >= 0.5
                dices.append(dice(lungs[i] >= 0.5, truth) if bool(batch.has_lungs[i]) else np.nan)
    return Predictions(
        [loader.records[i] for i in loader.index],
        np.concatenate(logits),
        np.stack(zones).astype(np.float32),
        np.array(dices, np.float32),
    )


def brixia_scores(records: Sequence[Record], threshold: float = 1.0) -> NDArray[np.float64]:
    """(N,) zones of 0-3 at or over `threshold`, counted: the paper's 0-6 score; NaN where unknown."""
    return np.array([np.nan if r.brixia is None else float((r.brixia >= threshold).sum()) for r in records], np.float64)


def summary(p: Predictions, *, brixia_threshold: float = 1.0) -> dict[str, float]:
    """A line for the training log: mean AUC, AUC inside NIH, severity MSE, lung Dice, images without lungs."""
    known = p.labels >= 0
    nih = np.array([r.source == "nih" for r in p.records]) & known
    out = {"auc": mean_auc(p.labels[known], p.probabilities[known])}
    out["auc_nih_other"] = auc(p.labels[nih] == 1, p.probabilities[nih, 1] - p.probabilities[nih, 0])
    truth = brixia_scores(p.records, brixia_threshold)
    score = p.zones.sum((1, 2)).astype(np.float64)
    scored = np.isfinite(truth) & np.isfinite(score)
    if scored.any():
        out["severity_mse"] = severity(truth[scored], score[scored]).mse
    for kind in sorted({r.lungs_kind for r in p.records if r.lungs_kind}):
        out[f"dice_{kind}"] = float(
            np.nanmean([d for d, r in zip(p.lung_dice, p.records, strict=True) if r.lungs_kind == kind])
        )
    out["no_lungs"] = float(np.isnan(p.zones[:, 0, 0]).mean())
    return {k: round(v, 4) for k, v in out.items()}


def diagnosis_intervals(p: Predictions) -> dict[str, Estimate]:
    """Per class AUC with DeLong, the mean with a cluster bootstrap over patients."""
    known = np.flatnonzero(p.labels >= 0)
    labels, probabilities = p.labels[known], p.probabilities[known]
    patients = [p.records[int(i)].patient for i in known]
    out = {name: delong(labels == k, probabilities[:, k]) for k, name in enumerate(CLASSES)}
    out["mean"] = cluster_bootstrap(lambda i: mean_auc(labels[i], probabilities[i]), patients)
    return out
