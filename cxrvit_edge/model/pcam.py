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

    def maps(self, features: Tensor) -> Tensor:
        """Probability of each finding at each position (B, K, H, W)."""
        return self.classifier(features).sigmoid()

    def weights(self, maps: Tensor) -> Tensor:
        """(B, K, HW), each map's sum 1."""
        flat = maps.flatten(2)
        return flat / flat.sum(-1, keepdim=True).clamp_min(1e-6)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.maps(features)
        pooled = self.weights(maps) @ features.flatten(2).transpose(1, 2)  # (B, K, C)
        weight = self.classifier.weight.flatten(1)  # (K, C)
        assert self.classifier.bias is not None
        return (pooled * weight).sum(-1) + self.classifier.bias, maps
