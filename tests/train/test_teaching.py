"""Distillation: what is imitated, of whom, and that a teacher neither learns nor travels with the run."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stage_runs import train
from torch import Tensor, nn
from torchvision_files import TINY
from train_files import Folder

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.densenet import Features
from cxrvit_edge.model.triage_net import TriageLogits, TriageNet
from train.loader import Batch
from train.losses import largest_in_zones
from train.networks.build import build
from train.networks.efficientnet_lite import EfficientNetLite0
from train.objectives.teaching import GRADED, TEMPERATURE, Teacher, Teaching, answer

pytestmark = pytest.mark.usefixtures("one_torch_thread")
MAPS = {  # channels by stride
    "cxrvit": {4: 256, 8: 512, 16: 1024, 32: 1024},
    "densenet121": {4: 256, 8: 512, 16: 1024, 32: 1024},
    "efficientnet-lite0": {4: 24, 8: 40, 16: 112, 32: 1280},
    "vit": {16: 16},
}


def net_of(name: str) -> nn.Module:
    """With BatchNorm's statistics of noise: of a fresh network nearly nothing comes out."""
    torch.manual_seed(1)
    net = build(replace(TINY, network=name)).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        answer(net, torch.randn(16, 1, 64, 64))
    return net.eval()


@pytest.mark.parametrize("name", MAPS)
def test_an_answer_is_what_the_network_says(name: str) -> None:
    net, image = net_of(name), torch.randn(2, 1, 64, 64)
    said = answer(net, image)
    torch.testing.assert_close(said.logits, net.diagnose(image))  # type: ignore[operator]
    assert {s: tuple(m.shape) for s, m in said.maps.items()} == {
        s: (2, channels, 64 // s, 64 // s) for s, channels in MAPS[name].items()
    }
    torch.testing.assert_close(said.grades, net.grade(image))  # type: ignore[operator]
    assert not said.logits.requires_grad and not said.grades.requires_grad


def drawn(batch: int, size: int) -> Features:
    """Of a student, for images of `size`."""
    return Features(*(torch.randn(batch, c, size // s, size // s) for s, c in MAPS["cxrvit"].items()))


def seen(image: Tensor, upright: Tensor | None = None) -> Batch:
    """A batch that holds these images and nothing of what is known of them."""
    unused = {f.name: torch.empty(0) for f in fields(Batch)}
    turned = torch.zeros(len(image), dtype=torch.bool) if upright is None else ~upright
    return Batch(**{**unused, "image": image, "is_negative": turned})


def output(batch: int, size: int, logits: Tensor | None = None) -> TriageLogits:
    """Of a student, for images of `size`."""
    return TriageLogits(
        torch.randn(batch, 3) if logits is None else logits,
        torch.randn(batch, 1, size // 2, size // 2),
        torch.randn(batch, 2, size // 2, size // 2),
        torch.randn(batch, 10),
    )


def halves(size: int) -> NDArray[np.bool_]:
    """Six zones of a map of `size`, none empty."""
    zones = np.zeros((3, 2, size, size), bool)
    for row in range(3):
        for side in range(2):
            zones[row, side, row * size // 3 : (row + 1) * size // 3, side * size // 2 : (side + 1) * size // 2] = True
    return zones


def learned(teaching: Teaching, image: Tensor) -> TriageNet:
    """A student with the gradient of one batch."""
    student = TriageNet(TINY).train()
    features = student.features(image)
    terms = teaching(seen(image), student.heads(features), features, [halves(image.shape[-1] // 2)] * len(image))
    torch.stack([t.total for t in terms.values()]).sum().backward()
    return student


def test_only_the_student_and_the_projection_learn() -> None:
    teachers = [net_of("efficientnet-lite0"), net_of("densenet121")]
    before = [{k: v.clone() for k, v in t.state_dict().items()} for t in teachers]
    teaching = Teaching([Teacher(t) for t in teachers]).train()
    student = learned(teaching, torch.randn(4, 1, 64, 64))
    assert all(p.grad is not None and bool(p.grad.any()) for p in teaching.parameters())
    assert student.backbone.get_submodule("features.conv0").weight.grad is not None
    assert not any(p.requires_grad or p.grad is not None for t in teachers for p in t.parameters())
    for t, old in zip(teachers, before, strict=True):
        assert not t.training and all(torch.equal(v, old[k]) for k, v in t.state_dict().items())
    own = {k.partition(".")[0] for k in teaching.state_dict()}
    assert own == {"project", "standard", "short"}
    assert len(teaching.project) == len(MAPS["efficientnet-lite0"]) + len(MAPS["densenet121"])


def test_classes_are_the_divergence_from_the_mean_of_the_teachers() -> None:
    teachers, image = [net_of("efficientnet-lite0"), net_of("densenet121")], torch.randn(3, 1, 64, 64)
    logits, upright = torch.randn(3, 3), torch.tensor([True, False, True])
    none = [None] * 3
    terms = Teaching([Teacher(t) for t in teachers])(seen(image, upright), output(3, 64, logits), drawn(3, 64), none)
    assert set(terms) == {"teacher", "trunk", "features"}
    mean = torch.stack([answer(t, image).logits for t in teachers]).mean(0)
    p, q = (mean / TEMPERATURE).softmax(1), (logits / TEMPERATURE).softmax(1)
    each = (p * (p / q).log()).sum(1) * TEMPERATURE**2
    assert float(terms["teacher"].weight) == 2
    torch.testing.assert_close(terms["teacher"].total, each[0] + each[2], rtol=1e-4, atol=1e-5)


def test_the_trunk_is_told_the_classes_past_the_encoder() -> None:
    teacher, image, features = net_of("efficientnet-lite0"), torch.randn(3, 1, 64, 64), drawn(3, 64)
    teaching = Teaching([Teacher(teacher)])
    assert isinstance(teaching.short, nn.Linear)
    said = teaching.short(features.s32.mean((2, 3)))
    terms = teaching(seen(image), output(3, 64), features, [None] * 3)
    same = teaching(seen(image), output(3, 64, said), features, [None] * 3)
    assert float(terms["trunk"].total.detach()) == pytest.approx(float(same["teacher"].total.detach()), rel=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    teacher, image = net_of("cxrvit"), torch.randn(4, 1, 64, 64)
    said = answer(teacher, image)
    features = Features(*said.maps.values())
    terms = Teaching([Teacher(teacher)])(seen(image), output(4, 64, said.logits), features, [None] * 4)
    assert abs(float(terms["teacher"].total)) < 1e-5


def test_zones_are_learned_from_those_that_grade() -> None:
    """Against the mean of their probabilities, softened; not of a turned image, nor where there is no lung."""
    teachers, image = [net_of("efficientnet-lite0"), net_of("cxrvit")], torch.randn(3, 1, 64, 64)
    own, upright = output(3, 64), torch.tensor([True, False, True])
    zones = [halves(32), halves(32), None]
    teaching = Teaching([Teacher(t, classes=False, grades=True) for t in teachers])
    assert not list(teaching.parameters())
    terms = teaching(seen(image, upright), own, drawn(3, 64), zones)
    assert set(terms) == {"grades", "map"} and float(terms["grades"].weight) == 6
    said = torch.stack([(largest_in_zones(answer(t, image).grades[:, 0], zones) * GRADED).sigmoid() for t in teachers])
    p, z = said.mean(0)[0], largest_in_zones(own.severity[:, 0], zones)[0]
    loss = -(p * z.sigmoid().log() + (1 - p) * (1 - z.sigmoid()).log()).sum()
    torch.testing.assert_close(terms["grades"].total, loss * teaching.weights.zones, rtol=1e-4, atol=1e-5)
    p = torch.stack([(answer(t, image).grades * GRADED).sigmoid() for t in teachers]).mean(0)[[0, 2]]
    z = own.severity[[0, 2]].sigmoid()
    loss = -(p * z.log() + (1 - p) * (1 - z).log()).mean((1, 2, 3)).sum()
    assert float(terms["map"].weight) == 2
    torch.testing.assert_close(terms["map"].total, loss * teaching.weights.map, rtol=1e-4, atol=1e-5)


def test_largest_in_zones() -> None:
    logits = torch.arange(64.0).reshape(1, 8, 8) - 70
    zones = halves(8)
    zones[2, 1] = False
    expected = [[float(logits[0][torch.from_numpy(z)].max()) if z.any() else 0.0 for z in row] for row in zones]
    assert largest_in_zones(logits, [zones]).tolist() == [expected]
    assert largest_in_zones(logits, [None]).tolist() == [[[0.0, 0.0]] * 3]


def test_a_run_with_a_teacher(folder: Folder, tmp_path: Path) -> None:
    """It is told in the run, not saved with it; another teacher is another run."""
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        net = build(replace(TINY, network="efficientnet-lite0"))
        (tmp_path / name).mkdir()
        checkpoint.save(tmp_path / name / "model.safetensors", net.state_dict(), net.config)  # type: ignore[arg-type]
    done = train("joint", folder.write(), tmp_path / "run", "--teacher", str(tmp_path / "a"))
    assert len(done.extra["about"]["teachers"]) == 1
    assert not any("teach" in k for k in done.net.state_dict())
    steps = (tmp_path / "run" / "steps.csv").read_text().splitlines()
    assert {"teacher", "features"} <= set(steps[0].split(","))
    with pytest.raises(UsageError, match="another about"):
        train("joint", folder.write(), tmp_path / "run", "--teacher", str(tmp_path / "b"))


def test_a_segmenter_teaches_nothing(folder: Folder, tmp_path: Path) -> None:
    net = build(replace(TINY, network="unet"))
    checkpoint.save(tmp_path / "u.safetensors", net.state_dict(), net.config, {"stage": "lungs"})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"u\.safetensors: learned lungs, and teaches neither"):
        train("joint", folder.write(), tmp_path / "run", "--teacher", str(tmp_path / "u.safetensors"))
    assert not (tmp_path / "cache").exists()  # seen before images are decoded


def test_a_teacher_sees_no_larger_image_than_it_learned_from() -> None:
    """Its answer to the smaller image; the student's features are pooled to its grid."""
    teacher, image = net_of("efficientnet-lite0"), torch.randn(2, 1, 128, 128)
    small = torch.nn.functional.interpolate(image, (64, 64), mode="bilinear", antialias=True)
    teaching = Teaching([Teacher(teacher, 64)])
    said = answer(teacher, small)
    own = output(2, 128, said.logits)
    terms = teaching(seen(image), own, drawn(2, 128), [None, None])
    assert abs(float(terms["teacher"].total)) < 1e-5
    whole = Teaching([Teacher(teacher, 128)])(seen(image), own, drawn(2, 128), [None, None])
    assert float(whole["teacher"].total) > 1e-3


def test_first_maps_that_two_teachers_have_in_common_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that went on from the other with its early layers frozen; its answers are those it gives alone."""
    first, other = net_of("efficientnet-lite0"), net_of("efficientnet-lite0")
    with torch.no_grad():
        for p in (
            *other.get_submodule("backbone._conv_head").parameters(),
            *other.get_submodule("severity").parameters(),
        ):
            p.mul_(1.5)
    made: list[int] = []
    whole = EfficientNetLite0.first_levels
    monkeypatch.setattr(EfficientNetLite0, "first_levels", lambda net, x: made.append(len(x)) or whole(net, x))
    image, own, none = torch.randn(3, 1, 64, 64), output(3, 64), [halves(32)] * 3
    pair = Teacher(first), Teacher(other, classes=False, grades=True)
    drawn_features = drawn(3, 64)
    teaching = Teaching(pair)
    made.clear()
    together = teaching(seen(image), own, drawn_features, none)
    assert made == [3]
    alone = Teaching(pair[1:])(seen(image), own, drawn_features, none)
    torch.testing.assert_close(together["grades"].total, alone["grades"].total)

    with torch.no_grad():
        other.get_submodule("backbone._blocks.4._bn2").running_mean.add_(0.01)  # type: ignore[operator, union-attr]
    teaching = Teaching(pair)
    made.clear()
    teaching(seen(image), own, drawn_features, none)
    assert made == [3, 3]
