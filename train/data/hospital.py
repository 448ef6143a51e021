"""A hospital's own images, or several hospitals': one CSV beside them. Column names in any case, with
spaces or underscores.

path                    image (PNG, JPEG, TIFF or DICOM), relative to the CSV's folder or absolute; the one that must be
label                   normal, other or covid, and their aliases; blank: not known
no_finding ... support_devices   the paper's ten findings, 1, 0 or blank (not known)
view                    PA, AP, AP Supine, and other words for these ("P.A.", "Posteroanterior"); lateral rows are
                        left out; without it the view is unknown
source                  the hospital's name; blank or without it the CSV's name, or its folder's if that is images.csv
patient                 the same text on all images of one patient; without it every image is its own patient. The same
                        text in two hospitals is two patients
split                   train, val or test on every row; without it a tenth of the patients is val, a tenth test
sex                     F, M, female or male
day, or date            a number of days, or 2020-03-15 (then days are counted from the patient's first date)
brixia_a ... brixia_f   Brixia scores 0 to 3; A, B, C image-left from the top, D, E, F image-right
second_a ... second_f   the same by a second radiologist
zone_upper_image_left, zone_middle_image_left, zone_lower_image_left, zone_upper_image_right, ...
                        0 or 1 (Toussie et al. 2020); image-left is the patient's right lung. Or all six with
                        patient_right for image_left and patient_left for image_right
lungs, opacity          masks at the size of the image: both lungs; what a radiologist outlined. lungs_kind names the
                        convention of the former ("hospital" without it)
reuse                   licence class (terms without it)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import UsageError
from cxrvit_edge.labels import LABELS
from cxrvit_edge.model.config import FINDINGS
from cxrvit_edge.table import read_table
from train.data import scores, split
from train.data.gather import Absent, Gather, day_of, first_days, sex_of, view_of
from train.data.record import Record, Split

LOOKS_FOR = "a CSV, or a folder's images.csv, with path and any of label, findings, Brixia or zone scores, masks"

_SPLITS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_FINDING = {"": np.nan, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}
_BRIXIA = [f"brixia_{zone.lower()}" for zone in scores.ZONES]
_SECOND = [f"second_{zone.lower()}" for zone in scores.ZONES]
_HEIGHTS = ("upper", "middle", "lower")
_IMAGE_SIDES = [f"zone_{height}_image_{side}" for side in ("left", "right") for height in _HEIGHTS]  # A to F
_PATIENT_SIDES = [f"zone_{height}_patient_{side}" for side in ("right", "left") for height in _HEIGHTS]
_TOLD = {"label", "lungs", "opacity", *FINDINGS, *_BRIXIA, *_IMAGE_SIDES, *_PATIENT_SIDES}


def is_layout(path: Path) -> bool:
    table = path / "images.csv" if path.is_dir() else path
    if not table.is_file() or table.suffix.lower() not in (".csv", ".tsv"):
        return False
    columns = set(read_table(table, header_only=True, delimiter=None).columns)
    return "path" in columns and bool(columns & _TOLD)


def read(
    folder: Path,
    *,
    source: str | None = None,
    absent: Absent = "error",
    left_out: Counter[str] | None = None,
    seed: int = 0,
) -> list[Record]:
    """Records of a CSV, or of `folder`/images.csv, in its order.

    source: what the hospital is called where the column does not say
    Patients carry their hospital's name ("CNUH:12").
    absent, left_out: as chexpert.read; left out are lateral_view and not_found. A mask that is absent is an error
    or, if absent images are skipped, no mask
    Raises UsageError: no such table, a missing column, an unknown value (with its line), absent files, patients in two
    splits.
    """
    path = folder / "images.csv" if folder.is_dir() else folder
    if not path.is_file():
        raise UsageError(f"{folder}: no such table; name {LOOKS_FOR}")
    table = read_table(path, delimiter=None)
    table.require(path, ["path"])
    columns = set(table.columns)
    if not columns & _TOLD:
        raise UsageError(f"{path}: says nothing of its images; it needs any of label, {', '.join(FINDINGS[:2])}, ...")
    brixia, second, zones, findings = _groups(path, columns)
    name = source or (path.parent.name if path.stem == "images" else path.stem)
    gather = Gather(folder, absent, left_out)
    first = first_days((_patient(row, name), day_of(row.get("date", ""))) for _, row in table.rows)
    for line, row in table.rows:
        where, place = f"{path} line {line}:", row["path"].strip().replace("\\", "/")
        if not place:
            raise UsageError(f"{where} no path; give one or remove the line")
        view, label = view_of(row.get("view", "")), row.get("label", "").strip().lower()
        if label not in LABELS:
            raise UsageError(f"{where} label {label!r}; use one of {', '.join(filter(None, LABELS))}, or blank")
        if view == "lateral":
            gather.leave_out("lateral_view")
            continue
        own, known = _source(row, name), _patient(row, name)
        patient = known or f"{own}:{place}"
        lungs, opacity = (_mask(path.parent, row.get(c, ""), where, absent) for c in ("lungs", "opacity"))
        gather.add(
            Record(
                path=path.parent / place,
                source=own,
                patient=patient,
                split=_split(row, where) if "split" in columns else split.draw(own, patient, seed=seed),
                view=view,
                label=LABELS[label],
                findings=np.array([_finding(row.get(f, ""), f, where) for f in FINDINGS], np.float32)
                if findings
                else np.full(len(FINDINGS), np.nan, np.float32),
                brixia=scores.from_columns(row, _BRIXIA, where, (0, 1, 2, 3)) if brixia else None,
                second_brixia=scores.from_columns(row, _SECOND, where, (0, 1, 2, 3)) if second else None,
                zones=_zones(row, zones, where) if zones else None,
                lungs=lungs,
                lungs_kind=(row.get("lungs_kind", "").strip() or "hospital") if lungs else None,
                opacity=opacity,
                day=_day(row, first.get(known), where),
                reuse=row.get("reuse", "").strip() or "terms",
                sex=sex_of(row.get("sex", "")),
            )
        )
    records = gather.done()
    split.check_disjoint(records)
    return records


def _groups(path: Path, columns: set[str]) -> tuple[bool, bool, list[str], bool]:
    """Which scores are there: Brixia, second Brixia, zones by these columns, findings. UsageError if one is in part."""
    there = []
    for group in (_BRIXIA, _SECOND, _IMAGE_SIDES, _PATIENT_SIDES):
        own = [c for c in group if c in columns]
        if own and len(own) < len(group):
            raise UsageError(
                f"{path}: columns missing: {', '.join(c for c in group if c not in columns)}; give all six"
            )
        there.append(bool(own))
    if there[2] and there[3]:
        raise UsageError(f"{path}: zones by the image's sides and by the patient's; keep one of them")
    zones = _IMAGE_SIDES if there[2] else _PATIENT_SIDES if there[3] else []
    return there[0], there[1], zones, bool(columns & set(FINDINGS))


def _zones(row: dict[str, str], columns: Sequence[str], where: str) -> NDArray[np.float32] | None:
    """(3, 2) 0, 1 or NaN; None if all are blank."""
    values = [_finding(row.get(c, ""), c, where) for c in columns]
    return None if np.isnan(values).all() else scores.arrange(values)


def _finding(text: str, column: str, where: str) -> float:
    if text.strip() not in _FINDING:
        raise UsageError(f"{where} {column} is {text.strip()!r}; use 1, 0 or leave it blank")
    return float(_FINDING[text.strip()])


def _split(row: dict[str, str], where: str) -> Split:
    text = row["split"].strip().lower()
    if text not in _SPLITS:
        raise UsageError(f"{where} split {text!r}; use train, val or test on every row, or drop the column")
    return _SPLITS[text]


def _mask(root: Path, text: str, where: str, absent: Absent) -> Path | None:
    if not text.strip():
        return None
    path = root / text.strip().replace("\\", "/")
    if path.is_file():
        return path
    if absent == "error":
        raise UsageError(f"{where} the mask {path} is absent; restore it or leave the cell blank")
    return None


def _source(row: dict[str, str], name: str) -> str:
    return row.get("source", "").strip() or name


def _patient(row: dict[str, str], name: str) -> str:
    """With the hospital's name before it, blank if the row names none."""
    patient = row.get("patient", "").strip()
    return f"{_source(row, name)}:{patient.removeprefix(f'{_source(row, name)}:')}" if patient else ""


def _day(row: dict[str, str], first: int | None, where: str) -> float | None:
    text, date = row.get("day", "").strip(), row.get("date", "").strip()
    try:
        if text:
            return float(text)
    except ValueError:
        raise UsageError(f"{where} day is {text!r}; use a number of days or leave it blank") from None
    if not date or not row.get("patient", "").strip():
        return None
    number = day_of(date)
    if number is None:
        raise UsageError(f"{where} date cannot be read; write it as 2020-03-15 or leave it blank")
    return float(number - first) if first is not None else None
