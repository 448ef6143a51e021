"""Lung segmenter: a light decoder over the trunk's features, a channel a lung (image-left, image-right)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cxrvit_edge.model.densenet import CHANNELS, Features
from cxrvit_edge.model.severity import upsize


def _conv(a: int, b: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU())


class LungDecoder(nn.Module):
    """Features -> logits of the lung masks (B, 2, H/2, W/2); the network applies the sigmoid."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        w32, w64, w128, w256 = widths
        self.top = _conv(CHANNELS.s32, w32, 1)
        self.skip16 = _conv(CHANNELS.s16, w32, 1)
        self.up16 = _conv(2 * w32, w32, 3)
        self.skip8 = _conv(CHANNELS.s8, w64, 1)
        self.up8 = _conv(w32 + w64, w64, 3)
        self.skip4 = _conv(CHANNELS.s4, w128, 1)
        self.up4 = _conv(w64 + w128, w128, 3)
        self.up2 = _conv(w128, w256, 3)
        self.out = nn.Conv2d(w256, 2, 1)

    def forward(self, f: Features) -> Tensor:
        x = upsize(self.top(f.s32))
        x = self.up16(torch.cat([x, self.skip16(f.s16)], 1))
        x = self.up8(torch.cat([upsize(x), self.skip8(f.s8)], 1))
        x = self.up4(torch.cat([upsize(x), self.skip4(f.s4)], 1))
        return self.out(self.up2(upsize(x)))
