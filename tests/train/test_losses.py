"""Losses against plain loops, where their gradients go, and that a batch in parts has the loss of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from cxrvit_edge.zones import zone_masks
from train.losses import class_loss, findings_term, lung_loss, lung_term, zone_term, zones_for, zones_of
from train.objective import Term

pytestmark = pytest.mark.usefixtures("one_torch_thread")

Zone = NDArray[np.bool_]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cross_entropy(logit: float, target: float) -> float:
    return -target * math.log(sigmoid(logit)) - (1 - target) * math.log(sigmoid(-logit))


def mean(term: Term) -> float:
    return (term.total / term.weight).item()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# A batch in two parts

B = 6


def _class(smoothing: float) -> Callable[[slice], Term]:
    logits, label, weight = torch.randn(B, 3), torch.tensor([0, -1, 2, 1, -1, 2]), torch.tensor([0.5, 1.0, 2.5])
    return lambda rows: class_loss(logits[rows], label[rows], weight, smoothing)


def _zones(roi: str) -> Callable[[slice], Term]:
    rng = np.random.default_rng(0)
    logits, target = torch.randn(B, 6, 7), torch.randint(0, 2, (B, 3, 2)).float()
    weight = torch.from_numpy(rng.choice([0.0, 0.3, 1.0], (B, 3, 2)).astype(np.float32))
    zones: list[Zone | None] = list(rng.random((B, 3, 2, 6, 7)) < 0.15)
    zones[1] = zones[4] = None
    return lambda rows: zone_term(logits[rows], zones[rows], target[rows], weight[rows], roi)  # type: ignore[arg-type]


def _findings() -> Callable[[slice], Term]:
    logits, target = torch.randn(B, 10), torch.randint(0, 2, (B, 10)).float()
    target[torch.rand(B, 10) < 0.4] = torch.nan
    target[2] = torch.nan
    return lambda rows: findings_term(logits[rows], target[rows])


def _lungs() -> Callable[[slice], Term]:
    logits, target = torch.randn(B, 2, 4, 5), (torch.rand(B, 2, 4, 5) > 0.5).float()
    target[3, 1] = 0
    known = torch.tensor([True, False, True, True, False, True])
    return lambda rows: lung_term(logits[rows], target[rows], known[rows])


TERMS: dict[str, Callable[[], Callable[[slice], Term]]] = {
    "class": lambda: _class(0.0),
    "smoothed class": lambda: _class(0.1),
    "zones, largest": lambda: _zones("max"),
    "zones, mean": lambda: _zones("average"),
    "findings": _findings,
    "lungs": _lungs,
}


@pytest.mark.parametrize("name", TERMS)
@settings(max_examples=B - 1)
@given(cut=st.integers(1, B - 1))
def test_parts_of_a_batch_sum_to_the_whole(name: str, cut: int) -> None:
    """What many processes rest on: sum of totals over sum of weights."""
    torch.manual_seed(cut)
    loss = TERMS[name]()
    whole, a, b = loss(slice(0, B)), loss(slice(0, cut)), loss(slice(cut, B))
    assert whole.weight > 0
    assert whole.total.ndim == whole.weight.ndim == 0
    assert float((a.total + b.total) / (a.weight + b.weight)) == pytest.approx(mean(whole), rel=1e-5)


# Classes


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("unknown", [[], [1, 4]])
def test_class_loss_is_torchs_weighted_mean(smoothing: float, unknown: list[int]) -> None:
    logits, label, weight = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([0.5, 1.0, 2.5])
    label[unknown] = -1
    wanted = F.cross_entropy(logits, label, weight, ignore_index=-1, label_smoothing=smoothing)
    assert mean(class_loss(logits, label, weight, smoothing)) == pytest.approx(wanted.item(), rel=1e-5)


def test_class_loss_of_unknown_labels_is_nothing() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    term = class_loss(logits, torch.tensor([-1, -1]), torch.ones(3), 0.1)
    term.total.backward()
    assert (term.total.item(), term.weight.item()) == (0.0, 0.0)
    assert logits.grad is not None
    assert not logits.grad.any()


# Lungs


def test_lung_loss_is_cross_entropy_and_dice() -> None:
    """Of each image its mean cross-entropy and the mean Dice loss of the lungs it has; then their mean."""
    logits, target = torch.randn(3, 2, 4, 5), (torch.rand(3, 2, 4, 5) > 0.5).float()
    target[1, 0] = 0  # this lung is not there: no Dice for it
    target[2] = 0  # nor any here
    losses = []
    for image in range(3):
        pairs = list(zip(logits[image].flatten().tolist(), target[image].flatten().tolist(), strict=True))
        dices = []
        for side in range(2):
            p = [sigmoid(x) for x in logits[image, side].flatten().tolist()]
            t = target[image, side].flatten().tolist()
            if sum(t):
                overlap = 2 * sum(a * b for a, b in zip(p, t, strict=True))
                dices.append(1 - (overlap + 1) / (sum(p) + sum(t) + 1))
        losses.append(sum(cross_entropy(x, t) for x, t in pairs) / len(pairs) + (float(np.mean(dices)) if dices else 0))
    assert lung_loss(logits, target).item() == pytest.approx(sum(losses) / 3, rel=1e-5)
    term = lung_term(logits, target, torch.tensor([True, False, True]))
    assert mean(term) == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-5)


def test_lung_loss_of_the_truth_is_nothing() -> None:
    target = torch.zeros(1, 2, 8, 8)
    target[0, 0, 2:6, 1:3] = 1
    target[0, 1, 2:6, 5:7] = 1
    assert lung_loss(60 * (target - 0.5), target).item() < 1e-3
    assert lung_loss(-60 * (target - 0.5), target).item() > 10
    assert lung_loss(torch.full((1, 2, 8, 8), -30.0), torch.zeros(1, 2, 8, 8)).item() < 1e-3


# Zones


@pytest.mark.parametrize("roi", ["max", "average"])
def test_zone_term_is_of_the_largest_or_mean_value_of_each_zone(roi: str) -> None:
    rng = np.random.default_rng(0)
    logits = torch.randn(3, 6, 7)
    inside = rng.random((3, 3, 2, 6, 7)) < 0.2
    inside[0, 2, 1] = False  # an empty zone does not count
    target = torch.from_numpy(rng.integers(0, 2, (3, 3, 2)).astype(np.float32))
    weight = torch.from_numpy(rng.choice([0.0, 0.3, 1.0], (3, 3, 2)).astype(np.float32))
    weight[0, 2, 1] = 1.0
    zones: list[Zone | None] = [*inside[:2], None]  # the third has no lungs
    total = norm = 0.0
    for i, zone, side in np.ndindex(2, 3, 2):
        values = [sigmoid(v) for v in logits[i].numpy()[inside[i, zone, side]].tolist()]
        if values:
            p, t, w = max(values) if roi == "max" else sum(values) / len(values), target[i, zone, side], weight[i, zone]
            total += float(w[side]) * -(math.log(p) if t else math.log(1 - p))
            norm += float(w[side])
    assert norm > 1
    term = zone_term(logits, zones, target, weight, roi)  # type: ignore[arg-type]
    assert term.weight.item() == pytest.approx(norm, rel=1e-6)
    assert mean(term) == pytest.approx(total / norm, rel=1e-5)


def gradient(roi: str) -> tuple[Tensor, Tensor]:
    """Of the logits (8, 8) with three zones, of which the third is not known; the logits."""
    logits = torch.randn(1, 8, 8, requires_grad=True)
    zones = np.zeros((1, 3, 2, 8, 8), bool)
    zones[0, 0, 0, :4, :4] = zones[0, 1, 1, 4:, 4:] = zones[0, 2, 0, 4:, :4] = True
    weight = torch.ones(1, 3, 2)
    weight[0, 2, 0] = 0.0
    zone_term(logits, list(zones), torch.ones(1, 3, 2), weight, roi).total.backward()  # type: ignore[arg-type]
    assert logits.grad is not None
    return logits.grad[0], logits.detach()[0]


def test_the_largest_value_moves_one_pixel_a_zone() -> None:
    grad, logits = gradient("max")
    largest = set()
    for corner in (slice(0, 4), slice(4, 8)):
        y, x = divmod(int(logits[corner, corner].argmax()), 4)
        largest.add((y + corner.start, x + corner.start))
    assert set(map(tuple, grad.nonzero().tolist())) == largest
    assert all(grad[p] < 0 for p in largest)  # towards the lesion


def test_the_mean_moves_every_pixel_of_a_zone() -> None:
    grad, _ = gradient("average")
    assert (grad[:4, :4] < 0).all()
    assert (grad[4:, 4:] < 0).all()
    assert not grad[4:, :4].any()
    assert not grad[:4, 4:].any()


@pytest.mark.parametrize("roi", ["max", "average"])
def test_zones_without_anything_known_are_nothing(roi: str) -> None:
    zones: list[Zone | None] = [np.zeros((3, 2, 4, 4), bool), None]
    logits = torch.randn(2, 4, 4, requires_grad=True)
    term = zone_term(logits, zones, torch.ones(2, 3, 2), torch.ones(2, 3, 2), roi)  # type: ignore[arg-type]
    term.total.backward()
    assert (term.total.item(), term.weight.item()) == (0.0, 0.0)
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(2, 4, 4))


def test_extreme_means_have_a_finite_loss() -> None:
    """A probability that rounds to 1 against a target of 0: no infinity, and a gradient that is a number."""
    zones = np.ones((1, 3, 2, 4, 4), bool)
    logits = torch.full((1, 4, 4), 40.0, requires_grad=True)
    for roi in ("max", "average"):
        term = zone_term(logits, list(zones), torch.zeros(1, 3, 2), torch.ones(1, 3, 2), roi)
        (grad,) = torch.autograd.grad(term.total, logits)
        assert torch.isfinite(term.total)
        assert torch.isfinite(grad).all()


def lungs(top: int, bottom: int) -> Tensor:
    out = torch.zeros(2, 32, 32)
    out[0, top:bottom, 4:14] = 1
    out[1, top:bottom, 18:28] = 1
    return out


def test_zones_come_from_the_truth_where_there_is_one() -> None:
    truth = torch.stack([lungs(2, 30), torch.zeros(2, 32, 32), torch.zeros(2, 32, 32)])
    logits = torch.stack([20 * lungs(10, 20) - 10, 20 * lungs(10, 20) - 10, torch.full((2, 32, 32), -10.0)])
    logits.requires_grad_()
    found = zones_for(logits, truth)
    np.testing.assert_array_equal(found[0], zone_masks(lungs(2, 30).numpy()))
    np.testing.assert_array_equal(found[1], zone_masks(lungs(10, 20).numpy()))
    assert found[0] is not None
    assert found[2] is None


def test_zones_of_masks_are_none_without_lungs() -> None:
    found = zones_of(torch.stack([lungs(2, 30), torch.zeros(2, 32, 32)]))
    np.testing.assert_array_equal(found[0], zone_masks(lungs(2, 30).numpy()))
    assert found[1] is None


# Findings


def test_findings_that_are_not_known_do_not_count() -> None:
    logits = torch.randn(2, 4, requires_grad=True)
    target = torch.tensor([[1.0, float("nan"), 0.0, float("nan")], [float("nan"), 1.0, float("nan"), float("nan")]])
    known = [(0, 0), (0, 2), (1, 1)]
    term = findings_term(logits, target)
    term.total.backward()
    assert term.weight.item() == 3.0
    assert mean(term) == pytest.approx(sum(cross_entropy(logits[k].item(), target[k].item()) for k in known) / 3)
    assert logits.grad is not None
    assert set(map(tuple, logits.grad.nonzero().tolist())) == set(known)
    nothing = findings_term(logits, torch.full((2, 4), float("nan")))
    assert (nothing.total.item(), nothing.weight.item()) == (0.0, 0.0)
