"""BatchNorm folded into its convolution: the same function, fewer parts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.folding import fold, unfold
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


def test_parameters_keep_their_names(net: TriageNet) -> None:
    """70 convolutions gain a bias, their normalisations go, and nothing else is touched."""
    before, after = net.state_dict(), fold(net).state_dict()
    gained = sorted(set(after) - set(before))
    assert all(name.endswith(".bias") for name in gained)
    assert len(gained) == 1 + 58 + 3 + 8
    gone = {name.rsplit(".", 1)[0] for name in set(before) - set(after)}
    assert len(gone) == len(gained)
    assert {"backbone.features.norm0", "backbone.features.denseblock4.denselayer16.norm2", "lungs.up2.1"} <= gone
    scaled = {f"{name.removesuffix('.bias')}.weight" for name in gained}
    for name in set(before) & set(after):
        assert before[name].shape == after[name].shape
        assert torch.equal(before[name], after[name]) != (name in scaled), name


def test_folding_holds_for_any_statistics() -> None:
    """Channels switched off or turned over, variances near zero: the formula has no special case."""
    torch.manual_seed(1)
    net = TriageNet(TINY).eval()
    norm, conv = net.backbone.features.norm0, net.backbone.features.conv0
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(conv, nn.Conv2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.weight[::3], norm.weight[1::3] = 0.0, -1.5
        norm.bias.normal_()
        norm.running_mean.normal_(0, 5)
        norm.running_var[::2] = 1e-6
    image = torch.randn(1, 1, 64, 64)
    folded = fold(net).backbone.features.conv0
    with torch.inference_mode():
        expected = norm.double()(conv(image).double())
        found = folded(image)  # type: ignore[operator]
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


# Back again


def films(n: int) -> torch.Tensor:
    return torch.randn(n, 1, 64, 64, generator=torch.Generator().manual_seed(n))


@pytest.fixture(scope="module")
def unfolded(net: TriageNet) -> TriageNet:
    return unfold(fold(net), [films(8)])


def test_unfolding_changes_no_output(net: TriageNet, unfolded: TriageNet) -> None:
    """On images that it was not unfolded on, as folded and as it was before it was folded."""
    assert not unfolded.config.folded
    assert unfolded.config == net.config
    image, folded = films(3), fold(net)
    with torch.inference_mode():
        triples = zip(*(n.eval().training_forward(image) for n in (unfolded, folded, net)), strict=True)
        for found, from_folded, from_first in triples:
            scale = max(1.0, float(from_first.abs().max()))
            torch.testing.assert_close(found, from_folded, rtol=0, atol=1e-4 * scale)
            torch.testing.assert_close(found, from_first, rtol=0, atol=1e-4 * scale)


def test_training_goes_on_where_the_function_was(net: TriageNet) -> None:
    """On the images that it was unfolded on: the batch's statistics are the ones that were put in."""
    torch.manual_seed(2)
    first = copy.deepcopy(net).train()
    for m in first.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None
            m.reset_running_stats()
    image = films(16)
    with torch.no_grad():
        first(image)  # its statistics are those of its images, as after training
    folded = fold(first.eval())

    def error(images: torch.Tensor) -> float:
        again = unfold(folded, [images]).train()
        with torch.no_grad():
            pairs = zip(again.training_forward(image), folded.training_forward(image), strict=True)
            return max(float((a - b).square().mean().sqrt() / b.square().mean().sqrt()) for a, b in pairs)

    assert error(image) < 0.1  # a batch's variance is not quite the running one's
    assert error(5 * image + 3) > 0.3


def test_it_can_be_trained_and_folded_again(unfolded: TriageNet) -> None:
    net = copy.deepcopy(unfolded).train()
    before = {k: v.clone() for k, v in net.named_parameters()}
    sum(out.square().mean() for out in net.training_forward(films(4))).backward()  # type: ignore[union-attr]
    with torch.no_grad():
        for p in net.parameters():
            assert p.grad is not None
            p.sub_(1e-3 * p.grad)
    moved = [k for k, p in net.named_parameters() if not torch.equal(p, before[k])]
    assert len(moved) > 0.95 * len(before)
    net.eval()
    with torch.inference_mode():
        for a, b in zip(fold(net)(films(2)), net(films(2)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(b.abs().max())))


def test_a_network_that_is_not_folded_stays(net: TriageNet) -> None:
    assert unfold(net, []) is net
