"""report.html: the worklist with pictures, in one file that needs no network."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any

from cxrvit_edge.bundle import Manifest, Selective
from cxrvit_edge.findings import Finding
from cxrvit_edge.plain_text import count, escaped
from cxrvit_edge.report import thumbnails as pictures
from cxrvit_edge.report.page import date, page
from cxrvit_edge.report.run import RESEARCH_USE, Run
from cxrvit_edge.report.words import (
    CAVEAT,
    CLASS_NAMES,
    REASONS,
    RELEVANCE_CAPTION,
    RELEVANCE_LEGEND,
    SEVERITY_CAPTION,
    UNLIKE,
    undecided,
    unlike,
)

PICTURED = 200  # rows with an image: about 25 kB each
LISTED = 20_000  # rows in all: a browser takes seconds over them, and minutes over more
_HERE = Path(__file__).parent
_ROWS = "\0"  # stands for the rows in the filled template; no shown text holds it


def write_report(
    path: Path,
    findings: Sequence[Finding],
    run: Run,
    manifest: Manifest,
    thumbnails: Path,
    counts: tuple[Counter[str], Counter[str]] | None = None,
) -> None:
    """Write the report of `findings`, most urgent first, to `path`; it appears whole or not at all.

    thumbnails: folder of `thumbnails.save`, keyed by Finding.sha256; a missing or broken picture is left out.
    counts: findings by status and by priority; None counts them. Rows beyond LISTED are counted and left out, and the
    page says so. OSError if `path` cannot be written.
    """
    counts = counts or _counted(findings)
    pictured = (_key(finding) for finding in islice(findings, PICTURED))
    explained = any(pictures.relevance_path(thumbnails, key).exists() for key in pictured if key)
    head, tail = _page(len(findings), counts, run, manifest, explained).split(_ROWS)
    temporary = path.with_name(f".{path.name}.tmp")  # a killed run's is written over
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as f:
            f.write(head)
            for rank, finding in enumerate(islice(findings, LISTED), 1):
                f.write(_row(rank, finding, manifest, run, thumbnails if rank <= PICTURED else None))
            f.write(tail)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def shown(text: object) -> str:
    """Text as HTML; what cannot be seen (controls, direction marks, lone surrogates) as its Python escape."""
    return escape(escaped(str(text)))


def breakable(text: str) -> str:
    """A file's name as HTML that may go on in the next line after its separators."""
    return re.sub(r"([/_-]|\.(?=\d))", r"\1<wbr>", shown(text))  # escapes hold none of these


def _counted(findings: Iterable[Finding]) -> tuple[Counter[str], Counter[str]]:
    statuses: Counter[str] = Counter()
    priorities: Counter[str] = Counter()
    for finding in findings:  # once: each may be read from disk
        statuses[finding.status] += 1
        priorities[finding.priority] += 1
    return statuses, priorities


def _page(total: int, counts: tuple[Counter[str], Counter[str]], run: Run, manifest: Manifest, explained: bool) -> str:
    statuses, priorities = counts
    order = [*manifest.priority.order, *sorted(set(priorities) - set(manifest.priority.order))]
    beyond, left_out = max(0, min(total, LISTED) - PICTURED), max(0, total - LISTED)
    end = f"Images are shown for the first {PICTURED} rows; {beyond:,} further rows are text only." if beyond else ""
    if left_out:
        end += f" {left_out:,} rows more, less urgent than these, are in worklist.csv alone."
    points = run.rule.points(manifest)
    started = shown(date(run.started))
    style = Template((_HERE / "report.css").read_text("utf-8")).substitute(
        scale=severity_scale(), points=_marks(manifest, run)
    )
    body = Template((_HERE / "report.html").read_text("utf-8")).substitute(
        date=started,
        research_use=shown(RESEARCH_USE),
        caveat=shown(manifest.raw.get("caveat") or CAVEAT),
        counts=_counts(total, order, priorities, statuses),
        run="".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _figures(run)),
        notes=f'<ul class="notes">{"".join(f"<li>{shown(n)}</li>" for n in run.notes)}</ul>' if run.notes else "",
        flagged=" or ".join(_class(name) for name in manifest.priority.flagged),
        urgent_score=f"{manifest.priority.urgent_score:g}",
        points=", ".join(f"{_class(c)} {points[c]:.2f}" for c in manifest.classes),
        sensitivity=run.rule.sensitivity,
        abstained=(", the network undecided" if run.rule.selective else "")
        + ("" if manifest.guard.ood is None else f", {UNLIKE}"),
        undecided=("" if manifest.selective is None else _undecided(manifest.selective, run))
        + ("" if manifest.guard.ood is None else _unlike(manifest.guard.ood)),
        intended_use=shown(manifest.intended_use),
        relevance=f"<section><h2>Relevance</h2><p>{shown(RELEVANCE_LEGEND)}</p></section>" if explained else "",
        filters="".join(
            f'<label><input type="checkbox" value="{shown(p)}" checked> {_title(p)}</label> ' for p in order
        ),
        caption=f"{count(total, 'input')}, most urgent first. {end}" if total else "No input was found.",
        many=' class="many"' if beyond else "",
        rows=_ROWS,
        end=end or ("Every input is listed." if total else ""),
    )
    script = (_HERE / "report.js").read_text("utf-8")
    return page(f"Chest radiograph worklist, {started}", style, body, scheme="light dark", script=script)


