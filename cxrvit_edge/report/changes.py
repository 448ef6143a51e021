"""What a variant says otherwise of an image, as HTML: a change of `parity.compare`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cxrvit_edge.report.html import shown
from cxrvit_edge.report.words import CLASS_NAMES, REASONS

WHAT = {"label": "Label", "flags": "Flag", "status": "Status", "severity": "Severity", "priority": "Priority"}


def changed(change: Mapping[str, Any], to: str = "&rarr;") -> Iterator[str]:
    """A line for the label, each flag, status, severity and priority that is another; `to` stands between the two."""
    for key, what in WHAT.items():
        if key not in change:
            continue
        if key == "flags":
            for name, (a, b) in change[key].items():
                yield f"{what} {_word(name)}: {'on' if a else 'off'} {to} {'on' if b else 'off'}"
        else:
            a, b = change[key]
            yield f"{what}: {_word(a)} {to} {_word(b)}"


def _word(value: object) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, float):
        return f"{value:.2f}"
    text = str(value)
    return shown(CLASS_NAMES.get(text) or REASONS.get(text) or text)
