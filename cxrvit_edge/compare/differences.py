"""Two sides over the same images: order of the worklist, flips, differences of every figure. Plain JSON, no NaN."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cxrvit_edge.compare.figures import Ranks, correlation, figure, gaps, mcnemar, places, ranks_of
from cxrvit_edge.compare.pairs import KINDS, MEASURE, Pair, judged, match, score, standing
from cxrvit_edge.compare.sources import Side
from cxrvit_edge.errors import UsageError
from cxrvit_edge.findings import Finding
from cxrvit_edge.labels import LABELS

FIRST = 5  # images that are named of those in one side only
TOPS = (10, 25, 50)


def differences(a: Side, b: Side, truths: Mapping[str, int], listed: int) -> dict[str, Any]:
    """What the two say otherwise of the images that both have.

    truths: class index by SHA-256; listed: how many of the largest differences. A figure that is not defined is None.
    UsageError if the sides judge classes of which none is the same.
    """
    common = [name for name in a.manifest.classes if name in b.manifest.classes]
    if not common and a.manifest.classes and b.manifest.classes:
        own, other = (", ".join(side.manifest.classes) for side in (a, b))
        raise UsageError(f"A judges {own}, B {other}: they have no class in common; compare bundles of like classes")
    pairs, only_a, only_b = match(a.findings, b.findings)
    ranks = [ranks_of(pairs, i, side.manifest) for i, side in enumerate((a, b))]
    changes = [pair.changes(common) for pair in pairs]
    held = _Held(pairs, ranks, changes, truths)
    return {
        "images": {
            "a": len(a.findings),
            "b": len(b.findings),
            "matched": len(pairs),
            "judged": sum(pair.judged for pair in pairs),
            "only_in_a": {"count": len(only_a), "first": [f.file for f in only_a[:FIRST]]},
            "only_in_b": {"count": len(only_b), "first": [f.file for f in only_b[:FIRST]]},
        },
        "identical": sum(pair.identical for pair in pairs),
        "classes": {
            "common": common,
            "only_in_a": [c for c in a.manifest.classes if c not in common],
            "only_in_b": [c for c in b.manifest.classes if c not in common],
            "flagged": [c for c in common if c in (*a.manifest.priority.flagged, *b.manifest.priority.flagged)],
        },
        "worklist": _worklist(held),
        "flips": _flips(held, common),
        "differences": _figures(pairs, common),
        "labels": _against_labels(held) if truths else None,
        "largest": _largest(held, common, listed),
    }


class _Held(NamedTuple):
    pairs: Sequence[Pair]
    ranks: Sequence[Ranks]
    changes: Sequence[Mapping[str, Any]]
    truths: Mapping[str, int]

    def image(self, i: int) -> dict[str, Any]:
        """What an image is called by, wherever it is listed."""
        pair = self.pairs[i]
        named = {"file": pair.file, "sha256": pair.sha256, "rank": [int(r.place[i]) for r in self.ranks]}
        return named | ({"truth": truth} if (truth := self.truth(i)) is not None else {})

    def truth(self, i: int) -> int | None:
        return self.truths.get(self.pairs[i].sha256 or "")


def _worklist(held: _Held) -> dict[str, Any]:
    a, b = held.ranks
    moves = b.place - a.place
    farthest = int(np.abs(moves).argmax()) if len(moves) else None
    both = np.array([pair.judged for pair in held.pairs], bool)
    return {
        "images": len(moves),
        **correlation(a.level, b.level),
        "judged": {"images": int(both.sum()), **correlation(a.level[both], b.level[both])},
        "moved": int((moves != 0).sum()),
        "mean_move": figure(np.abs(moves).mean()) if len(moves) else None,
        "largest_move": held.image(farthest) if farthest is not None and moves[farthest] else None,
        "overlap": [
            {"first": top, "shared": int(((a.place <= top) & (b.place <= top)).sum())}
            for top in TOPS
            if top < len(moves)
        ],
        "priorities": [dict(Counter(pair[side].priority for pair in held.pairs)) for side in range(2)],
        "places": places(a.place, moves),
    }


def _flips(held: _Held, classes: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {kind: [] for kind in KINDS if kind != "flags"}
    flags: dict[str, list[dict[str, Any]]] = {name: [] for name in classes}
    for i in np.argsort(held.ranks[0].place):
        for kind, change in held.changes[i].items():
            each = change.items() if kind == "flags" else [(kind, change)]
            for name, (before, after) in each:
                (flags if kind == "flags" else found)[name].append({**held.image(i), "from": before, "to": after})
    return {"images": sum(map(bool, held.changes)), **found, "flags": flags}


def _figures(pairs: Sequence[Pair], classes: Sequence[str]) -> dict[str, Any]:
    """Differences, B less A, over the images that both judged."""
    both = [pair for pair in pairs if pair.judged]
    scores = [(x, y) for pair in both if (x := score(pair.a)) is not None and (y := score(pair.b)) is not None]
    zones = [(zones_of(pair.a), zones_of(pair.b)) for pair in both]
    measured = np.array([(x, y) for x, y in zones if x is not None and y is not None], float)  # (N, 2, 3, 2)
    by_zone = np.abs(measured[:, 1] - measured[:, 0]).mean(axis=0) if len(measured) else None
    return {
        "images": len(both),
        "probabilities": {name: gaps([pair.probabilities(name) for pair in both]) for name in classes},
        "severity": gaps(scores),
        "zones": {
            **gaps(
                [(float(x), float(y)) for x, y in measured.transpose(0, 2, 3, 1).reshape(-1, 2)]
                if len(measured)
                else []
            ),
            "by_zone": None if by_zone is None else [[figure(v) for v in row] for row in by_zone],
        },
    }


def zones_of(finding: Finding) -> Any:
    return finding.severity.zones if finding.severity else None


def _against_labels(held: _Held) -> dict[str, Any]:
    """On which side the label is right, over the labelled images that both judged."""
    flips: Counter[str] = Counter({"a_right": 0, "b_right": 0, "both_wrong": 0})
    right, images = [0, 0], 0
    for i, pair in enumerate(held.pairs):
        truth = held.truth(i)
        if truth is None or not pair.judged:
            continue
        hits = [LABELS.get(f.label or "") == truth for f in pair]
        images += 1
        right = [n + hit for n, hit in zip(right, hits, strict=True)]
        if "label" in held.changes[i]:
            flips["a_right" if hits[0] else "b_right" if hits[1] else "both_wrong"] += 1
    return {
        "images": images,
        "right": {"a": right[0], "b": right[1]},
        "flips": dict(flips),
        "mcnemar_p": figure(mcnemar(flips["a_right"], flips["b_right"])),
    }


def _largest(held: _Held, classes: Sequence[str], listed: int) -> dict[str, Any]:
    distances = np.array([pair.distance(classes) for pair in held.pairs])
    moves = np.abs(held.ranks[1].place - held.ranks[0].place)
    order = np.lexsort((held.ranks[0].place, -moves, -distances)) if len(distances) else np.array([], int)
    chosen = [int(i) for i in order[:listed] if distances[i] > 0]
    images = [
        {
            **held.image(i),
            "difference": figure(distances[i]),
            "changes": sorted(held.changes[i]),
            "a": numbers(held.pairs[i].a),
            "b": numbers(held.pairs[i].b),
        }
        for i in chosen
    ]
    return {"measure": MEASURE, "differing": int((distances > 0).sum()), "images": images}


def numbers(finding: Finding) -> dict[str, Any]:
    """What one side says of an image."""
    return {
        "file": finding.file,
        "status": finding.status,
        "standing": standing(finding),
        "label": finding.label if judged(finding) else None,
        "probabilities": finding.probabilities,
        "flags": finding.flags,
        "score": score(finding),
        "zones": None if (zones := zones_of(finding)) is None else [list(row) for row in zones],
        "priority": finding.priority,
    }
