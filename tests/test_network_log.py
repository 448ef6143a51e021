"""The log of tries: a row from a crossval.json, replaced by name, and what it lacks left empty."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import network_log

HALF = {"value": 0.5, "low": 0.4, "high": 0.6}
SEVERITY = {
    "images": 9, "mse": {"value": 2.0, "low": 1.5, "high": 2.5},
    "constant": {"mse": {"value": 3.0, "low": 2.0, "high": 4.0}, "gain": {"value": 1.0, "low": 0.5, "high": 1.5}},
    "zone_auc": HALF, "zone_auc_mean": {"value": 0.75, "low": None, "high": None},
}  # fmt: skip
FOUND: dict[str, Any] = {
    "settings": {"by": "patient"}, "images": 40, "training_seconds": 61.5,
    "folds": [{"name": f"{k}/3", "commit": c} for k, c in enumerate(("abc", "abc", None))],
    "diagnosis": {"images": 38, "auc": {"mean": {"value": 0.875, "low": 0.85, "high": 0.9}}},
    "auc_within_source": {"nih: other_infection against normal": HALF},
    "auc_within_source_and_view": {"nih, PA: other_infection against normal": {**HALF, "value": 0.55}},
    "severity": {"brixia>=1": SEVERITY, "brixia>=2": {"images": 0}},
    "lung_dice": {"v7": HALF, "lungvae": HALF},
}  # fmt: skip


def test_a_row_has_every_figure_that_there_is() -> None:
    row = network_log.row(FOUND, "first", "nothing", "base", "to start from")
    assert row["auc_mean"] == "0.875 [0.850, 0.900]"
    assert row["nih_other"] == "0.500 [0.400, 0.600]"
    assert row["nih_other_PA"] == "0.550 [0.400, 0.600]"
    assert row["nih_other_AP"] == row["cohen_covid"] == row["severity_mse_2"] == ""
    assert row["severity_mse_1"] == "2.000 [1.500, 2.500]"
    assert row["constant_mse_1"] == "3.000 [2.000, 4.000]"
    assert row["constant_less_network_1"] == "1.000 [0.500, 1.500]"
    assert row["zone_auc_mean_1"] == "0.750 [no interval]"
    assert row["lung_dice"] == "v7 0.500 [0.400, 0.600]; lungvae 0.500 [0.400, 0.600]"
    assert (row["training_seconds"], row["commit"], row["verdict"]) == (61.5, "None abc", "base")
    alone = {k: v for k, v in FOUND.items() if k not in ("severity", "lung_dice")}
    bare = network_log.row(alone, "first", "nothing", "base", "to start from")
    assert bare["severity_mse_1"] == bare["lung_dice"] == ""
    assert list(bare) == list(row)


def test_a_try_is_replaced_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    assert network_log.read(path) == []
    for name, why in (("a", "one"), ("b", "two, with a comma"), ("a", "three")):
        network_log.write(network_log.row(FOUND, name, "x", "kept", why), path)
    assert [(r["name"], r["why"]) for r in network_log.read(path)] == [("a", "three"), ("b", "two, with a comma")]


def test_the_command_writes_and_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "crossval.json").write_text(json.dumps(FOUND))
    monkeypatch.setattr(network_log, "LOG", tmp_path / "log.csv")
    words = ["network_log", str(tmp_path), "--name", "a", "--changed", "x", "--verdict", "dropped"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        network_log.main()
    assert "--why is needed with OUT" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*words, "--why", "worse"])
    network_log.main()
    assert "0.875 [0.850, 0.900]" in capsys.readouterr().out
    assert network_log.read(tmp_path / "log.csv")[0]["verdict"] == "dropped"
