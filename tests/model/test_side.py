"""How much of the lungs' gradient reaches the trunk."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.triage_net import TriageNet

TINY = NetworkConfig("edge", layers=1, heads=2, width=16, image_size=64, map_widths=(8, 4, 4), lung_widths=(8, 8, 8, 8))


def gradients(net: TriageNet, image: Tensor, head: str, side: float) -> dict[str, Tensor]:
    net.zero_grad()
    out = net.heads(net.features(image), side=side)
    getattr(out, head).square().mean().backward()
    return {k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("side", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(
    ("head", "learns"),
    [("lungs", {"lungs"}), ("severity", {"encoder", "severity"}), ("logits", {"encoder", "diagnosis"})],
)
def test_heads_learn_alike_and_the_trunk_its_share_of_the_lungs(head: str, learns: set[str], side: float) -> None:
    torch.manual_seed(0)
    net, image = TriageNet(TINY).eval(), torch.randn(2, 1, 64, 64)
    whole, part = gradients(net, image, head, 1.0), gradients(net, image, head, side)
    assert {k.partition(".")[0] for k in whole} == {"backbone", *learns}
    for key, value in whole.items():
        share = side if head == "lungs" and key.startswith("backbone.") else 1.0
        torch.testing.assert_close(part[key], share * value, rtol=1e-4, atol=1e-8)
    with torch.no_grad():
        for a, b in zip(net.heads(net.features(image), side=side), net.training_forward(image), strict=True):
            assert torch.equal(a, b)
