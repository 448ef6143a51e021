"""The standard ViT over 16x16 patches, and the hybrid ViT over a ResNet-50's features (Dosovitskiy et al. 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.transformer import Encoder
from train.networks.baseline import Baseline
from train.networks.convolutional import RESNET_CHANNELS, resnet

PATCH = 16
EPS = 1e-6  # of ViT's LayerNorm, which public weights were trained with


def _encoder(config: NetworkConfig, channels: int, stride: int) -> Encoder:
    sizes = (config.width, config.layers, config.heads, config.mlp_ratio, config.image_size // stride)
    encoder = Encoder(channels, *sizes)
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = EPS
    return encoder


class ViT(Baseline):
    """ViT-B/16 at preset paper: 32 x 32 tokens of 512 pixels.

    Its tokens are twice as dense as the other networks', so the map head has one upsizing fewer: the first.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config, config.width, config.map_widths[1:])
        self.encoder = _encoder(config, 1, PATCH)
        self.encoder.embed = nn.Conv2d(1, config.width, PATCH, stride=PATCH)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        token, tokens = self.encoder(image)
        return token, tokens


class HybridViT(Baseline):
    """The encoder over stage 4 of a regular ResNet-50: 16 x 16 tokens of 512 pixels, as many as ours.

    Of the two hybrids of Dosovitskiy et al. (section 4.1, R50+ViT-B/32 and /16) the first: the other moves stage 4's
    layers to stage 3, which no ResNet-50's public weights fit. The paper does not say which it used.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config, config.width, config.map_widths)
        self.backbone = resnet(50)
        self.encoder = _encoder(config, RESNET_CHANNELS, 32)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        token, tokens = self.encoder(self.backbone(image))
        return token, tokens
