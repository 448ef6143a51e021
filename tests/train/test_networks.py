"""The baselines: sizes as published, shapes, gradients, and checkpoints of them."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cxrvit_edge.errors import BundleError, UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import BASELINES, NETWORKS, NetworkConfig, preset
from train.networks.build import build, load
from train.networks.vit import HybridViT, ViT

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TINY = NetworkConfig("edge", layers=1, heads=2, width=16, image_size=64, map_widths=(8, 4, 4), lung_widths=(8, 8, 8, 8))
LIGHT = [n for n in BASELINES if n != "resnet152"]  # whose blocks are ResNet-50's, only more of them

# torchvision's documentation, on three channels and with its classifier of 1,000 classes
PUBLISHED = {
    "resnet50": 25_557_032,
    "resnet152": 60_192_808,
    "densenet121": 7_978_856,
    "vit": 86_567_656,
    "efficientnet-lite0": 4_652_008,  # of its weights in the package index, running statistics left out
}
CLASSIFIER = {"resnet50": 2049, "resnet152": 2049, "densenet121": 1025, "vit": 769, "efficientnet-lite0": 1281}
STEM = {
    "resnet50": 64 * 7 * 7,
    "resnet152": 64 * 7 * 7,
    "densenet121": 64 * 7 * 7,
    "vit": 768 * 16 * 16,
    "efficientnet-lite0": 32 * 3 * 3,
}


def on_meta(config: NetworkConfig) -> nn.Module:
    with torch.device("meta"):
        return build(config)


def seeded(config: NetworkConfig, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(config)


def settled(net: nn.Module) -> nn.Module:
    """In eval mode, BatchNorm's statistics those of noise: with fresh ones next to nothing passes."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        method(net.train(), "grade")(torch.randn(8, 1, 64, 64))
    return net.eval()


