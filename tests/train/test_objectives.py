"""What each stage minimises: finite losses, gradients where they belong, and that a few steps lower them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_files import draw

from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.preprocess import PreprocessConfig
from train import choose, stages
from train.augment import CONTRAST
from train.loader import Batch, Loader
from train.networks.build import build
from train.objective import Objective
from train.objectives.joint import Joint, Weights
from train.objectives.severity import Severity
from train.objectives.simclr import SimCLR, nt_xent

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TINY = NetworkConfig("edge", layers=1, heads=2, width=16, image_size=64, map_widths=(8, 4, 4), lung_widths=(8, 8, 8, 8))
VALUES = {"class_weight": True, "label_smoothing": 0.1, "roi": "max", "temperature": 0.2, "side": 1.0, "teacher": None}
EVERY = ("backbone", "diagnosis", "severity", "lungs", "simclr", "joint")


@cache
def batch() -> Batch:
    """Six films with two views; masks of the default convention, scores of some, labels and findings of some."""
    records, cached = draw()
    records = [replace(r, lungs_kind="generalblockchain") for r in records]
    drawn = Loader(
        *(records, cached, range(6), PreprocessConfig(size=64)),
        size=64, batch=6, augmentation=CONTRAST, training=False, views=2, normal_weight=0.3,
    )  # fmt: skip
    (out,) = drawn.epoch(0)
    return out


def objective(stage: str, **changes: Any) -> Objective:
    """As python -m train makes it."""
    torch.manual_seed(0)
    config = replace(TINY, **changes)
    net = build(config)
    stages._freeze_rest(stage, net, config)
    return stages.objective_of(stage, net, config, draw()[0], VALUES)


def loss(terms: Any) -> Tensor:
    return torch.stack([t.total / t.weight for t in terms.values()]).sum()


CASES: list[tuple[str, dict[str, str]]] = [(stage, {}) for stage in EVERY] + [
    ("backbone", {"network": "densenet121"}),
    ("diagnosis", {"network": "vit"}),
    ("severity", {"network": "densenet121"}),
    ("simclr", {"network": "vit"}),
    *((stage, {"corpus": "after-3"}) for stage in ("diagnosis", "severity", "lungs", "simclr")),
]


@pytest.mark.parametrize(("stage", "changes"), CASES, ids=lambda c: c if isinstance(c, str) else "-".join(c.values()))
def test_gradients_reach_what_the_stage_learns_and_nothing_else(stage: str, changes: dict[str, str]) -> None:
    """Every trainable parameter, or processes that share the work would wait for its gradient for ever."""
    o = objective(stage, **changes).train()
    terms = o(batch(), 10_000)
    for name, term in terms.items():
        assert term.total.ndim == term.weight.ndim == 0, name
        assert torch.isfinite(term.total), name
        assert term.weight > 0, name
    loss(terms).backward()
    for name, p in o.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    moved = {k.split(".")[0] for k, p in o.net.named_parameters() if p.grad is not None and p.grad.any()}
    parts = set(stages.PARTS.get(stage, [k for k, _ in o.net.named_children()]))
    if changes.get("corpus") and stage != "lungs":
        parts.add("pcam")  # its maps weigh the corpus
    assert moved == parts & {k for k, _ in o.net.named_children()}


@pytest.mark.parametrize("stage", EVERY)
def test_a_few_steps_lower_the_loss(stage: str) -> None:
    o = objective(stage).train()
    adam = torch.optim.Adam([p for p in o.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(6 if stage == "simclr" else 4):
        adam.zero_grad()
        current = loss(o(batch(), 10_000))
        current.backward()
        adam.step()
        losses.append(current.item())
    assert losses[-1] < 0.9 * losses[0], losses


@pytest.mark.parametrize("stage", EVERY)
def test_a_batch_of_which_nothing_is_known_is_no_loss(stage: str) -> None:
    """All of a process's share may be unlabelled: zero with a gradient of zero, so that it goes on with the others."""
    known = batch()
    unknown = replace(
        known, label=torch.full_like(known.label, -1), findings=torch.full_like(known.findings, torch.nan),
        zones=torch.zeros_like(known.zones), zone_weight=torch.zeros_like(known.zone_weight),
        lungs=torch.zeros_like(known.lungs), has_lungs=torch.zeros_like(known.has_lungs),
        convention=torch.full_like(known.convention, -1),
    )  # fmt: skip
    o = objective(stage).train()
    terms = o(unknown, 10_000)
    if stage == "simclr":  # images are all it needs
        assert terms["contrast"].weight == 12
        return
    assert [(t.total.item(), t.weight.item()) for t in terms.values()] == [(0.0, 0.0)] * len(terms)
    torch.stack([t.total for t in terms.values()]).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in o.parameters() if p.requires_grad)


@pytest.mark.parametrize("stage", EVERY)
def test_what_a_stage_is_judged_by_is_among_its_figures(stage: str) -> None:
    o = objective(stage).eval()
    with torch.inference_mode():
        figures = o.validate(o.net, [batch()])
    assert o.metric in figures
    assert math.isfinite(figures[o.metric])
    assert o.higher == (o.metric != "severity_mse")
    assert choose.USES[stage] == o.uses
    assert o.name == stage


