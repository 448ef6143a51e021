"""Labelled radiographs: a CSV of labels, or a folder by class, to studies; what is wrong with them is named.

A CSV has `path` (or `file`), relative to it, and `label`; it may have `group_id` (or `patient`), `view`, `source`,
`split` and `score` (a radiologist's severity, 0-6). A severity.csv beside it may have `path` and Brixia zones in S-A to
S-F. A folder by class has folders named normal, other* and covid*.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.discover import discover
from cxrvit_edge.errors import UsageError
from cxrvit_edge.plain_text import printable
from cxrvit_edge.readers import view_from_text
from cxrvit_edge.studies import EVERY, NAMES, Labelled, Listed, Problem, Problems, Study, openable, sample, unique
from cxrvit_edge.table import Table, read_table

__all__ = ["LABELS", "ZONES", "Labelled", "Problem", "Study", "arrange", "read"]

LABELS = {
    "normal": 0,
    "other": 1, "other_infection": 1, "other infection": 1,
    "covid": 2, "covid19": 2, "covid-19": 2,
    "": None,
}  # fmt: skip
ZONES = "ABCDEF"  # Brixia: A, B, C image-left from the top, D, E, F image-right
TABLES = ("labels.csv", "manifest.csv")  # looked for in a folder
FILES = ("path", "file")
PATIENTS = ("group_id", "patient", "patient_id")
COLUMNS = (*FILES, "label", *PATIENTS, "view", "source", "split", "score")
WORKLIST = ("rank", "priority", "file", "status", "label")  # columns of a worklist of triage


def read(path: str | Path, split: str = "test", limit: int | None = None, seed: int = 0) -> Labelled:
    """Studies of one split (`all`: of every split; without a column of splits: all) that can be opened.

    limit: at most so many, by class in the proportion of all, chosen by `seed`. What is wrong with a row or a file is
    in `problems`; `studies` may be empty. UsageError if the table is absent or none, lacks a column or a row, the split
    has no row, or a folder holds neither a table nor classes.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: use 1 or more images")
    problems = Problems()
    folder = os.path.isdir(path)  # noqa: PTH112  False where it may not be looked at
    table = next((path / n for n in TABLES if os.path.isfile(path / n)), None) if folder else path  # noqa: PTH113
    listed = _by_class(path, problems) if table is None else _from_table(table, split, problems)
    studies = list(openable(unique(listed, problems), problems))
    studies = studies if limit is None else sample(studies, limit, seed)
    present = {s.label for s in studies if s.label is not None}
    if studies and len(present) < 2:
        kind, words = (
            ("one_class", f"every labelled image is {NAMES[present.pop()]}")
            if present
            else ("no_label", "no image has a label")
        )
        problems.add(kind, f"{words}: no AUC is defined")
    return Labelled(studies, problems.listed(), path if table is None else table.parent)


def arrange(zones: Sequence[float]) -> NDArray[np.float32]:
    """Six zones, A to F -> (3, 2)."""
    return np.asarray(zones, np.float32).reshape(2, 3).T.copy()


def _from_table(path: Path, split: str, problems: Problems) -> Iterator[Listed]:
    table = read_table(path, delimiter=None, only=COLUMNS)
    if {*WORKLIST} <= {*table.columns}:
        raise UsageError(f"{path}: a worklist of triage, whose labels are the network's own; name a table of labels")
    file = next((c for c in FILES if c in table.columns), "path (or file)")
    table.require(path, [file, "label"])
    if not table.rows:
        raise UsageError(f"{path}: a header and no row; list images in it")
    rows = table.rows
    if split != EVERY and "split" in table.columns:
        counts = Counter(_cell(row, "split") for _, row in rows)
        rows = [(line, row) for line, row in rows if _cell(row, "split") == split]
        if not rows:
            have = ", ".join(f"{name or 'blank'} ({n})" for name, n in sorted(counts.items()))
            raise UsageError(f"{path}: no row of the split {split!r}; it has {have}; name one of these or {EVERY}")
    scored = _severity(path.with_name("severity.csv"), problems)
    patients = [c for c in PATIENTS if c in table.columns]
    return _studies(path.parent, rows, file, patients, scored, problems)


