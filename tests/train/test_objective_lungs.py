"""The stage's losses: which parameters each of them moves, what they count, and that masks are learned."""

from __future__ import annotations

import copy
from dataclasses import fields
from functools import cache

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cxrvit_edge.metrics import dice
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.phantom import make_phantom
from train.loader import CONVENTIONS, Batch
from train.losses import lung_loss
from train.networks.adain import AdaINSegmenter
from train.networks.unet import UNet
from train.objective import Term
from train.objectives.lungs import AdaINObjective, AdaINWeights, LungObjective

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SIZE = 64
TINY = NetworkConfig("edge", layers=1, heads=2, width=16, image_size=SIZE, lung_widths=(8, 8, 8, 8))
GB, SHENZHEN, LUNGVAE, V7 = (CONVENTIONS.index(c) for c in ("generalblockchain", "shenzhen", "lungvae", "v7"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@cache
def films() -> tuple[Tensor, Tensor]:
    """Four phantoms (4, 1, 64, 64) and their lungs (4, 2, 32, 32)."""
    images, masks = [], []
    for seed in range(4):
        film = make_phantom(seed, height=256, width=256, view="PA", lesions="diffuse" if seed % 2 else "none")
        pixels = cv2.resize(film.pixels.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        images.append((pixels - pixels.mean()) / pixels.std())
        half = (SIZE // 2, SIZE // 2)
        masks.append([cv2.resize(m.astype(np.float32), half, interpolation=cv2.INTER_AREA) for m in film.lungs])
    return torch.from_numpy(np.stack(images)[:, None]), torch.from_numpy(np.array(masks))


def batch(**changes: Tensor) -> Batch:
    """Normal, abnormal, normal, abnormal; the first two have masks, of a radiologist and of v7."""
    image, lungs = films()
    n = len(image)
    given = {
        "image": image.clone(),
        "lungs": lungs.clone(),
        "has_lungs": torch.tensor([True, True, False, False]),
        "is_negative": torch.zeros(n, dtype=torch.bool),
        "convention": torch.tensor([GB, V7, -1, -1]),
        "label": torch.tensor([0, 2, 0, 1]),
        **changes,
    }
    unused = {f.name: torch.empty(0) for f in fields(Batch)}
    return Batch(**{**unused, **given})


def objective(kind: str) -> LungObjective:
    if kind == "unet":
        return LungObjective(UNet(TINY))
    return AdaINObjective(AdaINSegmenter(TINY), AdaINWeights(share=1.0, ramp=0))


def total(terms: dict[str, Term]) -> Tensor:
    return torch.stack([t.total / t.weight.clamp_min(1) for t in terms.values()]).sum()


def moved(module: nn.Module, loss: Tensor) -> bool:
    """Whether any parameter of the module has a gradient other than zero."""
    grads = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return any(g is not None and bool(g.any()) for g in grads)


def test_the_first_loss_is_that_of_the_masks() -> None:
    o = objective("unet")
    b = batch(convention=torch.tensor([GB, SHENZHEN, -1, -1]))
    term = o(b, 0)["lungs"]
    expected = lung_loss(o.net(b.image)[:2], b.lungs[:2])
    assert term.weight.item() == 2
    assert term.total.item() == pytest.approx(2 * expected.item(), rel=1e-5)


def test_other_conventions_are_learned_by_code_or_not_at_all() -> None:
    b = batch(has_lungs=torch.ones(4, dtype=torch.bool), convention=torch.tensor([GB, V7, LUNGVAE, -1]))
    assert objective("unet")(b, 0)["lungs"].weight.item() == 1
    assert objective("adain")(b, 0)["lungs"].weight.item() == 3
    b.is_negative[3] = True  # a turned film: no lungs to be found, whatever the convention
    b.lungs[3] = 0
    assert objective("unet")(b, 0)["lungs"].weight.item() == 2
    assert objective("adain")(b, 0)["lungs"].weight.item() == 4


@pytest.mark.parametrize("kind", ["unet", "adain"])
def test_every_parameter_gets_a_gradient_whatever_the_batch_holds(kind: str) -> None:
    none = torch.zeros(4, dtype=torch.bool)
    empty = batch(has_lungs=none, convention=torch.full((4,), -1), label=torch.full((4,), -1))
    for b in (batch(), empty):  # DistributedDataParallel waits for each
        o = objective(kind)
        loss = total(o(b, 0))
        loss.backward()
        assert torch.isfinite(loss)
        for name, p in o.named_parameters():
            assert p.grad is not None and torch.isfinite(p.grad).all(), name
    assert loss.item() == 0 and not any(bool(p.grad.any()) for p in o.parameters() if p.grad is not None)


def test_each_loss_moves_its_own_side() -> None:
    o = objective("adain")
    assert isinstance(o, AdaINObjective)
    terms = o(batch(), 0)
    sides = {"generator": o.net, "discriminator": o.discriminator, "stylist": o.stylist}
    moves = {k: {side for side, module in sides.items() if moved(module, t.total)} for k, t in terms.items()}
    assert moves == {
        "lungs": {"generator"},
        "teacher": {"generator"},
        "distillation": {"generator"},
        "adversarial": {"generator"},
        "discriminator": {"discriminator"},
        "cycle": {"generator", "stylist"},
        "style": {"generator", "stylist"},
    }


def test_the_teacher_is_not_moved_by_its_student() -> None:
    net = AdaINSegmenter(TINY)
    term = AdaINObjective(net, AdaINWeights(share=1.0, ramp=0))(batch(), 0)["distillation"]
    grads = torch.autograd.grad(term.total, [net.domains, net.image.weight], allow_unused=True)
    assert grads == (None, None)
    assert term.weight.item() == 1  # of two abnormal films one has a mask of its own


def test_the_discriminator_learns_to_tell_and_the_generator_to_hide() -> None:
    o = objective("adain")
    assert isinstance(o, AdaINObjective)
    b = batch()
    before = {k: t.total.item() for k, t in o(b, 0).items()}
    other = copy.deepcopy(o)
    optimizer = torch.optim.Adam(o.discriminator.parameters(), lr=5e-3)
    for _ in range(12):
        optimizer.zero_grad()
        o(b, 0)["discriminator"].total.backward()
        optimizer.step()
    after = {k: t.total.item() for k, t in o(b, 0).items()}
    assert after["discriminator"] < 0.8 * before["discriminator"]
    assert after["adversarial"] > before["adversarial"]
    optimizer = torch.optim.Adam(other.net.parameters(), lr=5e-3)
    for _ in range(12):
        optimizer.zero_grad()
        other(b, 0)["adversarial"].total.backward()
        optimizer.step()
    assert other(b, 0)["adversarial"].total.item() < before["adversarial"]


def test_distillation_is_ramped_up_and_part_of_a_batch_translated() -> None:
    torch.manual_seed(3)
    o = AdaINObjective(AdaINSegmenter(TINY), AdaINWeights(share=0.5, ramp=100))
    b = batch(label=torch.tensor([1, 0, 1, 1]), has_lungs=torch.zeros(4, dtype=torch.bool))
    at = [o(b, step)["distillation"] for step in (0, 50, 100, 900)]
    assert [t.weight.item() for t in at] == [1] * 4
    assert at[0].total.item() == 0 < at[1].total.item()
    assert at[2].total.item() == pytest.approx(2 * at[1].total.item()) == at[3].total.item()
    assert o(b, 0)["cycle"].weight.item() == 2


class Fixed(nn.Module):
    """Answers with given logits, film by film."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def segment(self, image: Tensor, convention: Tensor | None = None) -> Tensor:
        return torch.stack([self.logits[int(i[0, 0, 0])] for i in image])


def test_validation_is_the_dice_by_convention() -> None:
    _, lungs = films()
    image = torch.arange(4.0)[:, None, None, None].expand(-1, 1, SIZE, SIZE)  # each film says which it is
    guess = lungs.roll(3, dims=-1)
    guess[1, 0] = 0
    b = batch(
        image=image, has_lungs=torch.tensor([True] * 3 + [False]), convention=torch.tensor([GB, SHENZHEN, V7, -1])
    )
    o = objective("unet")
    figures = o.validate(Fixed(guess - 0.5), [b, b])
    a, t = (guess > 0.5).numpy(), (lungs >= 0.5).numpy()
    for i, name in ((GB, "generalblockchain"), (SHENZHEN, "shenzhen"), (2, "v7")):
        assert figures[f"dice_{name}"] == pytest.approx(dice(a[i].any(0), t[i].any(0)))
        assert figures[f"dice_{name}_image_left"] == pytest.approx(dice(a[i, 0], t[i, 0]))
        assert figures[f"dice_{name}_image_right"] == pytest.approx(dice(a[i, 1], t[i, 1]))
    assert figures["dice"] == pytest.approx((figures["dice_generalblockchain"] + figures["dice_shenzhen"]) / 2)
    assert 0 == figures["dice_shenzhen_image_left"] < figures["dice_shenzhen"] < figures["dice_generalblockchain"] < 1
    assert "dice_lungvae" not in figures
    assert o.metric in figures
    nothing = o.validate(Fixed(guess), [batch(has_lungs=torch.zeros(4, dtype=torch.bool))])
    assert np.isnan(nothing[o.metric])


def test_validation_asks_for_the_convention_of_the_mask() -> None:
    o = objective("adain")
    asked = []

    def segment(image: Tensor, convention: Tensor) -> Tensor:
        asked.append(convention.tolist())
        return torch.zeros(len(image), 2, SIZE // 2, SIZE // 2)

    o.net.segment = segment  # type: ignore[assignment]
    o.validate(o.net, [batch(convention=torch.tensor([SHENZHEN, V7, -1, -1]))])
    assert asked == [[SHENZHEN, V7]]


@pytest.mark.parametrize("kind", ["unet", "adain"])
def test_phantom_lungs_are_learned(kind: str) -> None:
    label = torch.tensor([0, 1, 0, 1])
    everything = torch.ones(4, dtype=torch.bool)
    b = batch(has_lungs=everything, convention=torch.tensor([GB, GB, SHENZHEN, SHENZHEN]), label=label)
    o = objective(kind)
    first = o.validate(o.net.eval(), [b])["dice"]
    optimizer = torch.optim.Adam(o.parameters(), lr=5e-3)
    o.train()
    for step in range(100 if kind == "unet" else 50):
        optimizer.zero_grad()
        total(o(b, step)).backward()
        optimizer.step()
    last = o.validate(o.net.eval(), [b])
    assert last["dice"] > max(0.8, first + 0.2), (first, last)
    assert min(v for k, v in last.items() if "image" in k) > 0.7
    assert set(last) == {f"dice_{c}{s}" for c in CONVENTIONS[:2] for s in ("", "_image_left", "_image_right")} | {
        "dice"
    }
