"""Probabilistic class activation map pooling (Ye et al. 2020, arXiv 2005.14480)."""

from __future__ import annotations

from torch import Tensor, nn


class PCAM(nn.Module):
    """features (B, C, H, W) -> logits (B, K) and probability maps (B, K, H, W), one per finding.

    A finding's 1x1 classifier gives a probability at each position; normalised, these weigh the features of that
    position, and the same classifier judges the weighted sum.
    """

    def __init__(self, channels: int, findings: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(channels, findings, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.classifier(features).sigmoid()  # (B, K, H, W)
        weights = maps.flatten(2)  # (B, K, HW)
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-6)
        pooled = weights @ features.flatten(2).transpose(1, 2)  # (B, K, C)
        weight = self.classifier.weight.flatten(1)  # (K, C)
        return (pooled * weight).sum(-1) + self.classifier.bias, maps
