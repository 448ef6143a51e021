"""Figures of two sides: ranks on their worklists, how alike two orders are, McNemar's test."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.bundle import Manifest
from cxrvit_edge.compare.pairs import Pair
from cxrvit_edge.metrics import kendall_tau, spearman
from cxrvit_edge.report.worklist import ranked, urgency

PLACES = 2000  # pairs of ranks that are kept for the picture, the farthest moved FARTHEST among them
FARTHEST = 400
MOST_PAIRED = 20_000  # images of which every pair is looked at: a second


class Ranks(NamedTuple):
    """(N,) each, of the matched images. place: 1 is the most urgent; level: the same for what the worklist does not
    order, which then stands by name."""

    place: NDArray[np.intp]
    level: NDArray[np.float64]


def ranks_of(pairs: Sequence[Pair], side: int, manifest: Manifest) -> Ranks:
    """Ranks of one side; ties stand by A's names on both."""
    files, findings = [pair.file for pair in pairs], [pair[side] for pair in pairs]
    place = {file: i for i, file in enumerate(ranked(files, findings, manifest).files, 1)}
    keys = [urgency(finding, manifest)[:-1] for finding in findings]
    levels = {key: i for i, key in enumerate(sorted(set(keys)))}
    return Ranks(
        np.array([place[file] for file in files], np.intp), np.array([levels[key] for key in keys], np.float64)
    )


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> dict[str, Any]:
    """Of two orders, by what the worklist orders by: images that it holds to be equally urgent are tied. {spearman,
    kendall, why: what is not defined, and the cause}."""
    none = {"spearman": None, "kendall": None}
    if len(a) < 2:
        return {**none, "why": "fewer than two images"}
    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return {**none, "why": "all images are equally urgent, so there is no order to compare"}
    rho = round(spearman(a, b), 12)
    if len(a) > MOST_PAIRED:
        return {"spearman": rho, "kendall": None, "why": f"Kendall's tau is left out above {MOST_PAIRED:,} images"}
    return {"spearman": rho, "kendall": round(kendall_tau(a, b), 12), "why": None}


def places(a: NDArray[np.intp], moves: NDArray[np.intp]) -> list[list[int]]:
    """[rank in A, rank in B] of at most PLACES images, by A's rank."""
    by_move = np.argsort(-np.abs(moves), kind="stable")
    chosen = by_move
    if len(by_move) > PLACES:
        rest = np.sort(by_move[FARTHEST:])
        chosen = np.r_[by_move[:FARTHEST], rest[np.linspace(0, len(rest) - 1, PLACES - FARTHEST).astype(int)]]
    chosen = chosen[np.argsort(a[chosen])]
    return [[int(a[i]), int(a[i] + moves[i])] for i in chosen]


def mcnemar(b: int, c: int) -> float:
    """Two-sided p of McNemar's exact test: of b + c images that one side alone judges rightly, b are A's. NaN without
    any."""
    n = b + c
    if not n:
        return math.nan
    # logarithms: 2 ** n has no float from n = 1024 on
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(min(b, c) + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def gaps(values: Iterable[tuple[float | None, float | None]]) -> dict[str, Any]:
    gap = np.array([y - x for x, y in values if x is not None and y is not None])
    if not len(gap):
        return {"count": 0, "mean": None, "mae": None, "rms": None, "largest": None}
    return {
        "count": len(gap),
        "mean": figure(gap.mean()),
        "mae": figure(np.abs(gap).mean()),
        "rms": figure(np.sqrt((gap**2).mean())),
        "largest": figure(np.abs(gap).max()),
    }


def figure(value: float) -> float | None:
    """Six significant digits; None if it is not defined."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
