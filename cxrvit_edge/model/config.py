"""One description of a network; it is saved with the weights and the network is built from it and nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from cxrvit_edge.errors import UsageError

CLASSES = ("normal", "other_infection", "covid19")

FINDINGS = (  # the ten CheXpert findings of the paper, section 4.1
    "no_finding",
    "cardiomegaly",
    "lung_opacity",
    "edema",
    "consolidation",
    "pneumonia",
    "atelectasis",
    "pneumothorax",
    "pleural_effusion",
    "support_devices",
)

BASELINES = ("densenet121", "resnet50", "resnet152", "vit", "hybrid", "efficientnet-lite0")
SEGMENTERS = ("unet", "adain")
NETWORKS = ("cxrvit", *BASELINES, *SEGMENTERS)
CORPORA = {  # findings whose PCAM maps weigh the corpus; Table 9: none, pneumonia, three, all ten
    "before": (),
    "after-1": ("pneumonia",),
    "after-3": ("lung_opacity", "consolidation", "pneumonia"),
    "after-10": FINDINGS,
}


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the network of Park, Kim et al. (arXiv 2104.07235, section 3), or of a network it is compared with.

    width, layers, heads: the transformer; map_widths: channels after the first three upsizing blocks of the map head
    (the fourth gives the map); lung_widths: channels of the lung decoder at 32, 64, 128 and 256 pixels.
    stride: pixels a token stands for; 32 is the corpus itself, 64 a stride of 2 in the patch embedding (Table 9, 1024
    pixels); trunk_size: a larger image is reduced to so many pixels, by means of area, before the trunk sees it (0:
    never), which is ours; corpus: one of CORPORA; network: one of NETWORKS, of which "cxrvit" alone is exported.
    """

    preset: str
    layers: int
    heads: int
    width: int
    mlp_ratio: int = 4
    image_size: int = 512
    stride: int = 32
    trunk_size: int = 0
    classes: tuple[str, ...] = CLASSES
    findings: tuple[str, ...] = FINDINGS
    map_widths: tuple[int, ...] = (128, 64, 32)
    lung_widths: tuple[int, ...] = (96, 64, 32, 16)
    folded: bool = False  # BatchNorm that follows a convolution is folded into it: the form that is exported
    corpus: str = "before"
    network: str = "cxrvit"

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise UsageError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.stride < 32 or self.stride % 32:
            raise UsageError(f"stride {self.stride}: the corpus has one of 32; use a multiple of it")
        if self.image_size % self.stride:
            raise UsageError(f"image_size {self.image_size} is not a multiple of {self.stride}")
        if self.trunk_size and (self.trunk_size % self.stride or self.trunk_size < 0):
            raise UsageError(f"trunk_size {self.trunk_size} is not a multiple of {self.stride}; 0 for the whole image")
        if self.image_size % self.seen(self.image_size):
            raise UsageError(
                f"trunk_size {self.trunk_size} does not divide image_size {self.image_size}; 0 for all of it"
            )
        if self.corpus not in CORPORA:
            raise UsageError(f"corpus {self.corpus!r}: choose one of {', '.join(CORPORA)}")
        if self.network not in NETWORKS:
            raise UsageError(f"network {self.network!r}: choose one of {', '.join(NETWORKS)}")

    @property
    def grid(self) -> int:
        """Tokens in a row."""
        return self.seen(self.image_size) // self.stride

    def seen(self, size: int) -> int:
        """Pixels in a row that the trunk sees of an image of `size`."""
        return min(size, self.trunk_size or size)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> NetworkConfig:
        values: dict[str, Any] = json.loads(text)
        known = {f.name for f in fields(cls)}
        if unknown := set(values) - known:
            raise UsageError(
                f"the checkpoint's config has unknown fields {sorted(unknown)}: use the version that wrote it"
            )
        fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fixed)


PRESETS = {  # Table 9: paper, medium and small
    "paper": NetworkConfig("paper", layers=12, heads=12, width=768, map_widths=(256, 128, 64)),
    # ours: heads of 64, which fused kernels want; 128 pixels, which is what can be learned from hundreds of films
    "edge": NetworkConfig("edge", layers=2, heads=6, width=384, trunk_size=128),
    "medium": NetworkConfig("medium", layers=4, heads=8, width=768, map_widths=(256, 128, 64)),
    "small": NetworkConfig("small", layers=2, heads=4, width=768, map_widths=(256, 128, 64)),
}


def preset(name: str) -> NetworkConfig:
    if name not in PRESETS:
        raise UsageError(f"no preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