def method(net: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    found: Callable[[Tensor], Tensor] = getattr(net, name)
    return found


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    net = on_meta(replace(preset("paper"), network=name, image_size=224))  # ImageNet's 14 x 14 positions
    trunk = net.get_submodule("encoder" if name == "vit" else "backbone")
    assert parameters(trunk) == PUBLISHED[name] - 1000 * CLASSIFIER[name] - 2 * STEM[name]


def test_the_hybrid_is_a_resnet50_and_a_vits_layers() -> None:
    net = on_meta(replace(preset("paper"), network="hybrid"))
    assert parameters(net.get_submodule("backbone")) == PUBLISHED["resnet50"] - 2_049_000 - 2 * 64 * 7 * 7
    vit = PUBLISHED["vit"] - 769_000 - (3 * 768 * 256 + 768) - 197 * 768
    assert parameters(net.get_submodule("encoder")) == vit + (2048 * 768 + 768) + 257 * 768


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_heads_are_linear_in_the_embedding(name: str) -> None:
    net = on_meta(replace(preset("paper"), network=name))
    width = CLASSIFIER[name] - 1
    assert parameters(net.get_submodule("findings")) == 10 * (width + 1)
    assert parameters(net.get_submodule("diagnosis")) == 3 * (width + 1)


@pytest.mark.parametrize("size", [512, 320])
@pytest.mark.parametrize("name", BASELINES)
def test_shapes(name: str, size: int) -> None:
    """Both at the config's size and, where a position embedding is resampled, at another."""
    net = on_meta(replace(preset("paper"), network=name))
    image = torch.empty(2, 1, size, size, device="meta")
    wide = CLASSIFIER.get(name, 769) - 1
    assert method(net, "find")(image).shape == (2, 10)
    assert method(net, "embed")(image).shape == (2, wide)
    assert method(net, "diagnose")(image).shape == (2, 3)
    assert method(net, "grade")(image).shape == (2, 1, size // 2, size // 2)
    assert method(net, "encode")(image)[1].shape[-1] == size // (16 if name == "vit" else 32)


@pytest.mark.parametrize("name", BASELINES)
def test_every_parameter_learns(name: str) -> None:
    net = seeded(replace(TINY, network=name)).train()
    image = torch.randn(2, 1, 64, 64)
    outs = [method(net, task)(image) for task in ("find", "diagnose", "grade")]
    torch.stack([(out * torch.randn_like(out)).sum() for out in outs]).sum().backward()
    dead = [k for k, p in net.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert dead == []
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", LIGHT)
def test_an_image_is_judged_alone(name: str) -> None:
    net = seeded(replace(TINY, network=name))
    net = settled(net) if name == "efficientnet-lite0" else net.eval()
    images = torch.randn(3, 1, 64, 64)
    with torch.inference_mode():
        for task in ("find", "embed", "diagnose", "grade"):
            together = method(net, task)(images)
            alone = torch.cat([method(net, task)(image[None]) for image in images])
            torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(alone[0], alone[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [ViT, HybridViT])
def test_layer_norms_have_vits_epsilon(kind: type[nn.Module]) -> None:
    net = kind(replace(TINY, network="vit" if kind is ViT else "hybrid"))
    eps = [m.eps for m in net.modules() if isinstance(m, nn.LayerNorm)]
    assert eps == [1e-6] * 3


def test_a_vits_tokens_are_where_its_patches_are() -> None:
    """A change in one patch moves that patch's embedding alone: row and column are not swapped."""
    net = seeded(replace(TINY, network="vit")).eval()
    image = torch.zeros(1, 1, 64, 64)
    image[..., 16:32, 48:64] = 1.0
    with torch.inference_mode():
        embed = net.get_submodule("encoder.embed")
        moved = (embed(image) - embed(torch.zeros_like(image))).abs().sum(1)[0]  # (4, 4)
    assert moved.nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n == "resnet152" else []) for n in NETWORKS],  # it writes 240 MB
)
def test_a_checkpoint_gives_the_same_network(name: str, tmp_path: Path) -> None:
    config = replace(TINY, network=name)
    net = seeded(config).eval()
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, net.state_dict(), config, {"step": 7})
    again, read, extra = load(path)
    assert read == config
    assert extra == {"step": 7}
    assert type(again) is type(net)
    assert not again.training
    own = net.state_dict()
    assert list(again.state_dict()) == list(own)
    assert all(torch.equal(v, own[k]) for k, v in again.state_dict().items())
    task = "segment" if name in ("unet", "adain") else "diagnose"
    with torch.inference_mode():
        image = torch.randn(1, 1, 64, 64)
        assert torch.equal(method(again, task)(image), method(net, task)(image))


def without(tensors: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {k: v for k, v in tensors.items() if k != key}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda t: without(t, "diagnosis.bias"), r"missing \['diagnosis\.bias'\]"),
        (lambda t: {**t, "pcam.weight": torch.zeros(2)}, r"unexpected \['pcam\.weight'\]"),
        (lambda t: {**t, "findings.weight": torch.zeros(11, 16)}, r"other shapes in \['findings\.weight'\]"),
        (lambda t: {**t, "findings.bias": torch.full((10,), torch.nan)}, r"not finite in \['findings\.bias'\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: Any, fault: str, tmp_path: Path) -> None:
    config = replace(TINY, network="vit")
    path = tmp_path / "run1.safetensors"
    checkpoint.save(path, change(seeded(config).state_dict()), config)
    with pytest.raises(BundleError, match=rf"run1\.safetensors: .*{fault}"):
        load(path)


def test_another_networks_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run1.safetensors"
    checkpoint.save(path, seeded(replace(TINY, network="vit")).state_dict(), replace(TINY, network="densenet121"))
    with pytest.raises(BundleError, match="network 'densenet121'"):
        load(path)


@pytest.mark.parametrize("name", ["resnet50", "vit", "unet"])
@pytest.mark.parametrize("setting", [{"stride": 64}, {"corpus": "after-3"}, {"folded": True}])
def test_settings_of_the_cxrvit_alone_are_refused(name: str, setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{name}: {next(iter(setting))} .* leave it at"):
        build(replace(TINY, network=name, **setting))


def test_without_monai_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.startswith("monai"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UsageError, match=r"resnet50: needs MONAI .*pip install"):
        build(replace(TINY, network="resnet50"))
    build(replace(TINY, network="densenet121"))  # and what has no ResNet in it does not ask
