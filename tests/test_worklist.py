from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import make_bundle
from hypothesis import given
from hypothesis import strategies as st

from cxrvit_edge.bundle import Manifest
from cxrvit_edge.findings import Finding, Severity
from cxrvit_edge.report.worklist import cell, ranked, urgency, write_worklist

COLUMNS = [
    *("rank", "priority", "file", "status", "reason", "view", "label", "p_normal", "p_other_infection", "p_covid19"),
    *("score", "zone_image_left_upper", "zone_image_left_middle", "zone_image_left_lower"),
    *("zone_image_right_upper", "zone_image_right_middle", "zone_image_right_lower", "prediction_set"),
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_bundle(tmp_path_factory.mktemp("bundle")).manifest


def ok(file: str, priority: str, score: float | None = 1.0, covid: float = 0.5) -> Finding:
    p = {"normal": 0.9 - covid, "other_infection": 0.1, "covid19": covid}
    zones = ((0.1, 0.2), (0.3, 0.4), (0.5, 0.6))
    severity = Severity(score, zones if score is not None else None)
    return Finding(file, "ok", view="PA", probabilities=p, label="covid19", severity=severity, priority=priority)


def not_ok(file: str, status: Any, code: str) -> Finding:
    return Finding(file, status, reason={"code": code, "message": "why, and what next"})


def rows(path: Path, findings: list[Finding], manifest: Manifest) -> list[dict[str, str]]:
    write_worklist(path, sorted(findings, key=lambda f: urgency(f, manifest)), manifest)
    with path.open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def test_most_urgent_first_and_nothing_dropped(tmp_path: Path, manifest: Manifest) -> None:
    expected = [
        ok("u-high", "urgent", 5.0, 0.2),
        ok("u-low-sure", "urgent", 3.0, 0.8),
        ok("u-low-unsure", "urgent", 3.0, 0.3),
        ok("no-lungs", "review", None),
        not_ok("broken", "failed", "truncated"),
        not_ok("hip", "rejected", "wrong_body_part"),
        ok("e", "elevated"),
        ok("r-a", "routine", 0.5),
        ok("r-b", "routine", 0.5),
        not_ok("folder.png", "rejected", "is_directory"),
        not_ok("notes.txt", "rejected", "not_an_image"),
    ]
    found = rows(tmp_path / "w.csv", expected[::-1], manifest)
    assert [row["file"] for row in found] == [f.file for f in expected]
    assert [row["rank"] for row in found] == [str(i) for i in range(1, len(expected) + 1)]


def test_columns_and_zones(tmp_path: Path, manifest: Manifest) -> None:
    judged, turned_away = rows(
        tmp_path / "w.csv", [ok("a.png", "urgent", 2.1), not_ok("b", "failed", "truncated")], manifest
    )
    assert list(judged) == COLUMNS
    zones = ["0.1000", "0.3000", "0.5000", "0.2000", "0.4000", "0.6000"]
    expected = ["PA", "covid19", "0.4000", "0.1000", "0.5000", "2.1000", *zones, ""]
    assert [judged[name] for name in COLUMNS[5:]] == expected
    assert judged["reason"] == "" and turned_away["reason"] == "truncated: why, and what next"
    assert all(turned_away[name] == "" for name in COLUMNS[6:])


def test_the_classes_that_are_not_ruled_out(tmp_path: Path, manifest: Manifest) -> None:
    sets = [("covid19",), ("normal", "other_infection"), None]
    found = rows(
        tmp_path / "w.csv", [replace(ok(f"{i}", "review"), prediction_set=s) for i, s in enumerate(sets)], manifest
    )
    assert [row["prediction_set"] for row in found] == ["covid19", "normal or other_infection", ""]


def test_ascii_has_no_byte_order_mark_and_other_text_has(tmp_path: Path, manifest: Manifest) -> None:
    write_worklist(tmp_path / "a.csv", [ok("a.png", "urgent")], manifest)
    write_worklist(tmp_path / "b.csv", [ok("Thorax-Übersicht.png", "urgent")], manifest)
    assert (tmp_path / "a.csv").read_bytes().startswith(b"rank,")
    assert (tmp_path / "b.csv").read_bytes().startswith(b"\xef\xbb\xbfrank,")
    assert "Übersicht" in (tmp_path / "b.csv").read_text("utf-8-sig")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "b.csv"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("-1.png", "'-1.png"),
        ("@x", "'@x"),
        ("+x", "'+x"),
        ("\t=x", "'\\t=x"),
        ("\uff1dx", "'\uff1dx"),  # full-width
        ("a=b.png", "a=b.png"),
        ("a\udcff\n.png", "a\\udcff\\n.png"),
        ("日本 é.png", "日本 é.png"),
    ],
)
def test_cells(name: str, shown: str) -> None:
    assert cell(name) == shown


@given(st.text(st.characters(), max_size=20))  # lone surrogates included
def test_no_text_is_executed_or_breaks_the_table(text: str) -> None:
    shown = cell(text)
    assert not shown.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert shown.isprintable()
    out = io.StringIO()
    csv.writer(out).writerow([shown, "next"])
    encoded = out.getvalue().encode("utf-8")
    assert next(csv.reader(io.StringIO(encoded.decode("utf-8"), newline=""))) == [shown, "next"]


def test_an_unknown_priority_comes_after_the_known(manifest: Manifest) -> None:
    assert urgency(ok("a", "new"), manifest) > urgency(ok("b", "routine"), manifest)


@given(
    st.lists(
        st.builds(
            Finding,
            file=st.text(max_size=3),
            status=st.sampled_from(["ok", "rejected", "failed"]),
            reason=st.sampled_from([None, {"code": "is_directory", "message": ""}, {"code": "blank", "message": ""}]),
            probabilities=st.one_of(
                st.none(), st.dictionaries(st.sampled_from(["covid19", "normal"]), st.floats(0, 1))
            ),
            severity=st.one_of(st.none(), st.builds(Severity, st.sampled_from([None, 0.0, 1.5, 6]))),
            priority=st.sampled_from(["urgent", "review", "elevated", "routine", "of another table"]),
        ),
        max_size=8,
        unique_by=lambda f: f.file,
    )
)
def test_ranked_is_the_order_of_urgency(manifest: Manifest, found: list[Finding]) -> None:
    files, statuses, priorities = ranked([f.file for f in found], found, manifest)
    assert files == [f.file for f in sorted(found, key=lambda f: urgency(f, manifest))]
    assert statuses == Counter(f.status for f in found) and priorities == Counter(f.priority for f in found)
