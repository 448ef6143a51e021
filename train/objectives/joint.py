"""Stage `joint`: one shared trunk, all heads (diagnosis, severity map, lungs, findings through PCAM) at once.

The shared trunk is ours; the paper trains its networks one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from cxrvit_edge.model.triage_net import TriageNet
from train.loader import Batch
from train.losses import class_loss, findings_term, lung_term, zone_term, zones_for
from train.objective import Objective, Term
from train.objectives.teaching import Teaching


@dataclass(frozen=True)
class Weights:
    """Of each loss against the diagnosis's; severity_from: step before which predicted lungs are no zones; side: share
    of the lungs' gradient that reaches the trunk."""

    severity: float = 0.5
    findings: float = 0.3
    lungs: float = 1.0
    severity_from: int = 150
    side: float = 1.0
    label_smoothing: float = 0.05
    zone_smoothing: float = 0.05


class Joint(Objective):
    name, metric = "joint", "auc"

    def __init__(
        self,
        net: TriageNet,
        class_weight: Tensor,
        weights: Weights | None = None,
        teaching: Teaching | None = None,
    ) -> None:
        super().__init__(net)
        self.teaching = teaching
        self.class_weight: Tensor
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.weights = weights or Weights()

    def forward(self, batch: Batch, step: int) -> dict[str, Term]:
        w = self.weights
        features = self.net.features(batch.image)  # type: ignore[operator]
        out = self.net.heads(features, self.net.enlargement(batch.image), w.side)  # type: ignore[operator]
        zones = zones_for(out.lungs, batch.lungs)
        severity = zone_term(out.severity[:, 0], zones, batch.zones, batch.zone_weight, smoothing=w.zone_smoothing)
        if step < w.severity_from:
            severity = Term(severity.total * 0, severity.weight)
        taught = self.teaching
        terms = {} if taught is None else taught(batch, out, features, zones)
        if step < w.severity_from and "grades" in terms:
            terms["grades"] = _times(terms["grades"], 0.0)
        return {
            **terms,
            "diagnosis": class_loss(out.logits, batch.label, self.class_weight, w.label_smoothing),
            "severity": _times(severity, w.severity),
            "findings": _times(findings_term(out.findings, batch.findings), w.findings),
            "lungs": _times(lung_term(out.lungs, batch.lungs, batch.has_lungs), w.lungs),
        }

    def validate(self, net: torch.nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        from train.validation import judge

        return judge(net, batches, diagnosis=True, severity=True, lungs=True)


def _times(term: Term, factor: float) -> Term:
    return Term(term.total * factor, term.weight)
