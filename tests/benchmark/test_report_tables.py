"""The CSV files: a row a candidate and class, empty where nothing is known, nothing executed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from report_builder import CANDIDATES, CLASSES, build

from cxrvit_edge.benchmark import tables


def read(report: dict[str, Any], folder: Path) -> dict[str, list[dict[str, str]]]:
    paths = tables.write(report, folder)
    assert [p.name for p in paths] == ["latency.csv", "accuracy.csv", "parity.csv"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in paths)
    out = {}
    for path in paths:
        with open(path, encoding="utf-8", newline="") as f:
            out[path.stem] = list(csv.DictReader(f))
        assert all(None not in row and None not in row.values() for row in out[path.stem])
    return out


def test_every_candidate_has_its_figures(tmp_path: Path) -> None:
    report = build(energy=True)
    found = read(report, tmp_path)
    assert [r["candidate"] for r in found["latency"]] == list(CANDIDATES)
    for row in found["latency"]:
        latency, run = report["latency"][row["candidate"]], report["end_to_end"][row["candidate"]]
        assert float(row["p99_ms"]) == pytest.approx(latency["single_stream"]["p99_ms"], rel=1e-5)
        assert float(row["offline_images_a_second"]) == pytest.approx(latency["offline"]["images_a_second"], rel=1e-5)
        assert float(row["joules_a_study"]) == pytest.approx(latency["energy"]["joules_a_study"], rel=1e-5)
        assert float(row["stage_decode_ms"]) == pytest.approx(run["stage_ms"]["decode"], rel=1e-5)
        assert float(row["end_to_end_s"]) == pytest.approx(run["seconds"], rel=1e-5)
    all_images = [r for r in found["accuracy"] if r["group"] == "all"]
    assert [(r["candidate"], r["class"]) for r in all_images] == [
        (c, k) for c in CANDIDATES for k in (*CLASSES, "mean")
    ]
    for row in all_images:
        block = report["accuracy"]["by_candidate"][row["candidate"]]
        e = block["auc"][row["class"]]
        assert float(row["auc"]) == pytest.approx(e["value"], rel=1e-5)
        mean = row["class"] == "mean"
        assert float(row["auc_cluster_low"]) == pytest.approx(e["low" if mean else "cluster_low"], rel=1e-5)
        assert (row["auc_low"] == "") == mean
        at = block["operating"][row["class"]]["sensitivity"]
        assert float(row["sensitivity_high"]) == pytest.approx(at["high"], rel=1e-5)
        assert float(row["sensitive_specificity_low"]) == pytest.approx(0.612 - 0.031, rel=1e-5)
        sets = block["selective"]
        own = sets if mean else sets["by_class"][row["class"]]
        assert float(row["set_coverage"]) == pytest.approx(own["coverage"]["value"], rel=1e-5)
        assert float(row["set_of_one_class_high"]) == pytest.approx(own["single"]["high"], rel=1e-5)
        assert row["aurc"] == ("0.0617" if mean else "")
        if mean:
            assert float(row["brier"]) == pytest.approx(block["calibration"]["brier"]["value"], rel=1e-5)
            assert float(row["severity_mae"]) == pytest.approx(block["severity"]["mae"]["value"], rel=1e-5)
        else:
            assert int(row["images"]) == block["classes"][row["class"]]
    nih = next(r for r in found["accuracy"] if (r["group"], r["class"]) == ("source nih", "mean"))
    of_nih = report["accuracy"]["by_candidate"][nih["candidate"]]["selective"]["by_source"]["nih"]
    assert float(nih["set_coverage"]) == pytest.approx(of_nih["coverage"]["value"], rel=1e-5)
    groups = {r["group"] for r in found["accuracy"]}
    assert {"view AP", "view PA", "source nih", "within source nih: other_infection against normal"} <= groups
    assert [r["candidate"] for r in found["parity"]] == list(CANDIDATES[1:])
    for row, record in zip(found["parity"], report["parity"], strict=True):
        assert int(row["flipped_images"]) == record["splits"]["both"]["flips"]["images"]
        assert float(row["auc_per_cent"]) == pytest.approx(record["auc_per_cent"], rel=1e-5)
        assert row["at_99"] == "yes"


def test_what_is_not_known_is_empty(tmp_path: Path) -> None:
    found = read(build(classes=(0,), severity=False, sets=False, end_to_end=False), tmp_path)
    assert {r["end_to_end_images"] for r in found["latency"]} == {""}
    assert {r["joules_a_study"] for r in found["latency"]} == {""}
    for row in found["accuracy"]:
        assert row["auc"] == row["auc_low"] == "" or row["group"].startswith("within")
        assert row["severity_mae"] == row["severity_images"] == ""
        assert row["sensitive_threshold"] == row["set_coverage"] == row["aurc"] == ""
    for row in found["parity"]:
        assert row["auc_per_cent"] == row["at_99"] == row["at_99_9"] == row["auc_difference"] == ""
        assert row["within_bounds"] == "yes"
    text = "".join(p.read_text() for p in tmp_path.iterdir()).lower()
    assert "nan" not in text and "none" not in text


def test_without_data_the_files_have_their_header_alone(tmp_path: Path) -> None:
    found = read(build(data=False), tmp_path)
    assert len(found["latency"]) == len(CANDIDATES)
    assert found["accuracy"] == found["parity"] == []
    assert (tmp_path / "parity.csv").read_text().startswith("candidate,reference,within_bounds,")


def test_a_candidate_that_failed_has_no_row(tmp_path: Path) -> None:
    report = build()
    for part in (report["latency"], report["end_to_end"], report["accuracy"]["by_candidate"]):
        del part[CANDIDATES[2]]
    found = read(report, tmp_path)
    assert [r["candidate"] for r in found["latency"]] == list(CANDIDATES[:2])


def test_nothing_is_executed_by_a_spreadsheet(tmp_path: Path) -> None:
    report = build()
    block = report["accuracy"]["by_candidate"]
    block["=cmd|' /C calc'!A0"] = block.pop(CANDIDATES[0])
    report["parity"][0]["variant"] = "+1+1"
    report["parity"][0]["reference"] = "@SUM(A1)"
    report["end_to_end"][CANDIDATES[0]]["stage_ms"]["\t=1"] = 1.0
    tables.write(report, tmp_path)
    for path in tmp_path.iterdir():
        with open(path, encoding="utf-8", newline="") as f:
            cells = [c for row in csv.reader(f) for c in row]
        for c in cells:
            assert not c.startswith(("=", "+", "@", "\t"))
            if c.startswith("-"):
                float(c)
    assert "'=cmd" in (tmp_path / "accuracy.csv").read_text()
    assert "'+1+1" in (tmp_path / "parity.csv").read_text()


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "latency.csv").mkdir()
    with pytest.raises(OSError):
        tables.write(build(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["latency.csv"]