# Severity and joint


def test_average_pooling_is_another_loss() -> None:
    o = objective("severity")
    pooled = [loss(Severity(o.net, roi).eval()(batch(), 0)).item() for roi in ("max", "average")]
    assert pooled[0] != pytest.approx(pooled[1], rel=1e-3)


def test_predicted_lungs_are_no_zones_before_they_are_learnt() -> None:
    o = objective("joint")
    assert isinstance(o, Joint)
    o.weights = Weights(severity_from=5)
    before, after = o(batch(), 4)["severity"], o(batch(), 5)["severity"]
    assert before.total.item() == 0.0 < after.total.item()
    assert before.weight == after.weight > 0


def test_the_joint_losses_have_their_weights() -> None:
    o = objective("joint").eval()
    assert isinstance(o, Joint)
    once = o(batch(), 10_000)
    o.weights = Weights(severity=1.0, findings=0.9, lungs=0.5)
    changed = o(batch(), 10_000)
    factors = {"diagnosis": 1.0, "severity": 2.0, "findings": 3.0, "lungs": 0.5}
    for name, factor in factors.items():
        assert changed[name].total.item() == pytest.approx(factor * once[name].total.item(), rel=1e-5)
        assert changed[name].weight == once[name].weight


# SimCLR


def views(n: int, p: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    first = F.normalize(torch.randn(n, p), dim=1)
    return first, F.normalize(first + 0.3 * torch.randn(n, p), dim=1)


@pytest.mark.parametrize(("n", "temperature"), [(1, 0.5), (2, 0.1), (5, 0.5)])
def test_nt_xent_is_its_definition(n: int, temperature: float) -> None:
    """Chen et al. 2020, equation 1: of each of 2 n views, how well its other one stands out among all but itself."""
    first, second = views(n)
    both = torch.cat([first, second]).double()
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        likeness = [math.exp(float(both[i] @ both[k]) / temperature) for k in range(2 * n)]
        total -= math.log(likeness[j] / (sum(likeness) - likeness[i]))
    found, count = nt_xent(first, second, temperature)
    assert found.item() == pytest.approx(total, rel=1e-5, abs=1e-5)
    assert count.item() == 2 * n


def test_nt_xent_is_symmetric_and_knows_no_order() -> None:
    first, second = views(6)
    wanted = nt_xent(first, second, 0.2)[0]
    order = torch.randperm(6)
    torch.testing.assert_close(nt_xent(second, first, 0.2)[0], wanted)
    torch.testing.assert_close(nt_xent(first[order], second[order], 0.2)[0], wanted)
    assert nt_xent(first, second.roll(1, 0), 0.2)[0] > 1.5 * wanted  # wrong partners


class Reader(nn.Module):
    """Embeds an image by its own pixels."""

    def embed(self, image: Tensor) -> Tensor:
        return image.flatten(1)


def matched(change: Callable[[Tensor], Tensor]) -> dict[str, float]:
    torch.manual_seed(0)
    o = SimCLR(Reader(), 16)
    image = torch.randn(8, 1, 4, 4)
    unused = {k: torch.empty(0) for k in vars(batch()) if k not in ("image", "other_view")}
    whole = Batch(image=image, other_view=change(image), **unused)
    parts = [replace(whole, image=whole.image[r], other_view=whole.other_view[r]) for r in (slice(0, 5), slice(5, 8))]
    with torch.inference_mode():
        return o.validate(o.net, parts)


def test_matched_is_the_share_whose_other_view_is_nearest() -> None:
    assert matched(lambda image: image + 1e-3) == {"matched": 1.0, "images": 8.0}
    assert matched(lambda image: image[[1, 0, 2, 3, 4, 5, 6, 7]]) == {"matched": 0.75, "images": 8.0}
    assert matched(lambda image: image.roll(1, 0))["matched"] == 0.0  # also over the edge of a batch


def test_a_run_of_simclr_is_judged_on_two_views(drawn: Any, tmp_path: Any) -> None:
    """The trainer augments the validation images, the same each time: one view twice would always match."""
    from train.recipe import Recipe, parse_schedule
    from train.trainer import Trainer

    recipe = Recipe(parse_schedule("64:1:4"), augmentation=CONTRAST)
    o = objective("simclr")
    records, cached = drawn
    run = Trainer(o, TINY, recipe, records, cached, PreprocessConfig(size=64), tmp_path, loading={"views": 2})
    first, again = (list(run.loader([7, 8, 9], 64, 4, training=False).epoch(0)) for _ in range(2))
    assert len(first) == 1
    assert torch.equal(first[0].image, again[0].image)
    assert torch.equal(first[0].other_view, again[0].other_view)
    assert not torch.equal(first[0].image, first[0].other_view)
    assert first[0].label.tolist() == [drawn[0][i].label for i in (7, 8, 9)]
