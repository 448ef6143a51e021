"""The lung segmenters: shapes, that each style code is another task, and that they come back from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import NetworkConfig
from train.networks.adain import CONVENTIONS, DOMAINS, STYLE, AdaIN, AdaINSegmenter, Critic
from train.networks.unet import UNet, levels

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TINY = NetworkConfig("edge", layers=1, heads=2, width=16, image_size=64, lung_widths=(8, 8, 8, 8))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(kind: str) -> UNet | AdaINSegmenter:
    return (UNet if kind == "unet" else AdaINSegmenter)(TINY)


@pytest.mark.parametrize("kind", ["unet", "adain"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64), (64, 160)])
def test_masks_are_half_the_image(kind: str, height: int, width: int) -> None:
    net = build(kind)
    image = torch.randn(3, 1, height, width)
    logits = net.segment(image)
    assert logits.shape == (3, 2, height // 2, width // 2)
    assert torch.equal(net(image), logits)
    assert net.config is TINY


def test_lung_widths_are_the_channels_of_the_levels() -> None:
    assert levels(NetworkConfig("edge", 1, 2, 16)) == (16, 32, 64, 96, 144)
    wide = UNet(NetworkConfig("edge", 1, 2, 16, lung_widths=(24, 16, 12, 10)))
    features = wide.encoder(torch.randn(1, 1, 64, 64))
    assert [tuple(f.shape[1:]) for f in features] == [(10, 32, 32), (12, 16, 16), (16, 8, 8), (24, 4, 4), (36, 2, 2)]


@pytest.mark.parametrize("kind", ["unet", "adain"])
def test_an_image_does_not_depend_on_its_batch(kind: str) -> None:
    net, images = build(kind), torch.randn(4, 1, 64, 64)
    together = net.segment(images)
    alone = torch.cat([net.segment(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["unet", "adain"])
def test_every_parameter_of_a_task_learns(kind: str) -> None:
    net = build(kind)
    image = torch.randn(4, 1, 64, 64)
    if isinstance(net, AdaINSegmenter):
        loss = net.segment(image, torch.tensor([-1, 1, 2, 3])).square().mean()
        loss = loss + sum(net.translate(image, d).square().mean() for d in DOMAINS)
    else:
        loss = net.segment(image).square().mean()
    loss.backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any(), name


def test_a_code_sets_mean_and_spread() -> None:
    """AdaIN as Huang and Belongie write it: scale times the normalised feature, plus shift."""
    layer = AdaIN(3)
    x, code = 5 + 2 * torch.randn(2, 3, 9, 9), torch.randn(2, STYLE)
    y = layer(x, code)
    scale, shift = (code @ layer.modulate.weight.T).chunk(2, 1)
    torch.testing.assert_close(y.mean((2, 3)), shift, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(y.std((2, 3), unbiased=False), (1 + scale).abs(), atol=1e-4, rtol=1e-3)
    plain = layer(x, torch.zeros(2, STYLE))
    torch.testing.assert_close(plain, torch.nn.functional.instance_norm(x), atol=1e-5, rtol=1e-4)


def test_the_code_names_the_task() -> None:
    net, image = build("adain"), torch.randn(2, 1, 64, 64)
    assert isinstance(net, AdaINSegmenter)
    default = net.segment(image)
    seen = {name: net.segment(image, name) for name in CONVENTIONS}
    for name in ("generalblockchain", "shenzhen"):  # both lungs, as radiologists draw them: one code
        assert torch.equal(seen[name], default)

    def differ(a: Tensor, b: Tensor) -> bool:
        return (a - b).abs().mean().item() > 0.01

    assert differ(seen["v7"], default) and differ(seen["lungvae"], default) and differ(seen["v7"], seen["lungvae"])
    normal, abnormal = net.translate(image, "normal"), net.translate(image, "abnormal")
    assert normal.shape == (2, 1, 32, 32)
    assert differ(normal, abnormal)
    assert torch.equal(net.translate(image, net.domains[:1].expand(2, -1)), normal)


def test_each_image_of_a_batch_has_its_own_convention() -> None:
    net, image = build("adain"), torch.randn(3, 1, 64, 64)
    assert isinstance(net, AdaINSegmenter)
    mixed = net.segment(image, torch.tensor([CONVENTIONS.index("v7"), -1, CONVENTIONS.index("lungvae")]))
    for row, name in enumerate(("v7", None, "lungvae")):
        torch.testing.assert_close(mixed[row], net.segment(image, name)[row], atol=1e-5, rtol=1e-4)


def test_unknown_codes_are_refused() -> None:
    net, image = build("adain"), torch.randn(1, 1, 64, 64)
    assert isinstance(net, AdaINSegmenter)
    with pytest.raises(
        UsageError, match="style code 'v8': choose one of generalblockchain, shenzhen, hospital, lungvae, v7"
    ):
        net.segment(image, "v8")
    with pytest.raises(UsageError, match="style code 'sick': choose one of normal, abnormal"):
        net.translate(image, "sick")


def test_critics_have_an_output_a_domain() -> None:
    image = torch.randn(3, 1, 32, 32)
    assert Critic(1)(image).shape == (3, 2, 1, 4, 4)
    assert Critic(STYLE, pooled=True)(image).shape == (3, 2, STYLE)


@pytest.mark.parametrize("kind", ["unet", "adain"])
def test_a_checkpoint_gives_the_same_masks(kind: str, tmp_path: Path) -> None:
    net, image = build(kind), torch.randn(2, 1, 64, 64)
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, net.state_dict(), net.config, {"stage": "lungs"})
    tensors, config, extra = checkpoint.load(path)
    torch.manual_seed(1)
    again = type(net)(config)
    assert not torch.equal(again.segment(image), net.segment(image))
    again.load_state_dict(tensors)
    assert torch.equal(again.segment(image), net.segment(image))
    assert extra == {"stage": "lungs"}
