"""DenseNet-121 (Huang et al. 2017) on one channel, with torchvision's parameter names so that public weights load."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrvit_edge.errors import UsageError

BLOCKS = (6, 12, 24, 16)
GROWTH = 32
STEM = 64
BOTTLENECK = 4


class Features(NamedTuple):
    """Trunk outputs at strides 4, 8, 16 (before each transition) and 32 (after the last norm and ReLU)."""

    s4: Tensor  # (B, 256, H/4, W/4)
    s8: Tensor  # (B, 512, H/8, W/8)
    s16: Tensor  # (B, 1024, H/16, W/16)
    s32: Tensor  # (B, 1024, H/32, W/32): the feature corpus


class CHANNELS:
    """Channels of Features."""

    s4, s8, s16, s32 = 256, 512, 1024, 1024


class DenseLayer(nn.Module):
    def __init__(self, channels: int, folded: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, BOTTLENECK * GROWTH, 1, bias=folded)
        self.norm2 = nn.Identity() if folded else nn.BatchNorm2d(BOTTLENECK * GROWTH)
        self.conv2 = nn.Conv2d(BOTTLENECK * GROWTH, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.norm1(x)))
        return self.conv2(F.relu(self.norm2(x)))  # (B, 32, H, W)


class DenseBlock(nn.Module):
    def __init__(self, layers: int, channels: int, folded: bool) -> None:
        super().__init__()
        for i in range(layers):
            self.add_module(f"denselayer{i + 1}", DenseLayer(channels + i * GROWTH, folded))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = torch.cat([x, layer(x)], 1)
        return x


class Transition(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet121(nn.Module):
    """image (B, 1, H, W) -> Features."""

    def __init__(self, *, folded: bool = False) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv0"] = nn.Conv2d(1, STEM, 7, stride=2, padding=3, bias=folded)
        layers["norm0"] = nn.Identity() if folded else nn.BatchNorm2d(STEM)
        channels = STEM
        for i, n in enumerate(BLOCKS, 1):
            layers[f"denseblock{i}"] = DenseBlock(n, channels, folded)
            channels += n * GROWTH
            if i < len(BLOCKS):
                layers[f"transition{i}"] = Transition(channels)
                channels //= 2
        layers["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, image: Tensor) -> Features:
        f = self.features
        x = F.relu(f.norm0(f.conv0(image)))  # type: ignore[operator]
        x = F.max_pool2d(x, 3, 2, 1)
        skips: list[Tensor] = []
        for i in range(1, len(BLOCKS) + 1):
            x = getattr(f, f"denseblock{i}")(x)
            if i < len(BLOCKS):
                skips.append(x)
                x = getattr(f, f"transition{i}")(x)
        return Features(skips[0], skips[1], skips[2], F.relu(f.norm5(x)))  # type: ignore[operator]


_OLD_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")


def adapt_public_weights(
    weights: Mapping[str, Tensor],
    *,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    offset: float = 128.0,
    scale: float = 64.0,
) -> dict[str, Tensor]:
    """torchvision's DenseNet-121 state dict -> this module's.

    Old key names (`norm.1`) are renamed and the classifier is dropped. A 3-channel first convolution is folded to one
    channel: it saw (g - mean) / std of a gray level g in [0, 1] on three channels, ours sees (255 g - offset) / scale.
    g = (scale x + offset) / 255, so w1 = sum_c w_c scale / (255 std_c); the constant term goes into norm0's mean
    (exact but for the zero padding at the border). UsageError on another network's weights.
    """
    out: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = key.removeprefix("module.").removeprefix("backbone.")
        if name.startswith("classifier"):
            continue
        if match := _OLD_NAME.fullmatch(name):
            name = match.group(1) + match.group(2)
        out[name] = value
    conv = out.get("features.conv0.weight")
    if conv is None or conv.ndim != 4 or conv.shape[1] not in (1, 3):
        raise UsageError("no features.conv0.weight of 1 or 3 channels in these weights; give DenseNet-121's state dict")
    if conv.shape[1] == 3:
        m = torch.tensor(mean, dtype=conv.dtype).view(1, 3, 1, 1)
        s = torch.tensor(std, dtype=conv.dtype).view(1, 3, 1, 1)
        out["features.conv0.weight"] = (conv * (scale / 255.0) / s).sum(1, keepdim=True)
        constant = (conv * (offset / 255.0 - m) / s).sum((1, 2, 3))
        out["features.norm0.running_mean"] = out["features.norm0.running_mean"] - constant
    return out
