"""`--sensitivity` and `--selective` over real files and a real network, as a user runs them."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import lines, run

pytest.importorskip("torch")

from small_bundle import Exported, reseal

from cxrvit_edge.triage import Triage

CLASSES = ("normal", "other_infection", "covid19")


@pytest.fixture(scope="module")
def films(exported: Exported) -> Path:
    return exported.data / "images"


@pytest.fixture(scope="module")
def usual(exported: Exported, films: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Results with the bundle as it was exported: six films of val are too few for any class to be ruled out."""
    out = tmp_path_factory.mktemp("usual") / "out"
    assert run("triage", films, "--out", out, "--bundle", exported.bundle, "--quiet") == 0
    found = lines(out)
    assert len(found) == 12
    assert {tuple(line["prediction_set"]) for line in found.values()} == {CLASSES}
    assert {line["priority"] for line in found.values()} - {"review"}  # it is not selective
    return found


@pytest.fixture(scope="module")
def bundle(exported: Exported, usual: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with sensitive points under every probability, and sets of one class for about half of the films."""
    folder = shutil.copytree(exported.bundle, tmp_path_factory.mktemp("bundle") / "b", copy_function=os.link)
    p = np.array([[line["probabilities"][name] for name in CLASSES] for line in usual.values()])  # (12, 3)
    limit = round(float(np.median(np.sort(p, axis=1)[:, 1])), 3)
    selective = {"method": "lac", "alpha": 0.1, "threshold": round(1 - limit, 6), "images": 99}
    reseal(folder, {"sensitive_points": dict.fromkeys(CLASSES, 0.000001), "selective": selective})
    return folder


def expected(line: dict[str, Any], limit: float) -> list[str]:
    found = [name for name in CLASSES if line["probabilities"][name] >= limit]
    return found or list(CLASSES)


def test_the_more_sensitive_points_flag_more(
    usual: dict[str, Any], bundle: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--out", tmp_path / "out", "--bundle", bundle)
    assert run("triage", films, *options, "--sensitivity", 95, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["run"]["rule"] == {"sensitivity": 95, "selective": False}
    assert "operating point: sensitivity of at least 95 %\n" in said.err
    found = lines(tmp_path / "out")
    for name, line in found.items():
        assert line["probabilities"] == pytest.approx(usual[name]["probabilities"], abs=1e-5)
        assert all(line["flags"].values())
        assert line["priority"] == ("urgent" if line["severity"]["score"] >= 3 else "elevated")
        assert (line["sensitivity"], line["selective"]) == (95, False)
    assert not all(all(line["flags"].values()) for line in usual.values())
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    for other in ([], ["--sensitivity", 95, "--selective"]):
        assert run("triage", films, *options, *other) == 2
        assert "holds results of small@" in (told := capsys.readouterr().err) and "--fresh" in told
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before
    assert run("triage", films, *options, "--sensitivity", 95, "--json", "--quiet") == 0
    assert json.loads(capsys.readouterr().out)["run"]["resumed"] == 12


def test_what_the_network_is_undecided_about_is_for_review(
    bundle: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("triage", films, "--out", out, "--bundle", bundle, "--selective") == 0
    assert "operating point: sensitivity of at least 80 %, undecided films for review\n" in capsys.readouterr().err
    limit = 1 - json.loads((bundle / "manifest.json").read_bytes())["selective"]["threshold"]
    found = lines(out)
    single = {name for name, line in found.items() if len(line["prediction_set"]) == 1}
    assert 3 <= len(single) <= 9
    for name, line in found.items():
        assert line["prediction_set"] == expected(line, round(limit, 6))
        assert (line["priority"] == "review") == (name not in single)
    with (out / "worklist.csv").open(newline="") as f:
        table = {row["file"]: row for row in csv.DictReader(f)}
    page = (out / "report.html").read_text("utf-8")
    assert page.count("Network is undecided: ") == len(found) - len(single)
    words = {"normal": "normal", "other_infection": "other infection", "covid19": "COVID-19"}
    for name, line in found.items():
        assert table[name]["prediction_set"] == " or ".join(line["prediction_set"])
        assert table[name]["priority"] == line["priority"]
        if len(line["prediction_set"]) == 2:
            assert f"Network is undecided: {' or '.join(words[c] for c in line['prediction_set'])}</p>" in page
    findings = {f.file: f for f in Triage.open(bundle, sensitivity=80, selective=True)(films)}
    assert {name: (f.priority, list(f.prediction_set or ())) for name, f in findings.items()} == {
        name: (line["priority"], line["prediction_set"]) for name, line in found.items()
    }


def test_inspect_shows_both_operating_points_and_the_sets(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", bundle, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["sensitive_points"] == dict.fromkeys(CLASSES, 0.000001) != shown["operating_points"]
    assert shown["selective"]["method"] == "lac" and shown["selective"]["images"] == 99
    assert run("inspect", bundle) == 0
    assert "sensitive_points" in (text := capsys.readouterr().out) and "selective" in text


def test_two_runs_by_other_rules_are_compared_as_such(
    bundle: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = sorted(films.iterdir())[:3]
    for name, options in (("a", ()), ("b", ("--sensitivity", 95, "--selective"))):
        assert run("triage", *some, "--out", tmp_path / name, "--bundle", bundle, "--quiet", *options) == 0
    assert run("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["b"]["rule"] == {"sensitivity": 95, "selective": True}
    assert any("A is decided at a sensitivity of at least 80 %, B at a sensitivity" in n for n in report["notes"])
