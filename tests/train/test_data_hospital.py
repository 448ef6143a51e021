"""A hospital's own CSV: every column it may have, and what is wrong by name and line."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import dataset_files as files
import numpy as np
import pytest

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import FINDINGS
from train.data import hospital

N = 4
IMAGE = ["zone_upper_image_left", "zone_middle_image_left", "zone_lower_image_left",
         "zone_upper_image_right", "zone_middle_image_right", "zone_lower_image_right"]  # fmt: skip
PATIENT = [c.replace("image_left", "patient_right").replace("image_right", "patient_left") for c in IMAGE]


def test_path_and_label_are_enough(tmp_path: Path) -> None:
    root, rows = files.make_hospital(tmp_path / "CNUH")
    records = hospital.read(root)
    assert [r.path for r in records] == [root / r["path"] for r in rows]
    assert [r.label for r in records] == [0, 0, 1, 1, 2, 2] * 2
    assert [r.view for r in records] == ["PA", "AP"] * 6
    assert {(r.source, r.reuse, r.sex, r.day) for r in records} == {("CNUH", "terms", "unknown", None)}
    assert all(np.isnan(r.findings).all() and r.brixia is None and r.zones is None for r in records)
    assert all(len({r.split for r in records if r.patient == f"CNUH:h{p}"}) == 1 for p in range(6))
    assert {r.source for r in hospital.read(root, source="Daejeon")} == {"Daejeon"}
    moved = (root / "images.csv").rename(root / "ynu.csv")
    assert {r.source for r in hospital.read(moved)} == {"ynu"}


def test_several_hospitals_in_one_table(tmp_path: Path) -> None:
    """Patient 1 of A and patient 1 of B are two: in two splits, each with days of their own."""
    dates = ["2020-03-01", "2020-03-04", "2020-04-01", "2020-04-02", "2020-05-01", "2020-05-01"]
    root, rows = files.make_hospital(
        tmp_path / "all", 6, source=["A", " A", "B", "B", "", ""], patient=["1"] * 6, date=dates,
        split=["train", "train", "val", "val", "test", "test"],
    )  # fmt: skip
    records = hospital.read(root)
    assert [r.source for r in records] == ["A", "A", "B", "B", "all", "all"]
    assert [r.patient for r in records] == ["A:1", "A:1", "B:1", "B:1", "all:1", "all:1"]
    assert [r.day for r in records] == [0, 3, 0, 1, 0, 0]
    assert [r.source for r in hospital.read(root, source="C")][4:] == ["C", "C"]
    for row in rows:
        row["patient"] = ""
    files.write_table(root / "images.csv", rows, rows[0])
    assert hospital.read(root)[2].patient == f"B:{rows[2]['path']}"


def test_views_by_other_words(tmp_path: Path) -> None:
    told = ["pa", "Posteroanterior", "P.A.", "supine AP", "AP Supine", "AP_horizontal", "a.p.", "frontal-unstated", ""]
    root, rows = files.make_hospital(tmp_path, 9)
    for row, view in zip(rows, told, strict=True):
        row["view"] = view
    files.write_table(root / "images.csv", rows, rows[0])
    assert [r.view for r in hospital.read(root)] == [
        "PA", "PA", "PA", "AP Supine", "AP Supine", "AP Supine", "AP", "frontal-unstated", "unknown",
    ]  # fmt: skip


def test_every_column(tmp_path: Path) -> None:
    for name in ("a", "b"):
        files.write_film(tmp_path / f"{name}.png")
    columns = {
        "split": ["train", "train", "valid", "test"], "sex": ["F", "male", "", "M"],
        "patient": ["1", "1", "2", "3"], "date": ["2020-03-01", "15.03.2020", "20200401", ""],
        "Edema": ["1", "0", "", "1.0"], "reuse": ["yes", "", "", ""],
        "lungs": ["a.png", "", "", ""], "opacity": ["", "b.png", "", ""], "lungs_kind": ["v7", "", "", ""],
    }  # fmt: skip
    for k, zone in enumerate("abcdef"):
        columns[f"brixia_{zone}"] = [str(k % 4), "", "3", "0"]
        columns[f"second_{zone}"] = ["1", "1", "", "0"]
    root, _ = files.make_hospital(tmp_path, N, **columns)
    a, b, c, d = hospital.read(root)
    assert [r.split for r in (a, b, c, d)] == ["train", "train", "val", "test"]
    assert [r.sex for r in (a, b, c, d)] == ["female", "male", "unknown", "male"]
    assert [r.day for r in (a, b, c, d)] == [0, 14, 0, None]
    assert [r.reuse for r in (a, b)] == ["yes", "terms"]
    np.testing.assert_array_equal([r.findings[FINDINGS.index("edema")] for r in (a, b, c, d)], [1, 0, np.nan, 1])
    assert np.isnan(a.findings).sum() == 9
    np.testing.assert_array_equal(a.brixia, [[0, 3], [1, 0], [2, 1]])
    assert b.brixia is None and c.second_brixia is None
    np.testing.assert_array_equal(b.second_brixia, np.ones((3, 2)))
    assert (a.lungs, a.lungs_kind, b.opacity) == (tmp_path / "a.png", "v7", tmp_path / "b.png")
    assert b.lungs is None and b.lungs_kind is None and a.opacity is None


@pytest.mark.parametrize("names", [IMAGE, PATIENT])
def test_zones_by_the_images_sides_or_the_patients(tmp_path: Path, names: list[str]) -> None:
    """The patient's right lung lies image-left."""
    values = dict(zip(names, (["1", ""], ["0", ""], ["1", ""], ["0", ""], ["", ""], ["1", ""]), strict=True))
    root, _ = files.make_hospital(tmp_path, 2, **values)
    first, second = hospital.read(root)
    np.testing.assert_array_equal(first.zones, [[1, 0], [0, np.nan], [1, 1]])
    assert second.zones is None


