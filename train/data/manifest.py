"""A folder with manifest.csv (labels, views, licences, splits), severity.csv (Brixia) and masks/masks.csv.

severity.csv has the senior radiologist's zones in S-A to S-F and may have the junior's in J-A to J-F; manifest.csv may
have sex and offset_days. A mask of the kind generalblockchain_opacity becomes Record.opacity.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import UsageError
from cxrvit_edge.labels import LABELS
from cxrvit_edge.model.config import FINDINGS
from train.data import nih, scores
from train.data.gather import Absent, sex_of, view_of
from train.data.record import Record

LOOKS_FOR = "manifest.csv with path, label, group_id and reuse"
REUSABLE = ("yes", "non-commercial", "terms")  # licence classes that published weights may be trained on
MASK_KINDS = ("generalblockchain", "shenzhen", "lungvae")  # by preference
OPTIONAL_KINDS = ("v7",)  # covers heart and diaphragm too: only where asked for
OPACITY = "generalblockchain_opacity"

_COLUMNS = ("path", "label", "view", "group_id", "source", "reuse", "split")
_SENIOR, _JUNIOR = ([f"{who}-{zone}" for zone in scores.ZONES] for who in "SJ")


def is_layout(path: Path) -> bool:
    table = path / "manifest.csv" if path.is_dir() else path
    if table.name != "manifest.csv" or not table.is_file():
        return False
    with table.open(newline="", encoding="utf-8", errors="replace") as f:
        return set(_COLUMNS) <= set(next(csv.reader(f), []))


def read(
    folder: Path,
    *,
    reuse: Sequence[str] | None = None,
    masks: Sequence[str] = MASK_KINDS,
    absent: Absent = "error",
    left_out: Counter[str] | None = None,
) -> list[Record]:
    """Records of `folder` or its manifest.csv, of the licence classes (None: all). UsageError on a wrong layout.

    masks: kinds of lung masks by preference, of MASK_KINDS and OPTIONAL_KINDS; none: no opacity masks either
    absent: listed files that are not there are an error or are passed over (a record keeps what else it has)
    left_out: takes the number of rows left out, as licence and not_found
    """
    if unknown := set(masks) - {*MASK_KINDS, *OPTIONAL_KINDS}:
        raise UsageError(f"mask kind {min(unknown)!r}: use some of {', '.join((*MASK_KINDS, *OPTIONAL_KINDS))}")
    folder = folder.parent if folder.is_file() else folder
    rows = _rows(folder / "manifest.csv", _COLUMNS)
    severity = folder / "severity.csv"
    scored = _optional(severity, ("path", *_SENIOR))
    brixia = {r["path"]: _brixia(severity, r, _SENIOR) for r in scored}
    second = {r["path"]: _brixia(severity, r, _JUNIOR) for r in scored if set(_JUNIOR) <= set(r)}
    lungs: dict[str, tuple[str, str]] = {}
    opacities: dict[str, str] = {}
    mask_rows = _optional(folder / "masks" / "masks.csv", ("mask_path", "image_path", "kind")) if masks else []
    for kind in masks:
        for r in mask_rows:
            if r["kind"] == kind:
                lungs.setdefault(r["image_path"], (r["mask_path"], kind))
    for r in mask_rows:
        if r["kind"] == OPACITY:
            opacities.setdefault(r["image_path"], r["mask_path"])
    records: list[Record] = []
    counts: Counter[str] = Counter()
    for number, r in enumerate(rows, 2):
        if r["label"] not in LABELS:
            raise UsageError(f"{folder}/manifest.csv line {number}: label {r['label']!r}; use one of {sorted(LABELS)}")
        if r["split"] not in ("train", "val", "test"):
            raise UsageError(f"{folder}/manifest.csv line {number}: split {r['split']!r}; use train, val or test")
        if reuse is not None and r["reuse"] not in reuse:
            counts["licence"] += 1
            continue
        mask, kind_ = lungs.get(r["path"], (None, None))
        opacity = opacities.get(r["path"])
        records.append(
            Record(
                path=folder / r["path"],
                source=r["source"],
                patient=r["group_id"],
                split=r["split"],  # type: ignore[arg-type]
                view=view_of(r["view"]),
                label=LABELS[r["label"]],
                findings=_findings(r["source"], r.get("finding_raw", "")),
                brixia=brixia.get(r["path"]),
                second_brixia=second.get(r["path"]),
                lungs=folder / mask if mask else None,
                lungs_kind=kind_,
                opacity=folder / opacity if opacity else None,
                day=_day(r.get("offset_days"), f"{folder}/manifest.csv line {number}"),
                reuse=r["reuse"],
                sex=sex_of(r.get("sex") or ""),
            )
        )
    if not records:
        raise UsageError(f"{folder}: none of its {len(rows)} images has a licence in: {', '.join(reuse or ())}")
    files = [p for r in records for p in (r.path, r.lungs, r.opacity) if p is not None]
    if missing := [p for p in files if not p.is_file()]:
        kept = [_without(r, set(missing)) for r in records if r.path not in missing]
        if absent == "error" or not kept:
            raise UsageError(
                f"{folder}: {len(missing)} listed files are absent, first {missing[0]}; restore or unlist them"
            )
        counts["not_found"] += len(records) - len(kept)
        records = kept
    if left_out is not None:
        left_out.update(+counts)
    return records


def _without(record: Record, missing: set[Path]) -> Record:
    if record.lungs in missing:
        record = replace(record, lungs=None, lungs_kind=None)
    return replace(record, opacity=None) if record.opacity in missing else record


def _rows(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise UsageError(f"{path}: not found; --data takes the folder that holds manifest.csv")
    with path.open(newline="", encoding="utf-8") as f:
        reader = csv.DictReader(f)
        if missing := set(columns) - set(reader.fieldnames or ()):
            raise UsageError(f"{path}: columns missing: {', '.join(sorted(missing))}")
        return list(reader)


def _optional(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    return _rows(path, columns) if path.is_file() else []


def _brixia(table: Path, row: dict[str, str], columns: Sequence[str]) -> scores.Scores | None:
    found = scores.from_columns(row, columns, f"{table}: {row['path']}", (0, 1, 2, 3))
    if found is None and columns is _SENIOR:
        raise UsageError(f"{table}: {row['path']} has no score; give S-A to S-F or remove the line")
    return found


def _day(text: str | None, where: str) -> float | None:
    try:
        return float(text) if text and text.strip() else None
    except ValueError:
        raise UsageError(f"{where}: offset_days {text!r}; use a number or leave it blank") from None


def _findings(source: str, raw: str) -> NDArray[np.float32]:
    if source != "nih" or not raw:
        return np.full(len(FINDINGS), np.nan, np.float32)
    return nih.findings_of(raw.split("|"))
