"""PadChest (Bustos et al. 2020): PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv (or .csv.gz, or without a date),
16-bit PNGs in the folders 0 to 54 that ImageDir names, in images/, or all beside the table.

Kept are PA, AP and AP_horizontal (supine). The PNGs hold stored values, so those of MONOCHROME1 are marked inverted.
What of its 174 radiographic findings counts as which of the paper's ten is ours.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import FINDINGS
from cxrvit_edge.table import read_table
from train.data import split
from train.data.gather import Absent, Gather, day_of, first_days, index, sex_of
from train.data.record import Record

LOOKS_FOR = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv or .csv.gz"
COLUMNS = ("imageid", "imagedir", "studydate_dicom", "patientid", "projection", "pediatric", "labels")

_OPTIONAL = ("patientsex_dicom", "photometricinterpretation_dicom")
_PATTERN = "PADCHEST_chest_x_ray_images_labels_160K*.csv*"
_VIEWS = {"PA": "PA", "AP": "AP", "AP_horizontal": "AP Supine"}
_NOT_KEPT = {"L": "lateral_view", "COSTAL": "other_view", "EXCLUDE": "other_view", "UNK": "unknown_view"}
_MAPPED = {
    "no_finding": {"normal"},
    "cardiomegaly": {"cardiomegaly"},
    "lung_opacity": {"infiltrates", "alveolar pattern", "interstitial pattern", "ground glass pattern"},
    "edema": {"pulmonary edema"},
    "consolidation": {"consolidation"},
    "pneumonia": {"pneumonia", "atypical pneumonia"},
    "atelectasis": {
        "atelectasis", "laminar atelectasis", "total atelectasis", "lobar atelectasis", "segmental atelectasis",
        "round atelectasis", "atelectasis basal",
    },
    "pneumothorax": {"pneumothorax", "hydropneumothorax"},
    "pleural_effusion": {"pleural effusion", "loculated pleural effusion", "hydropneumothorax"},
    "support_devices": {
        "pacemaker", "dual chamber device", "single chamber device", "dai", "endotracheal tube", "tracheostomy tube",
        "nsg tube", "chest drain tube", "ventriculoperitoneal drain tube", "catheter", "central venous catheter",
        "central venous catheter via jugular vein", "central venous catheter via subclavian vein",
        "central venous catheter via umbilical vein", "reservoir central venous catheter", "electrical device",
    },
}  # fmt: skip
_INFECTIONS = {"pneumonia", "atypical pneumonia", "tuberculosis"}  # at present, not their sequelae


def is_layout(path: Path) -> bool:
    return _table(path) is not None


def findings_of(labels: Iterable[str]) -> NDArray[np.float32]:
    """Labels of PadChest or BIMCV -> (10,) 0 or 1 in the order of FINDINGS; all NaN if there is none."""
    own = set(labels)
    if not own:
        return np.full(len(FINDINGS), np.nan, np.float32)
    out = np.array([bool(_MAPPED[name] & own) for name in FINDINGS], np.float32)
    out[FINDINGS.index("no_finding")] = own == {"normal"}
    return out


def labels_of(text: str, where: str) -> set[str]:
    """A cell like "['normal', 'unchanged']" -> its labels but "unchanged", lower case; none if blank.

    UsageError if it is no such list.
    """
    if text.strip().lower() in ("", "nan"):
        return set()
    try:
        cells = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        cells = None
    if not isinstance(cells, list):
        raise UsageError(f"{where}: Labels is no list like ['normal']; restore the table")
    return {str(c).strip().lower() for c in cells} - {"", "unchanged", "nan"}


def read(
    folder: Path,
    *,
    other: bool = False,
    pediatric: bool = False,
    absent: Absent = "error",
    left_out: Counter[str] | None = None,
    seed: int = 0,
) -> list[Record]:
    """Records of `folder` or its table, in the table's order; splits are drawn by patient, a tenth val, a tenth test.

    Images labelled "normal" and nothing else are normal, the rest has no label.
    other: also call pneumonia and tuberculosis "other infection"
    pediatric: also those that the table says are of children
    absent, left_out: as chexpert.read; left out are lateral_view, other_view, unknown_view, pediatric, excluded
    (label "exclude") and not_found
    Raises UsageError: no such folder or table, a missing column, an unknown value (with its line), absent images.
    """
    table_path = _table(folder)
    if table_path is None:
        raise UsageError(f"{folder}: holds no {LOOKS_FOR}; name the folder that does")
    root = table_path.parent
    gather = Gather(folder, absent, left_out)
    table = read_table(table_path, only=(*COLUMNS, *_OPTIONAL))
    table.require(table_path, COLUMNS)
    folders = [root, root / "images"]
    images = index(p for f in folders if f.is_dir() for p in (f, *(q for q in sorted(f.iterdir()) if q.name.isdigit())))
    days = [day_of(row["studydate_dicom"]) for _, row in table.rows]
    first = first_days((row["patientid"].strip(), day) for (_, row), day in zip(table.rows, days, strict=True))
    for (line, row), day in zip(table.rows, days, strict=True):
        where, projection = f"{table_path} line {line}", row["projection"].strip()
        if projection not in _VIEWS and projection not in _NOT_KEPT:
            raise UsageError(f"{where}: Projection is {projection!r}; use one of {', '.join((*_VIEWS, *_NOT_KEPT))}")
        labels = labels_of(row["labels"], where)
        child = row["pediatric"].strip().upper().startswith("PED")
        reason = _NOT_KEPT.get(projection) or ("pediatric" if child and not pediatric else None)
        if reason is None and "exclude" in labels:
            reason = "excluded"
        if reason is not None:
            gather.leave_out(reason)
            continue
        name, patient = row["imageid"].strip(), row["patientid"].strip()
        gather.add(
            Record(
                path=images.get(name, root / row["imagedir"].strip() / name),
                source="padchest",
                patient=patient,
                split=split.draw("padchest", patient, seed=seed),
                view=_VIEWS[projection],
                label=0 if labels == {"normal"} else 1 if other and labels & _INFECTIONS else None,
                findings=findings_of(labels),
                day=None if day is None else float(day - first[patient]),
                reuse="terms",
                sex=sex_of(row.get("patientsex_dicom", "")),
                inverted=row.get("photometricinterpretation_dicom", "").strip() == "MONOCHROME1",
            ),
            there=name in images,
        )
    return gather.done()


def _table(path: Path) -> Path | None:
    if path.is_file():
        return path if path.match(_PATTERN) else None
    return next(iter(sorted(path.glob(_PATTERN))), None) if path.is_dir() else None
