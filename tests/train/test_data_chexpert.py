"""CheXpert's own layouts: what a table says becomes records, and what it says wrongly is named."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import chexpert_files as files
import numpy as np
import pytest

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import FINDINGS
from train.data import chexpert


def place(patient: int, view: str = "view1_frontal", split: str = "train") -> str:
    return f"{split}/patient{patient:05d}/study1/{view}.jpg"


@pytest.fixture
def table() -> list[files.Row]:
    return [
        files.row(place(1), "Female", view="AP", Edema="1.0", Pneumonia="-1.0", Pleural_Effusion="0.0", Fracture="1.0"),
        files.row(place(1, "view2_lateral"), "Female", "Lateral", "", Edema="1.0"),
        files.row(place(2), "Male", view="PA", No_Finding="1.0"),
        files.row(place(3), "Unknown", view="LL", Cardiomegaly="1.0"),
        files.row(place(4), "Male", view="", Support_Devices="1", Atelectasis="-1"),
    ]


@pytest.fixture
def folder(tmp_path: Path, table: list[files.Row]) -> Path:
    return files.make(tmp_path / "CheXpert-v1.0-small", table)


def test_every_frontal_row_is_a_record(folder: Path) -> None:
    left_out: Counter[str] = Counter()
    records = chexpert.read(folder, left_out=left_out)
    assert [r.path for r in records] == [folder / place(n) for n in (1, 2, 4)]
    assert [r.view for r in records] == ["AP", "PA", "unknown"]
    assert [r.sex for r in records] == ["female", "male", "male"]
    assert [r.patient for r in records] == ["patient00001", "patient00002", "patient00004"]
    assert {(r.source, r.split) for r in records} == {("chexpert", "train")}
    assert [r.label for r in records] == [None, 0, None]
    assert left_out == {"lateral_view": 2}


@pytest.mark.parametrize("uncertain", ["ones", "zeros", "ignore"])
def test_normal_is_no_finding_and_nothing_else(tmp_path: Path, uncertain: str) -> None:
    said = (
        {"No_Finding": "1.0"}, {"No_Finding": "1", "Edema": "0.0"}, {"No_Finding": "1.0", "Edema": "-1.0"},
        {"No_Finding": "1.0", "Support_Devices": "1.0"}, {"No_Finding": "1.0", "Fracture": "-1"},
        {"No_Finding": "-1.0"}, {"No_Finding": "0.0"}, {"Edema": "0.0"}, {"Edema": "1.0"}, {},
    )  # fmt: skip
    root = files.make(tmp_path / "c", [files.row(place(i), **labels) for i, labels in enumerate(said)])
    records = chexpert.read(root, uncertain=uncertain)  # type: ignore[arg-type]
    assert [r.label for r in records] == [0, 0] + [None] * 8


@pytest.mark.parametrize(("uncertain", "value"), [("ones", 1.0), ("zeros", 0.0), ("ignore", np.nan)])
def test_findings_in_the_networks_order(folder: Path, uncertain: str, value: float) -> None:
    first, second, third = chexpert.read(folder, uncertain=uncertain)  # type: ignore[arg-type]
    expected = np.zeros((3, 10), np.float32)
    expected[0, FINDINGS.index("edema")] = 1
    expected[0, FINDINGS.index("pneumonia")] = value
    expected[1, FINDINGS.index("no_finding")] = 1
    expected[2, FINDINGS.index("support_devices")] = 1
    expected[2, FINDINGS.index("atelectasis")] = value
    found = np.stack([first.findings, second.findings, third.findings])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_an_unknown_policy_is_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="'maybe': use one of ones, zeros, ignore"):
        chexpert.read(folder, uncertain="maybe")  # type: ignore[arg-type]


def test_both_layouts_say_the_same_wherever_the_folder_lies(
    tmp_path: Path, folder: Path, table: list[files.Row]
) -> None:
    spaces = chexpert.read(folder)
    moved = folder.rename(tmp_path / "renamed")
    files.write_table(moved / "train.csv", table, "underscores")
    underscores = chexpert.read(moved)
    assert [r.path.relative_to(moved) for r in underscores] == [r.path.relative_to(folder) for r in spaces]
    for a, b in zip(spaces, underscores, strict=True):
        np.testing.assert_array_equal(a.findings, b.findings)
        assert (a.view, a.sex, a.patient) == (b.view, b.sex, b.patient)


def test_valid_csv_is_the_val_split(folder: Path) -> None:
    row = files.row(place(64541, split="valid"), "Male", view="PA", Edema="0.0")
    files.write_table(folder / "valid.csv", [row])
    files.write_images(folder, [row["Path"]])
    assert [r.split for r in chexpert.read(folder)] == ["train"] * 3 + ["val"]
    (only,) = chexpert.read(folder / "valid.csv")
    assert (only.split, only.path) == ("val", folder / place(64541, split="valid"))


def test_a_table_from_windows(folder: Path, table: list[files.Row]) -> None:
    text = (folder / "train.csv").read_text().replace("/train/", "\\train\\").replace("/study1/", "\\study1\\")
    (folder / "train.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert [r.path for r in chexpert.read(folder)] == [folder / place(n) for n in (1, 2, 4)]


def test_absent_images_are_counted_and_named(folder: Path) -> None:
    for n in (2, 4):
        (folder / place(n)).unlink()
    with pytest.raises(UsageError, match=f"2 of 3 frontal images listed are absent, first .*{place(2)}; restore"):
        chexpert.read(folder)
    left_out: Counter[str] = Counter()
    assert [r.patient for r in chexpert.read(folder, absent="skip", left_out=left_out)] == ["patient00001"]
    assert left_out == {"lateral_view": 2, "not_found": 2}
    (folder / place(1)).unlink()
    with pytest.raises(UsageError, match="3 of 3 frontal images"):
        chexpert.read(folder, absent="skip")


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere: no such folder"):
        chexpert.read(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"holds no train\.csv; name the folder CheXpert-v1\.0"):
        chexpert.read(tmp_path)


@pytest.mark.parametrize("column", ["Path", "Sex", "AP/PA", "Pleural Effusion", "Support Devices"])
def test_a_missing_column_is_named(folder: Path, column: str) -> None:
    with (folder / "train.csv").open(newline="") as f:
        table = list(csv.DictReader(f))
    with (folder / "train.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, [c for c in table[0] if c != column], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(table)
    normal = re.escape(column.lower().replace(" ", "_"))
    with pytest.raises(UsageError, match=rf"train\.csv: columns missing: {normal}; it has .*frontal/lateral"):
        chexpert.read(folder)


@pytest.mark.parametrize(
    ("column", "text", "message"),
    [
        ("Edema", "2.0", "edema is '2.0'; use 1, 0, -1"),
        ("No Finding", "yes", "no_finding is 'yes'"),
        ("AP/PA", "oblique", "AP/PA is 'oblique'; use AP, PA, LL, RL"),
        ("Frontal/Lateral", "", "Frontal/Lateral is ''; use Frontal or Lateral"),
        ("Path", "images/1.jpg", "Path does not end like train/patient00001"),
    ],
)
def test_an_unknown_value_is_named_with_its_line(
    folder: Path, table: list[files.Row], column: str, text: str, message: str
) -> None:
    table[2][column] = text
    files.write_table(folder / "train.csv", table)
    with pytest.raises(UsageError, match=rf"train\.csv line 4: {re.escape(message)}"):
        chexpert.read(folder)


def test_a_table_of_laterals_holds_nothing(folder: Path, table: list[files.Row]) -> None:
    files.write_table(folder / "train.csv", [table[1], table[3]])
    with pytest.raises(UsageError, match="no frontal image in its 2 rows"):
        chexpert.read(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"Path,Sex\n\xff\xfe,Male\n", "not UTF-8"), (b'Path,Sex\n"' + b"x" * 200_000, "not a CSV"), (b"", "has nothing")],
)
def test_a_damaged_table_is_named(folder: Path, content: bytes, message: str) -> None:
    (folder / "train.csv").write_bytes(content)
    with pytest.raises(UsageError, match=rf"train\.csv: .*{message}"):
        chexpert.read(folder)


@pytest.mark.parametrize("name", ["train_small_layout_synthetic.csv", "train_jfhealthcare_layout_synthetic.csv"])
def test_the_real_layouts(tmp_path: Path, shared_data: Path, name: str) -> None:
    (tmp_path / "train.csv").write_bytes((shared_data / "chexpert_layout" / name).read_bytes())
    with (tmp_path / "train.csv").open(newline="") as f:
        listed = list(csv.DictReader(f))
    for r in listed:
        path = tmp_path / Path(*Path(r["Path"]).parts[-4:])
        path.parent.mkdir(parents=True)
        path.touch()
    left_out: Counter[str] = Counter()
    records = chexpert.read(tmp_path, left_out=left_out)
    frontal = [r for r in listed if r["AP/PA"] in ("AP", "PA")]
    assert len(listed) == 120 and left_out == {"lateral_view": 120 - len(frontal)}
    assert [r.patient for r in records] == [Path(r["Path"]).parts[-3] for r in frontal]
    for column, finding in (("Edema", "edema"), ("Pneumonia", "pneumonia")):
        known = {"1.0": 1.0, "0.0": 0.0, "": 0.0, "-1.0": np.nan}
        np.testing.assert_array_equal(
            [r.findings[FINDINGS.index(finding)] for r in records], [known[r[column]] for r in frontal]
        )
