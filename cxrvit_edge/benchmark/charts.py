"""Charts of the benchmark page as SVG text: ROC curves, reliability, Bland-Altman, intervals.

Values that are None or not finite are left out; with nothing to draw, a paragraph says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

from cxrvit_edge.report.axes import (
    LINE,
    STRONG,
    TEXT,
    Scale,
    bottom,
    box,
    empty,
    left,
    line,
    number,
    path,
    style,
    svg,
    text,
    written,
)
from cxrvit_edge.report.html import shown

ROC_POINTS, POINTS, FARTHEST = 200, 500, 50  # drawn at most: of a curve, of Bland-Altman, of these the outermost
SCORES = (0.0, 6.0)  # least and most severity score
_W = 350


@dataclass(frozen=True)
class Curve:
    """points: (x, y) in 0-1, in order; note: stands after the name; mark: a point to show on it."""

    name: str
    points: Sequence[Sequence[float]]
    note: str = ""
    mark: tuple[float, float] | None = None


class Agreement(NamedTuple):
    """Bland-Altman: the picture, how many points it shows, and of how many."""

    picture: str
    drawn: int
    points: int


def places(report: Mapping[str, Any]) -> dict[str, int]:
    """Candidate -> index of its look, the same in all of the page."""
    return {c["name"]: i for i, c in enumerate(report["candidates"])}


def candidate(name: str, index: int) -> str:
    """A candidate's name after the line that stands for it in the charts."""
    colour, dash = style(index)
    stroke = line(0, 5, 22, 5, stroke=colour, dash=dash, width=2)
    key = f'<svg class="key" viewBox="0 0 22 10" width="22" height="10" aria-hidden="true">{stroke}</svg>'
    return f'<span class="cand">{key}{shown(name)}</span>'


def roc(curves: Sequence[Curve], title: str, styles: Sequence[int] | None = None) -> str:
    """Sensitivity over the false positive rate, candidates overlaid, named in the empty corner."""
    held = [(curve, at, _finite(curve.points)) for curve, at in zip(curves, styles or range(len(curves)), strict=True)]
    held = [one for one in held if len(one[2]) > 1]
    if not held:
        return empty(f"{title}: no curve, for want of images with and without it.")
    x, y = Scale(0, 1, 46, _W - 12), Scale(0, 1, 312, 8)
    out = [bottom(x, y.start, y.stop, "False positive rate (1 - specificity)"), left(y, x.start, x.stop, "Sensitivity")]
    out.append(line(x(0), y(0), x(1), y(1), stroke=STRONG, dash="1 3"))
    rows: list[str] = []
    for row, (curve, at, points) in enumerate(held):
        colour, dash = style(at)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        drawn = path((x(a), y(b)) for a, b in thin(points, ROC_POINTS))
        out.append(f'<path d="{drawn}" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"{dashes}/>')
        if curve.mark and all(map(math.isfinite, curve.mark)):
            out.append(_ring(x(curve.mark[0]), y(curve.mark[1]), colour))
        base = y(0) - 10 - 16 * (len(held) - 1 - row)
        rows.append(line(x(1) - 208, base - 4, x(1) - 180, base - 4, stroke=colour, dash=dash, width=1.8))
        rows.append(text(x(1) - 174, base, _cut(curve.name, 21), fill=TEXT))
        rows.append(text(x(1) - 6, base, curve.note, anchor="end", fill=TEXT))
    height = 16 * len(held) + 6
    out.append(box(x(1) - 214, y(0) - 6 - height, 213, height + 4, "#fff"))
    said = "; ".join(f"{curve.name} {curve.note}" for curve, _, _ in held)
    return svg(_W, 350, title, f"ROC curves. {said}", "".join(out + rows))


def reliability(bins: Iterable[Mapping[str, Any]], title: str, index: int = 0) -> str:
    """Share of images judged rightly over the network's confidence, by bin, and how many images each bin has.

    bins: {low, high, count, confidence, accuracy}, the last two None where count is 0.
    """
    held = [b for b in bins if b["count"] and _known(b["confidence"]) and _known(b["accuracy"])]
    if not held:
        return empty(f"{title}: no image in any bin.")
    x, y = Scale(0, 1, 46, _W - 12), Scale(0, 1, 232, 8)
    most = max(b["count"] for b in held)
    counts = Scale(0, most, 318, 262)
    colour, _ = style(index)
    out = [
        left(y, x.start, x.stop, "Judged rightly"),
        bottom(x, counts.start, y.stop, "Confidence (highest probability)"),
    ]
    out.append(line(x.start, y.start, x.stop, y.start))
    out.append(line(x(0), y(0), x(1), y(1), stroke=STRONG, dash="1 3"))
    out.append(
        text(x.start - 6, counts.start, "0", anchor="end")
        + text(x.start - 6, counts(most) + 4, f"{most:,}", anchor="end")
    )
    for b in held:
        a, c = x(b["low"]), x(b["high"])
        top = counts(b["count"])
        out.append(
            box(a + 1, top, max(c - a - 2, 0.5), counts.start - top, colour, f' fill-opacity=".35" stroke="{colour}"')
        )
        words = f"{b['count']:,}"
        if len(words) * 6.2 <= c - a + 4:
            out.append(text((a + c) / 2, top - 3, words, anchor="middle", more=' font-size="9.5"'))
    for b in held:  # a stem is the gap from what the confidence promises; a dot's area goes with its images
        at, right = x(b["confidence"]), y(b["accuracy"])
        out.append(line(at, y(b["confidence"]), at, right, stroke=colour, width=1.4))
        r = number(max(2.2, 5.5 * math.sqrt(b["count"] / most)))
        out.append(f'<circle cx="{number(at)}" cy="{number(right)}" r="{r}" fill="{colour}" stroke="#fff"/>')
    said = "; ".join(f"confidence {b['confidence']:.2f}: {b['accuracy']:.2f} of {b['count']}" for b in held)
    return svg(_W, 356, title, f"Reliability diagram. {said}", "".join(out))


