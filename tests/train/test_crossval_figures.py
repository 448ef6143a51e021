"""Figures of a cross-validation counted by hand: constants by fold, pairs within a view, differences from another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cxrvit_edge.metrics import auc, bootstrap, mean_auc
from train.crossval_figures import against, figures, text
from train.crossval_plan import part_of
from train.data.record import Record
from train.predict import Predictions
from train.severity_eval import brixia_scores, severity_figures, zone_truth

DRAWS = 80
TASKS = ("diagnosis", "severity", "lungs")
N = 48


def predictions(seed: int = 0) -> Predictions:
    """24 films of nih (normal, other) and 24 of cohen (other, covid), two a patient, PA and AP by turns; 24 scored."""
    rng = np.random.default_rng(7)
    records = [
        Record(
            Path(f"{i}.png"), "nih" if i < 24 else "cohen", f"p{i // 2}", "test",
            view=("PA", "AP", "AP Supine", "PA", "frontal-unstated", "PA")[i % 6],
            label=(i // 2) % 2 + (i >= 24),
            brixia=rng.integers(0, 4, (3, 2)).astype(np.float32) if i % 2 else None,
            second_brixia=rng.integers(0, 4, (3, 2)).astype(np.float32) if i % 4 == 1 else None,
            lungs_kind="v7" if i % 3 == 0 else "shenzhen",
        )
        for i in range(N)
    ]  # fmt: skip
    own = np.random.default_rng([8, seed])
    logits = own.normal(size=(N, 3)).astype(np.float32)
    logits[np.arange(N), [r.label for r in records]] += 1  # type: ignore[index]
    dice = own.random(N).astype(np.float32)
    return Predictions(records, logits, own.random((N, 3, 2)).astype(np.float32), dice)


def splits(p: Predictions, folds: int = 3) -> list[list[Record]]:
    """For each prediction the records as its fold has them: patients by turns."""
    fold = [int(r.patient[1:]) % folds for r in p.records]
    each = [
        [replace(r, split="test" if f == k else "train") for r, f in zip(p.records, fold, strict=True)]
        for k in range(folds)
    ]
    return [each[f] for f in fold]


def test_a_score_stands_beside_the_mean_of_its_own_fold() -> None:
    p = predictions()
    of = splits(p)
    found = figures(p, of, TASKS, draws=DRAWS)
    scored = [i for i, r in enumerate(p.records) if r.brixia is not None]
    for t in (1, 2):
        truth = brixia_scores([p.records[i] for i in scored], t)
        learned = ([r for r in of[i] if r.split == "train" and r.brixia is not None] for i in scored)
        constant = np.array([brixia_scores(rows, t).mean() for rows in learned])
        assert len(set(constant)) > 1
        ours, still = (truth - p.scores[scored]) ** 2, (truth - constant) ** 2
        severity = found["severity"][f"brixia>={t}"]
        assert severity["images"] == len(scored)
        assert severity["constant"]["score"] == pytest.approx(np.mean(constant), abs=5e-5)
        assert severity["constant"]["mse"]["value"] == pytest.approx(still.mean(), abs=5e-5)
        patients = [p.records[i].patient for i in scored]
        e = bootstrap(
            lambda i, a=still, b=ours: {"gain": float((a[i] - b[i]).mean())},  # type: ignore[misc]
            patients,
            draws=DRAWS,
        )["gain"]
        gain = severity["constant"]["gain"]
        assert (gain["value"], gain["low"], gain["high"]) == pytest.approx((e.value, e.low, e.high), abs=6e-5)


def test_zone_auc_pooled_and_as_a_mean_over_zones() -> None:
    p = predictions()
    found = severity_figures(p, 2.0, draws=DRAWS)
    scored = [i for i, r in enumerate(p.records) if r.brixia is not None]
    truth = zone_truth([p.records[i] for i in scored], 2.0).reshape(-1, 6) == 1
    value = p.zones[scored].reshape(-1, 6)
    patients = [p.records[i].patient for i in scored]

    def measure(i: np.ndarray) -> dict[str, float]:
        each = [auc(truth[i, k], value[i, k]) for k in range(6)]
        return {"zone_auc": auc(truth[i].ravel(), value[i].ravel()), "zone_auc_mean": float(np.mean(each))}

    for name, e in bootstrap(measure, patients, draws=DRAWS).items():
        assert tuple(found[name].values()) == pytest.approx((e.value, e.low, e.high), abs=6e-5)
    # a zone that is never affected has no AUC of its own and is no part of the mean
    first = [replace(r, brixia=None if r.brixia is None else r.brixia * np.array([[0, 1]] * 3)) for r in p.records]
    less = severity_figures(replace(p, records=first), 2.0, draws=DRAWS)
    mean = np.mean([auc(truth[:, k], value[:, k]) for k in (1, 3, 5)])
    assert less["zone_auc_mean"]["value"] == pytest.approx(mean, abs=5e-5)


def test_pairs_are_judged_within_a_view() -> None:
    p = predictions()
    found = figures(p, splits(p), TASKS, draws=DRAWS)
    assert set(found["auc_within_source"]) == {
        "nih: other_infection against normal", "cohen: covid19 against other_infection",
    }  # fmt: skip
    within = found["auc_within_source_and_view"]
    assert set(within) == {f"{pair.replace(':', f', {v}:')}" for pair in found["auc_within_source"] for v in ("PA",)}
    rows = [i for i, r in enumerate(p.records) if r.source == "nih" and r.view == "PA"]
    labels = np.array([p.records[i].label for i in rows])
    expected = auc(labels == 1, p.logits[rows, 1] - p.logits[rows, 0])
    assert within["nih, PA: other_infection against normal"]["value"] == pytest.approx(expected, abs=5e-5)
    assert within["nih, PA: other_infection against normal"]["images"] == [(labels == 0).sum(), (labels == 1).sum()]
    doubled = Predictions([*p.records] * 2, *(np.concatenate([a, a]) for a in (p.logits, p.zones, p.lung_dice)))
    also = figures(doubled, [*splits(p)] * 2, TASKS, draws=DRAWS)["auc_within_source_and_view"]
    supine = [r for r in doubled.records if r.source == "nih" and r.view in ("AP", "AP Supine")]
    assert sum(also["nih, AP: other_infection against normal"]["images"]) == len(supine)
    assert not any("unstated" in name for name in also)


def test_differences_are_paired() -> None:
    p, q = predictions(0), predictions(1)
    found = against(p, q, TASKS, draws=DRAWS)
    labels, patients = p.labels, [r.patient for r in p.records]
    e = bootstrap(
        lambda i: {"mean": mean_auc(labels[i], p.probabilities[i]) - mean_auc(labels[i], q.probabilities[i])},
        patients,
        draws=DRAWS,
    )["mean"]
    mean = found["auc"]["mean"]
    assert mean["images"] == N
    assert tuple(mean["difference"].values()) == pytest.approx((e.value, e.low, e.high), abs=6e-5)
    assert mean["value"] == pytest.approx(mean_auc(labels, p.probabilities), abs=5e-5)
    assert mean["other"] == pytest.approx(mean_auc(labels, q.probabilities), abs=5e-5)
    scored = [i for i, r in enumerate(p.records) if r.brixia is not None]
    truth = brixia_scores([p.records[i] for i in scored])
    a, b = ((truth - x.scores[scored]) ** 2 for x in (p, q))
    severity = found["severity"]["brixia>=1"]["mse"]
    assert severity["difference"]["value"] == pytest.approx(a.mean() - b.mean(), abs=5e-5)
    own = figures(p, splits(p), TASKS, draws=DRAWS)
    for key in ("within_source", "within_source_and_view"):
        assert {k: v["value"] for k, v in found[key].items()} == {k: v["value"] for k, v in own[f"auc_{key}"].items()}
    v7 = [i for i, r in enumerate(p.records) if r.lungs_kind == "v7"]
    gap = (p.lung_dice[v7] - q.lung_dice[v7]).mean()
    assert found["lung_dice"]["v7"]["difference"]["value"] == pytest.approx(gap, abs=5e-5)


def test_no_difference_from_itself() -> None:
    p = predictions()
    found = json.loads(json.dumps(against(p, p, TASKS, draws=DRAWS), allow_nan=False))
    every = [*found["auc"].values(), *found["within_source"].values(), *found["severity"]["brixia>=2"].values()]
    assert len(every) > 6
    assert all(d["difference"] == {"value": 0, "low": 0, "high": 0} for d in every)


def test_lung_dice_by_source_and_convention() -> None:
    p = predictions()
    found = figures(p, splits(p), TASKS, draws=DRAWS)["lung_dice_by_source"]
    assert set(found) == {"nih", "cohen"}
    rows = [i for i, r in enumerate(p.records) if r.source == "cohen" and r.lungs_kind == "v7"]
    assert found["cohen"]["v7"]["images"] == len(rows)
    assert found["cohen"]["v7"]["value"] == pytest.approx(p.lung_dice[rows].mean(), abs=5e-5)


def test_the_table_is_whole_with_little_data_too() -> None:
    """A network that gives no severity, images without labels: no line of what is not there, no NaN."""
    p, q = predictions(0), predictions(1)
    settings = {"stage": "joint", "by": "patient"}
    about = {"settings": settings, "folds": [{}] * 3, "training_seconds": 90.0, "unpredicted": 0}
    whole = {**about, **figures(p, splits(p), TASKS, draws=8), "against": {"base": against(p, q, TASKS, draws=8)}}
    json.dumps(whole, allow_nan=False)
    written = text(whole)
    assert "trained 1.5 minutes in all" in written
    assert "less base" in written
    line = next(x for x in written.splitlines() if x.startswith("AUC mean"))
    assert line.count("[") == 2
    few = [0, 1, 4]
    none = part_of(replace(p, records=[replace(r, label=None) for r in p.records]), few)
    bare = {**about, **figures(none, [splits(p)[i] for i in few], ("diagnosis",), draws=8), "against": {}}
    assert "AUC" not in text(bare).split("95 % intervals")[1]
    assert "nan" not in text(bare).lower().replace("hannover", "")
