"""The whole network: one trunk, one pass, everything out. The shared trunk is ours; the paper trains three networks."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import CORPORA, NetworkConfig
from cxrvit_edge.model.densenet import CHANNELS, DenseNet121, Features
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


def _eased(x: Tensor, share: float) -> Tensor:
    """x, with `share` of its gradient."""
    same = x.view_as(x)
    if same.requires_grad:
        same.register_hook(lambda gradient: gradient * share)
    return same


def _enlarged(logits: Tensor, by: float) -> Tensor:
    """(B, C, h, w) -> (B, C, by h, by w)."""
    if by == 1:
        return logits
    return F.interpolate(logits, scale_factor=by, mode="bilinear", align_corners=False)


class TriageNet(nn.Module):
    """image (B, 1, H, W) -> logits (B, 3), severity_map (B, 1, H/2, W/2), lung_mask (B, 2, H/2, W/2), embedding (B, D).

    Maps are in 0-1; the embedding is the class token after the encoder, which the diagnosis head reads. With a stride
    of 64 the severity map is (B, 1, H/4, W/4). Where the trunk sees fewer pixels (config.trunk_size), maps are made
    larger bilinearly, before their sigmoid.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        if config.network != "cxrvit":
            raise UsageError(f"{config.network}: a network to compare with, not to triage with; name a cxrvit")
        self.config = config
        self.weighing = [config.findings.index(name) for name in CORPORA[config.corpus]]
        channels = CHANNELS.s32
        self.backbone = DenseNet121(folded=config.folded)
        self.pcam = PCAM(channels, len(config.findings))
        self.encoder = Encoder(
            channels * max(1, len(self.weighing)),
            *(config.width, config.layers, config.heads, config.mlp_ratio, config.grid),
            stride=config.stride // 32,
        )
        self.diagnosis = nn.Linear(config.width, len(config.classes))
        self.severity = MapHead(config.width, config.map_widths, folded=config.folded)
        self.lungs = LungDecoder(config.lung_widths, folded=config.folded)

    def training_forward(self, image: Tensor) -> TriageLogits:
        return self.heads(self.features(image), self.enlargement(image))

    def features(self, image: Tensor) -> Features:
        """The trunk's, of as much of the image as it sees."""
        size, seen = image.shape[-1], self.config.seen(image.shape[-1])
        if size % seen == 0:
            return self.backbone(F.avg_pool2d(image, size // seen) if size > seen else image)
        return self.backbone(F.adaptive_avg_pool2d(image, seen))  # in training alone

    def enlargement(self, image: Tensor) -> float:
        """How much larger the image is than what the trunk sees of it."""
        return image.shape[-1] / self.config.seen(image.shape[-1])

    def heads(self, features: Features, enlargement: float = 1.0, side: float = 1.0) -> TriageLogits:
        """What every head says of the trunk's features, maps made larger by `enlargement`.

        side: share of the lungs' gradient that goes on into the trunk.
        """
        token, tokens = self.encoder(self.corpus(features.s32))
        findings, _ = self.pcam(features.s32)
        if side != 1.0:
            features = Features(*(_eased(f, side) for f in features))
        maps = _enlarged(self.severity(tokens), enlargement), _enlarged(self.lungs(features), enlargement)
        return TriageLogits(self.diagnosis(token), *maps, findings)

    def find(self, image: Tensor) -> Tensor:
        """Logits of the findings (B, 10): what the backbone is trained on."""
        logits: Tensor = self.pcam(self.features(image).s32)[0]
        return logits

    def embed(self, image: Tensor) -> Tensor:
        """The class token after the encoder (B, D)."""
        token: Tensor = self.encoder(self.corpus(self.features(image).s32))[0]
        return token

    def diagnose(self, image: Tensor) -> Tensor:
        """Logits of the classes (B, 3)."""
        logits: Tensor = self.diagnosis(self.embed(image))
        return logits

    def grade(self, image: Tensor) -> Tensor:
        """Logits of the severity map (B, 1, H/2, W/2)."""
        logits: Tensor = self.severity(self.encoder(self.corpus(self.features(image).s32))[1])
        return _enlarged(logits, self.enlargement(image))

    def segment(self, image: Tensor) -> Tensor:
        """Logits of the lung masks (B, 2, H/2, W/2)."""
        logits: Tensor = self.lungs(self.features(image))
        return _enlarged(logits, self.enlargement(image))

    def corpus(self, features: Tensor) -> Tensor:
        """(B, C, g, g) as it is, or weighed by the PCAM map of each finding of config.corpus: (B, K C, g, g).

        A map's mean is 1, so that weighed features are as large as the others (ours; section 5.6.2 does not say).
        """
        if not self.weighing:
            return features
        b, _, gh, gw = features.shape
        weights = self.pcam.weights(self.pcam.maps(features))[:, self.weighing] * (gh * gw)  # (B, K, g g)
        weights = weights.view(b, -1, gh, gw)
        return (weights[:, :, None] * features[:, None]).flatten(1, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features, enlargement = self.features(image), self.enlargement(image)
        token, tokens = self.encoder(self.corpus(features.s32))
        severity, lungs = _enlarged(self.severity(tokens), enlargement), _enlarged(self.lungs(features), enlargement)
        return self.diagnosis(token), severity.sigmoid(), lungs.sigmoid(), token
