"""Losses against plain loops, and where their gradients go."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cxrvit_edge.zones import zone_masks
from train.losses import findings_loss, lung_loss, zone_loss, zones_for

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cross_entropy(logit: float, target: float) -> float:
    return -target * math.log(sigmoid(logit)) - (1 - target) * math.log(sigmoid(-logit))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_lung_loss_is_cross_entropy_and_dice() -> None:
    logits, target = torch.randn(3, 2, 4, 5), (torch.rand(3, 2, 4, 5) > 0.5).float()
    target[1, 0] = 0  # this lung is not there: no Dice for it
    pairs = list(zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True))
    entropy = sum(cross_entropy(x, t) for x, t in pairs) / len(pairs)
    dices = []
    for image in range(3):
        for side in range(2):
            p = [sigmoid(x) for x in logits[image, side].flatten().tolist()]
            t = target[image, side].flatten().tolist()
            if sum(t):
                overlap = 2 * sum(a * b for a, b in zip(p, t, strict=True))
                dices.append(1 - (overlap + 1) / (sum(p) + sum(t) + 1))
    assert len(dices) == 5
    assert lung_loss(logits, target).item() == pytest.approx(entropy + sum(dices) / 5, rel=1e-5)


def test_lung_loss_of_the_truth_is_nothing() -> None:
    target = torch.zeros(1, 2, 8, 8)
    target[0, 0, 2:6, 1:3] = 1
    target[0, 1, 2:6, 5:7] = 1
    assert lung_loss(60 * (target - 0.5), target).item() < 1e-3
    assert lung_loss(-60 * (target - 0.5), target).item() > 10
    assert lung_loss(torch.full((1, 2, 8, 8), -30.0), torch.zeros(1, 2, 8, 8)).item() < 1e-3


def test_zone_loss_is_of_the_largest_value_of_each_zone() -> None:
    rng = np.random.default_rng(0)
    logits = torch.randn(2, 6, 7)
    zones = rng.random((2, 3, 2, 6, 7)) < 0.2
    zones[0, 2, 1] = False  # an empty zone does not count
    target = torch.from_numpy(rng.integers(0, 2, (2, 3, 2)).astype(np.float32))
    weight = torch.from_numpy(rng.choice([0.0, 0.3, 1.0], (2, 3, 2)).astype(np.float32))
    weight[0, 2, 1] = 1.0
    total = norm = 0.0
    for i, zone, side in np.ndindex(2, 3, 2):
        inside = logits[i].numpy()[zones[i, zone, side]]
        if inside.size:
            w = float(weight[i, zone, side])
            total += w * cross_entropy(float(inside.max()), float(target[i, zone, side]))
            norm += w
    assert norm > 1
    assert zone_loss(logits, zones, target, weight).item() == pytest.approx(total / norm, rel=1e-5)


def test_zone_loss_moves_one_pixel_a_zone() -> None:
    logits = torch.randn(1, 8, 8, requires_grad=True)
    zones = np.zeros((1, 3, 2, 8, 8), bool)
    zones[0, 0, 0, :4, :4] = zones[0, 1, 1, 4:, 4:] = zones[0, 2, 0, 4:, :4] = True
    weight = torch.ones(1, 3, 2)
    weight[0, 2, 0] = 0.0  # not known
    zone_loss(logits, zones, torch.ones(1, 3, 2), weight).backward()
    assert logits.grad is not None
    moved = set(map(tuple, logits.grad[0].nonzero().tolist()))
    largest = set()
    for rows, columns in ((slice(0, 4), slice(0, 4)), (slice(4, 8), slice(4, 8))):
        part = logits.detach()[0, rows, columns]
        y, x = divmod(int(part.argmax()), 4)
        largest.add((y + rows.start, x + columns.start))
    assert moved == largest
    assert all(logits.grad[0][p] < 0 for p in moved)  # towards the lesion


def test_zone_loss_without_anything_known_is_nothing() -> None:
    zones = np.zeros((1, 3, 2, 4, 4), bool)
    logits = torch.randn(1, 4, 4, requires_grad=True)
    loss = zone_loss(logits, zones, torch.ones(1, 3, 2), torch.ones(1, 3, 2))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_zones_come_from_the_truth_where_there_is_one() -> None:
    def pair(top: int, bottom: int) -> torch.Tensor:
        out = torch.zeros(2, 32, 32)
        out[0, top:bottom, 4:14] = 1
        out[1, top:bottom, 18:28] = 1
        return out

    truth = torch.stack([pair(2, 30), torch.zeros(2, 32, 32), torch.zeros(2, 32, 32)])
    logits = torch.stack([20 * pair(10, 20) - 10, 20 * pair(10, 20) - 10, torch.full((2, 32, 32), -10.0)])
    logits.requires_grad_()
    found = zones_for(logits, truth)
    np.testing.assert_array_equal(found[0], zone_masks(pair(2, 30).numpy()))
    np.testing.assert_array_equal(found[1], zone_masks(pair(10, 20).numpy()))
    assert found[0] is not None
    assert found[2] is None


def test_findings_that_are_not_known_do_not_count() -> None:
    logits = torch.randn(2, 4, requires_grad=True)
    target = torch.tensor([[1.0, float("nan"), 0.0, float("nan")], [float("nan"), 1.0, float("nan"), float("nan")]])
    known = [(0, 0), (0, 2), (1, 1)]
    wanted = sum(cross_entropy(logits[k].item(), target[k].item()) for k in known) / 3
    loss = findings_loss(logits, target)
    loss.backward()
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    assert logits.grad is not None
    assert set(map(tuple, logits.grad.nonzero().tolist())) == set(known)
    assert findings_loss(logits, torch.full((2, 4), float("nan"))).item() == 0.0
