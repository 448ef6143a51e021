"""Stage `backbone` (section 3.1, after Ye et al. 2020): findings through PCAM pooling; unknown ones do not count."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from train.loader import Batch
from train.losses import findings_term
from train.objective import Objective, Term


class Backbone(Objective):
    name, metric, uses = "backbone", "findings_auc", "findings"

    def forward(self, batch: Batch, step: int) -> dict[str, Term]:  # noqa: ARG002
        return {"findings": findings_term(self.net.find(batch.image), batch.findings)}  # type: ignore[operator]

    def validate(self, net: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        from train.validation import judge

        return judge(net, batches, findings=True)
