"""What a variant says otherwise than its reference, on the benchmark page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cxrvit_edge.plain_text import count
from cxrvit_edge.report.changes import changed
from cxrvit_edge.report.html import shown
from cxrvit_edge.report.markup import UNDEFINED, chip, figure, listed, table

LISTED = 200  # images judged otherwise, of a variant
HASH = 12  # digits shown


def whole(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Figures of all images that were compared."""
    found: Mapping[str, Any] = record["splits"]["both"]
    return found


def is_int8(report: Mapping[str, Any], variant: str) -> bool:
    return any(c["name"] == variant and c["precision"].startswith("int8") for c in report["candidates"])


def answer(report: Mapping[str, Any]) -> str:
    """Whether INT8 changed a diagnosis, in plain words."""
    if not any(c["precision"].startswith("int8") for c in report["candidates"]):
        return "No INT8 candidate ran on this box."
    records = [r for r in report["parity"] if is_int8(report, r["variant"])]
    if not records:
        return "Not tested: it takes images (--data)."
    return "<br>".join(_said(r) for r in records)


def _said(record: Mapping[str, Any]) -> str:
    found = whole(record)
    flips, images = found["flips"], count(found["images"], "image")
    against = f"{shown(record['variant'])} against {shown(record['reference'])}"
    if found["not_finite"]:
        return f"<b>{against}: {count(found['not_finite'], 'image')} of {images} got no number at all.</b>"
    percent = record["auc_per_cent"]
    kept = "" if percent is None else f" It keeps {percent:.2f} % of the mean AUC."
    if not flips["images"]:
        return f"<b>No.</b> {against}: all {images} got the same label, flags and status.{kept}"
    kinds = (("label", "another label"), ("flags", "another flag"), ("status", "accepted by one only"))
    parts = [f"{words} in {flips[k]:,}" for k, words in kinds if flips[k]]
    if flips["severity"]:
        parts.append(f"severity measured by one only in {flips['severity']:,}")
    return f"<b>Yes, in {flips['images']:,} of {images}.</b> {against}: {listed(parts)}.{kept}"


def parity(report: Mapping[str, Any]) -> str:
    records = report["parity"]
    if not records:
        return '<p class="none">Nothing was compared: it takes two candidates, or a stored reference, and images.</p>'
    rows = [_row(r) for r in records]
    head = [
        "Candidate",
        "Bounds",
        "99 % of AUC",
        "99.9 % of AUC",
        "Mean AUC, of the<br>reference&#8217;s",
        "Images judged<br>otherwise",
        "Largest probability<br>difference",
        "Severity (0-6)<br>difference",
    ]
    return (
        table(head, rows, "Against the reference, image by image", texts=4)
        + '<p class="read">An image is judged otherwise if its label or a flag is another, if it is accepted by one '
        "and turned away by the other, or if its severity is measured by one only. Small differences of a probability "
        "are what rounding costs. The reference is the network in the precision named, not the truth.</p>"
        + "".join(_changes(r) for r in records)
    )


def _row(record: Mapping[str, Any]) -> list[str]:
    found, percent = whole(record), record["auc_per_cent"]
    flips, bounds = found["flips"], record["bounds"]
    mae = found["severity"]["mae"]
    return [
        f'<span class="cand">{shown(record["variant"])}</span><small>against {shown(record["reference"])}</small>',
        chip("within", True) if record["within"] else chip("outside", False) + _failures(record),
        _verdict(record["at_99"]),
        _verdict(record["at_99_9"]),
        UNDEFINED if percent is None else f"{percent:.2f} %",
        f"{flips['images']:,}<small>of {found['images']:,}, at most {bounds['flips']:,}</small>",
        f"{_or(found['probabilities']['largest'])}<small>at most {figure(bounds['probability'])}</small>",
        f"{_or(mae)}<small>at most {figure(bounds['severity_mae'])}</small>",
    ]


def _or(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.4f}"


def _verdict(held: bool | None) -> str:
    return chip("not defined", None) if held is None else chip("pass", True) if held else chip("fail", False)


def _failures(record: Mapping[str, Any]) -> str:
    return "".join(f"<small>{shown(f)}</small>" for f in record["failures"])


def _changes(record: Mapping[str, Any]) -> str:
    changes, title = record["changes"], f"{shown(record['variant'])} against {shown(record['reference'])}"
    if not changes:
        return (
            f'<h3>{title}</h3><p class="read">Every image is judged alike: same label, flags, status and priority.</p>'
        )
    rows = [
        [f'<span class="hash">{shown(c["sha256"][:HASH])}</span>', "<br>".join(changed(c))] for c in changes[:LISTED]
    ]
    left = len(changes) - LISTED
    more = f'<p class="read">{left:,} more are in report.json.</p>' if left > 0 else ""
    head = [f"Image<small>SHA-256, first {HASH} digits</small>", "From reference to candidate"]
    return f"<h3>{title}: {count(len(changes), 'change')}</h3>{table(head, rows, texts=2, kind='brief')}{more}"
