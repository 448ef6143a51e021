"""weights.safetensors: FP16, folded, without what only training needs; or an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_bundle as small
import torch
from safetensors.torch import load_file
from torch import nn

from cxrvit_edge.errors import BundleError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.folding import fold
from cxrvit_edge.model.triage_net import TriageNet
from export.weights import HALF_LEAST, write_weights

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def net() -> TriageNet:
    torch.manual_seed(0)
    return TriageNet(small.config()).eval()


def test_stored_as_the_bundle_wants_it(net: TriageNet, tmp_path: Path) -> None:
    reference = write_weights(net, tmp_path / "w.safetensors", {"note": 1})
    stored = load_file(tmp_path / "w.safetensors")
    folded = fold(net).state_dict()
    wanted = {k for k in folded if not k.startswith("pcam.") and not k.endswith("num_batches_tracked")}
    assert set(stored) == wanted
    for name, value in stored.items():
        assert value.dtype == (torch.float16 if value.ndim > 1 else torch.float32), name
        torch.testing.assert_close(value.float(), folded[name], rtol=2**-11, atol=2**-24)
        if "running" not in name:
            large = value[value.abs() >= HALF_LEAST].float()
            assert torch.equal(large, large.half().float()), f"{name}: an FP16 graph would round it"
    for name, value in reference.state_dict().items():
        if name in stored:
            assert value.dtype == torch.float32
            assert torch.equal(value, stored[name].float()), f"{name}: the reference is not what is stored"
    _, config, extra = checkpoint.load(tmp_path / "w.safetensors")
    assert config.folded
    assert extra == {"note": 1}


def test_the_reference_is_the_network_but_for_half_precision(net: TriageNet, tmp_path: Path) -> None:
    reference = write_weights(net, tmp_path / "w.safetensors", {})
    image = torch.randn(2, 1, small.SIZE, small.SIZE)
    with torch.inference_mode():
        for a, b in zip(reference(image), net(image), strict=True):
            assert 0 < float((a - b).abs().max()) <= 0.02 * max(1.0, float(b.abs().max()))


def test_the_same_network_gives_the_same_file(net: TriageNet, tmp_path: Path) -> None:
    """safetensors alone would order its header otherwise each time: eight files, one of six orders each."""
    extra = {"preprocessing": {"size": small.SIZE}}
    for i in range(8):
        checkpoint.save(tmp_path / f"{i}.safetensors", {"a": torch.zeros(2, 2)}, net.config, extra)
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(8)}) == 1
    assert checkpoint.load(tmp_path / "0.safetensors")[2] == extra


@pytest.mark.parametrize("value", [65_536.0, -70_000.0, 1e30])
def test_a_weight_beyond_half_precision_is_named(net: TriageNet, tmp_path: Path, value: float) -> None:
    net.get_parameter("encoder.blocks.0.fc1.weight").data[3, 2] = value
    with pytest.raises(BundleError, match=r"encoder\.blocks\.0\.fc1\.weight: a weight of .* does not fit FP16"):
        write_weights(net, tmp_path / "w.safetensors", {})
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_folding_makes_too_large_is_named(net: TriageNet, tmp_path: Path) -> None:
    norm = net.backbone.features.norm0
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight.fill_(1e7)
    with pytest.raises(BundleError, match=r"backbone\.features\.conv0\.weight: .* does not fit FP16"):
        write_weights(net, tmp_path / "w.safetensors", {})


def test_the_largest_half_fits(net: TriageNet, tmp_path: Path) -> None:
    with torch.no_grad():
        net.diagnosis.weight[0, 0] = 65_504.0
    reference = write_weights(net, tmp_path / "w.safetensors", {})
    assert float(reference.diagnosis.weight.detach()[0, 0]) == 65_504.0


@pytest.mark.parametrize("variance", [1e6, 1.0, 1e-9])
def test_a_norm_is_stored_as_scale_and_shift_that_half_precision_has(
    net: TriageNet, tmp_path: Path, variance: float
) -> None:
    """A running variance of 1e6 or 1e-9 is no rare thing and FP16 holds neither; its scale it holds."""
    norm = net.backbone.features.norm5
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None and norm.running_mean is not None
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.fill_(variance)
        x = torch.randn(2, norm.num_features, 4, 4)
        before = norm.eval()(x)
    reference = write_weights(net, tmp_path / "w.safetensors", {})
    stored = {k: v for k, v in load_file(tmp_path / "w.safetensors").items() if k.startswith("backbone.features.norm5")}
    assert not stored["backbone.features.norm5.running_mean"].any()
    with torch.no_grad():
        after = reference.backbone.features.norm5(x)  # type: ignore[operator]
    limit = 2**-10 * float(before.abs().max())
    assert 0 < float((after - before).abs().max()) <= limit
    weight, spread = (stored[f"backbone.features.norm5.{n}"].double().numpy() for n in ("weight", "running_var"))
    scale = weight / np.sqrt(spread + norm.eps)  # as an FP16 graph computes its constant
    normal = np.abs(weight) >= HALF_LEAST
    np.testing.assert_array_equal(scale.astype(np.float16)[normal], weight[normal])
