"""What calibration may choose from: frontal images of a CheXpert folder, a manifest, a CSV or a folder of images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from cxrvit_edge.discover import discover
from cxrvit_edge.errors import InputError, Reason, UsageError
from cxrvit_edge.model.config import CLASSES, FINDINGS
from cxrvit_edge.radiograph import View
from cxrvit_edge.readers import sniff, view_from_text
from cxrvit_edge.table import read_table
from train.data import chexpert, manifest
from train.data.record import Record

MAX_LABELS = 32  # a column of more values names no classes

Kind = Literal["chexpert", "manifest", "csv", "folder"]

_MANIFEST = {"path", "label", "view", "group_id", "source", "reuse", "split"}
_RAREST_FIRST = (  # by positive studies, Table 1 of Irvin et al. 2019: an image stands for its rarest finding
    "pneumonia", "consolidation", "no_finding", "pneumothorax", "cardiomegaly",
    "atelectasis", "edema", "pleural_effusion", "lung_opacity", "support_devices",
)  # fmt: skip
_SEXES = {"f": "female", "female": "female", "m": "male", "male": "male"}
_SPLITS = {"valid": "val", "validation": "val"}


class Candidate(NamedTuple):
    """key: its name in the source, the same wherever the source lies; patient: images of one share it."""

    path: Path
    key: str
    stratum: str
    patient: str
    view: View = "unknown"


class Source(NamedTuple):
    """split: None where the source has none, or all were asked for."""

    kind: Kind
    folder: Path
    split: str | None
    candidates: list[Candidate]


def find(path: Path, split: str | None, passed: Counter[str]) -> Source:
    """What may be chosen of `path`; `passed` takes the number left out, by Reason.

    Left out unread are images that a table, a DICOM header or their own name says are lateral, listed images of
    CheXpert that are absent, those of our manifest whose licence keeps them out of published weights, and what is no
    image. UsageError as `choose` has it.
    """
    table = _table(path)
    if table is None:
        return Source("folder", path, None, list(_in_folder(path, passed)))
    root, header = table.parent, read_table(table, header_only=True)
    if chexpert.is_layout(header):
        records = chexpert.read(path, absent="skip", left_out=passed)
        return Source("chexpert", root, split, list(_of_records(records, root, split, passed, _by_finding)))
    if table.name == "manifest.csv" and set(header.columns) >= _MANIFEST:
        records = manifest.read(table, masks=())
        barred = [r for r in records if r.reuse not in manifest.REUSABLE and split in (None, r.split)]
        if barred:  # scales are published with the weights: the same rule holds for them
            passed["licence"] += len(barred)
        records = [r for r in records if r.reuse in manifest.REUSABLE]
        return Source("manifest", root, split, list(_of_records(records, root, split, passed, _by_label)))
    split = split if "split" in header.columns else None
    return Source("csv", root, split, list(_in_csv(table, split, passed)))


def _table(path: Path) -> Path | None:
    """The table that describes the images of `path`, None for a folder without."""
    if not path.is_dir():
        return path
    train, ours = path / "train.csv", path / "manifest.csv"
    if train.is_file() and chexpert.is_layout(read_table(train, header_only=True)):
        return train
    return ours if ours.is_file() else None


def _by_finding(record: Record) -> str:
    positive = {name for name, value in zip(FINDINGS, record.findings, strict=True) if value == 1.0}
    return f"{record.sex}/{next((name for name in _RAREST_FIRST if name in positive), 'none')}"


def _by_label(record: Record) -> str:
    return f"{record.source}/{'unlabelled' if record.label is None else CLASSES[record.label]}"


def _of_records(
    records: Iterable[Record], root: Path, split: str | None, passed: Counter[str], stratum: Callable[[Record], str]
) -> Iterator[Candidate]:
    for record in records:
        if split is not None and record.split != split:
            continue
        view = view_from_text(record.view)
        if view == "lateral":
            passed[Reason.LATERAL_VIEW.value] += 1
            continue
        key = record.path.relative_to(root).as_posix()
        yield Candidate(record.path, key, f"{view}/{stratum(record)}", record.patient, view)


def _in_csv(path: Path, split: str | None, passed: Counter[str]) -> Iterator[Candidate]:
    table = read_table(path)
    name = next((c for c in ("path", "file") if c in table.columns), "path")
    table.require(path, [name])
    labels = {row.get("label", "").strip().lower() for _, row in table.rows}
    if len(labels) > MAX_LABELS:
        raise UsageError(f"{path}: column label has {len(labels)} values, too many for classes; rename or remove it")
    known: set[str] = set()
    for line, row in table.rows:
        text = row[name].strip().replace("\\", "/")
        if not text:
            raise UsageError(f"{path} line {line}: no {name}; give one or remove the line")
        key = os.path.normpath(text)
        if Path(key).is_relative_to(path.parent.resolve()):
            key = Path(key).relative_to(path.parent.resolve()).as_posix()
        own = row.get("split", "").strip().lower()
        if key in known or (split is not None and _SPLITS.get(own, own) != split):
            continue
        known.add(key)
        view = view_from_text(row.get("view", ""))
        if view == "lateral" or _named_lateral(Path(key)):
            passed[Reason.LATERAL_VIEW.value] += 1
            continue
        sex = _SEXES.get(row.get("sex", "").strip().lower(), "unknown")
        label = row.get("label", "").strip().lower() or "unlabelled"
        patient = next((row[c].strip() for c in ("patient", "patient_id", "group_id") if row.get(c, "").strip()), key)
        yield Candidate(path.parent / text, key, f"{view}/{sex}/{label}", patient, view)


def _in_folder(folder: Path, passed: Counter[str]) -> Iterator[Candidate]:
    for found in discover([folder]):
        path = Path(found.path)
        try:
            if found.problem is not None:
                raise found.problem
            with open(path, "rb") as f:
                kind = sniff(f.read(256), path.name)
        except (InputError, OSError) as error:
            passed[error.reason.value if isinstance(error, InputError) else Reason.UNREADABLE.value] += 1
            continue
        key = path.relative_to(folder).as_posix()
        view, sex, patient = _header(path) if kind == "dicom" else ("unknown", "unknown", "")
        if kind is None:
            passed[Reason.NOT_AN_IMAGE.value] += 1
        elif view == "lateral" or _named_lateral(path):
            passed[Reason.LATERAL_VIEW.value] += 1
        else:
            yield Candidate(path, key, f"{view}/{sex}", patient or key, view)


def _header(path: Path) -> tuple[View, str, str]:
    """View, sex and patient of a DICOM file, as far as its header can be read; reading it says what is wrong."""
    import pydicom

    from cxrvit_edge.readers.quiet import quiet_pydicom

    names = ("ViewPosition", "PatientSex", "PatientID")
    try:
        with quiet_pydicom():
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(names))
            view, sex, patient = (str(header.get(name) or "").strip() for name in names)
    except Exception:  # pydicom raises whatever the bytes make it stumble over
        return "unknown", "unknown", ""
    return view_from_text(view), _SEXES.get(sex.lower(), "unknown"), patient


def _named_lateral(path: Path) -> bool:
    """view1_lateral.jpg is; L.png may be anything."""
    return len(path.stem) > 2 and view_from_text(path.stem) == "lateral"
