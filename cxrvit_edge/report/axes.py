"""Scales, ticks, frames and colours of the charts of every page: plain SVG text, numbers with one decimal.

Lines differ by colour (Okabe and Ito's palette, told apart by the colour-blind) and by dash, so that they survive a
print in black.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cxrvit_edge.report.html import shown

TEXT, DIM, LINE, STRONG = "#1a1f24", "#56616b", "#e2e6e9", "#8d98a1"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "12 4", "5 2 1 2 1 2", "3 5")
SIZE = 11  # px of text
_MOST_DIGITS = 9  # of a tick; a span that needs more is taken for none


def style(index: int) -> tuple[str, str]:
    """Colour and dash of what has this place on the page."""
    return COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Rising round numbers in [low, high], about `count` of them; [low] where the two are the same."""
    span = high - low
    if not math.isfinite(span) or span <= 10**-_MOST_DIGITS * max(abs(low), abs(high)) or span < 1e-300:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10, 20) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [min(max(i * step, low), high) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... in [low, high], both above 0; `ticks` where there are fewer than two."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return found if len(found) > 1 else ticks(low, high)


def written(values: Sequence[float]) -> list[str]:
    """Numbers with as many decimals as the closest two need, at most six; thousands parted."""
    gaps = [b - a for a, b in itertools.pairwise(values) if b > a]
    step = min(gaps, default=abs(values[0]) if values else 1) or 1
    decimals = min(6, max(0, -math.floor(math.log10(step) + 1e-9)))
    if decimals < 6 and any(abs(v * 10**decimals - round(v * 10**decimals)) > 1e-6 for v in values):
        decimals += 1  # steps of 2.5
    return [f"{v:,.{decimals}f}" for v in values]


def digits(value: float) -> str:
    """Three significant digits, whole from 100 on; thousands parted."""
    decimals = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(decimals, 0), 6)}f}"


@dataclass(frozen=True)
class Scale:
    """Values [low, high] to pixels [start, stop]; values outside are put on the border."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        span = self.high - self.low
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low) if span > 0 else 0.5
        else:
            share = value / span - self.low / span if span > 0 else 0.5
        share = min(max(share, 0.0), 1.0)
        return round(self.start + share * (self.stop - self.start), 1)

    def ticks(self, count: int = 5) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high, count)


def number(pixels: float) -> str:
    return f"{pixels:.1f}".removesuffix(".0")


def text(x: float, y: float, words: str, *, anchor: str = "start", fill: str = DIM, more: str = "") -> str:
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{number(x)}" y="{number(y)}"{where} fill="{fill}"{more}>{shown(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, *, stroke: str = STRONG, dash: str = "", width: float = 1) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    thick = "" if width == 1 else f' stroke-width="{number(width)}"'
    return f'<path d="M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}" stroke="{stroke}"{thick}{dashes}/>'


def box(x: float, y: float, width: float, height: float, fill: str, more: str = "") -> str:
    size = f'width="{number(width)}" height="{number(height)}"'
    return f'<rect x="{number(x)}" y="{number(y)}" {size} fill="{fill}"{more}/>'


def path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)


def svg(width: float, height: float, title: str, description: str, body: str) -> str:
    """One picture that tells screen readers what it is; its text takes the page's face."""
    return (
        f'<svg viewBox="0 0 {number(width)} {number(height)}" width="{number(width)}" role="img" '
        f'aria-label="{shown(title)}" font-size="{SIZE}" fill="none">'
        f"<title>{shown(title)}</title><desc>{shown(description)}</desc>{body}</svg>"
    )


def empty(words: str) -> str:
    """What stands where a chart would, were there anything to draw."""
    return f'<p class="none">{shown(words)}</p>'


def bottom(x: Scale, y: float, top: float, label: str, count: int = 5) -> str:
    """Horizontal axis at y, its grid lines up to `top`."""
    at = x.ticks(count)
    out = [line(x(v), y, x(v), top, stroke=LINE) for v in at]
    out.append(line(x.start, y, x.stop, y))
    out += [text(x(v), y + 15, words, anchor="middle") for v, words in zip(at, written(at), strict=True)]
    out.append(text((x.start + x.stop) / 2, y + 32, label, anchor="middle"))
    return "".join(out)


def left(y: Scale, x: float, right: float, label: str, count: int = 5) -> str:
    """Vertical axis at x, its grid lines to `right`; y runs upwards, so y.start is below y.stop."""
    at = y.ticks(count)
    out = [line(x, y(v), right, y(v), stroke=LINE) for v in at]
    out.append(line(x, y.start, x, y.stop))
    out += [text(x - 6, y(v) + 4, words, anchor="end") for v, words in zip(at, written(at), strict=True)]
    middle = number((y.start + y.stop) / 2)
    out.append(
        f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle" fill="{DIM}">{shown(label)}</text>'
    )
    return "".join(out)
