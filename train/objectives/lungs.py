"""Stage `lungs`: a U-Net from masks alone, or the AdaIN generator of Oh and Ye (arXiv 2104.05892) with all its tasks.

The paper's terms and their ratios to the segmentation loss (its authors' settings: segmentation 5, adversarial 1,
cycle 2, style 1, self-supervision 10 on probabilities): adversarial by an output a domain, cycle consistency with the
style read off the image, style reconstruction, distillation of the teacher (abnormal film made normal, then segmented)
into the student (the film itself).
Ours: soft Dice beside cross-entropy; least squares in the adversarial terms, where the authors' non-saturating loss
wants a gradient penalty; no diversity loss, as a domain has one code; everything at once from the first step with the
student's term ramped up, where the paper trains in two runs; the student is the supervised code itself. The paper's
masks are of normal films; where masks are of abnormal ones they also supervise the teacher on what it sees.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from cxrvit_edge.metrics import dice
from cxrvit_edge.model.severity import upsize
from train.loader import CONVENTIONS, Batch
from train.losses import lung_loss
from train.networks.adain import DEFAULT, STYLE, AdaINSegmenter, Critic
from train.networks.unet import UNet
from train.objective import Objective, Term

FOLLOWED = tuple(CONVENTIONS.index(c) for c in DEFAULT)
SIDES = ("", "_image_left", "_image_right")


class LungObjective(Objective):
    """Any network with `segment`, from the masks of the default convention; others are only judged, never learned."""

    name: ClassVar[str] = "lungs"
    metric: ClassVar[str] = "dice"
    uses: ClassVar[str] = "lungs"

    def forward(self, batch: Batch, step: int) -> dict[str, Term]:  # noqa: ARG002
        logits = cast(UNet, self.net).segment(batch.image)
        return {"lungs": self._supervised(logits, batch.lungs, self.learned(batch))}

    def learned(self, batch: Batch) -> Tensor:
        """Rows (B,) bool whose masks are learned from: a convention that is followed, or an empty negative."""
        followed = torch.isin(batch.convention, batch.convention.new_tensor(FOLLOWED))
        return batch.has_lungs & (followed | batch.is_negative)

    @staticmethod
    def _supervised(logits: Tensor, masks: Tensor, rows: Tensor) -> Term:
        weight = rows.sum().to(logits.dtype)
        total = lung_loss(logits[rows], masks[rows]) * weight if bool(rows.any()) else logits.sum() * 0
        return Term(total, weight)

    def validate(self, net: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Dice at half the input's size, of the union and of each lung, by convention; `dice` is the mean over the
        default ones that are there. NaN where there is none."""
        found: dict[str, list[tuple[float, float, float]]] = {c: [] for c in CONVENTIONS}
        device = next(net.parameters()).device
        with torch.inference_mode():
            for batch in batches:
                rows = batch.has_lungs & (batch.convention >= 0) & ~batch.is_negative
                if not bool(rows.any()):
                    continue
                logits = self._judged(net, batch.image[rows].to(device), batch.convention[rows].to(device))
                masks = (logits > 0).cpu().numpy()  # (b, 2, h, w)
                truths = (batch.lungs[rows] >= 0.5).cpu().numpy()
                for k, mask, truth in zip(batch.convention[rows].tolist(), masks, truths, strict=True):
                    union = dice(mask.any(0), truth.any(0))
                    found[CONVENTIONS[k]].append((union, dice(mask[0], truth[0]), dice(mask[1], truth[1])))
        figures: dict[str, float] = {}
        for convention, rows_ in found.items():
            if rows_:
                mean = np.mean(rows_, axis=0)
                figures |= {f"dice_{convention}{side}": float(v) for side, v in zip(SIDES, mean, strict=True)}
        default = [figures[f"dice_{c}"] for c in DEFAULT if f"dice_{c}" in figures]
        return {"dice": float(np.mean(default)) if default else float("nan"), **figures}

    def _judged(self, net: nn.Module, image: Tensor, convention: Tensor) -> Tensor:  # noqa: ARG002
        return cast(UNet, net).segment(image)


@dataclass(frozen=True)
class AdaINWeights:
    """Weights beside the segmentation loss, the authors' settings over 5; distillation is reached over `ramp` steps.

    share: of the images of a batch that are translated, from its first; the rest would cost more than it brings.
    """

    adversarial: float = 0.2
    cycle: float = 0.4
    style: float = 0.2
    distillation: float = 2.0
    ramp: int = 500
    share: float = 0.25


