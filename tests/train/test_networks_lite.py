"""EfficientNet-Lite0: its padding, its stochastic depth, and weights under their publisher's names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision_files import TINY

from train.networks.build import build
from train.networks.convolutional import Convolutional
from train.networks.efficientnet_lite import EfficientNetLite0, _Block, _Same
from train.networks.public_weights import adapt

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@settings(max_examples=60, deadline=None)
@given(size=st.integers(5, 40), kernel=st.sampled_from([1, 3, 5]), stride=st.sampled_from([1, 2]))
def test_padding_is_tensorflows(size: int, kernel: int, stride: int) -> None:
    """ceil(n / s) outputs; of an odd padding the larger half lies at the far side (tf.nn, padding SAME)."""
    torch.manual_seed(0)
    conv, image = _Same(1, 1, kernel, stride), torch.randn(1, 1, size, size)
    out = conv(image)[0, 0]
    wanted = -(-size // stride)
    assert out.shape == (wanted, wanted)
    near = max(0, (wanted - 1) * stride + kernel - size) // 2
    wide = F.pad(image, (kernel,) * 4)[0, 0]
    for row, column in ((0, 0), (wanted - 1, 0), (wanted - 1, wanted - 1)):
        top, left = (kernel + at * stride - near for at in (row, column))
        patch = wide[top : top + kernel, left : left + kernel]
        torch.testing.assert_close(out[row, column], (patch * conv.weight[0, 0]).sum(), rtol=1e-4, atol=1e-5)


def test_a_block_is_passed_by_as_often_as_asked() -> None:
    torch.manual_seed(0)
    block = _Block(8, 8, 3, 1, 2, 0.25).train()
    image = torch.randn(400, 8, 4, 4)
    with torch.no_grad():
        passed = (block(image) == image).flatten(1).all(1).float().mean()
        assert 0.18 < passed < 0.32
        assert not bool((block.eval()(image) == image).flatten(1).all(1).any())


def test_it_computes_on_one_channel_what_its_weights_did_on_three() -> None:
    torch.manual_seed(0)
    net = EfficientNetLite0()
    three = {k: v.double() for k, v in net.state_dict().items()}
    stem = torch.randn(32, 3, 3, 3, dtype=torch.float64)
    three["_conv_stem.weight"] = stem
    three["_bn0.running_mean"] = torch.randn(32, dtype=torch.float64)
    weights: dict[str, Tensor] = {**three, "_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    ours = build(replace(TINY, network="efficientnet-lite0")).double().eval()
    assert isinstance(ours, Convolutional)
    missing, unexpected = ours.load_state_dict(adapt(ours.config, weights), strict=False)
    assert unexpected == [] and not any(k.startswith("backbone.") for k in missing)
    gray = torch.randint(0, 256, (2, 1, 64, 64)).double()
    with torch.inference_mode():
        mean, sd = three["_bn0.running_mean"], (three["_bn0.running_var"] + 1e-3).sqrt()
        conv = F.conv2d(F.pad(((gray - 127) / 128).expand(-1, 3, -1, -1), (0, 1, 0, 1)), stem, stride=2)
        theirs = F.relu6((conv - mean[:, None, None]) / sd[:, None, None])
        backbone = ours.backbone
        assert isinstance(backbone, EfficientNetLite0)
        found = F.relu6(backbone._bn0(backbone._conv_stem((gray - 128) / 64)))
    torch.testing.assert_close(found[..., :-1, :-1], theirs[..., :-1, :-1], rtol=1e-9, atol=1e-9)
