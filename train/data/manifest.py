"""A folder with manifest.csv (labels, views, licences, splits), severity.csv (Brixia) and masks/masks.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import FINDINGS
from train.data.record import Record

LABELS = {"normal": 0, "other": 1, "other_infection": 1, "covid": 2, "covid19": 2, "": None}
REUSABLE = ("yes", "non-commercial", "terms")  # licence classes that published weights may be trained on
MASK_KINDS = ("generalblockchain", "shenzhen", "lungvae")  # by preference; v7 covers heart and diaphragm: left out

_BRIXIA = tuple(f"S-{zone}" for zone in "ABCDEF")
_NIH = {
    "Cardiomegaly": "cardiomegaly",
    "Infiltration": "lung_opacity",
    "Edema": "edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Effusion": "pleural_effusion",
}


def read(folder: Path, *, reuse: Sequence[str] | None = None, masks: Sequence[str] = MASK_KINDS) -> list[Record]:
    """Records of `folder` or its manifest.csv, of the licence classes (None: all). UsageError on a wrong layout."""
    folder = folder.parent if folder.is_file() else folder
    rows = _rows(folder / "manifest.csv", ("path", "label", "view", "group_id", "source", "reuse", "split"))
    severity = folder / "severity.csv"
    brixia = {r["path"]: _brixia(severity, r) for r in _optional(severity, ("path", *_BRIXIA))}
    lungs: dict[str, tuple[str, str]] = {}
    for kind in masks:
        for r in _optional(folder / "masks" / "masks.csv", ("mask_path", "image_path", "kind")):
            if r["kind"] == kind:
                lungs.setdefault(r["image_path"], (r["mask_path"], kind))
    records = []
    for number, r in enumerate(rows, 2):
        if r["label"] not in LABELS:
            raise UsageError(f"{folder}/manifest.csv line {number}: label {r['label']!r}; use one of {sorted(LABELS)}")
        if r["split"] not in ("train", "val", "test"):
            raise UsageError(f"{folder}/manifest.csv line {number}: split {r['split']!r}; use train, val or test")
        if reuse is not None and r["reuse"] not in reuse:
            continue
        mask, kind_ = lungs.get(r["path"], (None, None))
        records.append(
            Record(
                path=folder / r["path"],
                source=r["source"],
                patient=r["group_id"],
                split=r["split"],  # type: ignore[arg-type]
                view=r["view"],
                label=LABELS[r["label"]],
                findings=_findings(r["source"], r.get("finding_raw", "")),
                brixia=brixia.get(r["path"]),
                lungs=folder / mask if mask else None,
                lungs_kind=kind_,
                reuse=r["reuse"],
            )
        )
    if not records:
        raise UsageError(f"{folder}: none of its {len(rows)} images has a licence in: {', '.join(reuse or ())}")
    files = [p for r in records for p in (r.path, r.lungs) if p is not None]
    if absent := [p for p in files if not p.is_file()]:
        raise UsageError(f"{folder}: {len(absent)} listed files are absent, first {absent[0]}; restore or unlist them")
    return records


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


def _brixia(table: Path, row: dict[str, str]) -> NDArray[np.float32]:
    """Senior radiologist's zones A-F: A, B, C image-left from the top, D, E, F image-right."""
    scores = []
    for column in _BRIXIA:
        try:
            score = float(row[column])
        except (ValueError, TypeError):
            score = -1.0
        if score not in (0.0, 1.0, 2.0, 3.0):
            raise UsageError(f"{table}: {row['path']} has {column} {row[column]!r}; use 0, 1, 2 or 3")
        scores.append(score)
    a, b, c, d, e, f = scores
    return np.array([[a, d], [b, e], [c, f]], np.float32)


def _findings(source: str, raw: str) -> NDArray[np.float32]:
    out = np.full(len(FINDINGS), np.nan, np.float32)
    if source != "nih" or not raw:
        return out
    out[:] = 0.0
    out[FINDINGS.index("support_devices")] = np.nan
    if raw == "No Finding":
        out[FINDINGS.index("no_finding")] = 1.0
    for name in raw.split("|"):
        if name in _NIH:
            out[FINDINGS.index(_NIH[name])] = 1.0
    return out
