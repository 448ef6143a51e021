"""BatchNorm folded into its convolution: the same function, fewer parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.folding import fold
from cxrvit_edge.model.triage_net import TriageNet

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TINY = NetworkConfig("edge", layers=1, heads=2, width=16, image_size=64, map_widths=(8, 4, 4), lung_widths=(4, 4, 4, 4))


@pytest.fixture(scope="module")
def net() -> TriageNet:
    """With statistics as after training: a fresh BatchNorm would hide a fold that forgets them."""
    torch.manual_seed(0)
    net = TriageNet(TINY)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                assert m.running_mean is not None
                assert m.running_var is not None
                m.weight.uniform_(0.5, 1.5)
                m.bias.normal_(0, 0.3)
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.5, 2.0)
    return net.eval()


def test_folding_changes_no_output(net: TriageNet) -> None:
    image = torch.randn(2, 1, 64, 64)
    folded = fold(net)
    with torch.inference_mode():
        for a, b in zip(folded.training_forward(image), net.training_forward(image), strict=True):
            assert b.std() > 0
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(b.abs().max())))


def test_what_is_left_is_normalisation_before_a_convolution(net: TriageNet) -> None:
    """58 norm1, 3 transitions and norm5 stand before a ReLU; conv0, 58 conv2 and the heads' have gone."""

    def norms(n: TriageNet) -> int:
        return sum(isinstance(m, nn.BatchNorm2d) for m in n.modules())

    assert norms(net) == 1 + 58 * 2 + 3 + 1 + 3 + 8
    assert norms(fold(net)) == 58 + 3 + 1


def test_folding_leaves_the_network_alone_and_is_done_once(net: TriageNet) -> None:
    before = {k: v.clone() for k, v in net.state_dict().items()}
    folded = fold(net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not net.config.folded
    assert folded.config.folded
    assert fold(folded) is folded


def test_folded_weights_build_a_folded_network(net: TriageNet) -> None:
    folded = fold(net)
    config = NetworkConfig.from_json(folded.config.to_json())
    again = checkpoint.network(folded.state_dict(), config)
    image = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        for a, b in zip(again(image), folded(image), strict=True):
            assert torch.equal(a, b)
