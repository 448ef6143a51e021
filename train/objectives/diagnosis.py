"""Stage `diagnosis` (section 3.2): normal, other infection or COVID-19, by cross-entropy."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from train.loader import Batch
from train.losses import class_loss
from train.objective import Objective, Term


class Diagnosis(Objective):
    """class_weight (3,): of each class in the loss; ones for none."""

    name, metric, uses = "diagnosis", "auc", "label"

    def __init__(self, net: nn.Module, class_weight: Tensor, label_smoothing: float = 0.0) -> None:
        super().__init__(net)
        self.class_weight: Tensor
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch, step: int) -> dict[str, Term]:  # noqa: ARG002
        logits = self.net.diagnose(batch.image)  # type: ignore[operator]
        return {"diagnosis": class_loss(logits, batch.label, self.class_weight, self.label_smoothing)}

    def validate(self, net: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        from train.validation import judge

        return judge(net, batches, diagnosis=True)
