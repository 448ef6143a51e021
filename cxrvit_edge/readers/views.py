"""The radiographic view, from the words that headers and tables use for it."""

from __future__ import annotations

import re

from cxrvit_edge.radiograph import View

_WHOLE: dict[str, View] = {"L": "lateral", "LL": "lateral", "RL": "lateral"}
_UNUSUAL = re.compile(r"\b(LLD|RLD|DECUB\w*|LLO|RLO|LAO|RAO|LPO|RPO|OBL\w*|LORDOTIC|SWIMMERS?)\b")
_PA = re.compile(r"\b(PA|POSTERO\s?ANTERIOR|POSTERIOR ANTERIOR|POSTERIOR TO ANTERIOR)\b")
_AP = re.compile(r"\b(AP|ANTERO\s?POSTERIOR|ANTERIOR POSTERIOR|ANTERIOR TO POSTERIOR)\b")
_LATERAL = re.compile(r"\b(LAT|LATERAL|LATERALS|LATERO\s?LATERAL|PROFILE?)\b")


def _words(text: str) -> str:
    undotted = re.sub(r"\b([A-Z])\.(?=[A-Z]\b)", r"\1", text.upper())  # P.A. is PA
    return " ".join(re.findall(r"[A-Z0-9]+", undotted))


def view_from_text(text: str) -> View:
    """View named by ViewPosition (0018,5101), a view code's meaning, a description or a CSV cell.

    `AP Supine`, `AP_horizontal`, `portable AP` are AP; `L`, `LL`, `Lateral` are lateral. A text that names two views,
    an oblique or a decubitus, or none (`Frontal`) is unknown.
    """
    words = _words(text)
    if words in _WHOLE:
        return _WHOLE[words]
    if _UNUSUAL.search(words):
        return "unknown"
    patterns: tuple[tuple[View, re.Pattern[str]], ...] = (("PA", _PA), ("AP", _AP), ("lateral", _LATERAL))
    named: list[View] = [view for view, pattern in patterns if pattern.search(words)]
    return named[0] if len(named) == 1 else "unknown"


def unusual_view(text: str) -> bool:
    """Whether the text names an oblique, lordotic or decubitus view: no network here was made for it."""
    return _UNUSUAL.search(_words(text)) is not None
