"""The encoder over the feature corpus (section 3.2): 1x1 projection, class token, positions, pre-norm layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]  # (B, heads, T, d)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, mlp_ratio * width)
        self.fc2 = nn.Linear(mlp_ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Encoder(nn.Module):
    """corpus (B, C, g, g) -> class token (B, D), tokens as a map (B, D, g, g).

    A grid other than the one trained for gets its position embedding resampled (training at a lower resolution).
    """

    def __init__(
        self, channels: int, width: int, layers: int, heads: int, mlp_ratio: int, grid: int, *, stride: int = 1
    ) -> None:
        super().__init__()
        self.grid = grid
        self.embed = nn.Conv2d(channels, width, 1, stride=stride)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, grid * grid + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.trunc_normal_(self.position, std=0.02)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, corpus: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode(self.embed(corpus))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded patches (B, D, g, g) -> as forward."""
        b, d, gh, gw = x.shape
        x = self.sequence(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 0], x[:, 1:].transpose(1, 2).reshape(b, d, gh, gw)

    def sequence(self, x: Tensor) -> Tensor:
        """Embedded patches (B, D, g, g) -> what the first block sees (B, 1 + g*g, D): class token first, positions."""
        b, _, gh, gw = x.shape
        x = x.flatten(2).transpose(1, 2)  # (B, g*g, D)
        x = torch.cat([self.class_token.expand(b, -1, -1), x], 1)  # (B, 1 + g*g, D)
        return x + self._positions(gh, gw)

    def _positions(self, gh: int, gw: int) -> Tensor:
        if (gh, gw) == (self.grid, self.grid):
            return self.position
        first, rest = self.position[:, :1], self.position[:, 1:]
        rest = rest.transpose(1, 2).reshape(1, -1, self.grid, self.grid)
        rest = F.interpolate(rest, (gh, gw), mode="bicubic", align_corners=False)
        return torch.cat([first, rest.flatten(2).transpose(1, 2)], 1)
