"""Saliency methods against their definitions, and the pointing game against cases whose result is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import preset
from cxrvit_edge.model.relevance import relevance
from cxrvit_edge.model.triage_net import TriageNet
from train.saliency import METHODS, grad_cam, pointing_game, raw_attention, rollout, token_logit

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SMALL = replace(preset("edge"), layers=2, heads=2, width=16, image_size=64, map_widths=(8, 4, 4), lung_widths=(4,) * 4)


@pytest.fixture(scope="module")
def net() -> TriageNet:
    torch.manual_seed(0)
    net = TriageNet(SMALL).eval()
    with torch.no_grad():
        for p in [*net.encoder.parameters(), *net.diagnosis.parameters()]:
            p.add_(torch.randn_like(p) * 0.2)
    return net


@pytest.fixture(scope="module")
def features() -> Tensor:
    return torch.rand(2, 1024, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_a_map_of_each_image(net: TriageNet, features: Tensor, name: str) -> None:
    maps = METHODS[name](net, features, 1)
    assert maps.shape == (2, 3, 4) and torch.isfinite(maps).all() and (maps >= 0).all()
    torch.testing.assert_close(METHODS[name](net, features[1:], 1), maps[1:], rtol=1e-3, atol=1e-6)
    assert all(p.grad is None for p in net.parameters())
    differs = not torch.allclose(maps, METHODS[name](net, features, 2), rtol=1e-2)
    assert differs == (name not in ("raw attention", "attention rollout"))


def test_relevance_is_the_network_s(net: TriageNet) -> None:
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        features = net.backbone(image).s32
    torch.testing.assert_close(METHODS["relevance"](net, features, 0), relevance(net, image, 0))


def test_grad_cam_by_finite_differences(features: Tensor) -> None:
    torch.manual_seed(1)
    net, few = TriageNet(SMALL).eval().double(), features[:1].double()

    def logit(values: Tensor) -> float:
        with torch.no_grad():
            return float(net.diagnosis(net.encoder(values)[0])[0, 2])

    channels = (0, 17, 1023)
    only = torch.zeros_like(few)
    only[:, channels] = few[:, channels]  # other channels are 0, so that their weights do not matter
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for c in channels:
        step = torch.zeros_like(only)
        step[:, c] = 1e-4
        slope = (logit(only + step) - logit(only - step)) / 2e-4 / 12  # mean over the 12 positions
        expected += slope * only[0, c]
    torch.testing.assert_close(grad_cam(net, only, 2)[0], expected.clamp_min(0), rtol=1e-3, atol=1e-9)


def test_attention_maps_of_the_encoder_s_own_blocks(net: TriageNet, features: Tensor) -> None:
    seen: list[Tensor] = []
    hooks = [b.attn.qkv.register_forward_hook(lambda _, __, out: seen.append(out)) for b in net.encoder.blocks]  # type: ignore[union-attr]
    try:
        with torch.no_grad():
            net.encoder(features)
    finally:
        for hook in hooks:
            hook.remove()
    attention = []
    for qkv in seen:
        q, k = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in qkv.chunk(3, -1)[:2])
        attention.append(((q @ k.mT) / 8**0.5).softmax(-1).mean(1))  # (B, T, T)
    torch.testing.assert_close(raw_attention(net, features).flatten(1), attention[1][:, 0, 1:])
    eye = torch.eye(13)
    product = (eye + attention[1]) @ (eye + attention[0])
    torch.testing.assert_close(rollout(net, features).flatten(1), product[:, 0, 1:])


def test_the_head_on_a_token_gives_its_probability(net: TriageNet, features: Tensor) -> None:
    total = sum(token_logit(net, features, c) for c in range(3))
    torch.testing.assert_close(total, torch.ones(2, 3, 4))


def spot(row: int, column: int, size: int = 4) -> np.ndarray:
    out = np.zeros((size, size), np.float32)
    out[row, column] = 1
    return out


def half() -> np.ndarray:
    mask = np.zeros((40, 40), bool)
    mask[:, :20] = True
    return mask


def test_hits_and_misses_are_counted() -> None:
    maps = [spot(1, 0), spot(2, 1), spot(0, 3), spot(3, 0)]
    game = pointing_game(maps, [half()] * 4, ["a", "b", "c", "d"])
    assert (game.images, game.patients, game.chance) == (4, 4, 0.5)
    assert game.accuracy.value == 0.75
    assert 0 <= game.accuracy.low < 0.75 < game.accuracy.high <= 1
    assert game.energy.value == pytest.approx(0.75, abs=0.06)  # a spot beside the edge spreads over it


def test_an_even_map_gets_chance() -> None:
    mask = np.zeros((30, 50), bool)
    mask[:10, :10] = True
    for value in (0.0, 0.5):
        game = pointing_game([np.full((3, 5), value, np.float32)], [mask], ["a"])
        assert game.accuracy.value == game.chance == pytest.approx(100 / 1500)
    assert game.energy.value == pytest.approx(game.chance)
    assert np.isnan(pointing_game([np.zeros((3, 5), np.float32)], [mask], ["a"]).energy.value)


def test_a_near_miss_counts_within_the_tolerance() -> None:
    mask = np.zeros((40, 40), bool)
    mask[20, 20] = True
    near = spot(20, 24, 40)
    values = [pointing_game([near], [mask], ["a"], tolerance=t).accuracy.value for t in (0, 3, 4)]
    assert values == [0, 0, 1]
    wide = pointing_game([near], [mask], ["a"], tolerance=4)
    assert 40 / 1600 < wide.chance < 81 / 1600 and wide.energy.value == 0  # energy is of the mask itself


def test_images_of_a_patient_are_drawn_together() -> None:
    maps, masks = [spot(1, 0)] * 6 + [spot(1, 3)] * 6, [half()] * 12
    alone = pointing_game(maps, masks, [str(i) for i in range(12)])
    together = pointing_game(maps, masks, ["a"] * 6 + ["b"] * 6)
    assert alone.accuracy.value == together.accuracy.value == 0.5
    assert (together.accuracy.low, together.accuracy.high) == (0, 1)  # two patients say next to nothing
    assert alone.accuracy.low > 0.1 and alone.accuracy.high < 0.9


@pytest.mark.parametrize(
    ("values", "mask", "said"),
    [
        (spot(0, 0), np.zeros((4, 4), bool), "mask is empty"),
        (-spot(0, 0), half(), "negative or not finite"),
        (np.full((4, 4), np.nan, np.float32), half(), "negative or not finite"),
    ],
)
def test_what_cannot_be_judged_is_refused(values: np.ndarray, mask: np.ndarray, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        pointing_game([values], [mask], ["a"])
    with pytest.raises(UsageError, match="1 maps, 1 masks, 2 patients"):
        pointing_game([values], [mask], ["a", "b"])