def _counts(total: int, order: Sequence[str], priorities: Counter[str], statuses: Counter[str]) -> str:
    cells = [f"<div><dt>Inputs</dt><dd>{total:,}</dd></div>"]
    for i, p in enumerate(order):
        rule = " rule" if i == 0 else ""
        cells.append(f'<div class="{shown(p)}{rule}"><dt>{_chip(p)}</dt><dd>{priorities[p]:,}</dd></div>')
    for status, name in (("ok", "Judged"), ("rejected", "Rejected"), ("failed", "Failed")):
        rule = ' class="rule"' if status == "ok" else ""
        cells.append(f"<div{rule}><dt>{name}</dt><dd>{statuses[status]:,}</dd></div>")
    return "".join(cells)


def _figures(run: Run) -> Iterator[tuple[str, str]]:
    yield "Bundle", f'{shown(run.bundle)} <span class="small">{shown(run.bundle_sha256[:12])}</span>'
    yield "Operating point", shown(run.rule)
    yield "Back end", shown(f"{run.backend} {run.backend_version}, {run.precision}")
    speed = f", {run.done / run.seconds:.1f} a second" if run.done and run.seconds > 0 else ""
    kept = f"; {run.resumed:,} kept from an earlier run" if run.resumed else ""
    yield "This run", f"{count(run.done, 'input')} in {_duration(run.seconds)}{speed}{kept}"
    if run.stage_ms:
        yield "Mean per input", shown(", ".join(f"{stage} {ms:.1f}" for stage, ms in run.stage_ms.items()) + " ms")


def _row(rank: int, finding: Finding, manifest: Manifest, run: Run, folder: Path | None) -> str:
    priority = shown(finding.priority)
    rich = folder is not None
    if finding.status == "ok" and finding.probabilities is not None:
        result = _judged(finding, manifest, rich)
    else:
        result = _not_judged(finding)
    warnings = "".join(f"<li>Warning: {shown(w)}</li>" for w in finding.warnings)
    cut = finding.file.rfind("/") + 1
    directory, name = (breakable(part) if rich else shown(part) for part in (finding.file[:cut], finding.file[cut:]))
    place = f'<bdi class="dir">{directory}</bdi>' if directory else ""
    return (
        f'<tr class="{priority}" data-p="{priority}" data-s="{shown(finding.status)}"><td class="n">{rank}</td>'
        f"<td>{_chip(finding.priority)}</td><td>{_picture(rank, finding, run, folder)}</td>"
        f'<th scope="row">{place}<bdi>{name}</bdi>'
        f"{f'<ul class=warn>{warnings}</ul>' if warnings else ''}</th>"
        f'<td class="view">{shown(finding.view or "unknown")}</td>{result}</tr>\n'
    )


def _judged(finding: Finding, manifest: Manifest, rich: bool) -> str:
    label = _class(finding.label) if finding.label else "no label"
    severity = finding.severity
    probabilities = _bars(finding, manifest) if rich else _probabilities(finding, manifest)
    doubt = "".join(f'<p class="doubt">{_title(text)}</p>' for text in (unlike(finding), undecided(finding)) if text)
    cells = f'<td class="find"><b>{label}</b>{doubt}{probabilities}</td>'
    if severity is None or severity.score is None or severity.zones is None:
        return cells + '<td colspan="2" class="none">Not measured: a lung was not found, or is too small.</td>'
    cells += f'<td class="n score" data-v="{severity.score:.3f}">{severity.score:.1f}</td>'
    if not rich:
        return cells + f'<td class="zt">{"<br>".join(f"{a:.1f} {b:.1f}" for a, b in severity.zones)}</td>'
    grid = "".join(f'<i style="--v:{v:.2f}">{v:.1f}</i>' for row in severity.zones for v in row)
    rows = zip(("upper", "middle", "lower"), severity.zones, strict=True)
    words = "; ".join(f"{name} {right:.1f} and {left:.1f}" for name, (right, left) in rows)
    what = f"Zones, patient&#x27;s right and left: {words}"
    return (
        cells + f'<td><div class="zones" role="img" aria-label="{what}"><span>R</span><span>L</span>{grid}</div></td>'
    )


def _bars(finding: Finding, manifest: Manifest) -> str:
    items = []
    for i, (name, value, over, flag) in enumerate(_classes(finding, manifest)):
        bar = f'<i style="--p:{value:.3f}"></i>'
        flag = f"<em>{flag}</em>" if flag else ""
        items.append(
            f'<li class="k{i}{" on" if over else ""}"><span>{name}</span>{bar}<span>{value:.2f}</span>{flag}</li>'
        )
    return f"<ul>{''.join(items)}</ul>"


