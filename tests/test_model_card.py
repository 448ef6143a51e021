"""The card prints the figures that the default bundle's manifest holds, and no others."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from cxrvit_edge.bundle import Bundle
from export.card import BEGIN, END, figures

CARD = Path(__file__).parent.parent / "MODEL_CARD.md"


def test_card_agrees_with_the_manifest() -> None:
    between = CARD.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()
    assert between == figures(Bundle.open()).strip()


def test_card_states_the_confounding_and_the_intended_use() -> None:
    text = CARD.read_text(encoding="utf-8")
    assert "confounded" in text and "Not a medical device" in text
    assert Bundle.open().manifest.raw["caveat"]
