"""Relevance propagation: each rule keeps its sum, the whole keeps the logit's, and a toy is as computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cxrvit_edge.errors import EngineError, UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import NetworkConfig, preset
from cxrvit_edge.model.relevance import add_rule, class_row, linear_rule, product_rule, propagate, relevance, trace
from cxrvit_edge.model.transformer import Block, Encoder
from cxrvit_edge.model.triage_net import TriageNet
from cxrvit_edge.runtime.torch import TorchSession

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SMALL = replace(preset("edge"), layers=2, heads=2, width=16, image_size=64, map_widths=(8, 4, 4), lung_widths=(4,) * 4)


def network(config: NetworkConfig = SMALL, seed: int = 0) -> TriageNet:
    """Random weights, larger than those that training starts from, so that heads and tokens differ."""
    torch.manual_seed(seed)
    net = TriageNet(config).eval()
    with torch.no_grad():
        for p in [*net.encoder.parameters(), *net.diagnosis.parameters()]:
            p.add_(torch.randn_like(p) * 0.2)
    return net


def summed(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


@pytest.mark.parametrize("layers", [1, 2, 12])
def test_the_explicit_forward_is_the_fused_one(layers: int) -> None:
    encoder = network(replace(SMALL, layers=layers)).encoder
    corpus = torch.rand(2, 1024, 3, 4)
    with torch.no_grad():
        token, tokens = encoder(corpus)
        out, traces = trace(encoder, encoder.sequence(encoder.embed(corpus)))
    torch.testing.assert_close(out[:, 0], token, rtol=0, atol=1e-5)
    torch.testing.assert_close(out[:, 1:].transpose(1, 2).reshape(tokens.shape), tokens, rtol=0, atol=1e-5)
    for seen in traces:
        torch.testing.assert_close(seen.attention.sum(-1), torch.ones(2, 2, 13))


def test_each_rule_keeps_the_sum_of_each_image() -> None:
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    r = draw(3, 5, 7)
    x = linear_rule(draw(3, 5, 16), draw(7, 16), r)
    torch.testing.assert_close(x.sum(-1), r.sum(-1))  # token by token
    u, v = add_rule(draw(3, 5, 7), draw(3, 5, 7), r)
    torch.testing.assert_close(summed(u) + summed(v), summed(r))
    a, b = product_rule(draw(3, 5, 6), draw(3, 6, 7), r)
    torch.testing.assert_close(summed(a) + summed(b), summed(r))
    torch.testing.assert_close(summed(a), summed(b))  # Lemma 1: either operand would get all of it
    for part in (u, v, a, b):  # Lemma 2: between nothing and all
        assert (summed(part) / summed(r) >= 0).all() and (summed(part) / summed(r) <= 1 + 1e-12).all()


def test_a_sum_near_zero_does_not_blow_up_what_its_operands_get() -> None:
    u = torch.tensor([[3.0, 1.0, -2.0]], dtype=torch.float64)
    v = torch.tensor([[1.0, -1.0 + 1e-9, 2.0]], dtype=torch.float64)  # the third is exactly 0: nothing to divide by
    r = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    of_u, of_v = add_rule(u, v, r)
    assert float(summed(of_u)) == pytest.approx(0.5) and float(summed(of_v)) == pytest.approx(0.5)
    assert torch.isfinite(of_u).all() and of_u[0, 2] == of_v[0, 2] == 0


def test_only_positive_contributions_count() -> None:
    x, w = torch.tensor([[2.0, -1.0, 3.0]]), torch.tensor([[1.0, -4.0, -5.0]])  # contributions 2, 4, -15
    torch.testing.assert_close(linear_rule(x, w, torch.tensor([[0.6]])), torch.tensor([[0.2, 0.4, 0.0]]))
    assert linear_rule(x, -w.abs() * x.sign(), torch.tensor([[1.0]])).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("layers", [1, 3, 12])
def test_relevance_is_kept_from_the_logit_to_the_tokens(layers: int) -> None:
    # so wide that no output is without a positive contribution
    net = network(replace(SMALL, layers=layers, width=48)).double()
    patches = torch.randn(3, 48, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = propagate(net.encoder, net.diagnosis, patches, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(summed(out.tokens), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-9)
    assert len(out.attention) == layers
    for of_attention in out.attention:  # a product gives half to either operand
        assert (summed(of_attention) >= 0).all() and (summed(of_attention) <= 0.5 + 1e-12).all()
    with torch.no_grad():
        torch.testing.assert_close(out.logits, net.diagnosis(net.encoder.encode(patches)[0]))


def test_gradients_are_those_of_the_logit() -> None:
    net = network(replace(SMALL, layers=1)).double()
    patches = torch.randn(1, 16, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    out = propagate(net.encoder, net.diagnosis, patches, 1)
    block = net.encoder.blocks[0]
    assert isinstance(block, Block)
    with torch.no_grad():
        _, (seen,) = trace(net.encoder, net.encoder.sequence(patches))

        def logit(attention: Tensor) -> float:
            x = seen.x + block.attn.proj((attention @ seen.v).transpose(1, 2).flatten(2))
            x = x + block.fc2(nn.functional.gelu(block.fc1(block.norm2(x))))
            return float(net.diagnosis(net.encoder.norm(x)[:, 0])[0, 1])

        for head, token in ((0, 0), (1, 3)):
            step = torch.zeros_like(seen.attention)
            step[0, head, 0, token] = 1e-6
            slope = (logit(seen.attention + step) - logit(seen.attention - step)) / 2e-6
            assert float(out.gradients[0][0, head, 0, token]) == pytest.approx(slope, rel=1e-5)


def toy() -> tuple[Encoder, nn.Linear, Tensor]:
    """One block, one head, width 2, one patch; no norms, no MLP; queries and keys 0, so that attention is even."""
    encoder, head = Encoder(2, 2, 1, 1, 1, 1).double(), nn.Linear(2, 2, bias=False).double()
    block = encoder.blocks[0]
    assert isinstance(block, Block)
    encoder.norm = block.norm1 = block.norm2 = nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        for p in encoder.parameters():
            p.zero_()
        encoder.class_token.copy_(torch.tensor([3.0, 1.0]))
        block.attn.qkv.weight[4:] = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        block.attn.qkv.bias[4:] = torch.tensor([1.0, -1.0])
        block.attn.proj.weight.copy_(torch.eye(2))
        head.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    return encoder, head, torch.tensor([-1.0, 3.0], dtype=torch.float64).view(1, 2, 1, 1)


def test_a_toy_is_as_computed_by_hand() -> None:
    # Values: class token (1 * 3 + 1, 2 * 1 - 1) = (4, 1), patch (1 * -1 + 1, 2 * 3 - 1) = (0, 5); attention 1/2 each,
    # so it adds (2, 3) to the class token, (3, 1), which gives (5, 4).
    encoder, head, patches = toy()

    # Logit 5 + 4: (5/9, 4/9). The MLP adds 0, so all of it skips. The sum: 2/5 and 3/4 of it are attention's,
    # (2/9, 1/3), together 5/9, and the rest of 4/9 skips: nothing to normalise. Its shares of (2, 3) are (1/9, 1/9);
    # half the relevance of the product: 1/2 * 1/2 * (4 + 1) / 9 for the class token, 1/2 * 1/2 * (0 + 5) / 9 for the
    # patch. The gradient is the sum of the value: 5 and 5.
    out = propagate(encoder, head, patches, 0)
    assert out.logits.tolist() == [[9.0, 1.0]]
    torch.testing.assert_close(out.attention[0][0, 0, 0], torch.tensor([5 / 36, 5 / 36], dtype=torch.float64))
    torch.testing.assert_close(out.gradients[0][0, 0, 0], torch.tensor([5.0, 5.0], dtype=torch.float64))

    # Logit 5 - 4: only the first adds, (1, 0); 2/5 is attention's, its share of 2 is 1/5; 1/4 * 4/5 and 1/4 * 0. The
    # gradient is the values' difference, 4 - 1 and 0 - 5.
    out = propagate(encoder, head, patches, 1)
    torch.testing.assert_close(out.attention[0][0, 0, 0], torch.tensor([1 / 5, 0], dtype=torch.float64))
    torch.testing.assert_close(out.gradients[0][0, 0, 0], torch.tensor([3.0, -5.0], dtype=torch.float64))
    assert out.attention[0][0, 0, 1].tolist() == [0, 0]  # the patch's row is not looked at

    # Eq. 13 and 14: the patch gets 5 * 5/36 for one class and nothing for the other.
    for index, expected in ((0, 25 / 36), (1, 0.0)):
        out = propagate(encoder, head, patches, index)
        layer = (out.gradients[0] * out.attention[0]).clamp_min(0).mean(1)
        assert float(class_row([layer])) == pytest.approx(expected)


def test_the_last_block_is_the_first_factor() -> None:
    layers = [torch.rand(2, 4, 4, dtype=torch.float64) for _ in range(3)]
    eye = torch.eye(4, dtype=torch.float64)
    product = (eye + layers[2]) @ (eye + layers[1]) @ (eye + layers[0])
    torch.testing.assert_close(class_row(layers), product[:, 0, 1:])


@pytest.mark.parametrize(
    "config",
    [SMALL, replace(SMALL, corpus="after-3"), replace(SMALL, stride=64, image_size=128), replace(SMALL, layers=12)],
    ids=["edge", "after PCAM", "stride 64", "12 layers"],
)
def test_maps_of_every_kind_of_network(config: NetworkConfig) -> None:
    net = network(config)
    image = torch.randn(2, 1, net.config.image_size, net.config.image_size)
    out = relevance(net, image, 2)
    assert out.shape == (2, net.config.grid, net.config.grid) and out.dtype == torch.float32
    assert torch.isfinite(out).all() and (out >= 0).all() and (out.amax((1, 2)) > 0).all()
    assert not out.requires_grad and all(p.grad is None for p in net.parameters())


def test_float32_is_enough() -> None:
    net, image = network(), torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(3))
    single, double = relevance(net, image, 1), relevance(net.double(), image.double(), 1)
    assert float((single - double).abs().max()) < 1e-2 * float(double.max())


def test_maps_are_of_a_class_and_of_one_image() -> None:
    net, image = network(), torch.randn(3, 1, 128, 128, generator=torch.Generator().manual_seed(4))
    net, image = net.double(), image.double()
    by_class = [relevance(net, image, c) for c in range(3)]
    for other in by_class[1:]:
        assert float((by_class[0] - other).abs().amax((1, 2)).min()) > 1e-2 * float(by_class[0].max())
    mixed = relevance(net, image, torch.tensor([2, 0, 1]))
    for i, c in enumerate((2, 0, 1)):
        torch.testing.assert_close(mixed[i], by_class[c][i], rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(relevance(net, image[i : i + 1], c)[0], mixed[i], rtol=1e-6, atol=1e-12)


def test_it_works_where_gradients_are_switched_off() -> None:
    net, image = network(), torch.randn(1, 1, 64, 64)
    expected = relevance(net, image, 0)
    for off in (torch.no_grad, torch.inference_mode):
        context: Callable[[], torch.no_grad] = off  # type: ignore[assignment]
        with context():
            torch.testing.assert_close(relevance(net, image.clone(), 0), expected)


@pytest.mark.parametrize("wrong", [3, -1])
def test_a_class_there_is_not(wrong: int) -> None:
    with pytest.raises(UsageError, match=f"class {wrong}: the network has classes 0 to 2"):
        relevance(network(), torch.zeros(1, 1, 64, 64), wrong)


def test_the_torch_back_end_explains_what_it_ran(tmp_path: Path) -> None:
    net = network()
    checkpoint.save(tmp_path / "net.safetensors", net.state_dict(), net.config)
    session = TorchSession(tmp_path / "net.safetensors")
    batch = np.random.default_rng(0).normal(size=(2, 1, 64, 64)).astype(np.float32)
    out = session.explain(batch, [2, 0])
    assert out.shape == (2, 2, 2) and out.dtype == np.float32
    expected = relevance(net, torch.from_numpy(batch), torch.tensor([2, 0]))
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-5)
    with pytest.raises(EngineError, match="torch failed"):
        session.explain(batch[:, :, :10, :10], [0, 0])
