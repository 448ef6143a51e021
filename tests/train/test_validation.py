"""The figures a stage is judged by, against ones worked out by hand."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cxrvit_edge.metrics import auc, softmax
from cxrvit_edge.zones import severity_array, zone_masks
from train.loader import CONVENTIONS, Batch
from train.validation import judge

pytestmark = pytest.mark.usefixtures("one_torch_thread")

N, S = 6, 32
NAN = float("nan")


class Out(NamedTuple):
    logits: Tensor
    severity: Tensor
    lungs: Tensor
    findings: Tensor


class Told(nn.Module):
    """A network that answers what it is told; an image's pixels are its number. Counts its calls by method."""

    def __init__(self, logits: Tensor, severity: Tensor, lungs: Tensor, findings: Tensor) -> None:
        super().__init__()
        self.told = Out(logits, severity, lungs, findings)
        self.calls: list[str] = []

    def _of(self, name: str, image: Tensor) -> Out:
        self.calls.append(name)
        rows = image[:, 0, 0, 0].long()
        return Out(*(value[rows] for value in self.told))

    def find(self, image: Tensor) -> Tensor:
        return self._of("find", image).findings

    def diagnose(self, image: Tensor) -> Tensor:
        return self._of("diagnose", image).logits

    def grade(self, image: Tensor) -> Tensor:
        return self._of("grade", image).severity

    def segment(self, image: Tensor) -> Tensor:
        return self._of("segment", image).lungs

    def training_forward(self, image: Tensor) -> Out:
        return self._of("training_forward", image)


def pair(top: int, bottom: int) -> Tensor:
    """(2, S, S): two lungs of 10 columns each."""
    out = torch.zeros(2, S, S)
    out[0, top:bottom, 4:14] = 1
    out[1, top:bottom, 18:28] = 1
    return out


def batch(rows: list[int] | range = range(N), **changes: Tensor) -> Batch:
    """Images 0 to 5: lungs of the default, another and no convention; nothing else is known."""
    whole = {
        "image": torch.arange(N).float().view(N, 1, 1, 1).expand(N, 1, 2, 2).clone(),
        "other_view": torch.zeros(N, 0),
        "lungs": torch.stack([pair(2, 30)] * 4 + [torch.zeros(2, S, S)] * 2),
        "has_lungs": torch.tensor([True] * 4 + [False] * 2),
        "is_negative": torch.zeros(N, dtype=torch.bool),
        "convention": torch.tensor([0, 0, CONVENTIONS.index("lungvae"), -1, -1, -1]),
        "label": torch.full((N,), -1),
        "findings": torch.full((N, 10), NAN),
        "zones": torch.zeros(N, 3, 2),
        "zone_weight": torch.zeros(N, 3, 2),
        **changes,
    }
    return Batch(**{k: v[list(rows)] for k, v in whole.items()})


@pytest.fixture
def net() -> Told:
    torch.manual_seed(0)
    lungs = torch.stack(
        [20 * pair(2, 30) - 10, 20 * pair(2, 16) - 10, 20 * pair(2, 30) - 10] + [20 * pair(4, 28) - 10] * 3
    )
    return Told(torch.randn(N, 3), torch.randn(N, 1, S, S), lungs, torch.randn(N, 10))


def test_softmax_is_over_classes() -> None:
    logits = np.array([[0.0, math.log(3.0)], [1000.0, 1000.0]])
    np.testing.assert_allclose(softmax(logits), [[0.25, 0.75], [0.5, 0.5]])


def test_diagnosis_is_the_mean_of_each_class_against_the_rest(net: Told) -> None:
    """Labels 0 0 1 1 2 and one unknown. Class 0 is ranked right but for one of six pairs, 1 wholly wrong, 2 right."""
    p = torch.tensor([[8, 1, 1], [2, 7, 1], [3, 1, 6], [1, 2, 7], [1, 1, 8], [0.1, 9.8, 0.1]]) / 10
    net.told = net.told._replace(logits=p.log())
    b = batch(label=torch.tensor([0, 0, 1, 1, 2, -1]))
    areas = (5 / 6, (0.5 + 1.5) / 6, 1.0)  # of class 1: positives 1 and 2, others 1, 7 and 1; ties count half
    found = judge(net, [b], diagnosis=True)
    assert found == {"auc": pytest.approx(sum(areas) / 3)}
    assert net.calls == ["diagnose"]
    parts = [batch(r, label=torch.tensor([0, 0, 1, 1, 2, -1])) for r in ([0, 1], [2, 3], [4, 5])]
    assert judge(net, parts, diagnosis=True) == found  # of all batches together


