"""What a set of records holds, as the paper's Tables 1 to 3 and what they leave unsaid: findings, sexes, patients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from cxrvit_edge.model.config import CLASSES, FINDINGS
from cxrvit_edge.readers.views import view_from_text
from cxrvit_edge.report.words import CLASS_NAMES
from train.data.record import Record

SPLITS = ("train", "val", "test")
AFFECTED = 1.0  # Brixia of a zone from which it counts (ours: the paper does not say how it translated them)


def summary(records: Sequence[Record], left_out: Mapping[str, int] | None = None) -> str:
    """Aligned text: Tables 1 and 2 (classes by source and split, PA and AP), 3 (severity by source), images, findings.

    A table with nothing in it is one line that says so. Every record is in exactly one of Table 1, Table 2 and the one
    of films whose view is neither or not stated. left_out: reason -> rows, from the readers.
    """
    views = [v if (v := view_from_text(r.view)) in ("PA", "AP") else "unknown" for r in records]
    parts = [_images(records, views)]
    for title, view in (
        ("Table 1. Disease classes, PA view", "PA"),
        ("Table 2. Disease classes, AP view", "AP"),
        ("Disease classes, another or no view", "unknown"),
    ):
        own = [r for r, v in zip(records, views, strict=True) if v == view]
        if own or view != "unknown":
            parts.append(_classes(title, own))
    parts += [_severity(records), _findings(records), _left_out(left_out or {})]
    return "\n\n".join(parts) + "\n"


def severity_level(record: Record, affected: float = AFFECTED) -> int | None:
    """Zones affected, 0 to 6: those the radiologist scored 0 or 1, else those of a Brixia score from `affected` on.

    None without either, or if a zone is not scored.
    """
    if record.zones is not None:
        return None if np.isnan(record.zones).any() else int(record.zones.sum())
    return None if record.brixia is None else int((record.brixia >= affected).sum())


def _images(records: Sequence[Record], views: Sequence[str]) -> str:
    rows = []
    for source in (*_sources(records), None):
        own = [(r, v) for r, v in zip(records, views, strict=True) if source in (None, r.source)]
        sexes, seen = Counter(r.sex for r, _ in own), Counter(v for _, v in own)
        patients = {r.patient for r, _ in own}
        masks = [sum(getattr(r, field) is not None for r, _ in own) for field in ("lungs", "opacity")]
        counts = [len(own), len(patients), seen["PA"], seen["AP"], seen["unknown"]]
        counts += [sexes["female"], sexes["male"], sexes["unknown"], *masks]
        rows.append([source or "Total", *map(str, counts)])
    head = ["source", "images", "patients", "PA", "AP", "view ?", "female", "male", "sex ?", "lung masks", "opacities"]
    return _table("Images", head, rows)


def _classes(title: str, records: Sequence[Record]) -> str:
    rows = []
    for source in (*_sources(records), None):
        for split in SPLITS:
            own = [r for r in records if source in (None, r.source) and r.split == split]
            if own or source is None:
                rows.append([source or "Total", split, *map(str, _by_class(own))])
    rows.append(["Total", "", *map(str, _by_class(records))])
    head = ["source", "split", *(CLASS_NAMES[c] for c in CLASSES), "no class", "total"]
    return _table(title, head, rows, texts=2) if records else f"{title}: no image."


def _by_class(records: Sequence[Record]) -> list[int]:
    counts = Counter(r.label for r in records)
    return [*(counts[i] for i in range(len(CLASSES))), counts[None], len(records)]


def _severity(records: Sequence[Record]) -> str:
    title = "Table 3. Global severity level (zones affected)"
    scored = [(r, level) for r in records if (level := severity_level(r)) is not None]
    if not scored:
        return f"{title}: no image has a score."
    sources = _sources([r for r, _ in scored])
    counts = Counter((r.source, level) for r, level in scored)
    rows = []
    for level in range(7):
        own = [counts[source, level] for source in sources]
        rows.append([str(level), *map(str, (sum(own), *own))])
    totals = [sum(counts[source, level] for level in range(7)) for source in sources]
    rows.append(["Total", *map(str, (sum(totals), *totals))])
    above = [sum(counts[source, level] for level in range(1, 7)) for source in sources]
    rows.append(["1 to 6", *map(str, (sum(above), *above))])
    note = f"A Brixia zone counts from {AFFECTED:g} on. The paper lists levels 1 to 6."
    return _table(title, ["level", "Total", *sources], rows) + f"\n{note}"


def _findings(records: Sequence[Record]) -> str:
    title = "Findings (present / absent / not known)"
    sources = [s for s in _sources(records) if any(r.source == s and not np.isnan(r.findings).all() for r in records)]
    if not sources:
        return f"{title}: no source labels them."
    known = {s: np.stack([r.findings for r in records if r.source == s]) for s in sources}  # (N, 10)
    rows = []
    for i, name in enumerate(FINDINGS):
        cells = [known[s][:, i] for s in sources]
        rows.append([name, *(f"{(c == 1).sum()} / {(c == 0).sum()} / {np.isnan(c).sum()}" for c in cells)])
    return _table(title, ["finding", *sources], rows)


def _left_out(left_out: Mapping[str, int]) -> str:
    rows = [[reason, str(n)] for reason, n in sorted(left_out.items()) if n]
    return _table("Rows left out", ["reason", "rows"], rows) if rows else "Rows left out: none."


def _sources(records: Sequence[Record]) -> list[str]:
    return sorted({r.source for r in records})


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Columns as wide as their widest cell; the first `texts` to the left, figures to the right."""
    cells = [list(head), *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) if i < texts else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join([title, lines[0].rstrip(), "-" * len(lines[0]), *(line.rstrip() for line in lines[1:])])
