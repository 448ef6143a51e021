"""How the model card writes a figure and its 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def number(value: float | None, digits: int = 3) -> str:
    return "not defined" if value is None else f"{value:.{digits}f}"


def row(v: Mapping[str, Any]) -> str:
    """Two cells: value and interval."""
    if v["low"] is None:
        return f"{number(v['value'])} | not defined"
    return f"{number(v['value'])} | {v['low']:.3f} to {v['high']:.3f}"


def said(v: Mapping[str, Any], digits: int = 3, sign: str = "") -> str:
    """One cell: value (low to high)."""
    if v["value"] is None or v["low"] is None:
        return number(v["value"], digits)
    spec = f"{sign}.{digits}f"
    return f"{v['value']:{spec}} ({v['low']:{spec}} to {v['high']:{spec}})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; none without a row."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
    return lines if rows else []
