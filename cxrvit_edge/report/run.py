"""Figures of one triage run, for the terminal summary and the report."""

from __future__ import annotations

from dataclasses import dataclass, field

from cxrvit_edge.decision import USUAL, Rule

RESEARCH_USE = "Research use only, not a medical device; the map is not for localisation."


@dataclass(frozen=True)
class Run:
    """done: inputs given a result in this run; resumed: kept from an earlier one; stage_ms: mean milliseconds an input.

    notes: what the user should know, such as a variant that was skipped and why.
    """

    bundle: str
    bundle_sha256: str
    backend: str
    backend_version: str
    precision: str
    started: str  # ISO 8601, UTC
    seconds: float
    done: int
    resumed: int
    stage_ms: dict[str, float] = field(default_factory=dict)
    rule: Rule = USUAL
    notes: tuple[str, ...] = ()
