"""ResNet-50, ResNet-152 and DenseNet-121 with global average pooling."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.densenet import CHANNELS, DenseNet121
from train.networks.baseline import Baseline

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


class Convolutional(Baseline):
    """A trunk of stride 32, its mean as the embedding, and the map head over its last feature map."""

    def __init__(self, config: NetworkConfig) -> None:
        dense = config.network == "densenet121"
        super().__init__(config, CHANNELS.s32 if dense else RESNET_CHANNELS, config.map_widths)
        self.backbone: nn.Module = (
            DenseNet121() if dense else resnet({"resnet50": 50, "resnet152": 152}[config.network])
        )

    def features(self, image: Tensor) -> Tensor:
        """The last feature map (B, C, H/32, W/32), after its ReLU."""
        out = self.backbone(image)
        last: Tensor = out.s32 if isinstance(self.backbone, DenseNet121) else out
        return last

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(image)
        return features.mean((2, 3)), features
