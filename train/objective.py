"""What a stage minimises and how it is judged: the one interface between the trainer and its stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from train.loader import Batch


class Term(NamedTuple):
    """A loss summed over the batch and what its sum is divided by, both 0-dimensional.

    The trainer divides by the weight of all processes together, so that a batch split among them gives the gradient
    of the whole batch.
    """

    total: Tensor
    weight: Tensor


class Objective(nn.Module):
    """A network and its losses, run as one module so that many processes can share it.

    metric: of `validate`, what early stopping and the choice of weights go by; higher: whether more is better.
    uses: batches that this stage can learn from have it ("label", "findings", "zones", "lungs" or "image").
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    higher: ClassVar[bool] = True
    uses: ClassVar[str] = "image"

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Batch, step: int) -> Mapping[str, Term]:
        raise NotImplementedError

    def validate(self, net: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Figures of `net` (self.net or its running average) in eval mode."""
        raise NotImplementedError