def test_zones_by_both_sides_are_refused(tmp_path: Path) -> None:
    root, _ = files.make_hospital(tmp_path, 2, **{c: ["1", "0"] for c in IMAGE + PATIENT})
    with pytest.raises(UsageError, match="zones by the image's sides and by the patient's; keep one"):
        hospital.read(root)


def test_a_score_of_five_zones_is_refused(tmp_path: Path) -> None:
    root, _ = files.make_hospital(tmp_path, 2, **{f"brixia_{z}": ["1", "2"] for z in "abcdf"})
    with pytest.raises(UsageError, match="columns missing: brixia_e; give all six"):
        hospital.read(root)


def test_days_may_be_given(tmp_path: Path) -> None:
    root, _ = files.make_hospital(tmp_path, N, day=["-1", "2.5", "", "9"])
    assert [r.day for r in hospital.read(root)] == [-1, 2.5, None, 9]


def test_dicom_semicolons_and_laterals(tmp_path: Path) -> None:
    root, rows = files.make_hospital(tmp_path, N)
    files.write_dicom(root / "films" / "x.dcm")
    rows[0]["path"] = "films\\x.dcm"
    rows[1]["view"] = "lateral"
    files.write_table(root / "images.csv", rows, rows[0], ";")
    left_out: Counter[str] = Counter()
    records = hospital.read(root, left_out=left_out)
    assert records[0].path == root / "films" / "x.dcm"
    assert left_out == {"lateral_view": 1} and len(records) == 3


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("label", "flu", "label 'flu'; use one of normal, other"),
        ("path", " ", "no path; give one or remove the line"),
        ("split", "dev", "split 'dev'; use train, val or test on every row"),
        ("split", "", "split ''; use train, val or test on every row"),
        ("edema", "2", "edema is '2'; use 1, 0 or leave it blank"),
        ("day", "Monday", "day is 'Monday'; use a number"),
        ("date", "03/04/20", "date cannot be read; write it as 2020-03-15"),
        ("brixia_c", "4", "has brixia_c '4'; use 0, 1, 2 or 3"),
        ("brixia_c", "", "has brixia_c ''; use 0, 1, 2 or 3"),
        ("zone_lower_image_right", "2", "zone_lower_image_right is '2'"),
        ("lungs", "none.png", "the mask "),
    ],
)
def test_an_unknown_value_is_named_with_its_line(tmp_path: Path, column: str, value: str, message: str) -> None:
    blank = {c: [""] * N for c in ("edema", "day", "date", "lungs", *IMAGE)}
    brixia = {f"brixia_{z}": ["1"] * N for z in "abcdef"}
    root, rows = files.make_hospital(tmp_path, N, split=["train"] * N, **blank, **brixia)
    rows[2][column] = value
    files.write_table(root / "images.csv", rows, rows[0])
    with pytest.raises(UsageError, match=rf"images\.csv line 4: {re.escape(message)}"):
        hospital.read(root)


def test_absent_images_and_masks(tmp_path: Path) -> None:
    root, rows = files.make_hospital(tmp_path, N, opacity=["", "", "", "gone.png"])
    with pytest.raises(UsageError, match=r"line 5: the mask .*gone\.png is absent; restore it"):
        hospital.read(root)
    (root / rows[0]["path"]).unlink()
    left_out: Counter[str] = Counter()
    records = hospital.read(root, absent="skip", left_out=left_out)
    assert left_out == {"not_found": 1} and len(records) == 3 and records[2].opacity is None


def test_a_patient_in_two_splits_is_counted_and_not_named(tmp_path: Path) -> None:
    root, _ = files.make_hospital(tmp_path, N, split=["train", "test", "val", "val"])
    with pytest.raises(UsageError, match="1 of 2 patients lie in more than one split") as caught:
        hospital.read(root)
    assert "h0" not in str(caught.value)


def test_wrong_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such table; name a CSV"):
        hospital.read(tmp_path)
    (tmp_path / "images.csv").write_text("file,label\n")
    with pytest.raises(UsageError, match="columns missing: path; it has file, label"):
        hospital.read(tmp_path)
    (tmp_path / "images.csv").write_text("path,comment\na.png,x\n")
    with pytest.raises(UsageError, match="says nothing of its images; it needs any of label"):
        hospital.read(tmp_path)
    (tmp_path / "images.csv").write_text("path,label\n")
    with pytest.raises(UsageError, match=r"no image left \(it has no row\)"):
        hospital.read(tmp_path)
