"""Learning from other networks' answers to the same augmented image (Hinton et al. 2015; Beyer et al. 2022).

Their features too, through a linear projection (Romero et al. 2015): 49 to 256 targets an image for each of a thousand
channels, where a label is one. That is what makes a trunk learn from few images what its teachers brought along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrvit_edge.model.densenet import CHANNELS
from cxrvit_edge.model.triage_net import TriageNet
from train.networks.baseline import Baseline
from train.objective import Term

TEMPERATURE = 2.0  # that softens both sides' classes
_LARGEST = 5.0  # standard deviations of a feature that are still imitated


class Answer(NamedTuple):
    """What a network says of a batch."""

    logits: Tensor  # (B, classes)
    features: Tensor  # (B, C, H/32, W/32)


def answer(net: nn.Module, image: Tensor) -> Answer:
    """Of a TriageNet or a Baseline, without gradient."""
    with torch.no_grad():
        if isinstance(net, TriageNet):
            features = net.backbone(image).s32
            return Answer(net.diagnosis(net.encoder(net.corpus(features))[0]), features)
        assert isinstance(net, Baseline)
        embedding, features = net.encode(image)
        return Answer(net.diagnosis(embedding), features)


def width(net: nn.Module) -> int:
    """Channels of its features."""
    return CHANNELS.s32 if isinstance(net, TriageNet) else int(net.diagnosis.in_features)  # type: ignore[union-attr, arg-type]


def _at_most(image: Tensor, size: int) -> Tensor:
    if not size or image.shape[-1] <= size:
        return image
    return F.interpolate(image, (size, size), mode="bilinear", antialias=True)


@dataclass(frozen=True)
class Weights:
    """Of the classes and of the features against the loss by label."""

    classes: float = 1.0
    features: float = 4.0


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
        self.project = nn.ModuleList(nn.Conv2d(CHANNELS.s32, width(t), 1) for t in teachers)
        self.standard = nn.ModuleList(nn.BatchNorm2d(width(t), affine=False) for t in teachers)
        self.sizes = tuple(sizes or (0,) * len(teachers))
        self._teachers = tuple(t.requires_grad_(False).eval() for t in teachers)  # a tuple: no part of this module

    def forward(self, image: Tensor, logits: Tensor, features: Tensor, upright: Tensor) -> dict[str, Term]:
        """logits (B, K) and features (B, 1024, g, g) of the student; upright (B,): whose classes are learned from."""
        answers = [
            answer(t.to(image.device), _at_most(image, size))
            for t, size in zip(self._teachers, self.sizes, strict=True)
        ]
        taught = torch.stack([a.logits.float() for a in answers]).mean(0) / TEMPERATURE
        said = (logits.float() / TEMPERATURE).log_softmax(1)
        classes = F.kl_div(said, taught.softmax(1), reduction="none").sum(1) * TEMPERATURE**2  # (B,)
        imitation = features.new_zeros((), dtype=torch.float32)
        for a, project, standard in zip(answers, self.project, self.standard, strict=True):
            target = standard(a.features.float()).clamp(-_LARGEST, _LARGEST)
            said_here = F.adaptive_avg_pool2d(project(features).float(), target.shape[-2:])
            imitation = imitation + F.smooth_l1_loss(said_here, target) / len(answers)
        n = torch.tensor(float(len(image)), device=image.device)
        return {
            "teacher": Term((classes * upright).sum() * self.weights.classes, upright.sum().float()),
            "features": Term(imitation * n * self.weights.features, n),
        }
