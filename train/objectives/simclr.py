"""Stage `simclr` (Chen et al. 2020; section 5.5.5): two augmentations of an image are to be told from all others."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.loader import Batch
from train.objective import Objective, Term

PROJECTION = 128


class SimCLR(Objective):
    """The encoder's class token through a projection that is thrown away; NT-Xent over the images of all processes."""

    name, metric = "simclr", "matched"

    def __init__(self, net: nn.Module, width: int, temperature: float = 0.1) -> None:
        super().__init__(net)
        self.temperature = temperature
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTION))

    def forward(self, batch: Batch, step: int) -> dict[str, Term]:  # noqa: ARG002
        views = torch.cat([batch.image, batch.other_view])
        first, second = F.normalize(self.projection(self.net.embed(views)).float(), dim=1).chunk(2)  # type: ignore[operator]
        loss, count = nt_xent(first, second, self.temperature)
        return {"contrast": Term(loss, count)}

    def validate(self, net: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """matched: share of images whose other view is nearest among the whole val split."""
        pairs = []
        for batch in batches:
            views = torch.cat([batch.image, batch.other_view])
            pairs.append(F.normalize(self.projection.eval()(net.embed(views)).float(), dim=1).chunk(2))  # type: ignore[operator]
        first, second = (torch.cat(side) for side in zip(*pairs, strict=True))
        nearest = (first @ second.T).argmax(1)
        right = (nearest == torch.arange(len(first), device=nearest.device)).float().mean()
        return {"matched": right.item(), "images": float(len(first))}


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Normalised temperature-scaled cross-entropy of two views (B, P) each of length 1; summed, and over how many.

    Under many processes each is told from the images of all.
    """
    rank, own = 0, torch.cat([first, second])  # (2 B, P)
    everyone = own
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        from torch.distributed.nn.functional import all_gather

        rank = torch.distributed.get_rank()
        everyone = torch.cat(all_gather(own))  # (R 2 B, P)
    b = len(first)
    rows = torch.arange(2 * b, device=own.device)
    logits = own @ everyone.T / temperature
    logits = logits.scatter(1, (rows + rank * 2 * b)[:, None], -torch.inf)  # not from itself
    target = (rows + b) % (2 * b) + rank * 2 * b
    return F.cross_entropy(logits, target, reduction="sum"), torch.tensor(float(2 * b), device=own.device)
