"""Many figures of the same images with intervals, from one set of resamples of whole patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.metrics import Estimate, cluster_bootstrap

Index = NDArray[np.intp]
Plain = dict[str, float | None]
DRAWS = 2000


def bootstrap(
    measure: Callable[[Index], Mapping[str, float]], patients: Sequence[str], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Estimate]:
    """cluster_bootstrap of every figure of `measure(indices)`, all on the same draws; at least one image.

    Bounds are NaN where fewer than half of the draws define a figure.
    """
    names = list(measure(np.arange(len(patients))))
    rows: list[list[float]] = []

    def record(i: Index) -> float:
        figures = measure(i)
        rows.append([figures[name] for name in names])
        return 0.0

    cluster_bootstrap(record, patients, draws=draws, seed=seed)
    whole, drawn = rows[-1], np.asarray(rows[:-1], float)  # the last call is of the images themselves
    out = {}
    for name, value, column in zip(names, whole, drawn.T, strict=True):
        kept = column[np.isfinite(column)]
        low, high = np.quantile(kept, (0.025, 0.975)) if len(kept) >= max(1.0, draws / 2) else (np.nan, np.nan)
        out[name] = Estimate(float(value), float(low), float(high))
    return out


def number(value: float) -> float | None:
    """Four decimals; None for what is not defined, since JSON has no NaN."""
    return round(float(value), 4) if np.isfinite(value) else None


def plain(e: Estimate) -> Plain:
    return {"value": number(e.value), "low": number(e.low), "high": number(e.high)}
