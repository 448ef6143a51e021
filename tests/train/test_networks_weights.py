"""ImageNet weights under torchvision's names: what they compute on three channels, our networks compute on one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision_files import (
    TINY,
    double,
    drawn,
    film,
    normalised,
    resnet_names,
    resnet_reference,
    resnet_stem,
    vit_names,
    vit_reference,
    vit_weights,
)

from cxrvit_edge.model.densenet import DenseNet121
from train.networks.build import build
from train.networks.convolutional import Convolutional
from train.networks.public_weights import adapt, initialise, read, resampled
from train.networks.vit import ViT

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def resnet50() -> dict[str, Tensor]:
    return drawn(resnet_names((3, 4, 6, 3)))


def test_the_names_here_are_the_published_networks() -> None:
    """torchvision's documented parameter counts, from the names and shapes that these tests draw."""

    def count(names: Iterator[tuple[str, tuple[int, ...]]]) -> int:
        return sum(torch.Size(shape).numel() for name, shape in names if "running" not in name)

    assert count(resnet_names((3, 4, 6, 3))) == 25_557_032
    assert count(resnet_names((3, 8, 36, 3))) == 60_192_808
    assert count(vit_names(768, 12, 197, ("linear_1", "linear_2"))) == 86_567_656


@pytest.mark.parametrize("mlp", [("linear_1", "linear_2"), ("0", "3")])
def test_a_vit_computes_what_its_weights_did(mlp: tuple[str, str]) -> None:
    """A patch embedding has no border: all tokens equal, to rounding."""
    weights = double(vit_weights(mlp=mlp))
    config = replace(TINY, network="vit")
    net = build(config).double().eval()
    assert isinstance(net, ViT)
    theirs, ours = film()
    with torch.inference_mode():
        before = net.embed(ours)
        kept = [v.clone() for v in (net.diagnosis.weight, net.severity.out.weight, net.findings.bias)]
        missing, unexpected = net.load_state_dict(adapt(config, weights), strict=False)
        token, tokens = net.encode(ours)
        wanted = vit_reference(weights, theirs, 2, mlp)
    assert unexpected == []
    assert {k.partition(".")[0] for k in missing} == {"findings", "diagnosis", "severity"}
    torch.testing.assert_close(token, wanted[:, 0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(tokens.flatten(2).transpose(1, 2), wanted[:, 1:], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(before, token, atol=0.1)
    for old, new in zip(kept, (net.diagnosis.weight, net.severity.out.weight, net.findings.bias), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("name", ["resnet50", "hybrid"])
def test_a_resnet_computes_what_its_weights_did(name: str, resnet50: dict[str, Tensor]) -> None:
    """The stem on one channel is that on three but where the zero border is seen; what follows is the published one."""
    config = replace(TINY, network=name)
    weights = double(resnet50)
    net = build(config).double().eval()
    missing, unexpected = net.load_state_dict(adapt(config, weights), strict=False)
    assert unexpected == []
    assert not [k for k in missing if k.startswith("backbone.") and not k.endswith("num_batches_tracked")]
    theirs, ours = film()
    backbone = net.get_submodule("backbone")
    assert isinstance(backbone, nn.Sequential)
    with torch.inference_mode():
        stem = backbone[:3](ours)
        wanted = resnet_stem(weights, theirs)
        inside = (..., slice(2, -2), slice(2, -2))  # 7x7, stride 2, padding 3: two outputs a side see the border
        torch.testing.assert_close(stem[inside], wanted[inside], rtol=1e-9, atol=1e-9)
        assert (wanted[inside] > 0).double().mean() > 0.2  # not all behind the ReLU
        assert not torch.allclose(stem[..., 0, :], wanted[..., 0, :])
        found, reference = backbone(ours), resnet_reference(weights, stem)
    assert found.shape == (2, 2048, 2, 2)
    assert reference.abs().max() > 0.1
    torch.testing.assert_close(found, reference, rtol=1e-9, atol=1e-9)


def test_resnet152_takes_its_weights() -> None:
    config = replace(TINY, network="resnet152")
    with torch.device("meta"):
        weights = {k: torch.empty(s) for k, s in resnet_names((3, 8, 36, 3), channels=1)}
        own = build(config).state_dict()
        adapted = adapt(config, weights)
    assert {k for k in own if k.startswith("backbone.") and not k.endswith("num_batches_tracked")} == set(adapted)


@pytest.mark.parametrize("name", ["cxrvit", "densenet121"])
def test_densenets_weights_go_into_the_trunk(name: str) -> None:
    config = replace(TINY, network=name)
    public = DenseNet121().state_dict()
    g = torch.Generator().manual_seed(5)
    public["features.conv0.weight"] = torch.randn(64, 3, 7, 7, generator=g)
    public |= {"classifier.weight": torch.zeros(1000, 1024), "classifier.bias": torch.zeros(1000)}
    adapted = adapt(config, public)
    assert len(adapted) == len(public) - 2
    own = build(config)
    _, unexpected = own.load_state_dict(adapted, strict=False)
    assert unexpected == []
    inner = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(own.state_dict()[f"backbone.{inner}"], public[inner])
    assert adapted["backbone.features.conv0.weight"].shape == (64, 1, 7, 7)
    theirs, ours = film()
    backbone = own.get_submodule("backbone").double().eval()
    with torch.inference_mode():
        found = backbone.features.norm0(backbone.features.conv0(ours))  # type: ignore[operator,union-attr]
        there = {k: v.double() for k, v in public.items()}
        wanted = normalised(
            F.conv2d(theirs, there["features.conv0.weight"], stride=2, padding=3), there, "features.norm0"
        )
    inside = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(found[inside], wanted[inside], rtol=1e-4, atol=1e-4)  # folded in float32


def test_positions_are_resampled_as_a_picture() -> None:
    """Rows stay rows and columns columns, to a tenth of a cell away from the border; the class token's stays."""
    side, grid = 14, 28
    row = (torch.arange(side) + 0.5) / side
    plane = torch.stack([row[:, None].expand(side, side), row[None, :].expand(side, side)], -1)  # (14, 14, 2)
    position = torch.cat([torch.tensor([[[7.0, -7.0]]]), plane.reshape(1, -1, 2)], 1)
    out = resampled(position, grid)
    assert out.shape == (1, 1 + grid * grid, 2)
    assert torch.equal(out[:, 0], position[:, 0])
    found = out[0, 1:].view(grid, grid, 2)[5:-5, 5:-5]
    fine = (torch.arange(grid) + 0.5)[5:-5] / grid
    torch.testing.assert_close(found[..., 0], fine[:, None].expand(18, 18), rtol=0, atol=0.1 / side)
    torch.testing.assert_close(found[..., 1], fine[None, :].expand(18, 18), rtol=0, atol=0.1 / side)
    assert torch.equal(resampled(position, side), position)


def test_a_vit_takes_weights_of_another_resolution() -> None:
    """Trained on 224 pixels, 14 x 14 tokens; the network has 4 x 4. Encoder itself resamples alike."""
    config = replace(TINY, network="vit")
    weights = vit_weights(positions=197)
    adapted = adapt(config, weights)
    assert adapted["encoder.position"].shape == (1, 17, 16)
    net = build(replace(config, image_size=224))
    assert isinstance(net, ViT)
    net.load_state_dict(adapt(net.config, weights), strict=False)
    torch.testing.assert_close(adapted["encoder.position"], net.encoder._positions(4, 4))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_network_starts_from_a_file(suffix: str, tmp_path: Path) -> None:
    weights = vit_weights()
    path = tmp_path / f"vit_b_16.{suffix}"
    if suffix == "pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    assert all(torch.equal(v, weights[k]) for k, v in read(path).items())
    net = build(replace(TINY, network="vit"))
    filled = initialise(net, path)
    assert "encoder.blocks.1.attn.qkv.weight" in filled
    wanted = weights["encoder.layers.encoder_layer_1.self_attention.in_proj_weight"]
    assert torch.equal(net.state_dict()["encoder.blocks.1.attn.qkv.weight"], wanted)


def test_weights_from_a_wrapper_load(resnet50: dict[str, Tensor]) -> None:
    config = replace(TINY, network="resnet50")
    wrapped = adapt(config, {f"module.{k}": v for k, v in resnet50.items()})
    assert wrapped.keys() == adapt(config, resnet50).keys()


def test_the_given_weights_are_left_alone(resnet50: dict[str, Tensor]) -> None:
    before = {k: v.clone() for k, v in resnet50.items()}
    adapt(replace(TINY, network="hybrid"), resnet50)
    assert all(torch.equal(resnet50[k], before[k]) for k in before)


def test_convolutional_features_are_the_trunks() -> None:
    net = build(replace(TINY, network="densenet121")).eval()
    assert isinstance(net, Convolutional)
    image = film()[1].float()
    with torch.inference_mode():
        features = net.features(image)
        assert torch.equal(features, net.backbone(image).s32)
        assert torch.equal(net.embed(image), features.mean((2, 3)))
