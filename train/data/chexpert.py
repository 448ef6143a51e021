"""CheXpert-v1.0 and CheXpert-v1.0-small (Irvin et al. 2019), frontal views, the paper's ten findings (section 4.1).

The paper says neither what a blank nor what an uncertain label counts as. A blank (not mentioned in the report) is 0
here, as in the PCAM code that its backbone comes from (Ye et al. 2020); what an uncertain one is, the caller says.

A frontal image with No Finding 1 and no other finding of the table 1 or uncertain, support devices included, is normal
(label 0): the paper's Table 2 takes AP normals from CheXpert. No other image has a label.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import FINDINGS
from cxrvit_edge.table import Table, read_table
from train.data.record import Record, Split

COLUMNS = ("path", "sex", "frontal/lateral", "ap/pa", *FINDINGS)

_TABLES: tuple[tuple[str, Split], ...] = (("train.csv", "train"), ("valid.csv", "val"))
_PLACE = re.compile(r"[^/]+/(?P<patient>patient\d+)/[^/]+/[^/]+$")  # train/patient00001/study1/view1_frontal.jpg
_UNCERTAIN = {"ones": 1.0, "zeros": 0.0, "ignore": float("nan")}
_LABELS = {"": 0.0, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}
_OTHERS = (*FINDINGS, "enlarged_cardiomediastinum", "lung_lesion", "pleural_other", "fracture")  # of which ten must be
_VIEWS = {"AP": "AP", "PA": "PA", "": "unknown", "LL": "lateral", "RL": "lateral"}


def is_layout(table: Table) -> bool:
    """Whether a table is one of CheXpert's, complete or not: no other has these columns."""
    return bool({"frontal/lateral", "ap/pa"} & set(table.columns))


def read(
    folder: Path,
    *,
    uncertain: Literal["ones", "zeros", "ignore"] = "ignore",
    absent: Literal["error", "skip"] = "error",
    left_out: Counter[str] | None = None,
) -> list[Record]:
    """Records of `folder`: split train from train.csv, val from valid.csv where there is one, in the tables' order.

    The folder may have been renamed; of a table's Path only the end from train/ or valid/ on is used. A table in the
    folder may be named instead: then it alone is read. Column names with spaces or underscores.
    Lateral views, and the few rows called frontal whose AP/PA is LL or RL, are left out, as in the paper.
    uncertain: what -1 becomes; "ignore" is NaN, which no loss counts
    absent: listed images that are not there are an error or are passed over; none there at all is an error
    left_out: takes the number of rows left out, as lateral_view and not_found
    Raises UsageError: no such folder or table, a missing column, an unknown value (with its line), absent images.
    """
    if uncertain not in _UNCERTAIN:
        raise UsageError(f"uncertain labels as {uncertain!r}: use one of {', '.join(_UNCERTAIN)}")
    if folder.is_file():
        root, named = folder.parent, folder.name
        tables: list[tuple[Path, Split]] = [(folder, "val" if named.lower().startswith("valid") else "train")]
    else:
        root = folder
        if not root.is_dir():
            raise UsageError(f"{folder}: no such folder; check the spelling and the mount")
        tables = [(root / name, split) for name, split in _TABLES if name == "train.csv" or (root / name).is_file()]
        if not tables[0][0].is_file():
            raise UsageError(f"{folder}: holds no train.csv; name the folder CheXpert-v1.0 or CheXpert-v1.0-small")
    counts: Counter[str] = Counter()
    records, missing = [], []
    for path, split in tables:
        table = read_table(path)
        table.require(path, COLUMNS)
        for line, row in table.rows:
            record = _record(root, row, split, _UNCERTAIN[uncertain], f"{path} line {line}")
            if record.view == "lateral":
                counts["lateral_view"] += 1
            elif record.path.is_file():
                records.append(record)
            else:
                missing.append(record.path)
    counts["not_found"] += len(missing)
    if missing and (absent == "error" or not records):
        raise UsageError(
            f"{folder}: {len(missing)} of {len(missing) + len(records)} frontal images listed are absent, first "
            f"{missing[0]}; restore them, or name the folder that holds them"
        )
    if not records:
        raise UsageError(f"{folder}: no frontal image in its {counts['lateral_view']} rows; name another table")
    if left_out is not None:
        left_out.update(+counts)
    return records


def _record(root: Path, row: dict[str, str], split: Split, uncertain: float, where: str) -> Record:
    """One row; view "lateral" is for the caller to leave out."""
    place = _PLACE.search(row["path"].strip().replace("\\", "/"))
    if place is None:
        raise UsageError(f"{where}: Path does not end like train/patient00001/study1/view1_frontal.jpg; restore it")
    frontal, view = row["frontal/lateral"].strip(), row["ap/pa"].strip()
    if frontal not in ("Frontal", "Lateral"):
        raise UsageError(f"{where}: Frontal/Lateral is {frontal!r}; use Frontal or Lateral")
    if view not in _VIEWS:
        raise UsageError(f"{where}: AP/PA is {view!r}; use AP, PA, LL, RL or leave it blank")
    sex = row["sex"].strip().lower()
    return Record(
        path=root / place[0],
        source="chexpert",
        patient=place["patient"],
        split=split,
        view="lateral" if frontal == "Lateral" else _VIEWS[view],
        label=_normal(row),
        findings=np.array([_label(row[name], name, uncertain, where) for name in FINDINGS], np.float32),
        sex=sex if sex in ("female", "male") else "unknown",
        reuse="terms",
    )


def _normal(row: dict[str, str]) -> int | None:
    """0 or None, from the row as it stands: whatever uncertain labels become, they do not make an image normal."""
    said = {name for name in _OTHERS if row.get(name, "").strip() in ("1", "1.0", "-1", "-1.0")}
    return 0 if said == {"no_finding"} and row["no_finding"].strip() in ("1", "1.0") else None


def _label(text: str, column: str, uncertain: float, where: str) -> float:
    text = text.strip()
    if text in ("-1.0", "-1"):
        return uncertain
    if text not in _LABELS:
        raise UsageError(f"{where}: {column} is {text!r}; use 1, 0, -1 (uncertain) or leave it blank")
    return _LABELS[text]
