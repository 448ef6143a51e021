"""Plain U-Net (Ronneberger et al. 2015) for the lungs, at the sizes of our light decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.severity import upsize


def levels(config: NetworkConfig) -> tuple[int, ...]:
    """Channels at strides 2, 4, 8, 16 (config.lung_widths from its end) and 32 (the widest, half as much again)."""
    widths = tuple(reversed(config.lung_widths))
    return (*widths, widths[-1] + widths[-1] // 2)


def group_norm(channels: int) -> nn.Module:
    """Statistics of one image alone: a step holds few masks, and each process as many as it happens to draw.

    Eight groups keep the contrast between channels, which instance normalisation would level.
    """
    return nn.GroupNorm(math.gcd(8, channels), channels)


def double(channels: int, out: int, norm: Callable[[int], nn.Module], *, stride: int = 1) -> nn.Sequential:
    first = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
    second = nn.Conv2d(out, out, 3, padding=1, bias=False)
    return nn.Sequential(first, norm(out), nn.ReLU(), second, norm(out), nn.ReLU())


class Encoder(nn.Module):
    """image (B, 1, H, W) -> features at strides 2, 4, 8, 16, 32; H and W multiples of 32, 64 at least."""

    def __init__(self, widths: tuple[int, ...], norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(double(a, b, norm, stride=2) for a, b in pairwise((1, *widths)))

    def forward(self, image: Tensor) -> list[Tensor]:
        features = [image]
        for block in self.blocks:
            features.append(block(features[-1]))
        return features[1:]


class UNet(nn.Module):
    """image (B, 1, H, W) -> lung logits (B, 2, H/2, W/2): image-left, image-right; H, W multiples of 32.

    Ours: strided convolutions for max pooling and no level at full resolution, whose masks nothing reads.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        widths = levels(config)
        self.encoder = Encoder(widths, group_norm)
        self.decoder = nn.ModuleList(double(a + b, a, group_norm) for a, b in pairwise(widths))  # strides 2 to 16
        self.out = nn.Conv2d(widths[0], 2, 1)

    def segment(self, image: Tensor) -> Tensor:
        """Logits of the lung masks (B, 2, H/2, W/2)."""
        *skips, x = self.encoder(image)
        for block, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = block(torch.cat([upsize(x), skip], 1))
        logits: Tensor = self.out(x)
        return logits

    def forward(self, image: Tensor) -> Tensor:
        return self.segment(image)
