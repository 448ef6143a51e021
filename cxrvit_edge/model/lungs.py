"""Lung segmenter: a light decoder over the trunk's features, a channel a lung (image-left, image-right)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cxrvit_edge.model.densenet import CHANNELS, Features
from cxrvit_edge.model.severity import conv_norm_relu, upsize


class LungDecoder(nn.Module):
    """Features -> logits of the lung masks (B, 2, H/2, W/2); the network applies the sigmoid."""

    def __init__(self, widths: Sequence[int], *, folded: bool = False) -> None:
        super().__init__()
        w32, w64, w128, w256 = widths
        self.top = conv_norm_relu(CHANNELS.s32, w32, 1, folded=folded)
        self.skip16 = conv_norm_relu(CHANNELS.s16, w32, 1, folded=folded)
        self.up16 = conv_norm_relu(2 * w32, w32, 3, folded=folded)
        self.skip8 = conv_norm_relu(CHANNELS.s8, w64, 1, folded=folded)
        self.up8 = conv_norm_relu(w32 + w64, w64, 3, folded=folded)
        self.skip4 = conv_norm_relu(CHANNELS.s4, w128, 1, folded=folded)
        self.up4 = conv_norm_relu(w64 + w128, w128, 3, folded=folded)
        self.up2 = conv_norm_relu(w128, w256, 3, folded=folded)
        self.out = nn.Conv2d(w256, 2, 1)

    def forward(self, f: Features) -> Tensor:
        x = upsize(self.top(f.s32))
        x = self.up16(torch.cat([x, self.skip16(f.s16)], 1))
        x = self.up8(torch.cat([upsize(x), self.skip8(f.s8)], 1))
        x = self.up4(torch.cat([upsize(x), self.skip4(f.s4)], 1))
        return self.out(self.up2(upsize(x)))