def _studies(
    folder: Path,
    rows: Sequence[tuple[int, dict[str, str]]],
    file: str,
    patients: Sequence[str],
    scored: dict[str, NDArray[np.float32]],
    problems: Problems,
) -> Iterator[Listed]:
    for line, row in rows:
        name = _cell(row, file)
        where = f"line {line}: {name}"
        if not name:
            problems.add("path", f"line {line}: no {file}")
            continue
        label = " ".join(_cell(row, "label").lower().split())
        if label not in LABELS:
            problems.add("label", f"{where}: label {label!r}; use {', '.join(filter(None, LABELS))}, or blank")
            continue
        zones, score = scored.get(name), _score(_cell(row, "score"), where, problems)
        yield Listed(
            where,
            Study(
                path=folder / name,
                label=LABELS[label],
                patient=next(filter(None, (_cell(row, c) for c in patients)), name),
                view=view_from_text(_cell(row, "view")),
                source=_cell(row, "source"),
                split=_cell(row, "split") or EVERY,
                severity=float(zones.sum()) if score is None and zones is not None else score,
                zones=zones,
            ),
        )


def _cell(row: dict[str, str], column: str) -> str:
    return row.get(column, "").strip()


def _score(text: str, where: str, problems: Problems) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if 0 <= value <= 6:
        return value
    problems.add("number", f"{where}: score {text!r}; use 0 to 6, or blank")
    return None


def _severity(path: Path, problems: Problems) -> dict[str, NDArray[np.float32]]:
    """Path as listed -> zones affected, (3, 2) of 0 or 1: a Brixia score of 1 or more. Of two rows the last stands."""
    if not path.is_file():
        return {}
    columns = [f"s-{zone.lower()}" for zone in ZONES]
    try:
        table: Table = read_table(path, delimiter=None)
        table.require(path, ["path", *columns])
    except UsageError as error:
        problems.add("severity", str(error))
        return {}
    out = {}
    for line, row in table.rows:
        cells = [_cell(row, c) for c in columns]
        values = [{"0": 0, "1": 1, "2": 2, "3": 3}.get(cell.removesuffix(".0")) for cell in cells]
        if None in values:
            if any(cells):
                problems.add("number", f"{path.name} line {line}: zones {', '.join(cells)}; use 0, 1, 2 or 3")
            continue
        out[_cell(row, "path")] = arrange([float(v is not None and v >= 1) for v in values])
    return out


def _by_class(folder: Path, problems: Problems) -> Iterator[Listed]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise UsageError(f"{folder}: cannot be listed ({error.strerror}); check the path") from None
    classes = {entry: label for entry in entries if (label := _class_of(entry.name)) is not None}
    if not classes:
        have = ", ".join(printable(entry.name) for entry in entries[:8]) or "no folder"
        raise UsageError(
            f"{folder}: no {' or '.join(TABLES)} in it, and no folder normal, other or covid; it has {have}; name a "
            "CSV of labels, or a folder by class"
        )
    for entry in entries:
        if entry not in classes:
            problems.add("folder", f"{entry.name}: the name of no class; use normal, other or covid")
    return _files(folder, classes, problems)


def _class_of(name: str) -> int | None:
    starts = (("normal", 0), ("other", 1), ("covid", 2))
    return next((label for start, label in starts if name.lower().startswith(start)), None)


def _files(folder: Path, classes: dict[Path, int], problems: Problems) -> Iterator[Listed]:
    for entry, label in classes.items():
        for found in discover([entry], follow_links=True):
            name = Path(found.path).relative_to(folder).as_posix()
            if found.problem is not None:
                problems.add("unreadable", str(found.problem))
            else:
                yield Listed(name, Study(Path(found.path), label, name))
