"""ImageNet weights under torchvision's names: what they compute on three channels, our networks compute on one."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.densenet import DenseNet121
from train.networks import public_weights
from train.networks.build import build
from train.networks.convolutional import Convolutional
from train.networks.public_weights import adapt, initialise, read, resampled
from train.networks.vit import ViT

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TINY = NetworkConfig("edge", layers=2, heads=2, width=16, image_size=64, map_widths=(8, 4, 4), lung_widths=(8, 8, 8, 8))
MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(1, 3, 1, 1)


def norm(name: str, n: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (n,)


def resnet_names(blocks: tuple[int, ...], channels: int = 3) -> Iterator[tuple[str, tuple[int, ...]]]:
    """torchvision's resnet50 (3, 4, 6, 3) or resnet152 (3, 8, 36, 3): names and shapes."""
    yield "conv1.weight", (64, channels, 7, 7)
    yield from norm("bn1", 64)
    wide = 64
    for stage, n in enumerate(blocks, 1):
        inner = 32 * 2**stage
        for i in range(n):
            block = f"layer{stage}.{i}"
            yield f"{block}.conv1.weight", (inner, wide, 1, 1)
            yield from norm(f"{block}.bn1", inner)
            yield f"{block}.conv2.weight", (inner, inner, 3, 3)
            yield from norm(f"{block}.bn2", inner)
            yield f"{block}.conv3.weight", (4 * inner, inner, 1, 1)
            yield from norm(f"{block}.bn3", 4 * inner)
            if i == 0:
                yield f"{block}.downsample.0.weight", (4 * inner, wide, 1, 1)
                yield from norm(f"{block}.downsample.1", 4 * inner)
            wide = 4 * inner
    yield "fc.weight", (1000, 2048)
    yield "fc.bias", (1000,)


