"""NIH ChestX-ray14 (Wang et al. 2017), all frontal: Data_Entry_2017.csv or Data_Entry_2017_v2020.csv, the images in
images_001/images ... images_012/images as the archives unpack, or all in images/; train_val_list.txt and test_list.txt.

Labels are text-mined. The paper takes normal images alone from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import FINDINGS
from cxrvit_edge.table import read_table
from train.data import split
from train.data.gather import Absent, Gather, index, sex_of
from train.data.record import Record, Split

LOOKS_FOR = "Data_Entry_2017.csv or Data_Entry_2017_v2020.csv"
COLUMNS = ("image_index", "finding_labels", "patient_id", "patient_gender", "view_position")

_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")  # the later one mends labels and ages
_LISTS: tuple[tuple[str, Split], ...] = (("train_val_list.txt", "train"), ("test_list.txt", "test"))
_MAPPED = {
    "Cardiomegaly": "cardiomegaly",
    "Infiltration": "lung_opacity",
    "Edema": "edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Effusion": "pleural_effusion",
    "No Finding": "no_finding",
}
_OTHERS = ("Mass", "Nodule", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia")


def is_layout(path: Path) -> bool:
    return _table(path) is not None


def findings_of(names: Iterable[str]) -> NDArray[np.float32]:
    """NIH's names -> (10,) 0 or 1 in the order of FINDINGS; support devices NaN, which NIH does not label."""
    out = np.zeros(len(FINDINGS), np.float32)
    out[FINDINGS.index("support_devices")] = np.nan
    for name in names:
        if name in _MAPPED:
            out[FINDINGS.index(_MAPPED[name])] = 1.0
    return out


def read(
    folder: Path,
    *,
    other: bool = False,
    absent: Absent = "error",
    left_out: Counter[str] | None = None,
    seed: int = 0,
) -> list[Record]:
    """Records of `folder` or its table, in the table's order. No Finding is normal, the rest has no label.

    Test is test_list.txt, of train_val_list.txt a tenth of the patients is val; without the lists a tenth each.
    other: also call images with Pneumonia "other infection"; their pathogen is unknown
    absent, left_out: as chexpert.read; left out are not_in_lists and not_found
    Raises UsageError: no such folder or table, a missing column, an unknown value (with its line), absent images.
    """
    table_path = _table(folder)
    if table_path is None:
        raise UsageError(f"{folder}: holds no {LOOKS_FOR}; name the folder that does")
    root = table_path.parent
    gather = Gather(folder, absent, left_out)
    table = read_table(table_path, only=COLUMNS)
    table.require(table_path, COLUMNS)
    listed = _lists(root)
    images = index([*sorted(root.glob("images_*/images")), *(p for p in (root / "images", root) if p.is_dir())])
    for line, row in table.rows:
        name, where = row["image_index"].strip(), f"{table_path} line {line}"
        findings = [f.strip() for f in row["finding_labels"].split("|")]
        if unknown := [f for f in findings if f not in _MAPPED and f not in _OTHERS]:
            raise UsageError(f"{where}: Finding Labels has {unknown[0]!r}; use NIH's 14 names or No Finding")
        view = row["view_position"].strip()
        if view not in ("PA", "AP"):
            raise UsageError(f"{where}: View Position is {view!r}; use PA or AP")
        if listed and name not in listed:
            gather.leave_out("not_in_lists")
            continue
        patient = row["patient_id"].strip()
        own = listed.get(name)
        drawn = own if own == "test" else split.draw("nih", patient, seed=seed, test=0 if own else split.TEST)
        gather.add(
            Record(
                path=images.get(name, root / "images" / name),
                source="nih",
                patient=patient,
                split=drawn,
                view=view,
                label=0 if findings == ["No Finding"] else 1 if other and "Pneumonia" in findings else None,
                findings=findings_of(findings),
                sex=sex_of(row["patient_gender"]),
                reuse="yes",
            ),
            there=name in images,
        )
    return gather.done()


def _table(path: Path) -> Path | None:
    if path.is_file():
        return path if path.name in _TABLES else None
    return next((path / name for name in _TABLES if (path / name).is_file()), None)


def _lists(root: Path) -> dict[str, Split]:
    """Image -> train (train or val) or test; empty without both files."""
    if not all((root / name).is_file() for name, _ in _LISTS):
        return {}
    out: dict[str, Split] = {}
    for name, own in _LISTS:
        out.update(dict.fromkeys((root / name).read_text(encoding="utf-8").split(), own))
    return out
