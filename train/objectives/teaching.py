"""Learning from other networks' answers to the same augmented image (Hinton et al. 2015; Beyer et al. 2022).

Of those that tell classes apart also the features, at every stride they give, each through a linear projection (Romero
et al. 2015): thousands of targets an image where a label is one. That is what makes a trunk learn from few images what
its teachers brought along. Of those that grade, the map and the zones of every film: radiologists scored one in nine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrvit_edge.model.config import CLASSES
from cxrvit_edge.model.densenet import CHANNELS, Features
from cxrvit_edge.model.triage_net import TriageLogits, TriageNet
from train.loader import Batch
from train.losses import Zones, largest_in_zones, zone_term
from train.networks.baseline import Baseline
from train.networks.convolutional import Convolutional, by_stride
from train.networks.efficientnet_lite import EfficientNetLite0
from train.objective import Term

TEMPERATURE = 2.0  # that softens both sides' classes
GRADED = 0.5  # of a grading teacher's logits: learned from few films, it is twice as sure out of fold as it is right
_LARGEST = 5.0  # standard deviations of a feature that are still imitated
_OWN = {4: CHANNELS.s4, 8: CHANNELS.s8, 16: CHANNELS.s16, 32: CHANNELS.s32}  # channels of the student, by stride


class Answer(NamedTuple):
    """What a network says of a batch."""

    logits: Tensor  # (B, classes)
    maps: Mapping[int, Tensor]  # (B, C, H/s, W/s) by stride s
    grades: Tensor  # (B, 1, h, w), logits of the severity map


def answer(net: nn.Module, image: Tensor, first: Mapping[int, Tensor] | None = None) -> Answer:
    """Of a TriageNet or a Baseline, without gradient; first: of a Convolutional, its first maps."""
    with torch.no_grad():
        if isinstance(net, TriageNet):
            levels = net.features(image)
            token, tokens = net.encoder(net.corpus(levels.s32))
            return Answer(net.diagnosis(token), by_stride(levels), net.severity(tokens))
        if isinstance(net, Convolutional):
            maps = net.levels(image, first)
            return Answer(net.diagnosis(maps[32].mean((2, 3))), maps, net.severity(maps[32]))
        assert isinstance(net, Baseline)
        embedding, features = net.encode(image)
        stride = image.shape[-1] // features.shape[-1]
        return Answer(net.diagnosis(embedding), {stride: features}, net.severity(features))


def _at_most(image: Tensor, size: int) -> Tensor:
    if not size or image.shape[-1] <= size:
        return image
    return F.interpolate(image, (size, size), mode="bilinear", antialias=True)


def _resized(logits: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(logits.float(), like.shape[-2:], mode="bilinear")


@dataclass(frozen=True)
class Teacher:
    """net: in eval mode, neither learned nor saved with the run; size: of the images that it learned from, 0 for any;
    classes, grades: whether its classes and features, or its severity map, are learned from."""

    net: nn.Module
    size: int = 0
    classes: bool = True
    grades: bool = False


def _alike(teacher: Teacher, others: Sequence[Teacher]) -> int | None:
    """The first of `others` that makes the same first maps of an image: one network went on from the other."""
    own = _early(teacher.net)
    for k, other in enumerate(others):
        theirs = _early(other.net)
        if own and theirs and other.size == teacher.size and all(map(torch.equal, own, theirs)):
            return k
    return None


def _early(net: nn.Module) -> list[Tensor]:
    if not (isinstance(net, Convolutional) and isinstance(net.backbone, EfficientNetLite0)):
        return []
    return [value for layer in net.backbone.early() for value in layer.state_dict().values()]


@dataclass(frozen=True)
class Weights:
    """Of the classes, of the last features, of each earlier map, of the zones and of the severity map against the loss
    by label."""

    classes: float = 1.0
    features: float = 4.0
    early: float = 2.0
    zones: float = 0.5
    map: float = 1.0


class Teaching(nn.Module):
    """Each teacher is asked about the very image that the student gets, no larger than it is used to.

    Logits are averaged over the teachers of classes, probabilities of a zone over those that grade; each one's
    features, standardised by channel, are imitated through a projection of its own. The trunk is told the classes past
    the encoder as well, by a linear layer of its own (Lee et al. 2015, arXiv 1409.5185).
    """

    def __init__(self, teachers: Sequence[Teacher], weights: Weights | None = None) -> None:
        super().__init__()
        self.weights = weights or Weights()
        self._teachers = tuple(teachers)  # a tuple: no part of this module
        self._alike = [_alike(t, self._teachers[:k]) for k, t in enumerate(self._teachers)]
        self.project = nn.ModuleDict()
        self.standard = nn.ModuleDict()
        classes = any(t.classes for t in self._teachers)
        self.short: nn.Module = nn.Linear(CHANNELS.s32, len(CLASSES)) if classes else nn.Identity()
        for k, t in enumerate(self._teachers):
            t.net.requires_grad_(False).eval()
            for stride, m in answer(t.net, torch.zeros(1, 1, 64, 64)).maps.items() if t.classes else ():
                self.project[f"{k}_{stride}"] = nn.Conv2d(_OWN[stride], m.shape[1], 1)
                self.standard[f"{k}_{stride}"] = nn.BatchNorm2d(m.shape[1], affine=False)

    def forward(self, batch: Batch, out: TriageLogits, features: Features, zones: Sequence[Zones]) -> dict[str, Term]:
        """out and features of the student, zones of each image on its map. Of a turned or inverted image the features
        alone are imitated."""
        image, upright = batch.image, ~batch.is_negative
        of = list(zip(self._teachers, self._answers(image), strict=True))
        terms = {}
        if told := [(k, a) for k, (t, a) in enumerate(of) if t.classes]:
            theirs = [a.logits for _, a in told]
            terms["teacher"] = self._classes(theirs, out.logits, upright)
            terms["trunk"] = self._classes(theirs, self.short(features.s32.mean((2, 3))), upright)
            terms["features"] = self._features(told, features, len(image))
        if graded := [a.grades for t, a in of if t.grades]:
            terms["map"] = self._map(graded, out.severity, upright)
            terms["grades"] = self._zones(graded, out.severity, upright, zones)
        return terms

    def _answers(self, image: Tensor) -> list[Answer]:
        """One each; first maps that two of them have in common are made once."""
        said: list[Answer] = []
        for t, k in zip(self._teachers, self._alike, strict=True):
            first = None if k is None else {s: said[k].maps[s] for s in (4, 8)}
            said.append(answer(t.net.to(image.device), _at_most(image, t.size), first))
        return said

    def _classes(self, theirs: Sequence[Tensor], logits: Tensor, upright: Tensor) -> Term:
        taught = torch.stack([z.float() for z in theirs]).mean(0) / TEMPERATURE
        said = (logits.float() / TEMPERATURE).log_softmax(1)
        classes = F.kl_div(said, taught.softmax(1), reduction="none").sum(1) * TEMPERATURE**2  # (B,)
        return Term((classes * upright).sum() * self.weights.classes, upright.sum().float())

    def _features(self, told: Sequence[tuple[int, Answer]], features: Features, n: int) -> Term:
        own = by_stride(features)
        imitation = torch.zeros((), device=features.s32.device)
        for k, a in told:
            for stride, m in a.maps.items():
                weight = self.weights.features if stride == 32 else self.weights.early
                imitation = imitation + self._imitation(f"{k}_{stride}", own[stride], m) * (weight / len(told))
        return Term(imitation * n, torch.tensor(float(n), device=imitation.device))

    def _map(self, theirs: Sequence[Tensor], own: Tensor, upright: Tensor) -> Term:
        """Every pixel: thousands of targets where zones are six, and from the first step, when no lungs are known."""
        target = torch.stack([(_resized(g, own) * GRADED).sigmoid() for g in theirs]).mean(0)
        each = F.binary_cross_entropy_with_logits(own.float(), target, reduction="none").mean((1, 2, 3))  # (B,)
        return Term((each * upright).sum() * self.weights.map, upright.sum().float())

    def _zones(self, theirs: Sequence[Tensor], own: Tensor, upright: Tensor, zones: Sequence[Zones]) -> Term:
        said = [(largest_in_zones(_resized(g, own)[:, 0], zones) * GRADED).sigmoid() for g in theirs]
        target = torch.stack(said).mean(0)  # (B, 3, 2)
        weight = upright.float()[:, None, None].expand_as(target)
        term = zone_term(own[:, 0], zones, target, weight)
        return Term(term.total * self.weights.zones, term.weight)

    def _imitation(self, key: str, own: Tensor, theirs: Tensor) -> Tensor:
        """Smooth L1 over the smaller of the two grids."""
        target = self.standard[key](theirs.float()).clamp(-_LARGEST, _LARGEST)
        projected = self.project[key](own).float()
        grid = min(projected.shape[-1], target.shape[-1])
        return F.smooth_l1_loss(F.adaptive_avg_pool2d(projected, grid), F.adaptive_avg_pool2d(target, grid))
