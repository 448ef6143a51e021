"""Numbers, cells, tables and figures of the pages that are made to be printed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cxrvit_edge.report.axes import digits
from cxrvit_edge.report.html import shown
from cxrvit_edge.report.words import CLASS_NAMES

UNDEFINED = '<span class="none">not defined</span>'
NOT_MEASURED = '<span class="none">not measured</span>'


def figure(value: float | None, unit: str = "") -> str:
    """Three significant digits, whole from 100 on."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    words = digits(value)
    return f"{words}&nbsp;{unit}" if unit else words


def column(values: Sequence[float | None]) -> list[str]:
    """Figures with one number of decimals, so that they line up: three digits of the smallest, at most 3."""
    known = [abs(v) for v in values if v is not None and math.isfinite(v) and v]
    decimals = min(3, max(0, 2 - math.floor(math.log10(min(known))))) if known else 0
    return [NOT_MEASURED if v is None or not math.isfinite(v) else f"{v:,.{decimals}f}" for v in values]


def estimate(e: Mapping[str, Any] | None, decimals: int = 3) -> str:
    """A figure over its 95 % interval."""
    if e is None or e["value"] is None:
        return undefined(e)
    return f"{e['value']:.{decimals}f}<small>{interval(e, decimals)}</small>"


def interval(e: Mapping[str, Any], decimals: int = 3, low: str = "low", high: str = "high") -> str:
    if e.get(low) is None or e.get(high) is None:
        return "no interval"
    return f"{e[low]:.{decimals}f} to {e[high]:.{decimals}f}"


def undefined(e: Mapping[str, Any] | None) -> str:
    why = (e or {}).get("why")
    return UNDEFINED + (f"<small class=why>{shown(why)}</small>" if why else "")


def name(code: str) -> str:
    """Of a class, or the mean of all."""
    return "Mean" if code == "mean" else shown(CLASS_NAMES.get(code, code))


def listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def chip(words: str, good: bool | None) -> str:
    """good: True held, False not held, None neither."""
    kind = {True: " in", False: " out", None: ""}[good]
    return f'<span class="chip{kind}">{words}</span>'


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", *, texts: int = 1, kind: str = ""
) -> str:
    """HTML cells in rows, the first of each its header; the first `texts` columns are text, the others numbers.

    A row whose first cell is empty goes on with the header of the row before.
    """
    n = [' class="n"' if i >= texts else "" for i in range(len(head))]
    top = "".join(f'<th scope="col"{n[i]}>{words}</th>' for i, words in enumerate(head))
    body = []
    for row in rows:
        first = f'<th scope="row">{row[0]}</th>' if row[0] else '<td class="same"></td>'
        cells = "".join(f"<td{n[i]}>{cell}</td>" for i, cell in enumerate(row) if i)
        body.append(f"<tr{'' if row[0] else ' class=more'}>{first}{cells}</tr>")
    title = f"<caption><span>{caption}</span></caption>" if caption else ""
    kinds = f' class="{kind}"' if kind else ""
    inner = f"{title}<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="wide"><table{kinds}>{inner}</table></div>'


def picture(drawing: str, title: str, note: str = "") -> str:
    """A chart under its name, in HTML already."""
    more = f" <small>{note}</small>" if note else ""
    return f"<figure><figcaption><b>{title}</b>{more}</figcaption>{drawing}</figure>"


def pictures(figures: Iterable[str], kind: str) -> str:
    """kind: pair or triple, the most that stand beside each other."""
    return f'<div class="{kind}">{"".join(figures)}</div>'


def pairs(values: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<div><dt>{k}</dt><dd>{v}</dd></div>' for k, v in values)}</dl>"


def bullets(lines: Sequence[str], kind: str = "notes") -> str:
    return f'<ul class="{kind}">{"".join(f"<li>{words}</li>" for words in lines)}</ul>' if lines else ""
