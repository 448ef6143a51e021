"""The AdaIN single generator of Oh and Ye (arXiv 2104.05892): one network, whose style code says which task it does.

The paper's: one generator of normal to abnormal appearance, back, and lung segmentation, AdaIN layers (Huang and
Belongie 2017) driven by a code, a style encoder, and a discriminator with an output a domain (StarGAN v2).
Ours: the sizes; AdaIN in bottleneck and decoder only, so that the tasks share their encoder; one learned code a domain
for the paper's mapping network, which draws many; a code for each mask convention beside the paper's one segmentation
code, which stays fixed at plain instance normalisation; translation at half the input's resolution, as the masks.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.severity import upsize
from train.loader import CONVENTIONS
from train.networks.unet import Encoder, levels

DEFAULT = ("generalblockchain", "shenzhen", "hospital")  # both lungs as radiologists draw them; share the fixed code
DOMAINS = ("normal", "abnormal")
STYLE = 16  # size of a code, StarGAN v2's for this generator


def instance_norm(channels: int) -> nn.Module:
    """As a GroupNorm of single channels: the same sums, and any memory format."""
    return nn.GroupNorm(channels, channels)


class AdaIN(nn.Module):
    """Instance normalisation whose scale and shift are affine in the code (B, STYLE); a zero code leaves its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = instance_norm(channels)
        self.modulate = nn.Linear(STYLE, 2 * channels, bias=False)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.modulate(code)[:, :, None, None].chunk(2, 1)  # (B, C, 1, 1) each
        return torch.addcmul(shift, self.norm(x), 1 + scale)


class StyledBlock(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.style1, self.style2 = AdaIN(out), AdaIN(out)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        x = F.relu(self.style1(self.first(x), code))
        return F.relu(self.style2(self.second(x), code))


class AdaINSegmenter(nn.Module):
    """image (B, 1, H, W) -> lung logits or a translated image, both at half its size; H, W multiples of 32, from 64."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        widths = levels(config)
        self.encoder = Encoder(widths, instance_norm)
        self.bottleneck = StyledBlock(widths[-1], widths[-1])
        self.decoder = nn.ModuleList(StyledBlock(a + b, a) for a, b in pairwise(widths))  # strides 2 to 16
        self.lungs = nn.Conv2d(widths[0], 2, 1)
        self.image = nn.Conv2d(widths[0], 1, 1)
        self.others = nn.Parameter(torch.randn(len(CONVENTIONS) - len(DEFAULT), STYLE))  # codes of lungvae, v7
        self.domains = nn.Parameter(torch.randn(len(DOMAINS), STYLE))  # codes of normal, abnormal

    def segment(self, image: Tensor, convention: Tensor | str | None = None) -> Tensor:
        """Logits of the lung masks (B, 2, H/2, W/2).

        convention: a name in CONVENTIONS, or indices (B,) into it; None and -1: as radiologists draw both lungs.
        """
        return self.lungs_of(self.encoder(image), convention)

    def translate(self, image: Tensor, code: Tensor | str) -> Tensor:
        """The image (B, 1, H/2, W/2), normalised as it was, in the style of a code (B, STYLE) or one of DOMAINS."""
        return self.image_of(self.encoder(image), code)

    def lungs_of(self, features: list[Tensor], convention: Tensor | str | None = None) -> Tensor:
        b = len(features[0])
        if isinstance(convention, str):
            convention = torch.full((b,), _index(CONVENTIONS, convention), device=features[0].device)
        code = self.others.new_zeros(b, STYLE)
        if convention is not None:
            table = torch.cat([self.others.new_zeros(len(DEFAULT), STYLE), self.others])
            code = table[convention.clamp_min(0)]
        logits: Tensor = self.lungs(self.decode(features, code))
        return logits

    def image_of(self, features: list[Tensor], code: Tensor | str) -> Tensor:
        if isinstance(code, str):
            code = self.domains[_index(DOMAINS, code)].expand(len(features[0]), -1)
        image: Tensor = self.image(self.decode(features, code))
        return image

    def decode(self, features: list[Tensor], code: Tensor) -> Tensor:
        """Features of the encoder -> (B, C, H/2, W/2), before either head."""
        *skips, x = features
        x = self.bottleneck(x, code)
        for block, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = block(torch.cat([upsize(x), skip], 1), code)
        return x

    def forward(self, image: Tensor) -> Tensor:
        return self.segment(image)


def _index(names: tuple[str, ...], name: str) -> int:
    if name not in names:
        raise UsageError(f"style code {name!r}: choose one of {', '.join(names)}")
    return names.index(name)


class Critic(nn.Module):
    """A light trunk over a half-size image with an output a domain: the discriminator, or the style encoder.

    image (B, 1, h, w) -> (B, domains, out, h/8, w/8), or the mean over its positions (B, domains, out) if `pooled`.
    """

    def __init__(self, out: int, *, widths: tuple[int, ...] = (16, 32, 64), pooled: bool = False) -> None:
        super().__init__()
        self.pooled, self.channels = pooled, out
        layers: list[nn.Module] = []
        for a, b in pairwise((1, *widths)):
            layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.trunk = nn.Sequential(*layers)
        self.out = nn.Conv2d(widths[-1], len(DOMAINS) * out, 1)

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.out(self.trunk(image))
        x = x.unflatten(1, (len(DOMAINS), self.channels))
        return x.mean((3, 4)) if self.pooled else x
