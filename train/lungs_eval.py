"""Figures of the lung masks."""

from __future__ import annotations

from typing import Any

from cxrvit_edge.metrics import DRAWS, cluster_bootstrap, plain
from train.predict import Predictions


def lung_dice(p: Predictions, *, draws: int = DRAWS) -> dict[str, Any]:
    """Mean Dice of the union of both lungs by mask convention, with an interval over patients."""
    out = {}
    for kind in sorted({r.lungs_kind for r in p.records if r.lungs_kind}):
        chosen = [i for i, r in enumerate(p.records) if r.lungs_kind == kind]
        values = p.lung_dice[chosen]
        interval = cluster_bootstrap(
            lambda i, values=values: float(values[i].mean()),  # type: ignore[misc]
            [p.records[i].patient for i in chosen],
            draws=draws,
        )
        out[kind] = {"images": len(chosen), **plain(interval)}
    return out


def lung_dice_by_source(p: Predictions, *, draws: int = DRAWS) -> dict[str, Any]:
    """`lung_dice` of each source that has masks."""
    out = {}
    for source in sorted({r.source for r in p.records if r.lungs_kind}):
        rows = [i for i, r in enumerate(p.records) if r.source == source]
        part = Predictions([p.records[i] for i in rows], p.logits[rows], p.zones[rows], p.lung_dice[rows])
        out[source] = lung_dice(part, draws=draws)
    return out
