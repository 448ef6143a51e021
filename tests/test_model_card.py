"""The card prints the figures that the default bundle's manifest holds, and no others."""

import os
import shutil
from pathlib import Path

import pytest
from small_bundle import reseal

pytest.importorskip("torch")

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.metrics import RATES
from cxrvit_edge.selective import GUARANTEE
from export.card import BEGIN, END, figures

NEW = ("sensitive_points", "selective")
CARD = Path(__file__).parent.parent / "MODEL_CARD.md"


def test_card_agrees_with_the_manifest() -> None:
    between = CARD.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()
    assert between == figures(Bundle.open()).strip()


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
