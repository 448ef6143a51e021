"""BIMCV COVID-19+: the layout of its archives, who is positive, which views are kept."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import dataset_files as files
import numpy as np
import pytest

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import FINDINGS
from train.data import bimcv

LEFT_OUT = {"lateral_view": 2, "other_body_part": 1, "unknown_view": 1}
TESTS = Path("derivatives/EHR/sil_reg_covid_posi.tsv")


@pytest.mark.parametrize("parts", [False, True])
def test_frontal_images_are_records(tmp_path: Path, parts: bool) -> None:
    root = files.make_bimcv(tmp_path / "bimcv", parts=parts)
    left_out: Counter[str] = Counter()
    records = bimcv.read(root, left_out=left_out)
    assert left_out == LEFT_OUT
    assert len(records) == 9 and all(r.path.is_file() for r in records)
    by_name = {r.path.name: r for r in records}
    first = by_name["sub-S03044_ses-E06211_run-1_bp-chest_vp-ap_dx.png"]
    later = by_name["sub-S03044_ses-E06212_run-1_bp-chest_vp-ap_dx.png"]
    assert (first.patient, first.source, first.sex, first.view) == ("sub-S03044", "bimcv", "female", "AP")
    assert (first.day, later.day) == (0, 4)
    assert by_name["sub-S03044_ses-E06211_run-6_bp-chest_cr.png"].view == "AP"  # from the header's description
    labels = {r.patient: r.label for r in records}
    assert labels == {"sub-S03044": 2, "sub-S03045": 2, "sub-S03046": 2, "sub-S03047": None}
    assert {r.patient for r in records if r.inverted} == {"sub-S03045"}
    assert {f for f, v in zip(FINDINGS, first.findings, strict=True) if v} == {"no_finding"}
    other = next(r for r in records if r.patient == "sub-S03046")
    assert {f for f, v in zip(FINDINGS, other.findings, strict=True) if v} == {"lung_opacity"}
    assert all(len({r.split for r in records if r.patient == p}) == 1 for p in labels)


def test_normal_is_the_only_label_of_one_never_positive(tmp_path: Path) -> None:
    root = files.make_bimcv(tmp_path)
    table = root / "derivatives/labels/labels_covid_posi.tsv"
    lines = table.read_text().splitlines()
    for i, line in enumerate(lines):
        if "ses-E06217" in line:  # of the last patient, whose tests are negative
            lines[i] = line.replace("['infiltrates', 'COVID 19']", "['normal', 'unchanged']")
    table.write_text("\n".join(lines) + "\n")
    labels = {r.path.parts[-3]: r.label for r in bimcv.read(root)}
    assert (labels["ses-E06217"], labels["ses-E06218"]) == (0, None)
    assert labels["ses-E06211"] == 2  # normal too, but of a patient with a positive test
    assert {r.label for r in bimcv.read(root, positive="all")} == {2}


def test_all_may_be_taken_as_positive(tmp_path: Path) -> None:
    root = files.make_bimcv(tmp_path)
    (root / TESTS).unlink()
    with pytest.raises(UsageError, match=r"holds no derivatives/EHR/sil_reg_covid_posi\.tsv.*covid19_posi_head"):
        bimcv.read(root)
    assert {r.label for r in bimcv.read(root, positive="all")} == {2}


def test_labels_people_and_headers_may_be_absent(tmp_path: Path) -> None:
    root = files.make_bimcv(tmp_path)
    for path in (*root.glob("derivatives/labels/*"), root / "participants.tsv", *root.glob("sub-*/*/*/*.json")):
        path.unlink()
    records = bimcv.read(root)
    assert len(records) == 9  # the lateral that only its header told is taken by its name
    assert all(np.isnan(r.findings).all() and r.sex == "unknown" and r.day is None for r in records)


def test_an_unknown_result_is_named_with_its_line(tmp_path: Path) -> None:
    root = files.make_bimcv(tmp_path)
    (root / TESTS).write_text((root / TESTS).read_text().replace("INDETERMINADO", "QUIZAS", 1))
    with pytest.raises(UsageError, match=r"posi\.tsv line 2: result is 'QUIZAS'; use one of POSITIVO"):
        bimcv.read(root)


@pytest.mark.parametrize(
    ("table", "column"),
    [(str(TESTS), "result"), ("participants.tsv", "gender"), ("derivatives/labels/labels_covid_posi.tsv", "ReportID")],
)
def test_a_missing_column_is_named(tmp_path: Path, table: str, column: str) -> None:
    root = files.make_bimcv(tmp_path)
    (root / table).write_text((root / table).read_text().replace(column, "renamed", 1))
    with pytest.raises(UsageError, match=rf"{re.escape(table)}: columns missing: {column.lower()}; it has"):
        bimcv.read(root)


def test_a_wrong_folder_or_choice_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no sub-\*/ses-\*/mod-rx"):
        bimcv.read(tmp_path)
    with pytest.raises(UsageError, match="positive 'some': use tests or all"):
        bimcv.read(files.make_bimcv(tmp_path / "b"), positive="some")  # type: ignore[arg-type]
