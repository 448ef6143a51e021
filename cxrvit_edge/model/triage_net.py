"""The whole network: one trunk, one pass, everything out. The shared trunk is ours; the paper trains three networks."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.densenet import CHANNELS, DenseNet121
from cxrvit_edge.model.lungs import LungDecoder
from cxrvit_edge.model.pcam import PCAM
from cxrvit_edge.model.severity import MapHead
from cxrvit_edge.model.transformer import Encoder


class TriageLogits(NamedTuple):
    """Everything before its last non-linearity, as the losses want it."""

    logits: Tensor  # (B, classes)
    severity: Tensor  # (B, 1, H/2, W/2)
    lungs: Tensor  # (B, 2, H/2, W/2), image-left lung, image-right lung
    findings: Tensor  # (B, findings)


class TriageNet(nn.Module):
    """image (B, 1, H, W) -> logits (B, 3), severity_map (B, 1, H/2, W/2), lung_mask (B, 2, H/2, W/2); maps in 0-1."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        channels = CHANNELS.s32
        self.backbone = DenseNet121(folded=config.folded)
        self.pcam = PCAM(channels, len(config.findings))
        self.encoder = Encoder(channels, config.width, config.layers, config.heads, config.mlp_ratio, config.grid)
        self.diagnosis = nn.Linear(config.width, len(config.classes))
        self.severity = MapHead(config.width, config.map_widths, folded=config.folded)
        self.lungs = LungDecoder(config.lung_widths, folded=config.folded)

    def training_forward(self, image: Tensor) -> TriageLogits:
        features = self.backbone(image)
        token, tokens = self.encoder(features.s32)
        findings, _ = self.pcam(features.s32)
        return TriageLogits(self.diagnosis(token), self.severity(tokens), self.lungs(features), findings)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.backbone(image)
        token, tokens = self.encoder(features.s32)
        return self.diagnosis(token), self.severity(tokens).sigmoid(), self.lungs(features).sigmoid()
