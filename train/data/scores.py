"""Brixia scores: six zones of 0 to 3 (Signoroni et al. 2021); A, B, C image-left from the top, D, E, F image-right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import UsageError
from cxrvit_edge.labels import ZONES, arrange
from cxrvit_edge.table import read_table

__all__ = ["ZONES", "Scores", "arrange", "from_columns", "from_digits", "public_annotations"]

Scores = NDArray[np.float32]  # (3, 2), rows upper to lower, columns image-left and image-right lung


def from_columns(row: Mapping[str, str], columns: Sequence[str], where: str, allowed: Sequence[float]) -> Scores | None:
    """Six columns, A to F -> (3, 2), None if all are blank. UsageError names the column of another value than allowed.

    where: what the row is called in the message
    """
    cells = [(row.get(column) or "").strip() for column in columns]
    if not any(cells):
        return None
    values = []
    for column, cell in zip(columns, cells, strict=True):
        try:
            value = float(cell)
        except ValueError:
            value = -1.0
        if value not in allowed:
            words = ", ".join(f"{a:g}" for a in allowed[:-1])
            raise UsageError(f"{where} has {column} {cell!r}; use {words} or {allowed[-1]:g}")
        values.append(value)
    return arrange(values)


def from_digits(text: str, where: str) -> Scores | None:
    """Six digits, A to F -> (3, 2), None if blank. Leading zeros that a spreadsheet took are put back: "12" is 000012.

    UsageError on anything else.
    """
    if not text.strip():
        return None
    match = re.fullmatch(r"([0-3]{1,6})(\.0)?", text.strip())
    if match is None:
        raise UsageError(f"{where}: BrixiaScore is {text!r}; use six digits of 0 to 3, zones A to F")
    return arrange([float(digit) for digit in match[1].zfill(6)])


def public_annotations(path: Path) -> dict[str, tuple[Scores, Scores]]:
    """public-annotations.csv of github.com/BrixIA/Brixia-score-COVID-19: file name -> senior's and junior's scores."""
    table = read_table(path)
    senior, junior = ([f"{who}-{zone.lower()}" for zone in ZONES] for who in "sj")
    table.require(path, ["filename", *senior, *junior])
    out = {}
    for line, row in table.rows:
        both = [from_columns(row, columns, f"{path} line {line}:", (0, 1, 2, 3)) for columns in (senior, junior)]
        if both[0] is None or both[1] is None:
            raise UsageError(f"{path} line {line}: no scores; give zones A to F of both radiologists")
        out[row["filename"].strip()] = (both[0], both[1])
    return out
