"""The whole network: shapes, ranges, sizes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import PRESETS, preset
from cxrvit_edge.model.triage_net import TriageNet

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def edge() -> TriageNet:
    torch.manual_seed(0)
    return TriageNet(preset("edge")).eval()


@pytest.mark.parametrize(("size", "batch"), [(64, 3), (128, 2), (256, 1), (512, 1)])
def test_outputs_of_edge(edge: TriageNet, size: int, batch: int) -> None:
    with torch.inference_mode():
        logits, severity_map, lung_mask, embedding = edge(torch.randn(batch, 1, size, size))
    assert logits.shape == (batch, 3)
    assert severity_map.shape == (batch, 1, size // 2, size // 2)
    assert lung_mask.shape == (batch, 2, size // 2, size // 2)
    assert embedding.shape == (batch, edge.config.width)
    for output in (logits, severity_map, lung_mask, embedding):
        assert output.dtype == torch.float32
        assert torch.isfinite(output).all()
        assert output.std() > 0
    for unit in (severity_map, lung_mask):
        assert unit.min() >= 0.0
        assert unit.max() <= 1.0
        assert unit.max() > 0.0


@pytest.mark.parametrize("size", [64, 160, 256])
def test_training_sees_the_same_network_before_its_last_step(edge: TriageNet, size: int) -> None:
    image = torch.randn(2, 1, size, size)
    with torch.inference_mode():
        out = edge.training_forward(image)
        logits, severity_map, lung_mask, embedding = edge(image)
        torch.testing.assert_close(edge.diagnosis(embedding), logits)
    torch.testing.assert_close(out.logits, logits)
    torch.testing.assert_close(out.severity.sigmoid(), severity_map)
    torch.testing.assert_close(out.lungs.sigmoid(), lung_mask)
    assert out.findings.shape == (2, 10)


@pytest.mark.parametrize("size", [64, 160, 256])
def test_each_task_alone_gives_what_all_of_them_give(edge: TriageNet, size: int) -> None:
    image = torch.randn(2, 1, size, size)
    with torch.inference_mode():
        out = edge.training_forward(image)
        torch.testing.assert_close(edge.diagnose(image), out.logits)
        torch.testing.assert_close(edge.grade(image), out.severity)
        torch.testing.assert_close(edge.segment(image), out.lungs)
        torch.testing.assert_close(edge.find(image), out.findings)
        torch.testing.assert_close(edge.diagnosis(edge.embed(image)), out.logits)


SMALL = replace(preset("edge"), layers=1, heads=2, width=16, image_size=64, map_widths=(8, 4, 4), lung_widths=(4,) * 4)


@pytest.mark.parametrize(("corpus", "maps"), [("after-1", 1), ("after-3", 3), ("after-10", 10)])
def test_a_corpus_after_pcam_is_the_features_times_each_findings_map(corpus: str, maps: int) -> None:
    net = TriageNet(replace(SMALL, corpus=corpus)).eval()
    features = torch.rand(2, 1024, 3, 4)
    with torch.inference_mode():
        weighed = net.corpus(features).view(2, maps, 1024, 3, 4)
        logits, _ = net.pcam(features)
        pooled = weighed.mean((3, 4))  # a map's mean is 1: this is PCAM's own pooling
        judged = (pooled * net.pcam.classifier.weight.flatten(1)[net.weighing]).sum(-1)
    assert net.pcam.classifier.bias is not None
    torch.testing.assert_close(judged + net.pcam.classifier.bias[net.weighing], logits[:, net.weighing])
    assert net.diagnose(torch.randn(1, 1, 64, 64)).shape == (1, 3)


def test_a_trunk_of_fewer_pixels_sees_means_of_area_and_its_maps_are_made_larger() -> None:
    whole = TriageNet(SMALL).eval()
    reduced = TriageNet(replace(SMALL, image_size=256, trunk_size=64)).eval()
    reduced.load_state_dict(whole.state_dict())
    image = torch.randn(2, 1, 256, 256)
    means = image.reshape(2, 1, 64, 4, 64, 4).mean((3, 5))
    with torch.inference_mode():
        found, alone = reduced(image), whole(means)
        told = whole.training_forward(means)
    for k in (0, 3):
        torch.testing.assert_close(found[k], alone[k])
    for k, logits in ((1, told.severity), (2, told.lungs)):
        larger = torch.nn.functional.interpolate(logits, (128, 128), mode="bilinear")
        torch.testing.assert_close(found[k], larger.sigmoid())
        assert found[k].amax() <= alone[k].amax() + 1e-6  # no zone has more than its map had


def test_twice_the_stride_keeps_the_grid() -> None:
    net = TriageNet(replace(SMALL, image_size=128, stride=64)).eval()
    assert net.config.grid == 2 and net.encoder.position.shape == (1, 5, 16)
    logits, severity, lungs, _ = net(torch.randn(1, 1, 128, 128))
    assert (logits.shape, severity.shape, lungs.shape) == ((1, 3), (1, 1, 32, 32), (1, 2, 64, 64))


def test_a_baseline_is_not_built_as_ours() -> None:
    with pytest.raises(UsageError, match="resnet50: a network to compare with"):
        TriageNet(replace(SMALL, network="resnet50"))


def test_a_film_does_not_see_its_neighbours_in_the_batch(edge: TriageNet) -> None:
    image = torch.randn(3, 1, 64, 64)
    with torch.inference_mode():
        together = edge(image)
        for i in range(3):
            for whole, alone in zip(together, edge(image[i : i + 1]), strict=True):
                torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-3, atol=1e-4)


def test_every_parameter_can_learn() -> None:
    net = TriageNet(preset("edge")).train()
    out = net.training_forward(torch.randn(2, 1, 64, 64))
    sum((o * torch.randn_like(o)).sum() for o in out).backward()  # type: ignore[union-attr]
    still = [k for k, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def encoder_parameters(layers: int, width: int, channels: int = 1024, *, grid: int, ratio: int = 4) -> int:
    embed = channels * width + width + width + (grid * grid + 1) * width  # projection, class token, positions
    attention = (width * 3 * width + 3 * width) + (width * width + width)
    mlp = (width * ratio * width + ratio * width) + (ratio * width * width + width)
    return embed + layers * (attention + mlp + 4 * width) + 2 * width


@pytest.mark.parametrize(
    ("name", "low", "high"), [("paper", 94e6, 97e6), ("small", 24e6, 26e6), ("edge", 10.5e6, 12e6)]
)
def test_preset_sizes(name: str, low: float, high: float) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        net = TriageNet(config)
    count = {k: sum(p.numel() for p in m.parameters()) for k, m in net.named_children()}
    assert count["backbone"] == 6_953_856 - 2 * 64 * 49
    assert count["encoder"] == encoder_parameters(config.layers, config.width, grid=config.grid)
    assert count["pcam"] == 1024 * 10 + 10
    assert count["diagnosis"] == config.width * 3 + 3
    widths = [config.width, *config.map_widths]
    blocks = sum(9 * a * b + 2 * b for a, b in pairwise(widths))
    assert count["severity"] == blocks + 9 * widths[-1] + 1
    assert low < sum(count.values()) < high
