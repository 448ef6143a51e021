"""The parity records of a bundle as one page: self-contained, no script, made to be printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from cxrvit_edge.report.changes import changed
from cxrvit_edge.report.html import shown
from cxrvit_edge.report.page import page
from cxrvit_edge.report.run import RESEARCH_USE
from cxrvit_edge.report.words import CAVEAT, CLASS_NAMES

SPLITS = {"val": "Validation", "test": "Test", "both": "Both"}
_HERE = Path(__file__).parent


def render(
    bundle_name: str,
    weights_sha256: str,
    records: Mapping[str, Mapping[str, Any]],
    *,
    calibration: Mapping[str, Mapping[str, Any] | None] | None = None,
    caveat: str = CAVEAT,
) -> str:
    """HTML of `records` (variant -> record of `parity.compare`), in their order; those of another form are left out.

    calibration: variant -> its record in the manifest. Images are named by SHA-256 alone.
    """
    held = {name: r for name, r in records.items() if "splits" in r}
    name = shown(bundle_name)
    body = Template((_HERE / "parity_page.html").read_text("utf-8")).substitute(
        name=name,
        weights=shown(weights_sha256),
        research_use=shown(RESEARCH_USE),
        caveat=shown(caveat),
        rows="".join(_row(name, r) for name, r in held.items()),
        sections="".join(_section(name, r, (calibration or {}).get(name)) for name, r in held.items()),
    )
    style = (_HERE / "parity_page.css").read_text("utf-8")
    return page(f"Parity of bundle {name}", style, body)


def _row(name: str, record: Mapping[str, Any]) -> str:
    found, bounds = record["splits"]["both"], record["bounds"]
    ratio, most = found["logits"]["rms_of_std"], bounds["logits_rms"]
    cells = (
        _held(found["flips"]["images"], bounds["flips"]),
        _held(found["probabilities"]["largest"], bounds["probability"]),
        _held(None if ratio is None else 100 * ratio, 100 * most, " %"),
        _held(found["severity"]["mae"], bounds["severity_mae"], lacking=not found["severity"]["images"]),
    )
    auc = found["auc"]
    percent = auc["per_cent"]
    return (
        f'<tr><th scope="row"><a href="#{shown(name)}">{shown(name)}</a></th><td>{_verdict(record)}</td>'
        f"{''.join(cells)}<td>{_signed(auc['mean']['difference'])}</td>"
        f'<td class="n">{"not defined" if percent is None else f"{percent:.2f} %"}</td></tr>'
    )


def _verdict(record: Mapping[str, Any]) -> str:
    if record["within"]:
        return '<span class="chip in">Within bounds</span>'
    words = "Outside, allowed" if record.get("allowed_failing") else "Outside bounds"
    return f'<span class="chip out">{words}</span>'


def _held(value: float | None, bound: float, unit: str = "", *, lacking: bool = False) -> str:
    """A figure with its bound, and a bar of how much of that it takes."""
    if value is None:
        return f'<td class="n">{"none measured" if lacking else "<b>not finite</b>"}</td>'
    share = value / bound if bound else float(value > 0)
    over = value > bound
    bar = f'<i class="bar{" over" if over else ""}" style="--w:{min(share, 1):.3f}"></i>'
    figure = f"<b>{_number(value)}{unit}</b>" if over else f"{_number(value)}{unit}"
    return f'<td class="n">{figure}{bar}<small>at most {_number(bound)}{unit}</small></td>'


def _section(name: str, record: Mapping[str, Any], calibration: Mapping[str, Any] | None) -> str:
    splits = {s: record["splits"][s] for s in SPLITS if s in record["splits"]}
    notes = [f"<li>{shown(f)}</li>" for f in record["failures"]]
    failures = f'<ul class="failures">{"".join(notes)}</ul>' if notes else ""
    allowed = (
        "<p><b>It is outside its bounds and was exported all the same (--allow-failing).</b></p>"
        if record.get("allowed_failing")
        else ""
    )
    head = "".join(f'<th scope="col" class="n">{SPLITS[s]}</th>' for s in splits)
    figures = "".join(
        f'<tr><th scope="row">{words}</th>{"".join(f"<td class=n>{v}</td>" for v in values)}</tr>'
        for words, values in _figures(list(splits.values()))
    )
    return (
        f'<section id="{shown(name)}"><h2>{shown(name)} {_verdict(record)}</h2>{allowed}{failures}'
        f"<dl><div><dt>Run by</dt><dd>{shown(record['executor'])}</dd></div>"
        f"<div><dt>Compared with</dt><dd>{shown(record['reference'])}</dd></div>"
        f"{_calibration(calibration)}</dl>"
        f'<table class="figures"><thead><tr><th scope="col">Difference from the reference</th>{head}</tr></thead>'
        f"<tbody>{figures}</tbody></table>{_auc(splits)}{_changes(record['changes'])}</section>"
    )


def _figures(splits: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    def each(*path: str, unit: float = 1.0, end: str = "") -> list[str]:
        out = []
        for split in splits:
            value: Any = split
            for key in path:
                value = value[key]
            out.append("not defined" if value is None else f"{_number(unit * value)}{end}")
        return out

    yield "Images (patients)", [f"{s['images']} ({s['patients']})" for s in splits]
    yield "Images flipped: label, flag, status or severity", each("flips", "images")
    yield "&emsp;label", each("flips", "label")
    yield "&emsp;a flag", each("flips", "flags")
    yield "&emsp;accepted or turned away", each("flips", "status")
    yield "&emsp;severity measured or not", each("flips", "severity")
    yield "Priority changed", each("flips", "priority")
    yield "Values not finite", each("not_finite")
    yield "Largest logit difference", each("logits", "largest")
    yield "RMS logit difference", each("logits", "rms")
    yield "&emsp;of the logits&#8217; standard deviation", each("logits", "rms_of_std", unit=100, end=" %")
    yield "Largest probability difference", each("probabilities", "largest")
    yield "RMS probability difference", each("probabilities", "rms")
    yield "Severity score (0-6), mean absolute difference", each("severity", "mae")
    yield "Severity score, largest difference", each("severity", "largest")


def _auc(splits: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for split, found in splits.items():
        auc = found["auc"]
        classes = [c for c in auc if c not in ("mean", "per_cent")]
        for i, c in enumerate([*classes, "mean"]):
            e = auc[c]
            first = f'<th scope="rowgroup" rowspan="{len(classes) + 1}">{SPLITS[split]}</th>' if i == 0 else ""
            a, b = (_value(e[k]) if c == "mean" else _interval(e[k]) for k in ("reference", "variant"))
            rows.append(
                f'<tr>{first}<th scope="row">{"Mean" if c == "mean" else shown(CLASS_NAMES.get(c, c))}</th>'
                f'<td class="n">{a}</td><td class="n">{b}</td><td class="n">{_signed(e["difference"])}</td></tr>'
            )
    head = "".join(f'<th scope="col" class="n">{w}</th>' for w in ("Reference", "Variant", "Difference"))
    return (
        "<table><caption>AUC, one class against the rest, with 95 % intervals (DeLong; differences by a bootstrap over "
        f'patients, paired)</caption><thead><tr><th scope="col">Split</th><th scope="col">Class</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _changes(changes: Sequence[Mapping[str, Any]]) -> str:
    if not changes:
        return "<p>Every image is judged as by the reference: same label, flags, status and priority.</p>"
    rows = "".join(
        f'<tr><td class="hash">{shown(c["sha256"])}</td><td>{SPLITS.get(c["split"], "")}</td>'
        f"<td>{'<br>'.join(changed(c, 'to'))}</td></tr>"
        for c in changes
    )
    return (
        "<table><caption>Images judged otherwise, by the SHA-256 of the file</caption><thead><tr>"
        '<th scope="col">Image</th><th scope="col">Split</th><th scope="col">Reference to variant</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _calibration(record: Mapping[str, Any] | None) -> str:
    """Plain values as they are, lists by their length: the manifest holds the rest."""
    if not record:
        return ""
    parts = []
    for key, value in record.items():
        if isinstance(value, (str, int, float)) or value is None:
            parts.append(f"{shown(key)} {shown(value)}")
        elif isinstance(value, (list, tuple)):
            parts.append(f"{shown(key)}: {len(value)}")
        elif isinstance(value, Mapping) and all(isinstance(v, (str, int, float)) for v in value.values()):
            parts.append(f"{shown(key)}: {', '.join(f'{shown(k)} {shown(v)}' for k, v in list(value.items())[:12])}")
    return f"<div><dt>Calibration</dt><dd>{'; '.join(parts)}</dd></div>"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _value(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"


def _interval(e: Mapping[str, Any]) -> str:
    if e["value"] is None:
        return "not defined"
    interval = "no interval" if e["low"] is None else f"{e['low']:.3f} to {e['high']:.3f}"
    return f"{e['value']:.4f} <small>{interval}</small>"


def _signed(e: Mapping[str, Any]) -> str:
    if e["value"] is None:
        return "not defined"
    interval = "no interval" if e["low"] is None else f"{e['low']:+.4f} to {e['high']:+.4f}"
    return f"{e['value']:+.4f} <small>{interval}</small>"
