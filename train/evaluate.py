"""Predictions of a network over records, and the figures the paper reports (section 4.4), with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cxrvit_edge.metrics import Estimate, auc, cluster_bootstrap, delong, dice, mean_auc, severity
from cxrvit_edge.model.config import CLASSES
from cxrvit_edge.model.triage_net import TriageNet
from cxrvit_edge.zones import severity_array, zone_masks
from train.data.record import Record
from train.loader import Loader

LEAST_IMAGES = 5  # of each class inside a source: with fewer a bootstrap interval says nothing


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
                truth = batch.lungs[i].numpy().max(0) >= 0.5
                dices.append(dice(lungs[i].max(0) >= 0.5, truth) if bool(batch.has_lungs[i]) else np.nan)
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


def report(p: Predictions, operating_points: Mapping[str, float], temperature: float) -> dict[str, Any]:
    """The paper's figures (section 4.4) with 95 % intervals, as plain values for JSON.

    Pooled, and inside each source that has five images of two classes; sensitivity, specificity and accuracy at the
    operating points; severity against Brixia zones cut at >= 1 and >= 2; lung Dice by mask convention.
    """
    known = np.flatnonzero(p.labels >= 0)
    labels = p.labels[known]
    patients = [p.records[int(i)].patient for i in known]
    sources = np.array([p.records[int(i)].source for i in known])
    scaled = p.logits[known].astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    out: dict[str, Any] = {"images": len(p.records), "labelled": len(known), "patients": len(set(patients))}
    out["auc"] = {name: _plain(delong(labels == k, probabilities[:, k])) for k, name in enumerate(CLASSES)}
    out["auc"]["mean"] = _plain(cluster_bootstrap(lambda i: mean_auc(labels[i], probabilities[i]), patients))
    within: dict[str, Any] = {}
    for source in sorted(set(sources)):
        chosen = np.flatnonzero(sources == source)
        present = sorted(set(labels[chosen]))
        for a, b in combinations(present, 2):
            pair = chosen[np.isin(labels[chosen], (a, b))]
            counts = [int((labels[pair] == k).sum()) for k in (a, b)]
            if min(counts) < LEAST_IMAGES:
                continue
            margin = scaled[pair, b] - scaled[pair, a]
            interval = cluster_bootstrap(
                lambda i, pair=pair, margin=margin, b=b: auc(labels[pair][i] == b, margin[i]),  # type: ignore[misc]
                [patients[int(i)] for i in pair],
            )
            within[f"{source}: {CLASSES[b]} against {CLASSES[a]}"] = {**_plain(interval), "images": counts}
    out["auc_within_source"] = within
    out["operating_points"] = {
        name: _at_threshold(labels == k, probabilities[:, k] >= operating_points[name])
        for k, name in enumerate(CLASSES)
    }
    out["severity"] = {f"brixia>={t:g}": _severity(p, t) for t in (1.0, 2.0)}
    kinds = sorted({r.lungs_kind for r in p.records if r.lungs_kind})
    out["lung_dice"] = {kind: _dice(p, kind) for kind in kinds}
    out["no_lungs"] = int(np.isnan(p.zones[:, 0, 0]).sum())
    return out


def _number(value: float) -> float | None:
    """Four decimals; None for what is not defined, since JSON has no NaN."""
    return round(float(value), 4) if np.isfinite(value) else None


def _plain(e: Estimate) -> dict[str, float | None]:
    return {"value": _number(e.value), "low": _number(e.low), "high": _number(e.high)}


def _at_threshold(positive: NDArray[np.bool_], flagged: NDArray[np.bool_]) -> dict[str, float | None]:
    def share(hits: NDArray[np.bool_]) -> float | None:
        return _number(hits.mean()) if hits.size else None

    return {
        "sensitivity": share(flagged[positive]),
        "specificity": share(~flagged[~positive]),
        "accuracy": share(flagged == positive),
    }


def _severity(p: Predictions, threshold: float) -> dict[str, Any]:
    """Score against counted Brixia zones, beside the best constant."""
    truth, score = brixia_scores(p.records, threshold), p.zones.sum((1, 2)).astype(np.float64)
    scored = np.flatnonzero(np.isfinite(truth) & np.isfinite(score))
    if scored.size == 0:
        return {"images": 0}
    t, s = truth[scored], score[scored]
    mse = cluster_bootstrap(lambda i: float(((t[i] - s[i]) ** 2).mean()), [p.records[int(i)].patient for i in scored])
    figures = {k: _number(v) for k, v in asdict(severity(t, s)).items()}
    return {
        "images": int(scored.size),
        **figures,
        "mse_interval": _plain(mse),
        "mse_constant": round(float(t.var()), 4),
    }


def _dice(p: Predictions, kind: str) -> dict[str, Any]:
    chosen = [i for i, r in enumerate(p.records) if r.lungs_kind == kind]
    values = p.lung_dice[chosen]
    interval = cluster_bootstrap(lambda i: float(values[i].mean()), [p.records[i].patient for i in chosen])
    return {"images": len(chosen), **_plain(interval)}
