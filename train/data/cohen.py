"""The covid-chestxray-dataset (Cohen et al. 2020, github.com/ieee8023/covid-chestxray-dataset): metadata.csv, images/.

Findings are paths ("Pneumonia/Viral/COVID-19") or, until mid 2020, names ("COVID-19", "COVID-19, ARDS"). COVID-19 is
covid, No Finding normal, an infection of the lung other; ARDS, lipoid and aspiration pneumonia and what is unknown have
no label. Where public-annotations.csv of the Brixia set lies in the folder its scores are taken: zones by the senior
radiologist, second_brixia by the junior.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from cxrvit_edge.errors import UsageError
from cxrvit_edge.table import read_table
from train.data import scores, split
from train.data.gather import Absent, Gather, sex_of
from train.data.record import Record

LOOKS_FOR = "metadata.csv with patientid, finding, view and filename"
COLUMNS = ("patientid", "offset", "sex", "finding", "view", "filename")
ANNOTATIONS = "public-annotations.csv"

_VIEWS = {"PA": "PA", "AP": "AP", "AP Supine": "AP Supine", "AP semi erect": "AP", "AP erect": "AP"}
_LATERAL = ("L", "LL", "Lateral")
_SLICES = ("Axial", "Coronal", "CT")
_OTHER = re.compile(
    r"SARS|MERS|Viral|Influenza|Varicella|Herpes|RSV|Bacterial|Streptococcus|Klebsiella|Legionella|E\.? ?Coli|Nocardia"
    r"|Staphylococcus|MRSA|Mycoplasma|Chlamydophila|Fungal|Pneumocystis|Aspergillosis|Tuberculosis|Pneumonia$",
    re.IGNORECASE,
)
_UNSURE = re.compile(r"Lipoid|Aspiration|Unknown|todo", re.IGNORECASE)


def is_layout(path: Path) -> bool:
    table = path / "metadata.csv" if path.is_dir() else path
    if table.name != "metadata.csv" or not table.is_file():
        return False
    return {"patientid", "finding", "view", "filename"} <= set(read_table(table, header_only=True).columns)


def label_of(finding: str) -> int | None:
    """Index into CLASSES of a finding, None where it is neither normal nor a lung infection of a known kind."""
    text = finding.strip()
    if "COVID" in text.upper():
        return 2
    if text.replace("_", " ").lower() in ("no finding", "normal"):
        return 0
    return 1 if _OTHER.search(text) and not _UNSURE.search(text) else None


def licence_class(text: str) -> str:
    """A licence's name -> Record.reuse: yes, non-commercial, no-derivatives or unknown."""
    words = set(re.split(r"[^a-z0-9]+", text.lower()))
    if "nd" in words:
        return "no-derivatives"
    if "nc" in words:
        return "non-commercial"
    return "yes" if words & {"by", "cc0", "apache", "mit"} else "unknown"


def read(
    folder: Path,
    *,
    absent: Absent = "error",
    left_out: Counter[str] | None = None,
    seed: int = 0,
) -> list[Record]:
    """Records of `folder` or its metadata.csv, in the table's order; splits are drawn by patient, a tenth val, test.

    Frontal radiographs only. day is the offset: days from onset of symptoms or from hospital admission, as known.
    absent, left_out: as chexpert.read; left out are not_xray, lateral_view and not_found
    Raises UsageError: no such folder or table, a missing column, an unknown value (with its line), absent images.
    """
    table_path = folder / "metadata.csv" if folder.is_dir() else folder
    if not table_path.is_file():
        raise UsageError(f"{folder}: holds no metadata.csv; name the folder of the covid-chestxray-dataset")
    root = table_path.parent
    gather = Gather(folder, absent, left_out)
    table = read_table(table_path)
    table.require(table_path, COLUMNS)
    scored = scores.public_annotations(root / ANNOTATIONS) if (root / ANNOTATIONS).is_file() else {}
    for line, row in table.rows:
        where, view = f"{table_path} line {line}", row["view"].strip()
        if view not in (*_VIEWS, *_LATERAL, *_SLICES):
            raise UsageError(f"{where}: view is {view!r}; use one of {', '.join((*_VIEWS, *_LATERAL, *_SLICES))}")
        modality = row.get("modality", "").strip() or ("CT" if view in _SLICES else "X-ray")
        if modality not in ("X-ray", "CT"):
            raise UsageError(f"{where}: modality is {modality!r}; use X-ray or CT")
        if modality == "CT" or view in _SLICES or view in _LATERAL:
            gather.leave_out("lateral_view" if view in _LATERAL else "not_xray")
            continue
        name, patient = row["filename"].strip(), row["patientid"].strip()
        brixia, second = scored.get(name, (None, None))
        gather.add(
            Record(
                path=root / (row.get("folder", "").strip() or "images") / name,
                source="cohen",
                patient=patient,
                split=split.draw("cohen", patient, seed=seed),
                view=_VIEWS[view],
                label=label_of(row["finding"]),
                brixia=brixia,
                second_brixia=second,
                day=_offset(row["offset"], where),
                reuse=licence_class(row.get("license", "")),
                sex=sex_of(row["sex"]),
            )
        )
    return gather.done()


def _offset(text: str, where: str) -> float | None:
    text = text.strip()
    try:
        return float(text) if text else None
    except ValueError:
        raise UsageError(f"{where}: offset is {text!r}; use a number of days or leave it blank") from None
