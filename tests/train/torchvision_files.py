"""State dicts under torchvision's names with random weights, and what torchvision's networks compute from them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrvit_edge.model.config import NetworkConfig

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
