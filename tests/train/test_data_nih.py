"""NIH ChestX-ray14: its layouts, what its labels become, and what is wrong by name."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import dataset_files as files
import numpy as np
import pytest

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import FINDINGS
from train.data import nih


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, list[files.Row]]:
    return files.make_nih(tmp_path / "nih")


def test_every_row_is_a_record(made: tuple[Path, list[files.Row]]) -> None:
    root, rows = made
    records = nih.read(root)
    assert [r.path.name for r in records] == [r["Image Index"] for r in rows]
    assert {r.path.parent.relative_to(root).as_posix() for r in records} == {"images_001/images", "images_002/images"}
    assert [r.view for r in records] == [r["View Position"] for r in rows]
    assert [r.sex for r in records] == ["male"] * 3 + ["female"] * 3 + ["male"] * 3
    assert [r.label for r in records] == [0, None, None] * 3
    assert [r.label for r in nih.read(root, other=True)] == [0, 1, None] * 3
    assert {(r.source, r.reuse, r.brixia is None) for r in records} == {("nih", "yes", True)}


def test_findings_are_the_papers(made: tuple[Path, list[files.Row]]) -> None:
    first, second, third, *_ = nih.read(made[0])
    assert {f for f, v in zip(FINDINGS, first.findings, strict=True) if v == 1} == {"no_finding"}
    assert {f for f, v in zip(FINDINGS, second.findings, strict=True) if v == 1} == {"lung_opacity", "pneumonia"}
    assert not (third.findings == 1).any()
    assert all(np.flatnonzero(np.isnan(r.findings)) == [9] for r in (first, second, third))


def test_the_lists_are_the_splits(made: tuple[Path, list[files.Row]]) -> None:
    root, rows = made
    splits = [r.split for r in nih.read(root)]
    assert splits[6:] == ["test"] * 3
    assert "test" not in splits[:6]
    (root / "train_val_list.txt").write_text("\n".join(r["Image Index"] for r in rows[:5]))
    left_out: Counter[str] = Counter()
    assert len(nih.read(root, left_out=left_out)) == 8
    assert left_out == {"not_in_lists": 1}


def test_some_of_the_train_list_is_val(tmp_path: Path) -> None:
    root, _ = files.make_nih(tmp_path / "nih", 3)
    rows = [{"Image Index": f"{p:08d}_000.png", "Finding Labels": "No Finding", "Patient ID": str(p),
             "Patient Gender": "M", "View Position": "PA"} for p in range(300)]  # fmt: skip
    for row in rows:
        (root / "images_001/images" / row["Image Index"]).touch()
    files.write_table(root / "Data_Entry_2017.csv", rows, files.NIH_COLUMNS)
    names = [r["Image Index"] for r in rows]
    (root / "train_val_list.txt").write_text("\n".join(names[:200]))
    (root / "test_list.txt").write_text("\n".join(names[200:]))
    counts = Counter(r.split for r in nih.read(root))
    assert counts["test"] == 100
    assert 10 <= counts["val"] <= 32


def test_a_flat_folder_without_lists(tmp_path: Path) -> None:
    root, rows = files.make_nih(tmp_path, flat=True, lists=False)
    (root / "Data_Entry_2017.csv").rename(root / "Data_Entry_2017_v2020.csv")
    records = nih.read(root / "Data_Entry_2017_v2020.csv")
    assert len(records) == len(rows)
    assert all(len({r.split for r in records if r.patient == p}) == 1 for p in "123")


def test_absent_images_are_counted_and_named(made: tuple[Path, list[files.Row]]) -> None:
    root, _ = made
    for name in ("00000001_001.png", "00000003_002.png"):
        next(root.glob(f"*/*/{name}")).unlink()
    with pytest.raises(UsageError, match=r"2 of 9 frontal images listed are absent, first .*00000001_001\.png; res"):
        nih.read(root)
    left_out: Counter[str] = Counter()
    assert len(nih.read(root, absent="skip", left_out=left_out)) == 7
    assert left_out == {"not_found": 2}
    with pytest.raises(UsageError, match="absent images as 'ignore': use error or skip"):
        nih.read(root, absent="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("Finding Labels", "Edema|Flu", "Finding Labels has 'Flu'; use NIH's 14 names or No Finding"),
        ("View Position", "LL", "View Position is 'LL'; use PA or AP"),
    ],
)
def test_an_unknown_value_is_named_with_its_line(
    made: tuple[Path, list[files.Row]], column: str, value: str, message: str
) -> None:
    root, rows = made
    rows[3][column] = value
    files.write_table(root / "Data_Entry_2017.csv", rows, files.NIH_COLUMNS)
    with pytest.raises(UsageError, match=rf"Data_Entry_2017\.csv line 5: {re.escape(message)}"):
        nih.read(root)


@pytest.mark.parametrize("column", ["Finding Labels", "Patient ID"])
def test_a_missing_column_is_named(made: tuple[Path, list[files.Row]], column: str) -> None:
    root, rows = made
    files.write_table(root / "Data_Entry_2017.csv", rows, [c for c in files.NIH_COLUMNS if c != column])
    with pytest.raises(UsageError, match=rf"columns missing: {column.lower().replace(' ', '_')}; it has image_index"):
        nih.read(root)


def test_a_wrong_folder_is_named(tmp_path: Path) -> None:
    assert not nih.is_layout(tmp_path)
    with pytest.raises(UsageError, match=r"holds no Data_Entry_2017\.csv"):
        nih.read(tmp_path)
