"""The Brixia COVID-19 set (Signoroni et al. 2021): metadata_global_v2.csv (or v1) and the DICOM files in dicom_clean/.

All are of COVID-19 patients. A score is of the radiologist on duty. Where metadata_consensus_v1.csv lies beside the
table, second_brixia is the consensus of five radiologists (the mode, a zone each) on the test images.

Its repository (github.com/BrixIA/Brixia-score-COVID-19) scores images of the covid-chestxray-dataset in
public-annotations.csv: name the folder that holds it and a checkout of that dataset, or put the table into the latter.
The few images that the repository has itself (public-cohen-subset) are not read.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from cxrvit_edge.errors import UsageError
from cxrvit_edge.readers.views import view_from_text
from cxrvit_edge.table import read_table
from train.data import cohen, scores, split
from train.data.gather import Absent, Gather, day_of, first_days, index, sex_of
from train.data.record import Record
from train.data.scores import Scores

LOOKS_FOR = "metadata_global_v2.csv, or public-annotations.csv with covid-chestxray-dataset beside it"
COLUMNS = ("filename", "brixiascore", "studyid", "consensustestset")

_TABLES = ("metadata_global_v2.csv", "metadata_global_v1.csv")
_CONSENSUS = "metadata_consensus_v1.csv"
_PATIENTS = ("subject", "patientid", "studyid")  # the first that the table has
_TEST = {"0": False, "0.0": False, "false": False, "": False, "1": True, "1.0": True, "true": True}


def is_layout(path: Path) -> bool:
    return _table(path) is not None or (path.is_dir() and _public(path) is not None)


def read(
    folder: Path,
    *,
    absent: Absent = "error",
    left_out: Counter[str] | None = None,
    seed: int = 0,
) -> list[Record]:
    """Records of `folder` or its table, in the table's order. Test is ConsensusTestset, of the rest a tenth is val.

    Other images of test patients are left out. The view is the table's ViewPosition or the DICOM header's.
    absent, left_out: as chexpert.read; left out are patient_in_test, score_disagrees (with BrixiaScoreGlobal),
    no_score, lateral_view, not_found, and from the public annotations what cohen.read leaves out and no_score
    Raises UsageError: no such folder or table, a missing column, an unknown value (with its line), absent images.
    """
    table_path = _table(folder)
    if table_path is None:
        if folder.is_dir() and (public := _public(folder)) is not None:
            return _read_public(*public, absent, left_out, seed)
        raise UsageError(f"{folder}: holds no {LOOKS_FOR}; name the folder that does")
    root = table_path.parent
    gather = Gather(folder, absent, left_out)
    table = read_table(table_path, delimiter=None)
    table.require(table_path, COLUMNS)
    consensus = _consensus(root / _CONSENSUS)
    key = next(c for c in _PATIENTS if c in table.columns)
    images = index((p for p in (root / "dicom_clean", root) if p.is_dir()), (".dcm",))
    held = set()
    for line, row in table.rows:
        flag = row["consensustestset"].strip().lower()
        if flag not in _TEST:
            raise UsageError(f"{table_path} line {line}: ConsensusTestset is {flag!r}; use 0 or 1")
        row["consensustestset"] = "1" if _TEST[flag] else ""
        if _TEST[flag]:
            held.add(row[key].strip())
    days = [day_of(row.get("studydate", "")) for _, row in table.rows]
    first = first_days((row[key].strip(), day) for (_, row), day in zip(table.rows, days, strict=True))
    for (line, row), day in zip(table.rows, days, strict=True):
        name, patient, test = row["filename"].strip(), row[key].strip(), bool(row["consensustestset"])
        score = scores.from_digits(row["brixiascore"], f"{table_path} line {line}")
        total = row.get("brixiascoreglobal", "").strip().removesuffix(".0")
        reason = "patient_in_test" if patient in held and not test else "no_score" if score is None else None
        if score is not None and total and total != str(int(score.sum())):
            reason = "score_disagrees"
        path = images.get(name, root / "dicom_clean" / name)
        view, sex = row.get("viewposition", "").strip(), sex_of(row.get("sex", ""))
        if reason is None and name in images and not view:
            view = _header_view(path)
        if reason is None and view_from_text(view) == "lateral":
            reason = "lateral_view"
        if reason is not None:
            gather.leave_out(reason)
            continue
        gather.add(
            Record(
                path=path,
                source="brixia",
                patient=patient,
                split="test" if test else split.draw("brixia", patient, seed=seed, test=0),
                view=view_from_text(view),
                label=2,
                brixia=score,
                second_brixia=consensus.get(name),
                day=None if day is None else float(day - first[patient]),
                reuse="non-commercial",
                sex=sex,
            ),
            there=name in images,
        )
    return gather.done()


def _table(path: Path) -> Path | None:
    if path.is_file():
        return path if path.name in _TABLES else None
    return next((path / name for name in _TABLES if (path / name).is_file()), None)


def _consensus(path: Path) -> dict[str, Scores]:
    if not path.is_file():
        return {}
    table = read_table(path, delimiter=None)
    columns = [f"mode{zone.lower()}" for zone in scores.ZONES]
    table.require(path, ("filename", *columns))
    found = {
        row["filename"].strip(): scores.from_columns(row, columns, f"{path} line {line}:", (0, 1, 2, 3))
        for line, row in table.rows
    }
    return {name: score for name, score in found.items() if score is not None}


def _header_view(path: Path) -> str:
    """ViewPosition of a DICOM file, blank where it cannot be read: reading the pixels says what is wrong."""
    import pydicom

    from cxrvit_edge.readers.quiet import quiet_pydicom

    try:
        with quiet_pydicom():
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=["ViewPosition"])
            return str(header.get("ViewPosition") or "").strip()
    except Exception:  # pydicom raises whatever the bytes make it stumble over
        return ""


def _public(folder: Path) -> tuple[Path, Path] | None:
    """public-annotations.csv and the covid-chestxray-dataset, in `folder`, its data/, or beside it."""
    tables = [p / cohen.ANNOTATIONS for p in (folder, folder / "data") if (p / cohen.ANNOTATIONS).is_file()]
    name = "covid-chestxray-dataset"
    roots = [p for p in (folder / name, folder, folder.parent / name) if cohen.is_layout(p)]
    return (tables[0], roots[0]) if tables and roots else None


def _read_public(table: Path, root: Path, absent: Absent, left_out: Counter[str] | None, seed: int) -> list[Record]:
    """Their source stays cohen: the same patients come with that dataset."""
    from dataclasses import replace

    scored = scores.public_annotations(table)
    counts: Counter[str] = Counter()
    out = []
    for record in cohen.read(root, absent=absent, left_out=counts, seed=seed):
        if record.path.name in scored:
            brixia, second = scored[record.path.name]
            out.append(replace(record, brixia=brixia, second_brixia=second))
        else:
            counts["no_score"] += 1
    if not out:
        raise UsageError(
            f"{table}: none of its {len(scored)} images is listed by {root}/metadata.csv; fetch both again"
        )
    if left_out is not None:
        left_out.update(counts)
    return out