def bland_altman(
    found: Mapping[str, Any], title: str, index: int = 0, others: Sequence[Mapping[str, Any]] = ()
) -> Agreement:
    """Difference of two scores over their mean, with bias and limits of agreement; axes wide enough for `others` too.

    found: {bias: {value}, low, high, points: [[mean, difference], ...]}, the first three None where undefined.
    """
    points = _finite(found["points"])
    if not points:
        return Agreement(empty(f"{title}: no image has both scores."), 0, 0)
    kept = _sampled(points, found["bias"]["value"])
    marks = [found["bias"]["value"], found["low"], found["high"]]
    every = [p for one in (found, *others) for p in _finite(one["points"])]
    ends = [v for one in (found, *others) for v in (one["bias"]["value"], one["low"], one["high"]) if _known(v)]
    x = Scale(*_roomy([*SCORES, *(a for a, _ in every)]), 46, 430)
    y = Scale(*_roomy([0.0, *ends, *(b for _, b in every)]), 272, 8)
    out = [
        bottom(x, y.start, y.stop, "Mean of score and reference (0-6)"),
        left(y, x.start, x.stop, "Score less reference"),
    ]
    out.append(line(x.start, y(0), x.stop, y(0)))
    colour, _ = style(index)
    names = ("bias", "lower limit", "upper limit")
    places = _apart([y(v) + 4 if _known(v) else 0.0 for v in marks], 13, y.stop + 8, y.start)
    for name, value, at, dash in zip(names, marks, places, ("", "6 3", "6 3"), strict=True):
        if _known(value):
            out.append(line(x.start, y(value), x.stop, y(value), stroke=TEXT, dash=dash, width=1.3))
            out.append(text(x.stop + 5, at, f"{name} {value:+.2f}", fill=TEXT))
    dots = "".join(f"M{number(x(a))} {number(y(b))}h0" for a, b in kept)
    out.append(f'<path d="{dots}" stroke="{colour}" stroke-width="4.4" stroke-linecap="round" stroke-opacity=".55"/>')
    said = ", ".join(f"{name} {v:+.2f}" for name, v in zip(names, marks, strict=True) if _known(v))
    picture = svg(540, 310, title, f"Bland-Altman plot of {len(points)} images. {said}", "".join(out))
    return Agreement(picture, len(kept), len(points))


def interval(
    value: float | None,
    inner: tuple[float | None, float | None],
    outer: tuple[float | None, float | None],
    domain: tuple[float, float],
    index: int = 0,
) -> str:
    """A dot with two intervals on a common scale, for a cell of a table; nothing where the value is None."""
    if not _known(value):
        return ""
    x = Scale(*domain, 4, 156)
    colour, _ = style(index)
    out = [line(x(v), 0, x(v), 18, stroke=LINE) for v in x.ticks(3)]
    for (a, b), width in ((outer, 1.2), (inner, 4.0)):
        if _known(a) and _known(b):
            out.append(line(x(a), 9, x(b), 9, stroke=colour, width=width))
    out.append(_ring(x(value), 9, colour))
    size = 'viewBox="0 0 160 18" width="160" height="18"'
    return f'<svg class="ci" {size} fill="none" aria-hidden="true">{"".join(out)}</svg>'


def interval_axis(domain: tuple[float, float]) -> str:
    """Head of a column of `interval`."""
    x = Scale(*domain, 4, 156)
    at = x.ticks(3)
    words = "".join(text(min(max(x(v), 14), 146), 11, w, anchor="middle") for v, w in zip(at, written(at), strict=True))
    return (
        f'<svg class="ci" viewBox="0 0 160 14" width="160" height="14" font-size="10" aria-hidden="true">{words}</svg>'
    )


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` (two or more) of the points, evenly by place, the first and last among them."""
    if len(points) <= most:
        return list(points)
    step = (len(points) - 1) / (most - 1)
    return [points[round(i * step)] for i in range(most)]


def _sampled(points: Sequence[tuple[float, float]], centre: float | None) -> list[tuple[float, float]]:
    if len(points) <= POINTS:
        return list(points)
    middle = centre if _known(centre) else 0.0
    far = sorted(range(len(points)), key=lambda i: -abs(points[i][1] - (middle or 0.0)))[:FARTHEST]
    outer = set(far)
    rest = [p for i, p in enumerate(points) if i not in outer]
    return [points[i] for i in far] + thin(rest, POINTS - FARTHEST)


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _finite(points: Iterable[Sequence[float]]) -> list[tuple[float, float]]:
    return [(p[0], p[1]) for p in points if _known(p[0]) and _known(p[1])]


def _roomy(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or 0.5
    return low - room, high + room


def _apart(places: Sequence[float], least: float, top: float, end: float) -> list[float]:
    """The same places, pushed down until each has `least` above it, then up from `end`."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    out = list(places)
    floor = top
    for i in order:
        out[i] = max(out[i], floor)
        floor = out[i] + least
    ceiling = end
    for i in reversed(order):
        out[i] = min(out[i], ceiling)
        ceiling = out[i] - least
    return out


def _ring(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{number(x)}" cy="{number(y)}" r="4" fill="#fff" stroke="{colour}" stroke-width="1.8"/>'


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