class AdaINObjective(LungObjective):
    """The generator, its discriminator and style encoder under one optimiser: each loss moves its own side only.

    A batch wants films without masks too: normal ones (label 0) and abnormal ones (any other label).
    """

    uses: ClassVar[str] = "image"

    def __init__(self, net: AdaINSegmenter, weights: AdaINWeights | None = None) -> None:
        super().__init__(net)
        self.weights = weights or AdaINWeights()
        self.discriminator = Critic(1)
        self.stylist = Critic(STYLE, pooled=True)

    def learned(self, batch: Batch) -> Tensor:
        """Every mask: each convention has its own code."""
        return batch.has_lungs & ((batch.convention >= 0) | batch.is_negative)

    def _judged(self, net: nn.Module, image: Tensor, convention: Tensor) -> Tensor:
        return cast(AdaINSegmenter, net).segment(image, convention)

    def forward(self, batch: Batch, step: int) -> dict[str, Term]:
        net, w = cast(AdaINSegmenter, self.net), self.weights
        n = max(1, round(w.share * len(batch.image)))
        image, label, convention = batch.image[:n], batch.label[:n], batch.convention[:n]
        known = label >= 0
        domain = (label > 0).long()  # (n,) of DOMAINS; unknown ones weigh nothing
        learned = self.learned(batch)
        rest = torch.cat([torch.zeros_like(known), learned[n:]])

        features = net.encoder(torch.cat([image, batch.image[rest]]))
        masks = torch.cat([batch.lungs[:n], batch.lungs[rest]])
        conventions = torch.cat([convention, batch.convention[rest]])
        lungs = net.lungs_of(features, conventions)  # the first n: films that are translated too
        terms = {"lungs": self._supervised(lungs, masks, torch.cat([learned[:n], learned[rest]]))}

        code = net.domains[1 - domain]
        fake = net.image_of([f[:n] for f in features], code)
        terms |= self._adaptation(image, fake, code, domain, known)

        taught = net.segment(upsize(fake.detach()), convention)
        supervised = learned[:n] & known
        terms["teacher"] = self._supervised(taught, batch.lungs[:n], supervised)
        student = known & (domain == 1) & ~batch.has_lungs[:n]
        gap = (lungs[:n].sigmoid() - taught.detach().sigmoid()).abs().mean((1, 2, 3))  # (n,)
        ramp = min(1.0, step / w.ramp) if w.ramp else 1.0
        terms["distillation"] = _weighed(gap, student, w.distillation * ramp)
        return terms

    def _adaptation(self, image: Tensor, fake: Tensor, code: Tensor, domain: Tensor, known: Tensor) -> dict[str, Term]:
        """image (n, 1, H, W) of `domain`, its translation (n, 1, H/2, W/2) to the other one by `code` (n, STYLE)."""
        net, w = cast(AdaINSegmenter, self.net), self.weights
        rows, target = torch.arange(len(image), device=image.device), 1 - domain
        real = F.avg_pool2d(image, 2)
        back = net.translate(upsize(fake), self.stylist(real)[rows, domain])
        fixed = {k: v.detach() for k, v in self.discriminator.named_parameters()}
        fooled = functional_call(self.discriminator, fixed, (fake,))[rows, target]
        seen = self.discriminator(torch.cat([real, fake.detach()]))
        seen_real, seen_fake = seen[rows, domain], seen[len(rows) + rows, target]
        dims = (1, 2, 3)
        return {
            "adversarial": _weighed((fooled - 1).square().mean(dims), known, w.adversarial),
            "cycle": _weighed((back - real).abs().mean(dims), known, w.cycle),
            "style": _weighed((self.stylist(fake)[rows, target] - code).abs().mean(1), known, w.style),
            "discriminator": _weighed(
                0.5 * ((seen_real - 1).square().mean(dims) + seen_fake.square().mean(dims)), known, w.adversarial
            ),
        }


def _weighed(losses: Tensor, rows: Tensor, weight: float) -> Term:
    """Losses (n,) of the rows that count, summed; zero, with a gradient of zero, where none does."""
    return Term(weight * (losses * rows).sum(), rows.sum().to(losses.dtype))
