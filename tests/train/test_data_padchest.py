"""PadChest: its layouts, its label lists, the views that are kept."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import cv2
import dataset_files as files
import numpy as np
import pytest

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import FINDINGS
from train.data import padchest

LEFT_OUT = {"lateral_view": 1, "other_view": 1, "pediatric": 1, "excluded": 1}


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, list[files.Row]]:
    return files.make_padchest(tmp_path / "padchest")


def rewrite(made: tuple[Path, list[files.Row]], columns: tuple[str, ...] = files.PADCHEST_COLUMNS) -> Path:
    files.write_table(made[0] / files.PADCHEST_TABLE, made[1], columns)
    return made[0]


def test_frontal_rows_are_records(made: tuple[Path, list[files.Row]]) -> None:
    root, rows = made
    left_out: Counter[str] = Counter()
    records = padchest.read(root, left_out=left_out)
    assert left_out == LEFT_OUT
    assert [r.path for r in records] == [root / r["ImageDir"] / r["ImageID"] for r in rows[:8]]
    assert [r.view for r in records[:3]] == ["PA", "AP", "AP Supine"]
    assert [r.label for r in records] == [0, None, 0, None] * 2
    assert [r.label for r in padchest.read(root, other=True)] == [0, 1, 0, None] * 2
    assert [r.sex for r in records] == ["female"] * 2 + ["male"] * 2 + ["female"] * 2 + ["male"] * 2
    assert [r.day for r in records] == [0, 1] * 4
    assert [r.inverted for r in records] == [False, True] + [False] * 6
    assert len(padchest.read(root, pediatric=True)) == 9
    pixels = cv2.imread(str(records[0].path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None and pixels.dtype == np.uint16


def test_findings_are_the_papers(made: tuple[Path, list[files.Row]]) -> None:
    found = [{f for f, v in zip(FINDINGS, r.findings, strict=True) if v} for r in padchest.read(made[0])[:4]]
    assert found == [{"no_finding"}, {"pneumonia", "lung_opacity"}, {"no_finding"}, {"support_devices"}]
    assert np.isnan(padchest.findings_of([])).all()
    assert padchest.findings_of(["normal", "edema"])[0] == 0  # normal beside something else


@pytest.mark.parametrize("packed", [False, True])
def test_a_flat_folder_and_a_packed_table(tmp_path: Path, packed: bool) -> None:
    root, _ = files.make_padchest(tmp_path, flat=True, packed=packed)
    assert padchest.is_layout(root)
    records = padchest.read(root)
    assert [r.path.parent for r in records] == [root] * 8


def test_a_damaged_packed_table_is_named(tmp_path: Path) -> None:
    (tmp_path / f"{files.PADCHEST_TABLE}.gz").write_bytes(b"\x1f\x8b\x08\x00cut")
    with pytest.raises(UsageError, match=r"csv\.gz: cannot be unpacked"):
        padchest.read(tmp_path)


def test_a_patient_stays_in_one_split(tmp_path: Path) -> None:
    root, _ = files.make_padchest(tmp_path, 40)
    splits: dict[str, set[str]] = {}
    for record in padchest.read(root):
        splits.setdefault(record.patient, set()).add(record.split)
    assert len(splits) == 20 and all(len(s) == 1 for s in splits.values())


def test_absent_images_are_counted_and_named(made: tuple[Path, list[files.Row]]) -> None:
    root, rows = made
    (root / rows[2]["ImageDir"] / rows[2]["ImageID"]).unlink()
    with pytest.raises(UsageError, match=rf"1 of 8 frontal images listed are absent, first .*{rows[2]['ImageID']}"):
        padchest.read(root)
    left_out: Counter[str] = Counter()
    assert len(padchest.read(root, absent="skip", left_out=left_out)) == 7
    assert left_out == LEFT_OUT | {"not_found": 1}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("Projection", "OBLIQUE", "Projection is 'OBLIQUE'; use one of PA, AP, AP_horizontal, L"),
        ("Labels", "normal", "Labels is no list like ['normal']"),
        ("Labels", "'normal'", "Labels is no list like ['normal']"),
    ],
)
def test_an_unknown_value_is_named_with_its_line(
    made: tuple[Path, list[files.Row]], column: str, value: str, message: str
) -> None:
    made[1][1][column] = value
    with pytest.raises(UsageError, match=rf"01\.02\.19\.csv line 3: {re.escape(message)}"):
        padchest.read(rewrite(made))


def test_a_row_without_labels_has_no_findings(made: tuple[Path, list[files.Row]]) -> None:
    made[1][0]["Labels"] = ""
    first = padchest.read(rewrite(made))[0]
    assert first.label is None and np.isnan(first.findings).all()


def test_a_missing_column_and_a_wrong_folder_are_named(made: tuple[Path, list[files.Row]], tmp_path: Path) -> None:
    root = rewrite(made, tuple(c for c in files.PADCHEST_COLUMNS if c != "Projection"))
    with pytest.raises(UsageError, match="columns missing: projection; it has "):
        padchest.read(root)
    with pytest.raises(UsageError, match="holds no PADCHEST_chest_x_ray"):
        padchest.read(tmp_path)


def test_nothing_left_says_why(made: tuple[Path, list[files.Row]]) -> None:
    for row in made[1]:
        row["Projection"] = "L"
    with pytest.raises(UsageError, match=r"no image left \(12 lateral_view\); name another"):
        padchest.read(rewrite(made))
