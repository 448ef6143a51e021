"""compare.html: one self-contained page, no script, of one family with the worklist's and the benchmark's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from cxrvit_edge.bundle import PriorityTable
from cxrvit_edge.compare import words
from cxrvit_edge.compare.ranks import ranks
from cxrvit_edge.report.html import breakable, severity_scale, shown, uri
from cxrvit_edge.report.markup import bullets, pairs, table
from cxrvit_edge.report.page import date, page, printed_style

FLIPS = 200  # rows of the table of flips
ZONES = ("upper", "middle", "lower")
_HERE = Path(__file__).parent
_MORE = "{:,} more are in compare.json."


class Picture(NamedTuple):
    """What `thumbnails.load` gives of a film and of its severity overlay: bytes, height, width."""

    film: tuple[bytes, int, int]
    overlay: tuple[bytes, int, int] | None


def render(report: Mapping[str, Any], pictures: Mapping[tuple[str, str], Picture]) -> str:
    """HTML of a report of `compare`. pictures: by side (a or b) and SHA-256; an absent one is said to be absent."""
    own = Template((_HERE / "page.css").read_text("utf-8")).substitute(scale=severity_scale())
    a, b = (shown(report[letter]["name"]) for letter in "ab")
    created = shown(date(report["created"]))
    body = Template((_HERE / "page.html").read_text("utf-8")).substitute(
        a=a,
        b=b,
        date=created,
        tool=shown(f"{report['tool']['name']} {report['tool']['version']}"),
        research_use=shown(report["research_use"]),
        caveat=shown(report["caveat"]),
        sides=f'<div class="sides">{pairs((x.upper(), _side(report[x])) for x in "ab")}</div>',
        headline="".join(f"<div><dd>{value}</dd><dt>{shown(name)}</dt></div>" for name, value in _headline(report)),
        summary=pairs((shown(question), shown(said)) for question, said in words.sentences(report)),
        notes=bullets([shown(note) for note in report["notes"]]),
        order=_order(report),
        flips=_flips(report),
        figures=_figures(report),
        largest=_largest(report, pictures),
    )
    return page(f"Comparison of {a} and {b}, {created}", printed_style() + own, body)


def _side(side: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{n:,} {words.STATUS_WORDS.get(status, status)}" for status, n in side["statuses"].items())
    return f"{shown(words.what(side))}<br><small>{shown(counts)}</small>"


def _headline(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    images, flips, worklist = report["images"], report["flips"], report["worklist"]
    yield "images on both sides", f"{images['matched']:,}"
    yield f"of {images['judged']:,} changed their label", f"{len(flips['label']):,}"
    yield "flags changed", f"{sum(map(len, flips['flags'].values())):,}"
    yield "changed their priority", f"{len(flips['priority']):,}"
    if worklist["spearman"] is not None:
        rho = words.correlation(worklist["spearman"])
        yield "Spearman's rho of the worklists", shown(rho.replace("over ", "> "))
    largest = [g["largest"] for g in report["differences"]["probabilities"].values() if g["largest"] is not None]
    if largest:
        yield "largest difference of a probability", words.size(max(largest))


def _order(report: Mapping[str, Any]) -> str:
    worklist, flips = report["worklist"], report["flips"]
    order = [*PriorityTable().order]
    order += sorted({p for counts in worklist["priorities"] for p in counts} - set(order))
    changed = {tuple(image["rank"]) for kind in ("priority", "status") for image in flips[kind]}
    drawn = worklist["places"]
    chart = ranks(drawn, sorted(changed), worklist["images"], order, worklist["priorities"])
    rows = [
        ("All images", worklist["images"], worklist["spearman"], worklist["kendall"]),
        ("Judged by both", *(worklist["judged"][k] for k in ("images", "spearman", "kendall"))),
    ]
    out = [
        table(
            ["Rank correlation", "Images", "Spearman&#x27;s rho", "Kendall&#x27;s tau-b"],
            ([name, f"{n:,}", *(words.correlation(v) for v in values)] for name, n, *values in rows),
        )
    ]
    if worklist["why"]:
        out.append(f'<p class="read">None: {shown(worklist["why"])}.</p>')
    if worklist["overlap"]:
        shares = ([f"First {top['first']}", f"{top['shared']} of {top['first']}"] for top in worklist["overlap"])
        out.append(table(["Top of the worklist", "In both"], shares))
    a, b = worklist["priorities"]
    out.append(table(["Priority", "A", "B"], ([_chip(p), f"{a.get(p, 0):,}", f"{b.get(p, 0):,}"] for p in order)))
    if worklist["images"]:
        said = "A dot is an image; on the diagonal it has the same place. "
        said += f"Orange rings: {len(changed):,} of another priority or status."
        if len(drawn) < worklist["images"]:
            said += f" {len(drawn):,} of {worklist['images']:,} are drawn, those that moved farthest among them."
        said += " Images that are equally urgent stand by name, and count as tied in the correlations."
        out.append(f'<p class="read">{said}</p>')
    return f'<div class="order"><div>{chart}</div><div>{"".join(out)}</div></div>'


def _flips(report: Mapping[str, Any]) -> str:
    found = list(words.flips(report))
    if not found:
        return "<p>None: every image has the same label, flags, priority and status on both sides.</p>"
    labelled = report["labels"] is not None
    head = ["Image", "What", "A", "B", *(["Its label"] if labelled else []), "Place in A", "in B"]
    rows = [
        [
            _named(image),
            shown(kind[:1].upper() + kind[1:]),
            *(_chip(v) if kind == "priority" else shown(v) for v in (before, after)),
            *([shown(words.truth(image))] if labelled else []),
            *(f"{place:,}" for place in image["rank"]),
        ]
        for kind, image, before, after in found[:FLIPS]
    ]
    out = table(head, rows, texts=len(head) - 2)
    return out + (f'<p class="read">{_MORE.format(len(found) - FLIPS)}</p>' if len(found) > FLIPS else "")


def _figures(report: Mapping[str, Any]) -> str:
    found = report["differences"]
    if not found["images"]:
        return "<p>No image was judged on both sides.</p>"
    rows = [(f"Probability of {shown(words.class_name(c))}", g) for c, g in found["probabilities"].items()]
    rows += [("Severity score (0 to 6)", found["severity"]), ("Zones (0 to 1)", found["zones"])]
    columns = ("mean", "mae", "rms", "largest")
    body = [
        [
            name,
            f"{gap['count']:,}",
            *(
                "not defined" if gap[k] is None else (words.signed if k == "mean" else words.size)(gap[k])
                for k in columns
            ),
        ]
        for name, gap in rows
    ]
    out = table(["B less A", "Values", "Mean", "Mean size", "Root mean square", "Largest size"], body)
    by_zone = found["zones"]["by_zone"]
    if by_zone:
        cells = [[name.capitalize(), *map(words.size, row)] for name, row in zip(ZONES, by_zone, strict=True)]
        caption = "Mean size of the difference of each zone, as the image hangs"
        out += table(["Zone", "Image-left (patient&#x27;s right)", "Image-right (patient&#x27;s left)"], cells, caption)
    return out


def _largest(report: Mapping[str, Any], pictures: Mapping[tuple[str, str], Picture]) -> str:
    found = report["largest"]
    if not found["images"]:
        return "<p>None: no image has another probability or score.</p>"
    differing, images = found["differing"], found["images"]
    return (
        f'<p class="read">The {len(images)} largest of {differing:,} images that differ, by {shown(found["measure"])}. '
        'Severity overlay: 0 <span class="scale" role="img" aria-label="yellow to red"></span> 1, inside the lungs '
        "that were found; not for localisation. Reduced pictures, not for diagnosis. Point at one to see it without "
        "the overlay.</p>" + "".join(_case(i, image, pictures, report["classes"]) for i, image in enumerate(images, 1))
    )


def _case(
    number: int, image: Mapping[str, Any], pictures: Mapping[tuple[str, str], Picture], classes: Mapping[str, Any]
) -> str:
    key = image["sha256"] or ""
    said = [f"difference {words.size(image['difference'])}"]
    said += [f"{kind} changed" for kind in image["changes"]]
    if "truth" in image:
        said.append(f"its label: {words.truth(image)}")
    figures = "".join(
        f"<figure><figcaption><b>{x.upper()}</b></figcaption>{_film(pictures.get((x, key)), x)}"
        f"{_zones(image[x])}</figure>"
        for x in "ab"
    )
    return (
        f'<article class="case"><h3>{number}. {_file(image)}<small>{key[:12]}; {shown("; ".join(said))}</small></h3>'
        f"{figures}{_numbers(image, classes)}</article>"
    )


def _numbers(image: Mapping[str, Any], classes: Mapping[str, Any]) -> str:
    a, b = image["a"], image["b"]
    rows = [
        ["Place", *(f"{place:,}" for place in image["rank"]), _moved(*image["rank"])],
        ["Priority", _chip(a["priority"]), _chip(b["priority"]), ""],
        ["Label", *(shown(_label(side)) for side in (a, b)), ""],
    ]
    for name in classes["common"]:
        p, q = ((side["probabilities"] or {}).get(name) for side in (a, b))
        flags = [
            " flagged" if (side["flags"] or {}).get(name) and name in classes["flagged"] else "" for side in (a, b)
        ]
        cells = [f"{_number(v)}{flag and f'<small>{flag}</small>'}" for v, flag in zip((p, q), flags, strict=True)]
        rows.append([shown(words.class_name(name)), *cells, words.gap(p, q)])
    rows.append(["Score", _number(a["score"]), _number(b["score"]), words.gap(a["score"], b["score"])])
    return table(["", "A", "B", "B less A"], rows)


def _label(side: Mapping[str, Any]) -> str:
    return words.class_name(side["label"]) if side["label"] else words.standing_words(side["standing"])


def _moved(a: int, b: int) -> str:
    return f"{b - a:+,}" if b != a else "0"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _film(picture: Picture | None, side: str) -> str:
    if picture is None:
        return '<div class="noim">no image</div>'
    data, height, width = picture.film
    size = f'width="{width}" height="{height}"'
    out = f'<img src="{uri("jpeg", data)}" {size} alt="Radiograph, reduced, as {side.upper()} saw it">'
    if picture.overlay is not None and picture.overlay[1:] == (height, width):
        out += f'<img class="map" src="{uri("png", picture.overlay[0])}" {size} alt="">'
    return f'<div class="im">{out}</div>'


def _zones(side: Mapping[str, Any]) -> str:
    if not side["zones"]:
        return ""
    cells = "".join(f'<i style="--v:{v:.2f}">{v:.2f}</i>' for row in side["zones"] for v in row)
    said = "; ".join(
        f"{name} {right:.2f} and {left:.2f}" for name, (right, left) in zip(ZONES, side["zones"], strict=True)
    )
    what = f"Zones, patient&#x27;s right and left: {said}"
    return f'<div class="zones" role="img" aria-label="{what}"><span>R</span><span>L</span>{cells}</div>'


def _named(image: Mapping[str, Any]) -> str:
    return f"{_file(image)}<small>{(image['sha256'] or '')[:12]}</small>"


def _file(image: Mapping[str, Any]) -> str:
    directory, slash, name = image["file"].rpartition("/")
    return f'<bdi class="dir">{breakable(directory + slash)}</bdi><bdi>{breakable(name)}</bdi>'


def _chip(priority: str) -> str:
    return f'<span class="chip {shown(priority)}">{shown(priority[:1].upper() + priority[1:])}</span>'
