"""Findings and sides that say what a test needs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxrvit_edge.bundle import Guard, Manifest
from cxrvit_edge.compare.sources import Side
from cxrvit_edge.errors import Reason
from cxrvit_edge.findings import Finding, Severity
from cxrvit_edge.journal import Journal, Owner

CLASSES = ("normal", "other_infection", "covid19")
OWNER = Owner("small@0123456789ab", "onnxruntime", "fp32")
MANIFEST = Manifest(
    name="small",
    classes=CLASSES,
    preprocessing={},
    operating_points=dict.fromkeys(CLASSES, 0.5),
    temperature=1.0,
    views={"any": "g"},
    variants={},
    files={},
    guard=Guard(0.05, 0.5),
    golden_inputs="golden",
    intended_use="Tests.",
)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def judged(
    file: str,
    p: Sequence[float] = (0.7, 0.2, 0.1),
    score: float | None = 1.2,
    owner: Owner = OWNER,
    content: str | None = None,
    **changes: Any,
) -> Finding:
    """Label and flags follow from p; the zones are equal; content: what its hash is of, by default its name."""
    flags = {name: value >= 0.5 for name, value in zip(CLASSES, p, strict=True)}
    infected = flags["covid19"] or flags["other_infection"]
    urgent = score is not None and score >= 3
    priority = "review" if score is None else "routine" if not infected else "urgent" if urgent else "elevated"
    zones = None if score is None else ((score / 6, score / 6),) * 3
    values: dict[str, Any] = {
        "sha256": sha(file if content is None else content),
        "probabilities": dict(zip(CLASSES, p, strict=True)),
        "label": CLASSES[max(range(3), key=p.__getitem__)],
        "flags": flags,
        "severity": Severity(score, zones),
        "priority": priority,
        "view": "PA",
    }
    return Finding(file, "ok", **{**values, **owner._asdict(), **changes})


def refused(file: str, reason: Reason = Reason.NOT_A_CHEST, owner: Owner = OWNER, **changes: Any) -> Finding:
    values: dict[str, Any] = {"sha256": sha(file), "reason": {"code": reason.value, "message": "what, and what next"}}
    return Finding(file, reason.status, **{**values, **owner._asdict(), **changes})


def side(*findings: Finding, manifest: Manifest = MANIFEST, owner: Owner = OWNER, **changes: Any) -> Side:
    return Side("A", owner, manifest, findings, **changes)


def write_results(folder: Path, *findings: Finding, owner: Owner = OWNER) -> Path:
    """As a run leaves them."""
    with Journal(folder, owner) as journal:
        for finding in findings:
            journal.append(finding)
    return folder
