"""The severity map head (section 3.3): four upsizing convolution blocks over the tokens, the last with a sigmoid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm_relu(channels: int, out: int, kernel: int, *, folded: bool) -> nn.Sequential:
    norm = nn.Identity() if folded else nn.BatchNorm2d(out)
    return nn.Sequential(nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=folded), norm, nn.ReLU())


def upsize(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class MapHead(nn.Module):
    """tokens (B, D, g, g) -> logits of the severity map (B, 1, 16 g, 16 g); the network applies the sigmoid."""

    def __init__(self, width: int, widths: Sequence[int], *, folded: bool = False) -> None:
        super().__init__()
        sizes = [width, *widths]
        self.blocks = nn.ModuleList(conv_norm_relu(a, b, 3, folded=folded) for a, b in pairwise(sizes))
        self.out = nn.Conv2d(sizes[-1], 1, 3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = tokens
        for block in self.blocks:
            x = block(upsize(x))
        return self.out(upsize(x))