def test_findings_are_averaged_where_both_outcomes_are(net: Told) -> None:
    findings = torch.full((N, 10), NAN)
    findings[:4, 0] = torch.tensor([1.0, 0.0, 1.0, 0.0])
    findings[:3, 1] = torch.tensor([0.0, 1.0, 0.0])
    findings[:3, 2] = 1.0  # nobody without it
    told = net.told.findings.clone()
    told[:, 0] = torch.tensor([2.0, 1.0, 0.0, -1.0, 9.0, -9.0])
    told[:, 1] = torch.tensor([0.0, 1.0, -1.0, 9.0, 9.0, 9.0])
    net.told = net.told._replace(findings=told)
    assert judge(net, [batch(findings=findings)], findings=True) == {"findings_auc": pytest.approx((0.75 + 1.0) / 2)}
    assert net.calls == ["find"]


@pytest.mark.parametrize("roi", ["max", "average"])
def test_severity_is_the_error_of_the_sum_over_zones(net: Told, roi: str) -> None:
    """Of images with lungs whose six zones are all known."""
    zones = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]).expand(N, 3, 2).clone()
    weight = torch.ones(N, 3, 2)
    weight[1] = 0.3  # a normal film taken as zeros: no radiologist's score
    weight[2, 0, 0] = 0.0  # one zone not scored
    masks = zone_masks(pair(2, 30).numpy())
    assert masks is not None
    maps = net.told.severity.sigmoid().numpy()[:, 0]
    scores = [float(severity_array(maps[i], masks, pooling=roi).sum()) for i in (0, 3)]  # type: ignore[arg-type]
    found = judge(net, [batch(zones=zones, zone_weight=weight)], severity=True, roi=roi)  # type: ignore[arg-type]
    assert found["severity_mse"] == pytest.approx(np.mean([(s - 3.0) ** 2 for s in scores]), rel=1e-5)
    assert found["no_lungs"] == pytest.approx(2 / 6)
    assert net.calls == ["grade"]


def test_lungs_are_judged_by_convention(net: Told) -> None:
    """Image 0 is right, 1 finds 14 of 28 rows, 2 of another convention is right; without convention none counts."""
    found = judge(net, [batch()], lungs=True)
    half = 2 * 14 / (14 + 28)
    assert found == {
        "dice_generalblockchain": pytest.approx((1 + half) / 2),
        "dice_lungvae": 1.0,
        "dice": pytest.approx((2 + half) / 3),
    }
    assert net.calls == ["segment"]


def test_all_heads_are_judged_in_one_pass(net: Told) -> None:
    """Zones of images without masks come from the network's own lungs."""
    weight = torch.ones(N, 3, 2)
    found = judge(net, [batch(zone_weight=weight)], diagnosis=True, severity=True, lungs=True)
    assert net.calls == ["training_forward"]
    maps, errors = net.told.severity.sigmoid().numpy()[:, 0], []
    for i, rows in enumerate([(2, 30)] * 4 + [(4, 28)] * 2):
        masks = zone_masks(pair(*rows).numpy())
        assert masks is not None
        errors.append(float(severity_array(maps[i], masks).sum()) ** 2)
    assert found["severity_mse"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert found["no_lungs"] == 0.0
    assert found["dice"] == judge(net, [batch()], lungs=True)["dice"]
    assert math.isnan(found["auc"])


def test_nothing_known_is_not_a_number(net: Told) -> None:
    b = batch(
        has_lungs=torch.zeros(N, dtype=torch.bool), convention=torch.full((N,), -1), lungs=torch.zeros(N, 2, S, S)
    )
    for wanted, name in (
        ("diagnosis", "auc"),
        ("severity", "severity_mse"),
        ("lungs", "dice"),
        ("findings", "findings_auc"),
    ):
        assert math.isnan(judge(net, [b], **{wanted: True})[name])  # type: ignore[arg-type]


def test_a_class_without_images_has_no_area(net: Told) -> None:
    """The mean is of the others: every epoch is judged on the same images; with one class alone there is none."""
    b = batch(label=torch.tensor([0, 0, 1, 1, 0, 1]))
    p = softmax(net.training_forward(b.image).logits.numpy())
    label = b.label.numpy()
    areas = [auc(label == k, p[:, k]) for k in (0, 1)]
    assert judge(net, [b], diagnosis=True)["auc"] == pytest.approx(np.mean(areas))
    assert math.isnan(judge(net, [batch(label=torch.zeros(6, dtype=torch.long))], diagnosis=True)["auc"])
