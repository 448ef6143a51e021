"""The card prints the figures that the default bundle's manifest and the committed cross-validations hold."""

import csv
import hashlib
import json
import os
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from small_bundle import reseal

pytest.importorskip("torch")

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.metrics import RATES, auc, softmax
from cxrvit_edge.model.config import CLASSES
from cxrvit_edge.selective import GUARANTEE
from export import card_plots
from export.card import BEGIN, END, figures, generated, update
from export.card_crossval import RESULTS

NEW = ("sensitive_points", "selective")
ROOT = Path(__file__).resolve().parent.parent
CARD = ROOT / "MODEL_CARD.md"
DATA = ROOT.parent / "shared" / "data"
LABELS = {"normal": 0, "other": 1, "covid": 2}
CROSSVALS = sorted(RESULTS.glob("crossval_*.json"))  # none before the first was committed


def test_card_agrees_with_the_manifest_and_the_cross_validations() -> None:
    between = CARD.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()
    assert between == generated(Bundle.open()).strip()


def test_card_without_cross_validations_has_the_manifest_alone(tmp_path: Path) -> None:
    assert generated(Bundle.open(), tmp_path) == figures(Bundle.open())
    card = shutil.copy(CARD, tmp_path / "card.md")
    update(card, Bundle.open(), tmp_path)
    assert not update(card, Bundle.open(), tmp_path)
    assert "docs/model_card" not in card.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]


def test_plots_are_those_that_the_card_links_drawn_from_what_is_committed() -> None:
    linked = set(re.findall(r"\((docs/model_card/[^)]*)\)", CARD.read_text(encoding="utf-8")))
    assert {p.relative_to(ROOT).as_posix() for p in (ROOT / card_plots.FOLDER).glob("*")} == linked
    for name in linked:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert f"sha256:{card_plots.digest()}" in text, f"{name}: of other figures; run python -m export.card"
        assert len(text) < 60_000


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


@pytest.mark.parametrize("path", CROSSVALS, ids=lambda p: p.stem)
def test_a_committed_cross_validation_has_a_row_an_image(path: Path) -> None:
    found, rows = json.loads(path.read_text(encoding="utf-8")), rows_of(path.with_suffix(".csv"))
    assert len({r["sha256"] for r in rows}) == len(rows) == found["images"]
    assert {int(r["fold"]) for r in rows} == {fold["fold"] for fold in found["folds"]}
    zones = [c for c in rows[0] if "_image_" in c]
    assert len(zones) == 6
    for r in rows:
        assert bool(r["score"]) == all(r[z] for z in zones)
        if r["score"]:
            assert float(r["score"]) == pytest.approx(sum(float(r[z]) for z in zones), abs=4e-4)


@cache
def labelled() -> dict[str, tuple[str, int]]:
    """Source and label by SHA-256."""
    rows = (r for r in rows_of(DATA / "manifest.csv") if r["label"])
    return {
        hashlib.sha256((DATA / r["path"]).read_bytes()).hexdigest(): (r["source"], LABELS[r["label"]]) for r in rows
    }


@pytest.mark.parametrize("path", CROSSVALS, ids=lambda p: p.stem)
def test_the_images_give_the_committed_figures(path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip("needs ../shared/data: labels stay with the images")
    found = json.loads(path.read_text(encoding="utf-8"))
    known = labelled()
    rows = [r for r in rows_of(path.with_suffix(".csv")) if r["sha256"] in known]
    source = np.array([known[r["sha256"]][0] for r in rows])
    label = np.array([known[r["sha256"]][1] for r in rows])
    logits = np.array([[float(r[f"logit_{c}"]) for c in CLASSES] for r in rows])
    assert len(rows) == found["diagnosis"]["images"]
    for k, name in enumerate(CLASSES):
        value = auc(label == k, softmax(logits)[:, k])
        assert found["diagnosis"]["auc"][name]["value"] == pytest.approx(value, abs=1e-3)
    for pair, e in found["auc_within_source"].items():
        where, _, classes = pair.partition(": ")
        b, a = (CLASSES.index(c) for c in classes.split(" against "))
        own = (source == where) & np.isin(label, (a, b))
        value = auc(label[own] == b, logits[own, b] - logits[own, a])
        assert e["value"] == pytest.approx(value, abs=1e-3)


def test_a_bundle_with_a_second_operating_point_and_sets_prints_them(small_bundle: Path, tmp_path: Path) -> None:
    text = figures(Bundle.open(small_bundle))
    raw = Bundle.open(small_bundle).manifest.raw
    for e in (raw["evaluation"]["val"], raw["evaluation"]["test"]):
        for name, point in raw["sensitive_points"].items():
            rates = " | ".join(f"{e['sensitive_points'][name][rate]:.3f}" for rate in RATES)
            assert f"| {name} | {point:.3f} | {rates} |" in text
        low = e["selective"]["coverage"]["low"]
        assert (
            f"| all | 6 | 1.000 | {low:.3f} to 1.000 | 0.000 | 0.000 to {e['selective']['single']['high']:.3f} |"
            in text
        )
        assert "| source generated | 6 |" in text
        assert f"area under the curve of risk and coverage {e['selective']['aurc']['value']:.3f}" in text
    assert text.count("`--sensitivity 95`") == 2 and text.count(GUARANTEE) == 2
    older = shutil.copytree(small_bundle, tmp_path / "older", copy_function=os.link)
    evaluation = {s: {k: v for k, v in e.items() if k not in NEW} for s, e in raw["evaluation"].items()}
    reseal(older, {"evaluation": evaluation, **dict.fromkeys(NEW)})
    plain = figures(Bundle.open(older))
    assert "sensitivity 95" not in plain and "selective" not in plain


def test_card_states_the_confounding_and_the_intended_use() -> None:
    text = CARD.read_text(encoding="utf-8")
    assert "confounded" in text and "Not a medical device" in text
    assert Bundle.open().manifest.raw["caveat"]