def vit_names(width: int, layers: int, positions: int, mlp: tuple[str, str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """torchvision's vit_b_16, of any size."""
    yield "class_token", (1, 1, width)
    yield "conv_proj.weight", (width, 3, 16, 16)
    yield "conv_proj.bias", (width,)
    yield "encoder.pos_embedding", (1, positions, width)
    for i in range(layers):
        layer = f"encoder.layers.encoder_layer_{i}"
        for part in ("weight", "bias"):
            yield f"{layer}.ln_1.{part}", (width,)
            yield f"{layer}.ln_2.{part}", (width,)
        yield f"{layer}.self_attention.in_proj_weight", (3 * width, width)
        yield f"{layer}.self_attention.in_proj_bias", (3 * width,)
        yield f"{layer}.self_attention.out_proj.weight", (width, width)
        yield f"{layer}.self_attention.out_proj.bias", (width,)
        yield f"{layer}.mlp.{mlp[0]}.weight", (4 * width, width)
        yield f"{layer}.mlp.{mlp[0]}.bias", (4 * width,)
        yield f"{layer}.mlp.{mlp[1]}.weight", (width, 4 * width)
        yield f"{layer}.mlp.{mlp[1]}.bias", (width,)
    yield "encoder.ln.weight", (width,)
    yield "encoder.ln.bias", (width,)
    yield "heads.head.weight", (1000, width)
    yield "heads.head.bias", (1000,)


def drawn(names: Iterator[tuple[str, tuple[int, ...]]], seed: int = 0) -> dict[str, Tensor]:
    """Random weights, statistics that are not 0 and 1, and signals that neither die nor blow up."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in names:
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            out[name] = torch.rand(shape, generator=g) + 0.5
        elif len(shape) == 1:
            out[name] = 0.3 * torch.randn(shape, generator=g)
        else:
            fan = torch.Size(shape[1:]).numel() if len(shape) in (2, 4) else 4
            out[name] = torch.randn(shape, generator=g) / fan**0.5
    return out


def vit_weights(
    positions: int = 17, mlp: tuple[str, str] = ("linear_1", "linear_2"), layers: int = 2
) -> dict[str, Tensor]:
    return drawn(vit_names(16, layers, positions, mlp))


@pytest.fixture(scope="module")
def resnet50() -> dict[str, Tensor]:
    return drawn(resnet_names((3, 4, 6, 3)))


def film() -> tuple[Tensor, Tensor]:
    """A gray image as torchvision's weights want it (2, 3, 64, 64), and as ours do (2, 1, 64, 64)."""
    gray = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (gray.expand(-1, 3, -1, -1) - MEAN) / STD, (255 * gray - 128) / 64


def normalised(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)


def resnet_stem(w: dict[str, Tensor], image: Tensor) -> Tensor:
    return F.relu(normalised(F.conv2d(image, w["conv1.weight"], stride=2, padding=3), w, "bn1"))


def resnet_reference(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The stages after the stem in functions, the stride on the 3x3 as torchvision's."""
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for block in dict.fromkeys(".".join(k.split(".")[:2]) for k in w if k.startswith("layer")):
        stride = 2 if block.endswith(".0") and block != "layer1.0" else 1
        y = F.relu(normalised(F.conv2d(x, w[f"{block}.conv1.weight"]), w, f"{block}.bn1"))
        y = F.relu(normalised(F.conv2d(y, w[f"{block}.conv2.weight"], stride=stride, padding=1), w, f"{block}.bn2"))
        y = normalised(F.conv2d(y, w[f"{block}.conv3.weight"]), w, f"{block}.bn3")
        if f"{block}.downsample.0.weight" in w:
            x = normalised(F.conv2d(x, w[f"{block}.downsample.0.weight"], stride=stride), w, f"{block}.downsample.1")
        x = F.relu(x + y)
    return x


def vit_reference(w: dict[str, Tensor], image: Tensor, heads: int, mlp: tuple[str, str]) -> Tensor:
    """torchvision's ViT on three channels to its last LayerNorm, with torch's own multi-head attention."""
    x = F.conv2d(image, w["conv_proj.weight"], w["conv_proj.bias"], stride=16).flatten(2).transpose(1, 2)
    b, _, d = x.shape
    x = torch.cat([w["class_token"].expand(b, -1, -1), x], 1) + w["encoder.pos_embedding"]
    i = 0
    while f"encoder.layers.encoder_layer_{i}.ln_1.weight" in w:
        p = f"encoder.layers.encoder_layer_{i}"
        attention = nn.MultiheadAttention(d, heads, batch_first=True, dtype=x.dtype)
        start = f"{p}.self_attention."
        attention.load_state_dict({k.removeprefix(start): v for k, v in w.items() if k.startswith(start)})
        y = F.layer_norm(x, (d,), w[f"{p}.ln_1.weight"], w[f"{p}.ln_1.bias"], 1e-6)
        x = x + attention(y, y, y, need_weights=False)[0]
        y = F.layer_norm(x, (d,), w[f"{p}.ln_2.weight"], w[f"{p}.ln_2.bias"], 1e-6)
        y = F.gelu(F.linear(y, w[f"{p}.mlp.{mlp[0]}.weight"], w[f"{p}.mlp.{mlp[0]}.bias"]))
        x = x + F.linear(y, w[f"{p}.mlp.{mlp[1]}.weight"], w[f"{p}.mlp.{mlp[1]}.bias"])
        i += 1
    return F.layer_norm(x, (d,), w["encoder.ln.weight"], w["encoder.ln.bias"], 1e-6)


def double(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.double() for k, v in weights.items()}


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


def without(weights: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {k: v for k, v in weights.items() if k != key}


@pytest.mark.parametrize("name", ["resnet50", "resnet152", "densenet121", "vit", "hybrid", "cxrvit"])
def test_another_networks_weights_are_refused(name: str, resnet50: dict[str, Tensor]) -> None:
    config = replace(TINY, network=name)
    wrong = [vit_weights() if name != "vit" else resnet50, {"a": torch.zeros(2)}, build(config).state_dict()]
    if name == "resnet152":
        wrong.append(resnet50)
    for weights in wrong:
        with pytest.raises(UsageError, match=rf"file\.pth: .*{name} starts from torchvision's \w+"):
            adapt(config, weights, name="file.pth")


def test_weights_that_do_not_fit_are_refused(resnet50: dict[str, Tensor]) -> None:
    config, vit = replace(TINY, network="resnet50"), replace(TINY, network="vit")
    with pytest.raises(UsageError, match=r"missing \['backbone\.layer4\.2\.bn3\.bias'\].*torchvision's resnet50"):
        adapt(config, without(resnet50, "layer4.2.bn3.bias"))
    with pytest.raises(UsageError, match=r"no bn1\.running_mean in it.*torchvision's resnet50"):
        adapt(config, without(resnet50, "bn1.running_mean"))
    with pytest.raises(UsageError, match=r"unexpected \['backbone\.layer4\.3\.x'\]"):
        adapt(config, {**resnet50, "layer4.3.x": torch.zeros(2)})
    with pytest.raises(UsageError, match=r"no conv1\.weight of 1 or 3 channels"):
        adapt(config, {**resnet50, "conv1.weight": torch.zeros(64, 4, 7, 7)})
    with pytest.raises(UsageError, match=r"missing \['encoder\.blocks\.1\..*torchvision's vit_b_16"):
        adapt(vit, vit_weights(layers=1))
    with pytest.raises(UsageError, match=r"preset 'edge' has: .*encoder\.embed\.weight \(16, 1, 16, 16\)"):
        adapt(replace(vit, width=32), vit_weights())
    with pytest.raises(UsageError, match=r"encoder\.position \(1, 19, 16\)"):
        adapt(vit, vit_weights(positions=19))


@pytest.mark.parametrize("name", ["unet", "adain"])
def test_segmenters_have_no_public_weights(name: str) -> None:
    assert name not in public_weights.SOURCES
    with pytest.raises(UsageError, match=f"{name}: no public weights"):
        adapt(replace(TINY, network=name), {})


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def test_files_that_are_no_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = tmp_path / "whole.pth"
    torch.save({"conv1.weight": torch.zeros(8)}, whole)
    bad = {
        "html.pth": b"<html>404 not found</html>",
        "empty.pth": b"",
        "half.pth": whole.read_bytes()[: len(whole.read_bytes()) // 2],
        "harmful.pth": pickle.dumps(Harmful(), protocol=2),
        "noise.pth": bytes(range(256)),
        "text.pth": b"cbuiltins\nlist\n0.",  # pops from an empty stack
        "html.safetensors": b"<html>404 not found</html>",
        "empty.safetensors": b"",
    }
    for name, data in bad.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(UsageError, match=rf"{name}: cannot be read as weights"):
            read(path)
    assert not (tmp_path / "ran").exists()
    for name in ("absent.pth", "absent.safetensors"):
        with pytest.raises(UsageError, match=rf"{name}: no such file"):
            read(tmp_path / name)
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "more.pth")
    with pytest.raises(UsageError, match=r"more\.pth: holds more than a state dict"):
        read(tmp_path / "more.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UsageError, match="cannot be read as weights"):
        read(tmp_path / "folder.pth")


def test_convolutional_features_are_the_trunks() -> None:
    net = build(replace(TINY, network="densenet121")).eval()
    assert isinstance(net, Convolutional)
    image = film()[1].float()
    with torch.inference_mode():
        features = net.features(image)
        assert torch.equal(features, net.backbone(image).s32)
        assert torch.equal(net.embed(image), features.mean((2, 3)))
