"""AUC, operating points, calibration, severity and the groups, on the benchmark page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cxrvit_edge.benchmark import charts
from cxrvit_edge.benchmark.charts import candidate, places
from cxrvit_edge.benchmark.page_selective import selective
from cxrvit_edge.plain_text import count
from cxrvit_edge.report.html import shown
from cxrvit_edge.report.markup import (
    UNDEFINED,
    bullets,
    estimate,
    interval,
    name,
    pairs,
    picture,
    pictures,
    table,
    undefined,
)
from cxrvit_edge.report.words import REASONS

KINDS = {
    "absent": "Files that are not there",
    "unreadable": "Files that cannot be read",
    "path": "Paths that cannot be used",
    "label": "Labels that are not known",
    "number": "Numbers that are none",
    "duplicate": "Files named twice; one is kept",
    "contradiction": "Files with two labels; none is kept",
    "severity": "Severity that cannot be used",
    "folder": "Folders that are no class",
    "one_class": "One class only",
    "no_label": "No label",
}
Blocks = Mapping[str, Mapping[str, Any]]
Place = Mapping[str, int]


def answer(report: Mapping[str, Any], fastest: str | None) -> str:
    """The accuracy of the fastest candidate in plain words."""
    found = report["accuracy"]
    if found is None:
        return "Not measured: it takes labelled images (--data)."
    blocks: Blocks = found["by_candidate"]
    which = fastest if fastest in blocks else next(iter(blocks), None)
    if which is None:
        return "Not measured: no candidate could judge the images."
    block = blocks[which]
    mean, images = block["auc"]["mean"], count(block["images"], "image")
    if mean["value"] is None:
        why = f" ({shown(mean['why'])})" if mean.get("why") else ""
        return f"Not defined on these {images}{why}."
    return (
        f"{shown(which)} has a mean AUC of {mean['value']:.3f} (95 % interval {interval(mean)}) on {images} of "
        f"{count(block['patients'], 'patient')}. The AUC is how often, of two images of which one has the class, the "
        "network ranks that one higher: 0.5 is chance, 1 is always."
    )


def accuracy(report: Mapping[str, Any]) -> str:
    found = report["accuracy"]
    if found is None:
        return (
            '<p class="none">No labelled images were given: with --data FILE.csv or a folder by class this part holds '
            "AUC, operating points, calibration and severity.</p>"
        )
    blocks: Blocks = found["by_candidate"]
    place = places(report)
    caveats = bullets([shown(c) for c in found["caveats"]])
    out = [pairs(_data(found, blocks)), caveats, _problems(found["data"]["problems"])]
    if not blocks:
        return "".join([*out, '<p class="none">No candidate could judge the images.</p>'])
    out += [
        _auc(blocks, place),
        _roc(blocks, place),
        _operating(blocks, place, "operating", "At the operating points"),
        _operating(blocks, place, "sensitive", "At the operating points of a sensitivity of 95 %"),
        selective(blocks, place),
        _calibration(blocks, place),
        _severity(blocks, place),
    ]
    out += [
        _groups(blocks, place, "by_view", "View"),
        _groups(blocks, place, "by_source", "Source"),
        _within(blocks, place),
    ]
    return "".join(out)


def _data(found: Mapping[str, Any], blocks: Blocks) -> Iterator[tuple[str, str]]:
    data = found["data"]
    yield (
        "Images",
        (
            f"{data['images']:,} of {count(data['patients'], 'patient')}, split {shown(data['split'])}"
            + (f"; {data['unlabelled']:,} of them without a label" if data["unlabelled"] else "")
        ),
    )
    yield "By class", ", ".join(f"{name(c)} {n:,}" for c, n in data["by_class"].items()) or "none"
    refused = {which: block["refused"] for which, block in blocks.items() if block["refused"]}
    words = {w: ", ".join(f"{n:,} {shown(REASONS.get(c, c))}" for c, n in r.items()) for w, r in refused.items()}
    if len(set(words.values())) == 1 and len(words) == len(blocks):
        yield "Turned away", next(iter(words.values()))
    elif words:
        yield "Turned away", "; ".join(f"{shown(w)}: {said}" for w, said in words.items())
    else:
        yield "Turned away", "none"


def _problems(problems: Sequence[Mapping[str, Any]]) -> str:
    if not problems:
        return '<h3>Problems of the data</h3><p class="read">None was found: every row names a file that is there.</p>'
    rows = [
        [
            shown(KINDS.get(p["kind"], p["kind"])),
            "<br>".join(shown(line) for line in p["first"])
            + (f"<small>and {p['count'] - len(p['first']):,} more</small>" if p["count"] > len(p["first"]) else ""),
            f"{p['count']:,}",
        ]
        for p in problems
    ]
    return f"<h3>Problems of the data</h3>{table(['What', 'First of them', 'Rows'], rows, texts=2, kind='brief')}"


def _auc(blocks: Blocks, place: Place) -> str:
    found = [e for block in blocks.values() for e in block["auc"].values()]
    ends = [e[k] for e in found for k in ("low", "cluster_low", "value") if e.get(k) is not None]
    domain = (math.floor(10 * min([*ends, 0.9]) + 1e-9) / 10, 1.0)
    rows = []
    for which, block in blocks.items():
        for row, (c, e) in enumerate(block["auc"].items()):
            first = candidate(which, place[which]) if row == 0 else ""
            images = block["classes"].get(c)
            if e["value"] is None:
                rows.append([first, name(c), "", _or(images), undefined(e), "", ""])
                continue
            by_patient = ("low", "high") if c == "mean" else ("cluster_low", "cluster_high")
            inner = (None, None) if c == "mean" else (e["low"], e["high"])
            drawn = charts.interval(
                e["value"], inner, (e.get(by_patient[0]), e.get(by_patient[1])), domain, place[which]
            )
            label = "<b>Mean</b>" if c == "mean" else name(c)
            alone = "" if c == "mean" else interval(e)
            rows.append([first, label, drawn, _or(images), f"{e['value']:.3f}", alone, interval(e, 3, *by_patient)])
    head = ["Candidate", "Class", charts.interval_axis(domain), "Images", "AUC", "95 %, images", "95 %, patients"]
    caption = (
        "AUC, one class against the rest. Intervals: DeLong, images taken as independent (thick), and a bootstrap over "
        "patients (thin)"
    )
    return f"<h3>AUC</h3>{table(head, rows, caption, texts=3, kind='grouped')}"


def _or(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _roc(blocks: Blocks, place: Place) -> str:
    classes = list(next(iter(blocks.values()))["roc"])
    figures = []
    for c in classes:
        curves = []
        for which, block in blocks.items():
            e, at = block["auc"][c], block["operating"].get(c)
            mark = None
            if at and at["sensitivity"]["value"] is not None and at["specificity"]["value"] is not None:
                mark = (1 - at["specificity"]["value"], at["sensitivity"]["value"])
            note = "" if e["value"] is None else f"{e['value']:.3f}"
            curves.append(charts.Curve(which, block["roc"].get(c) or [], note, mark))
        figures.append(picture(charts.roc(curves, f"ROC of {c}", [place[which] for which in blocks]), name(c)))
    return (
        f"<h3>ROC curves</h3>{pictures(figures, 'triple')}"
        f'<p class="read">The number is the AUC, the ring the operating point. A curve is drawn with at most '
        f"{charts.ROC_POINTS} points; where curves lie on each other, the candidates agree.</p>"
    )


def _operating(blocks: Blocks, place: Place, key: str, title: str) -> str:
    """Nothing where the bundle has no such points."""
    rows = []
    for which, block in blocks.items():
        for row, (c, e) in enumerate((block.get(key) or {}).items()):
            threshold = e.get("threshold")
            rows.append(
                [
                    candidate(which, place[which]) if row == 0 else "",
                    "<b>Mean</b>" if c == "mean" else name(c),
                    "" if threshold is None else f"{threshold:.3f}",
                    *(estimate(e[k]) for k in ("sensitivity", "specificity", "accuracy")),
                ]
            )
    head = ["Candidate", "Class", "Threshold", "Sensitivity", "Specificity", "Accuracy"]
    caption = "From its threshold on, a class is flagged. The thresholds are the bundle&#8217;s, chosen on other images"
    return f"<h3>{title}</h3>{table(head, rows, caption, texts=2, kind='grouped')}" if rows else ""


def _calibration(blocks: Blocks, place: Place) -> str:
    figures = [
        picture(
            charts.reliability(block["calibration"]["bins"], f"Reliability of {which}", place[which]),
            candidate(which, place[which]),
            f"Brier {_short(block['calibration']['brier'])}, ECE {_short(block['calibration']['ece'])}",
        )
        for which, block in blocks.items()
    ]
    return (
        f"<h3>Calibration</h3>{pictures(figures, 'triple')}"
        '<p class="read">On the dotted line a probability means what it says: of the images judged with confidence '
        "0.8, eight in ten are judged rightly. A point below it is overconfident by the length of its stem. Below: how "
        "many images each point stands for; a point of few says little. Of Brier score and expected calibration "
        "error (ECE) 0 is best; no interval of the ECE is given, since resampled images have a higher one.</p>"
    )


def _short(e: Mapping[str, Any]) -> str:
    return "not defined" if e["value"] is None else f"{e['value']:.3f} ({interval(e)})"


def _severity(blocks: Blocks, place: Place) -> str:
    title = "<h3>Severity score</h3>"
    held = {which: block["severity"] for which, block in blocks.items() if block["severity"]}
    if not held:
        return f'{title}<p class="none">Not measured: no image has a reference score.</p>'
    rows, figures, scores = [], [], [found["bland_altman"] for found in held.values()]
    for which, found in held.items():
        keys = ("mae", "mse", "cc", "r2")
        lacking = f"<small>{found['not_scored']:,} more not scored</small>" if found.get("not_scored") else ""
        rows.append(
            [candidate(which, place[which]), f"{found['images']:,}{lacking}", *(estimate(found[k], 2) for k in keys)]
        )
        drawn = charts.bland_altman(found["bland_altman"], f"Severity of {which}", place[which], scores)
        note = (
            f"{drawn.drawn:,} of {drawn.points:,} images drawn, the farthest among them"
            if drawn.drawn < drawn.points
            else ""
        )
        figures.append(picture(drawn.picture, candidate(which, place[which]), note))
    constant = next((found["constant"] for found in held.values() if found.get("constant")), None)
    if constant:
        error = UNDEFINED if constant["mse"] is None else f"{constant['mse']:.2f}"
        which = f"<small>{constant['score']:.2f}, their mean</small>" if constant["score"] is not None else ""
        rows.append([f"One score for all{which}", "", "", error, "", ""])
    head = ["Candidate", "Images", "Mean absolute<br>error", "Mean squared<br>error", "Correlation", "R²"]
    return (
        f"{title}{table(head, rows, 'Score of 0 to 6 against the reference, 95 % intervals')}"
        f"{pictures(figures, 'pair')}"
        '<p class="read">Each dot is an image: how far the score lies above or below the reference. Between the dashed '
        "limits lie 95 % of the differences, were they normal.</p>"
    )


def _groups(blocks: Blocks, place: Place, key: str, word: str) -> str:
    groups = list(dict.fromkeys(g for block in blocks.values() for g in block[key]))
    title = f"<h3>By {word.lower()}</h3>"
    if not groups:
        return f'{title}<p class="none">The images name no {word.lower()}.</p>'
    classes = list(next(iter(blocks.values()))["roc"])
    rows = []
    for g in groups:
        own = {which: block[key][g] for which, block in blocks.items() if g in block[key]}
        if len(own) > 1 and all(e["value"] is None for found in own.values() for e in found["auc"].values()):
            found = next(iter(own.values()))
            cells = [undefined(found["auc"].get(c)) for c in ("mean", *classes)]
            rows.append([shown(g), '<span class="none">all</span>', f"{found['images']:,}", *cells])
            continue
        first = True
        for which, found in own.items():
            cells = [estimate(found["auc"].get(c)) for c in ("mean", *classes)]
            rows.append([shown(g) if first else "", candidate(which, place[which]), f"{found['images']:,}", *cells])
            first = False
    head = [word, "Candidate", "Images", "Mean AUC", *(name(c) for c in classes)]
    return title + table(head, rows, texts=2, kind="grouped")


def _within(blocks: Blocks, place: Place) -> str:
    keys = list(dict.fromkeys(k for block in blocks.values() for k in block["within_source"]))
    title = "<h3>Within one source</h3>"
    if not keys:
        return f'{title}<p class="none">No source has two classes with images enough.</p>'
    rows = []
    for k in keys:
        found = [(which, b["within_source"][k]) for which, b in blocks.items() if k in b["within_source"]]
        for row, (which, e) in enumerate(found):
            images = " and ".join(f"{n:,}" for n in e["images"]) if e.get("images") else ""
            rows.append([shown(k) if row == 0 else "", candidate(which, place[which]), images, estimate(e)])
    return (
        title
        + table(["Source and classes", "Candidate", "Images", "AUC"], rows, texts=2, kind="grouped")
        + '<p class="read">Here the source cannot give the class away: this is nearer to what the network knows of the '
        "disease than the AUC above.</p>"
    )
