"""Every figure of a bundle's report counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cxrvit_edge.bundle import Selective
from cxrvit_edge.metrics import auc, delong
from cxrvit_edge.model.config import CLASSES
from train.data.record import Record
from train.evaluate import Predictions, report

NAN = float("nan")


# Two patients of three films each and six of one. Logits so that classes are mixed up here and there.
ROWS: list[tuple[str, str, int | None, tuple[float, float, float], NDArray[Any] | None, str | None]] = [
    ("nih", "a", 0, (2.0, 1.0, 0.0), None, "lungvae"),
    ("nih", "a", 0, (0.5, 1.0, 0.0), None, "lungvae"),
    ("nih", "a", 1, (0.0, 1.0, 0.5), None, None),
    ("nih", "b", 1, (1.5, 1.0, 0.0), None, "lungvae"),
    ("nih", "b", 1, (0.0, 3.0, 0.0), None, None),
    ("nih", "b", 0, (1.0, 0.0, 2.0), None, None),
    ("cohen", "c", 2, (0.0, 0.0, 2.0), np.array([[0, 1], [2, 3], [0, 0]]), "v7"),
    ("cohen", "d", 2, (1.0, 0.0, 1.5), np.array([[3, 3], [2, 2], [1, 1]]), None),
    ("cohen", "e", 1, (0.0, 1.0, 2.0), np.array([[0, 0], [0, 0], [0, 1]]), None),
    ("cohen", "f", None, (0.0, 1.0, 2.0), np.array([[3, 3], [3, 3], [3, 3]]), None),
    ("hannover", "g", 2, (0.0, 2.0, 1.0), None, None),
    ("hannover", "h", 2, (0.0, 0.0, 1.0), None, None),
]


def predictions() -> Predictions:
    records = [
        Record(
            Path(f"{i}.png"), source, patient, "test", label=label, lungs_kind=kind,
            brixia=None if brixia is None else brixia.astype(np.float32),
        )
        for i, (source, patient, label, _, brixia, kind) in enumerate(ROWS)
    ]  # fmt: skip
    zones = np.full((len(ROWS), 3, 2), 0.25, np.float32)
    zones[6] = 0.5  # score 3.0
    zones[9] = np.nan
    dice = np.array([0.9, 0.8, NAN, 0.7, NAN, NAN, 0.6, NAN, NAN, NAN, NAN, NAN], np.float32)
    return Predictions(records, np.array([r[3] for r in ROWS], np.float32), zones, dice)


def twice(p: Predictions) -> Predictions:
    def double(a: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([a, a])

    return Predictions([*p.records, *p.records], double(p.logits), double(p.zones), double(p.lung_dice))


POINTS = {"normal": 0.5, "other_infection": 0.4, "covid19": 0.3}


def test_report_counts_what_it_was_given() -> None:
    found = report(predictions(), POINTS, 1.0)
    assert (found["images"], found["labelled"], found["patients"]) == (12, 11, 7)
    assert found["no_lungs"] == 1
    assert found["lung_dice"]["lungvae"]["images"] == 3
    assert found["lung_dice"]["lungvae"]["value"] == pytest.approx(0.8)
    for threshold, truth in (("brixia>=1", (3, 6, 1)), ("brixia>=2", (2, 4, 0))):
        severity = found["severity"][threshold]
        errors = [s - t for s, t in zip((3.0, 1.5, 1.5), truth, strict=True)]
        mean = sum(truth) / 3
        assert severity["images"] == 3
        assert severity["mse"] == pytest.approx(sum(e * e for e in errors) / 3, abs=5e-5)
        assert severity["mae"] == pytest.approx(sum(map(abs, errors)) / 3, abs=5e-5)
        assert severity["mse_constant"] == pytest.approx(sum((t - mean) ** 2 for t in truth) / 3, abs=5e-5)
        interval = severity["mse_interval"]
        assert interval["value"] == severity["mse"]
        assert interval["low"] <= interval["value"] <= interval["high"]


def test_report_gives_each_class_its_interval_and_operating_point() -> None:
    p = predictions()
    found = report(p, POINTS, 1.0)
    known = p.labels >= 0
    for k, name in enumerate(CLASSES):
        positive, score = p.labels[known] == k, p.probabilities[known][:, k]
        e = delong(positive, score)
        assert found["auc"][name] == {"value": round(e.value, 4), "low": round(e.low, 4), "high": round(e.high, 4)}
        flagged = score >= POINTS[name]
        counts = {
            "sensitivity": (flagged & positive).sum() / positive.sum(),
            "specificity": (~flagged & ~positive).sum() / (~positive).sum(),
            "accuracy": (flagged == positive).sum() / 11,
        }
        assert found["operating_points"][name] == {key: round(float(v), 4) for key, v in counts.items()}
        assert 0 < counts["accuracy"] < 1
    mean = sum(auc(p.labels[known] == k, p.probabilities[known][:, k]) for k in range(3)) / 3
    assert found["auc"]["mean"]["value"] == pytest.approx(mean, abs=5e-5)


def test_report_of_a_second_operating_point_and_of_prediction_sets() -> None:
    p = predictions()
    plain = report(p, POINTS, 1.0)
    assert not {"sensitive_points", "selective"} & set(plain)
    lower = dict.fromkeys(CLASSES, 0.2)
    found = report(p, POINTS, 1.0, sensitive_points=lower, selective=Selective(0.1, 0.75, 20))
    assert found.pop("sensitive_points") == report(p, lower, 1.0)["operating_points"]
    sets = found.pop("selective")
    assert found == plain
    known = p.labels >= 0
    own = p.probabilities[known][np.arange(11), p.labels[known]]
    counts = (np.round(p.probabilities[known], 6) >= 0.25).sum(1)
    assert sets["coverage"]["value"] == pytest.approx((np.round(own, 6) >= 0.25).mean(), abs=5e-5)
    assert sets["single"]["value"] == pytest.approx((counts == 1).mean(), abs=5e-5)
    assert 0 < sets["single"]["value"] < 1
    assert {s: v["images"] for s, v in sets["by_source"].items()} == {"cohen": 3, "hannover": 2, "nih": 6}


def test_report_looks_inside_each_source() -> None:
    """Only pairs of classes that one source has: what is left when the source itself gives nothing away.

    Every film twice: NIH then has six of each class; Cohen has four and two, too few for an interval.
    """
    assert report(predictions(), POINTS, 1.0)["auc_within_source"] == {}
    found = report(twice(predictions()), POINTS, 1.0)["auc_within_source"]
    assert set(found) == {"nih: other_infection against normal"}
    nih = found["nih: other_infection against normal"]
    margins = {label: [x[1] - x[0] for s, _, y, x, *_ in ROWS if s == "nih" and y == label] for label in (0, 1)}
    pairs = [a > b for a in margins[1] for b in margins[0]]
    assert nih["images"] == [6, 6]
    assert (nih["low"], nih["high"]) == (nih["value"], 1.0)  # patient a alone, or b alone, is told apart wholly
    assert nih["value"] == pytest.approx(sum(pairs) / 9, abs=5e-5)


def test_temperature_moves_probabilities_and_not_ranks_within_a_source() -> None:
    p = twice(predictions())
    cold, hot = report(p, POINTS, 0.25), report(p, POINTS, 64.0)
    assert cold["auc_within_source"]
    assert cold["auc_within_source"] == hot["auc_within_source"]
    # nearly uniform: every film is over 0.3 and none over 0.4
    assert hot["operating_points"]["covid19"] == {"sensitivity": 1.0, "specificity": 0.0, "accuracy": 0.3636}
    assert hot["operating_points"]["normal"]["sensitivity"] == 0.0
    assert cold["operating_points"] != hot["operating_points"]


@pytest.mark.parametrize("kept", [[0], [6, 7], [9]])
def test_what_is_not_defined_is_null(kept: list[int]) -> None:
    """One class, or no label at all: still strict JSON."""
    p = predictions()
    part = Predictions([p.records[i] for i in kept], p.logits[kept], p.zones[kept], p.lung_dice[kept])
    found = report(part, POINTS, 1.0)
    text = json.dumps(found, allow_nan=False)
    assert found["auc"]["normal"]["value"] is None
    assert found["auc"]["mean"]["low"] is None
    assert "null" in text
