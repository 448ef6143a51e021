"""Stage `severity` (section 3.3): the map, pooled over six lung zones, against an array of 0 and 1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import nn

from train.loader import Batch
from train.losses import zone_term, zones_of
from train.objective import Objective, Term


class Severity(Objective):
    """Zones come from the batch's lung masks, which a segmenter made where no human did (train/masks.py).

    roi: how a zone's pixels become its value, "max" or "average" (Table 10). The loss is ours (binary cross-entropy):
    the paper says that an error is minimised, not which.
    """

    name, metric, higher, uses = "severity", "severity_mse", False, "zones"

    def __init__(self, net: nn.Module, roi: Literal["max", "average"] = "max") -> None:
        super().__init__(net)
        self.roi = roi

    def forward(self, batch: Batch, step: int) -> dict[str, Term]:  # noqa: ARG002
        logits = self.net.grade(batch.image)  # type: ignore[operator]
        zones = zones_of(batch.lungs)
        return {"severity": zone_term(logits[:, 0], zones, batch.zones, batch.zone_weight, self.roi)}

    def validate(self, net: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        from train.validation import judge

        return judge(net, batches, severity=True, roi=self.roi)
