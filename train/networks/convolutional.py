"""ResNet-50, ResNet-152, DenseNet-121 and EfficientNet-Lite0 with global average pooling."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.densenet import CHANNELS, DenseNet121, Features
from train.networks import efficientnet_lite
from train.networks.baseline import Baseline
from train.networks.efficientnet_lite import EfficientNetLite0

RESNET_CHANNELS = 2048


def resnet(depth: int) -> nn.Sequential:
    """MONAI's ResNet, made torchvision's (stride on the 3x3, the same keys) on one channel.

    (B, 1, H, W) -> (B, 2048, H/32, W/32). UsageError where MONAI is not installed.
    """
    try:
        from monai.networks import nets
    except ImportError as error:
        raise UsageError(f"resnet{depth}: needs MONAI ({error}); run pip install -e '.[train]'") from error
    make = {50: nets.resnet50, 152: nets.resnet152}[depth]
    # MONAI's defaults, a stem of stride 1 and a bias in the shortcut, are those of its 3-D networks
    net = make(spatial_dims=2, n_input_channels=1, conv1_t_stride=2, bias_downsample=False, feed_forward=False)
    return nn.Sequential(OrderedDict((k, v) for k, v in net.named_children() if k != "avgpool"))


def by_stride(f: Features) -> dict[int, Tensor]:
    return {4: f.s4, 8: f.s8, 16: f.s16, 32: f.s32}


_TRUNKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "densenet121": (DenseNet121, CHANNELS.s32),
    "resnet50": (partial(resnet, 50), RESNET_CHANNELS),
    "resnet152": (partial(resnet, 152), RESNET_CHANNELS),
    "efficientnet-lite0": (EfficientNetLite0, efficientnet_lite.CHANNELS),
}


class Convolutional(Baseline):
    """A trunk of stride 32, its mean as the embedding, and the map head over its last feature map."""

    def __init__(self, config: NetworkConfig) -> None:
        trunk, channels = _TRUNKS[config.network]
        super().__init__(config, channels, config.map_widths)
        self.backbone: nn.Module = trunk()

    def features(self, image: Tensor) -> Tensor:
        """The last feature map (B, C, H/32, W/32), after its ReLU."""
        return self.levels(image)[32]

    def levels(self, image: Tensor, first: Mapping[int, Tensor] | None = None) -> dict[int, Tensor]:
        """Maps by stride: of 4, 8 and 16 where the trunk gives them, and 32; first: see EfficientNetLite0."""
        if isinstance(self.backbone, DenseNet121):
            return by_stride(self.backbone(image))
        if isinstance(self.backbone, EfficientNetLite0):
            return self.backbone.levels(image, first)
        return {32: self.backbone(image)}

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(image)
        return features.mean((2, 3)), features
