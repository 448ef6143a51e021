"""The summary's tables add up to the records they are of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import dataset_files as files
import numpy as np

from train.data.record import Record
from train.data.sources import open_records
from train.summary import severity_level, summary


def table(text: str, title: str) -> list[list[str]]:
    """Cells of the rows under a title, without the heading."""
    block = next(b for b in text.split("\n\n") if b.startswith(title))
    return [line.split() for line in block.splitlines()[3:]]


def test_classes_by_source_and_split(tmp_path: Path) -> None:
    columns = {"split": ["train"] * 8 + ["val"] * 2 + ["test"] * 2}
    hospital, rows = files.make_hospital(tmp_path / "KNUH", **columns)
    for row in rows[:2]:
        row["view"] = ""
    files.write_table(hospital / "images.csv", rows, rows[0])
    nih, _ = files.make_nih(tmp_path / "nih", lists=False)
    text = summary(open_records([hospital, nih]))
    pa = table(text, "Table 1.")
    assert [r for r in pa if r[0] == "KNUH"] == [
        ["KNUH", "train", "1", "1", "1", "0", "3"],
        ["KNUH", "val", "0", "1", "0", "0", "1"],
        ["KNUH", "test", "0", "0", "1", "0", "1"],
    ]
    assert pa[-1] == ["Total", "3", "2", "2", "3", "10"]
    assert table(text, "Table 2.")[-1] == ["Total", "2", "2", "2", "3", "9"]
    assert table(text, "Disease classes, another or no view")[-1] == ["Total", "2", "0", "0", "0", "2"]


def test_severity_and_findings(tmp_path: Path) -> None:
    brixia, _ = files.make_brixia(tmp_path / "brixia")
    zones = {
        f"zone_{h}_image_{s}": ["1", "0", "1", ""] for h in ("upper", "middle", "lower") for s in ("left", "right")
    }
    hospital, _ = files.make_hospital(tmp_path / "YNU", 4, **zones)
    records = open_records([brixia, hospital])
    text = summary(records)
    levels = Counter((r.source, severity_level(r)) for r in records)
    rows = table(text, "Table 3.")
    for level in range(7):
        own = [levels["YNU", level], levels["brixia", level]]
        assert rows[level] == [str(level), *map(str, (sum(own), *own))]
    assert rows[7] == ["Total", "10", "3", "7"]
    assert (levels["YNU", 6], levels["YNU", 0], levels["YNU", None]) == (2, 1, 1)
    assert "Findings (present / absent / not known): no source labels them." in text


def test_findings_are_counted(tmp_path: Path) -> None:
    nih, _ = files.make_nih(tmp_path / "nih")
    text = summary(open_records([nih]))
    rows = {r[0]: " ".join(r[1:]) for r in table(text, "Findings")}
    assert rows["no_finding"] == "3 / 6 / 0"
    assert rows["pneumonia"] == "3 / 6 / 0"
    assert rows["support_devices"] == "0 / 0 / 9"
    assert "Table 3. Global severity level (zones affected): no image has a score." in text


def test_what_was_left_out_and_why(tmp_path: Path) -> None:
    padchest, _ = files.make_padchest(tmp_path)
    left_out: Counter[str] = Counter()
    text = summary(open_records([padchest], left_out=left_out), left_out)
    assert ["padchest:", "lateral_view", "1"] in table(text, "Rows left out")
    assert sum(int(r[-1]) for r in table(text, "Rows left out")) == 4
    assert summary(open_records([padchest])).endswith("Rows left out: none.\n")


def test_no_record_is_no_error() -> None:
    text = summary([])
    assert "Table 1. Disease classes, PA view: no image." in text
    assert table(text, "Images") == [["Total", *["0"] * 10]]


def test_severity_level() -> None:
    base = {"path": Path("a"), "source": "a", "patient": "1", "split": "train"}
    brixia = np.array([[0, 1], [2, 3], [0, 1]], np.float32)
    zones = np.array([[0, 0], [0, 1], [0, 0]], np.float32)
    assert severity_level(Record(**base)) is None  # type: ignore[arg-type]
    assert severity_level(Record(**base, brixia=brixia)) == 4  # type: ignore[arg-type]
    assert severity_level(Record(**base, brixia=brixia), 2) == 2  # type: ignore[arg-type]
    assert severity_level(Record(**base, brixia=brixia, zones=zones)) == 1  # type: ignore[arg-type]
    zones = np.full((3, 2), np.nan, np.float32)
    assert severity_level(Record(**base, zones=zones)) is None  # type: ignore[arg-type]


def test_columns_line_up_and_no_patient_is_named(tmp_path: Path) -> None:
    hospital, _ = files.make_hospital(tmp_path / "CNUH", patient=[f"SECRET{i}" for i in range(12)])
    text = summary(open_records([hospital]))
    assert "SECRET" not in text
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        if len(lines) > 2 and set(lines[2]) == {"-"}:
            rows = [lines[1], *(x for x in lines[3:] if not x.startswith("A Brixia"))]
            assert {len(x) for x in rows} == {len(lines[2])}


def test_the_real_folder_adds_up(shared_data: Path) -> None:
    records = open_records([shared_data])
    text = summary(records)
    totals = [table(text, t)[-1] for t in ("Table 1.", "Table 2.", "Disease classes, another")]
    assert sum(int(t[-1]) for t in totals) == 1164
    sums = [sum(int(t[i]) for t in totals) for i in range(1, 5)]
    assert sums == [256, 388, 503, 17]
    assert table(text, "Images")[-1][:3] == ["Total", "1164", "914"]
    assert table(text, "Table 3.")[7][:2] == ["Total", "177"]
    assert sum(int(r[1]) for r in table(text, "Table 3.")[:7]) == 177
