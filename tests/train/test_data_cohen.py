"""The covid-chestxray-dataset: old and new findings, frontal radiographs only."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import dataset_files as files
import pytest

from cxrvit_edge.errors import UsageError
from train.data import cohen


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, list[files.Row]]:
    return files.make_cohen(tmp_path / "covid-chestxray-dataset")


def rewrite(made: tuple[Path, list[files.Row]], columns: tuple[str, ...] = files.COHEN_COLUMNS) -> Path:
    files.write_table(made[0] / "metadata.csv", made[1], columns)
    return made[0]


def test_frontal_radiographs_are_records(made: tuple[Path, list[files.Row]]) -> None:
    root, rows = made
    left_out: Counter[str] = Counter()
    records = cohen.read(root, left_out=left_out)
    assert left_out == {"lateral_view": 1, "not_xray": 1}
    assert [r.path for r in records] == [root / "images" / r["filename"] for r in rows[:8]]
    assert [r.label for r in records] == [2, 2, 0, 0, 1, 1, None, None]
    assert [r.day for r in records] == [0, 3, None, 3, 0, 3, 0, 3]
    assert [r.view for r in records[:3]] == ["PA", "AP", "AP Supine"]
    assert [r.reuse for r in records[:4]] == ["non-commercial", "yes", "unknown", "yes"]
    assert [r.sex for r in records[:4]] == ["male"] * 2 + ["female"] * 2
    assert all(len({r.split for r in records if r.patient == p}) == 1 for p in "0123")


def test_the_first_months_had_fewer_columns(made: tuple[Path, list[files.Row]]) -> None:
    new = {"modality", "folder", "RT_PCR_positive"}
    root = rewrite(made, tuple(c for c in files.COHEN_COLUMNS if c not in new))
    assert len(cohen.read(root / "metadata.csv")) == 8


@pytest.mark.parametrize(
    ("finding", "label"),
    [
        ("COVID-19", 2), ("COVID-19, ARDS", 2), ("Pneumonia/Viral/COVID-19", 2), ("No Finding", 0),
        ("Pneumonia", 1), ("Pneumonia/Viral/SARS", 1), ("SARS", 1), ("Tuberculosis", 1),
        ("Pneumonia/Bacterial/E.Coli", 1),
        ("Mycoplasma Bacterial Pneumonia", 1), ("Pneumonia/Fungal/Pneumocystis", 1), ("Pneumonia/Viral/MERS-CoV", 1),
        ("ARDS", None), ("Pneumonia/Lipoid", None), ("Pneumonia/Aspiration", None), ("Unknown", None),
        ("todo", None), ("", None),
    ],
)  # fmt: skip
def test_labels(finding: str, label: int | None) -> None:
    assert cohen.label_of(finding) == label


def test_the_labels_of_the_real_findings(shared_data: Path) -> None:
    """Beside what the set of June 2020 was labelled: "todo" and "COVID-19" there were looked up."""
    import csv

    with (shared_data / "manifest.csv").open(newline="") as f:
        rows = [r for r in csv.DictReader(f) if r["source"] == "cohen" and r["finding_raw"] != "todo"]
    named = {None: "", 0: "normal", 1: "other", 2: "covid"}
    assert len(rows) > 400
    assert [named[cohen.label_of(r["finding_raw"])] for r in rows] == [r["label"] for r in rows]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("CC BY-NC-ND 4.0", "no-derivatives"), ("CC BY-NC-SA", "non-commercial"), ("CC BY-SA", "yes"), ("", "unknown")],
)
def test_licences(text: str, expected: str) -> None:
    assert cohen.licence_class(text) == expected


def test_absent_images_are_counted_and_named(made: tuple[Path, list[files.Row]]) -> None:
    (made[0] / "images" / "film-3.jpg").unlink()
    with pytest.raises(UsageError, match=r"1 of 8 frontal images listed are absent, first .*film-3\.jpg"):
        cohen.read(made[0])
    left_out: Counter[str] = Counter()
    assert len(cohen.read(made[0], absent="skip", left_out=left_out)) == 7
    assert left_out["not_found"] == 1


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("view", "oblique", "view is 'oblique'; use one of PA, AP, AP Supine"),
        ("modality", "MRI", "modality is 'MRI'; use X-ray or CT"),
        ("offset", "soon", "offset is 'soon'; use a number of days"),
    ],
)
def test_an_unknown_value_is_named_with_its_line(
    made: tuple[Path, list[files.Row]], column: str, value: str, message: str
) -> None:
    made[1][4][column] = value
    with pytest.raises(UsageError, match=rf"metadata\.csv line 6: {re.escape(message)}"):
        cohen.read(rewrite(made))


def test_a_missing_column_and_a_wrong_folder_are_named(made: tuple[Path, list[files.Row]], tmp_path: Path) -> None:
    rewrite(made, tuple(c for c in files.COHEN_COLUMNS if c != "finding"))
    with pytest.raises(UsageError, match="columns missing: finding; it has patientid"):
        cohen.read(made[0])
    assert not cohen.is_layout(made[0])
    with pytest.raises(UsageError, match=r"holds no metadata\.csv"):
        cohen.read(tmp_path)
