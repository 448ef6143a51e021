"""Charts made of bars, as SVG text: latency histograms on one axis, stacked stages, plain bars."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cxrvit_edge.report.axes import TEXT, Scale, bottom, box, digits, empty, line, number, style, svg, text

PARTS = ("#56B4E9", "#E69F00", "#009E73", "#0072B2", "#CC79A7", "#D55E00", "#999999", "#F0E442")
HATCHES = (0, 45, -45, 0, 90, 45, 0, -45)  # degrees; 0: none
LOOKS = {  # of parts that come in several charts
    **dict(zip(("read", "decode", "preprocess", "run", "interpret", "write"), range(6), strict=True)),
    "network": 3,
    "waiting for films": 1,
    "waiting for results to be taken": 2,
    "other": 6,
}
_W = 540
_LOG = 8.0  # slowest over fastest from which the axis is logarithmic
_BULK = 0.995  # of a candidate's samples lie on the axis


@dataclass(frozen=True)
class Histogram:
    """edges: n + 1 rising values; counts: n; marks: name -> value, such as p50; index: of its look, see `style`."""

    name: str
    edges: Sequence[float]
    counts: Sequence[int]
    marks: Mapping[str, float | None]
    index: int = 0


def histograms(rows: Sequence[Histogram], title: str, unit: str = "ms") -> str:
    """A row each on the same axis, heights by density and each to its own highest; lines at the marks."""
    held = [r for r in rows if sum(r.counts) and len(r.edges) == len(r.counts) + 1]
    if not held:
        return empty(f"{title}: nothing was timed.")
    low, high = min(map(_first, held)), max(map(_last, held))
    log = low > 0 and high / low > _LOG
    room = 0.0 if log else 0.03 * (high - low) or 0.05 * abs(high) or 0.5
    x = Scale(low if log else max(0.0, low - room), high * 1.03 if log else high + room, 8, _W - 8, log)
    height, end = 64, 64 * len(held)
    scale = ", logarithmic" if log else ""
    out = [bottom(x, end, 8, f"Time of one image, {unit}{scale}", 8)]
    for place, row in enumerate(held):
        base = height * (place + 1)
        colour, _ = style(row.index)
        out.append(f'<path d="{_steps(row, x, base, height - 24)}" fill="{colour}" fill-opacity=".75"/>')
        out.append(line(x.start, base, x.stop, base))
        for (_, value), dash in zip(row.marks.items(), ("", "4 2", "1 2"), strict=False):
            if value is not None and math.isfinite(value) and x.low <= value <= x.high:
                out.append(line(x(value), base, x(value), base - height + 22, stroke=TEXT, dash=dash, width=1.2))
        halo = ' paint-order="stroke" stroke="#fff" stroke-width="4" stroke-linejoin="round"'
        out.append(text(x.start, base - height + 17, row.name, fill=TEXT, more=f' font-weight="600"{halo}'))
        beyond = sum(c for c, b in zip(row.counts, row.edges[1:], strict=True) if b > x.high)
        said = ", ".join(f"{name} {digits(value)}" for name, value in row.marks.items() if value is not None)
        if beyond:
            said += f"; {beyond} beyond, to {digits(row.edges[-1])}"
        out.append(text(x.stop, base - height + 17, f"{said} {unit}", anchor="end", more=halo))
    words = "; ".join(
        f"{r.name}: {', '.join(f'{k} {v:.3g}' for k, v in r.marks.items() if v is not None)}" for r in held
    )
    return svg(
        _W,
        end + 38,
        title,
        f"Histograms of {sum(sum(r.counts) for r in held)} times in {unit}. {words}",
        "".join(out),
    )


def stacked(
    bars: Sequence[tuple[str, Mapping[str, float | None]]],
    title: str,
    unit: str,
    *,
    whole: float | None = None,
    decimals: int = 1,
) -> str:
    """A horizontal bar each, made of its parts in the order in which they first come; a part has one look throughout.

    whole: end of the axis; None is the longest bar.
    """
    held = [
        (name, {k: v for k, v in parts.items() if v is not None and math.isfinite(v) and v > 0}) for name, parts in bars
    ]
    names = list(dict.fromkeys(k for _, parts in bars for k in parts if any(k in p for _, p in held)))
    if not names:
        return empty(f"{title}: nothing was measured.")
    look = _looks(names)
    keys, top = _key(look)
    high = whole or max(sum(p.values()) for _, p in held)
    x = Scale(0, high, 8, _W - 14)
    end = top + 46 * len(held)
    out = [bottom(x, end, top, unit, 6), keys]
    for place, (name, parts) in enumerate(held):
        y, at = top + 46 * place + 19, 0.0
        halo = ' paint-order="stroke" stroke="#fff" stroke-width="3" stroke-linejoin="round"'
        out.append(text(x.start, y - 5, name, fill=TEXT, more=f' font-weight="600"{halo}'))
        if whole is None:
            out.append(text(x.stop, y - 5, f"{sum(parts.values()):.{decimals}f} in all", anchor="end", more=halo))
        for part in (n for n in names if n in parts):
            a, b = x(at), x(at + parts[part])
            at += parts[part]
            out.append(_block(a, y, b - a, 20, look[part]))
            words = f"{parts[part]:.{decimals}f}"
            wide = 6.6 * len(words) + 5
            if b - a > wide + 4:
                middle = (a + b) / 2
                out.append(box(middle - wide / 2, y + 4, wide, 13, "#fff", ' rx="2" fill-opacity=".88"'))
                out.append(text(middle, y + 14, words, anchor="middle", fill=TEXT))
    words = "; ".join(f"{name}: {', '.join(f'{k} {v:.{decimals}f}' for k, v in p.items())}" for name, p in held)
    return svg(_W, end + 38, title, f"Stacked bars, {unit}. {words}", "".join(out))


def plain(bars: Sequence[tuple[str, float | None, int]], title: str, unit: str) -> str:
    """A horizontal bar each, with its value at the end; bars: name, value, index of the look."""
    held = [(i, name, v) for name, v, i in bars if v is not None and math.isfinite(v) and v >= 0]
    if not held:
        return empty(f"{title}: nothing was measured.")
    high = max(v for _, _, v in held) or 1.0
    x = Scale(0, high * 1.13, 8, _W - 8)
    end = 46 * len(held) + 4
    out = [bottom(x, end, 4, unit, 6)]
    for place, (index, name, value) in enumerate(held):
        y = 46 * place + 21
        halo = ' paint-order="stroke" stroke="#fff" stroke-width="4" stroke-linejoin="round"'
        out.append(text(x.start, y - 5, name, fill=TEXT, more=f' font-weight="600"{halo}'))
        out.append(box(x.start, y, x(value) - x.start, 20, style(index)[0]))
        out.append(text(x(value) + 5, y + 14, digits(value), fill=TEXT, more=halo))
    words = "; ".join(f"{name} {value:.3g}" for _, name, value in held)
    return svg(_W, end + 38, title, f"Bars, {unit}. {words}", "".join(out))


def _steps(row: Histogram, x: Scale, base: float, height: float) -> str:
    widths = [b - a for a, b in zip(row.edges, row.edges[1:], strict=False)]
    density = [c / w if w > 0 else 0.0 for c, w in zip(row.counts, widths, strict=True)]
    most = max(density) or 1.0
    out = []
    for i, d in enumerate(density):
        a, b = row.edges[i], row.edges[i + 1]
        if d and b <= x.high:
            right = max(x(b), x(a) + 0.6)  # one narrow bin is seen
            out.append(
                f"M{number(x(a))} {number(base)}V{number(base - d / most * height)}H{number(right)}V{number(base)}z"
            )
    if not out:  # all times are one
        out.append(f"M{number(x(row.edges[0]) - 1)} {number(base)}v{number(-height)}h2v{number(height)}z")
    return "".join(out)


def _first(row: Histogram) -> float:
    return next(a for a, c in zip(row.edges, row.counts, strict=False) if c)


def _last(row: Histogram) -> float:
    """Upper edge up to which nearly all samples lie, and every mark."""
    needed, seen = _BULK * sum(row.counts), 0
    end = row.edges[-1]
    for edge, count in zip(row.edges[1:], row.counts, strict=True):
        seen += count
        if seen >= needed:
            end = edge
            break
    marks = [v for v in row.marks.values() if v is not None and math.isfinite(v)]
    return max([end, *(v for v in marks if v <= row.edges[-1])])


def _looks(names: Sequence[str]) -> dict[str, int]:
    """Index of each part's colour and hatch: its own, or the next that is free."""
    own = {name: LOOKS[name] for name in names if name in LOOKS}
    free = (i for i in (*range(len(PARTS)), *range(len(names))) if i not in own.values())
    return {name: own[name] if name in own else next(free) for name in names}