def _probabilities(finding: Finding, manifest: Manifest) -> str:
    """One line of text: a browser takes seconds longer over 20,000 lists."""
    return ", ".join(
        f"{name} {value:.2f}{flag and f' ({flag})'}" for name, value, _, flag in _classes(finding, manifest)
    )


def _classes(finding: Finding, manifest: Manifest) -> Iterator[tuple[str, float, bool, str]]:
    """Name, probability, whether it reaches the operating point, and what is said if it raises the priority."""
    for name in manifest.classes:
        value = (finding.probabilities or {}).get(name)
        if value is not None:
            over = bool((finding.flags or {}).get(name))
            yield _class(name), value, over, "flagged" if over and name in manifest.priority.flagged else ""


def _not_judged(finding: Finding) -> str:
    reason = finding.reason or {}
    code = reason.get("code", "")
    words = REASONS.get(code, code)
    heading = "Failed" if finding.status == "failed" else "Rejected" if finding.status == "rejected" else "Not judged"
    message = f"<p>{shown(reason['message'])}</p>" if reason.get("message") else ""
    return f'<td colspan="3" class="why"><b>{heading}: {shown(words)}</b>{message}</td>'


def _picture(rank: int, finding: Finding, run: Run, folder: Path | None) -> str:
    if folder is None:
        return ""
    key = _key(finding)
    if key is None:
        return '<span class="none">no image</span>'
    picture, over = (pictures.load(path) for path in pictures.paths(folder, key))
    if picture is None:
        return '<span class="none">no image</span>'
    data, height, width = picture
    size = f'width="{width}" height="{height}"'
    out, caption = f'<img src="{uri("jpeg", data)}" {size} alt="Radiograph of rank {rank}, reduced">', ""
    if over is not None and over[1:] == (height, width):
        out += f'<img class="map" src="{uri("png", over[0])}" {size} alt="">'
        caption = f'<p class="cap">{shown(SEVERITY_CAPTION)}</p>'
    return f'<div class="im">{out}</div>{caption}{_relevance(finding, run, pictures.relevance_path(folder, key))}'


def _key(finding: Finding) -> str | None:
    key = finding.sha256 or ""
    return key if key.isascii() and key.isalnum() else None  # it comes from a file that anyone may have edited


def _relevance(finding: Finding, run: Run, path: Path) -> str:
    relevant = pictures.load(path) if finding.label else None
    if relevant is None or not finding.label:
        return ""
    data, height, width = relevant
    said = RELEVANCE_CAPTION.format(_class(finding.label), shown(run.backend))
    return (
        f'<figure class="rel"><img src="{uri("jpeg", data)}" width="{width}" height="{height}" alt="{said}">'
        f'<figcaption class="cap">{said}</figcaption></figure>'
    )


def uri(kind: str, data: bytes) -> str:
    """kind: jpeg or png."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _undecided(sets: Selective, run: Run) -> str:
    then = (
        "the film is for review whatever its flags"
        if run.rule.selective
        else "its priority follows its flags all the same"
    )
    return (
        f"<section><h2>Undecided</h2><p>A class is possible from a probability of {1 - sets.threshold:.2f} on. Where "
        f"not exactly one is, the network is undecided, and {then}. The limit was chosen on "
        f"{count(sets.images, 'validation image')} so that the true class is a possible one for "
        f"{100 * (1 - sets.alpha):g} % of films like those; at another hospital this does not hold.</p></section>\n"
    )


def _unlike(fitted: Mapping[str, Any]) -> str:
    shares = [100 * float(one["over"]) for one in (fitted.get("left_out") or {}).values()]
    seen = ""
    if shares:
        seen = (
            f" Of a source that the limit was not fitted to, but the network was, {min(shares):.0f} to "
            f"{max(shares):.0f} % of the films were over it: at a hospital that neither knows, expect more."
        )
    asked = fitted.get("share")
    chosen = "" if asked is None else f", chosen so that {100 * asked:g} % of the validation films are over it"
    return (
        "<section><h2>Unlike the films it learned from</h2><p>The distance of a film&#8217;s features from those of "
        f"the films that the network learned from has a limit{chosen}. A film over it is for review whatever its "
        f"flags.{seen}</p></section>\n"
    )


def _marks(manifest: Manifest, run: Run) -> str:
    points = run.rule.points(manifest)
    return "".join(f".k{i}{{--op:{points[c]:.4f}}}" for i, c in enumerate(manifest.classes))


def severity_scale() -> str:
    """The overlay's shades as CSS gradient stops."""
    stops = (f"rgb({r} {g} {b} / {a / 255:.2f})" for r, g, b, a in pictures.palette()[: pictures.CONTOUR : 4])
    return ",".join(stops)


def _class(name: str) -> str:
    return shown(CLASS_NAMES[name]) if name in CLASS_NAMES else _title(name.replace("_", " "))


def _title(text: str) -> str:
    return shown(text[:1].upper() + text[1:])


def _chip(priority: str) -> str:
    return f'<span class="chip">{_title(priority)}</span>'


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
