"""Learning from other networks' answers to the same augmented image (Hinton et al. 2015; Beyer et al. 2022).

Their features too, at every stride they give, each through a linear projection (Romero et al. 2015): thousands of
targets an image where a label is one. That is what makes a trunk learn from few images what its teachers brought along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrvit_edge.model.densenet import CHANNELS, Features
from cxrvit_edge.model.triage_net import TriageNet
from train.networks.baseline import Baseline
from train.networks.convolutional import Convolutional, by_stride
from train.objective import Term

TEMPERATURE = 2.0  # that softens both sides' classes
_LARGEST = 5.0  # standard deviations of a feature that are still imitated
_OWN = {4: CHANNELS.s4, 8: CHANNELS.s8, 16: CHANNELS.s16, 32: CHANNELS.s32}  # channels of the student, by stride


class Answer(NamedTuple):
    """What a network says of a batch."""

    logits: Tensor  # (B, classes)
    maps: Mapping[int, Tensor]  # (B, C, H/s, W/s) by stride s


def answer(net: nn.Module, image: Tensor) -> Answer:
    """Of a TriageNet or a Baseline, without gradient."""
    with torch.no_grad():
        if isinstance(net, TriageNet):
            features = net.backbone(image)
            return Answer(net.diagnosis(net.encoder(net.corpus(features.s32))[0]), by_stride(features))
        if isinstance(net, Convolutional):
            maps = net.levels(image)
            return Answer(net.diagnosis(maps[32].mean((2, 3))), maps)
        assert isinstance(net, Baseline)
        embedding, features = net.encode(image)
        return Answer(net.diagnosis(embedding), {image.shape[-1] // features.shape[-1]: features})


def _at_most(image: Tensor, size: int) -> Tensor:
    if not size or image.shape[-1] <= size:
        return image
    return F.interpolate(image, (size, size), mode="bilinear", antialias=True)


@dataclass(frozen=True)
class Weights:
    """Of the classes, of the last features and of each earlier map against the loss by label."""

    classes: float = 1.0
    features: float = 4.0
    early: float = 2.0


class Teaching(nn.Module):
    """teachers: networks in eval mode, whose weights are neither learned nor saved with the run; sizes: of the images
    that each learned from, 0 for any.

    Each is asked about the very image that the student sees, no larger than it is used to; their logits are averaged,
    and each one's features, standardised by channel, are imitated through a projection of its own.
    """

    def __init__(
        self, teachers: Sequence[nn.Module], sizes: Sequence[int] | None = None, weights: Weights | None = None
    ) -> None:
        super().__init__()
        self.weights = weights or Weights()
        self.sizes = tuple(sizes or (0,) * len(teachers))
        self._teachers = tuple(t.requires_grad_(False).eval() for t in teachers)  # a tuple: no part of this module
        maps = [answer(t, torch.zeros(1, 1, 64, 64)).maps for t in self._teachers]
        self.project = nn.ModuleDict()
        self.standard = nn.ModuleDict()
        for k, of_one in enumerate(maps):
            for stride, m in of_one.items():
                self.project[f"{k}_{stride}"] = nn.Conv2d(_OWN[stride], m.shape[1], 1)
                self.standard[f"{k}_{stride}"] = nn.BatchNorm2d(m.shape[1], affine=False)

    def forward(self, image: Tensor, logits: Tensor, features: Features, upright: Tensor) -> dict[str, Term]:
        """logits (B, K) and features of the student; upright (B,): whose classes are learned from."""
        answers = [
            answer(t.to(image.device), _at_most(image, size))
            for t, size in zip(self._teachers, self.sizes, strict=True)
        ]
        taught = torch.stack([a.logits.float() for a in answers]).mean(0) / TEMPERATURE
        said = (logits.float() / TEMPERATURE).log_softmax(1)
        classes = F.kl_div(said, taught.softmax(1), reduction="none").sum(1) * TEMPERATURE**2  # (B,)
        own, imitation = by_stride(features), torch.zeros((), device=image.device)
        for k, a in enumerate(answers):
            for stride, m in a.maps.items():
                weight = self.weights.features if stride == 32 else self.weights.early
                imitation = imitation + self._imitation(f"{k}_{stride}", own[stride], m) * (weight / len(answers))
        n = torch.tensor(float(len(image)), device=image.device)
        return {
            "teacher": Term((classes * upright).sum() * self.weights.classes, upright.sum().float()),
            "features": Term(imitation * n, n),
        }

    def _imitation(self, key: str, own: Tensor, theirs: Tensor) -> Tensor:
        """Smooth L1 over the smaller of the two grids."""
        target = self.standard[key](theirs.float()).clamp(-_LARGEST, _LARGEST)
        projected = self.project[key](own).float()
        grid = min(projected.shape[-2:], target.shape[-2:])
        return F.smooth_l1_loss(F.adaptive_avg_pool2d(projected, grid), F.adaptive_avg_pool2d(target, grid))