def _key(look: Mapping[str, int]) -> tuple[str, float]:
    """Looks of the parts in rows, and the height they take."""
    x, y = 8.0, 4.0
    out = []
    for name, i in look.items():
        width = 24 + 6.8 * len(name) + 12
        if x + width > _W and x > 8:
            x, y = 8.0, y + 18
        out.append(_block(x, y, 18, 11, i) + text(x + 24, y + 10, name, fill=TEXT))
        x += width
    return "".join(out), y + 20


def _block(x: float, y: float, width: float, height: float, part: int) -> str:
    colour, angle = PARTS[part % len(PARTS)], HATCHES[part % len(HATCHES)]
    strokes = "".join(_hatch(x, y, width, height, angle)) if angle else ""
    return box(x, y, width, height, colour, ' stroke="#fff"') + (
        f'<path d="{strokes}" stroke="#fff" stroke-opacity=".75"/>' if strokes else ""
    )


def _hatch(x: float, y: float, width: float, height: float, angle: int, gap: float = 6) -> Iterator[str]:
    """Strokes at 45, -45 or 90 degrees, cut off at the box."""
    if angle == 90:
        for i in range(1, math.ceil(width / gap)):
            yield f"M{number(x + i * gap)} {number(y)}v{number(height)}"
        return
    for i in range(1, math.ceil((width + height) / gap)):
        at = i * gap  # u + v = at, from the upper left corner
        a, b = max(0.0, at - height), min(width, at)  # of u
        v1, v2 = at - a, at - b
        if angle < 0:
            v1, v2 = height - v1, height - v2
        if b > a:
            yield f"M{number(x + a)} {number(y + v1)}L{number(x + b)} {number(y + v2)}"
