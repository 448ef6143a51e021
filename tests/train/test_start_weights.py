"""Where a run starts: another run, its unfinished state, a bundle whose BatchNorm is folded."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from small_bundle import write_checkpoint
from torch import Tensor, nn

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.triage_net import TriageNet
from cxrvit_edge.preprocess import PreprocessConfig
from train import state
from train.cache import ImageCache
from train.data.record import Record
from train.loader import Loader
from train.networks.build import build
from train.objectives.diagnosis import Diagnosis
from train.weights import start_from

if TYPE_CHECKING:
    from small_bundle import Exported

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TINY = NetworkConfig("edge", layers=1, heads=2, width=16, image_size=64, map_widths=(8, 4, 4), lung_widths=(8, 8, 8, 8))


def never() -> Iterable[Tensor]:
    raise AssertionError("images are for folded weights only")


def fresh(config: NetworkConfig = TINY, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return build(config)


def same(a: nn.Module, b: nn.Module, start: str = "") -> bool:
    other = b.state_dict()
    return all(torch.equal(v, other[k]) for k, v in a.state_dict().items() if k.startswith(start))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """Folder of a run of stage backbone, with its unfinished state, and its network."""
    folder = tmp_path_factory.mktemp("run")
    net = fresh(seed=0)
    checkpoint.save(folder / "model.safetensors", net.state_dict(), TINY, {"stage": "backbone"})
    return folder, net


def test_a_run_and_its_checkpoint_are_the_same_start(run: tuple[Path, nn.Module]) -> None:
    folder, wanted = run
    for path in (folder, folder / "model.safetensors"):
        net = fresh()
        assert not same(net, wanted, "backbone.")
        said = start_from(net, path, never)
        assert same(net, wanted)
        assert said == f"weights from {folder / 'model.safetensors'} (backbone): 100%"


def test_the_unfinished_state_of_a_run_is_a_start(tmp_path: Path) -> None:
    """last.safetensors holds the network, its average and the optimiser; the network is taken."""
    objective = Diagnosis(fresh(seed=0), torch.ones(3))
    optimizer = torch.optim.Adam(objective.parameters())
    objective.net.diagnose(torch.randn(2, 1, 64, 64)).sum().backward()  # type: ignore[operator]
    optimizer.step()
    path = tmp_path / "last.safetensors"
    modules = {"objective": objective, "average": fresh(seed=2)}
    state.save(path, modules, optimizer, torch.amp.GradScaler(enabled=False), TINY, {"stage": "diagnosis"})
    net = fresh()
    assert "(diagnosis): 100%" in start_from(net, path, never)
    assert same(net, objective.net)


def test_a_network_with_other_heads_takes_the_trunk(run: tuple[Path, nn.Module]) -> None:
    """Another map head and encoder: said, and left as they were."""
    folder, wanted = run
    other = replace(TINY, map_widths=(4, 4, 4), layers=2)
    net, before = fresh(other), fresh(other)
    said = start_from(net, folder, never)
    assert same(net.get_submodule("backbone"), wanted.get_submodule("backbone"))
    assert same(net.get_submodule("lungs"), wanted.get_submodule("lungs"))
    assert said.split("; ")[1] == "anew: encoder, severity"
    deeper = before.get_parameter("encoder.blocks.1.fc1.weight")
    assert torch.equal(net.get_parameter("encoder.blocks.1.fc1.weight"), deeper)


def test_a_baseline_on_the_same_trunk_takes_it(run: tuple[Path, nn.Module]) -> None:
    folder, wanted = run
    net = fresh(replace(TINY, network="densenet121"))
    assert "anew: diagnosis, findings, severity" in start_from(net, folder, never)
    assert same(net.get_submodule("backbone"), wanted.get_submodule("backbone"))


def test_positions_of_another_grid_are_resampled(run: tuple[Path, nn.Module]) -> None:
    """As the network itself resamples them for smaller images, so that it does there what it did."""
    folder, wanted = run
    larger = replace(TINY, image_size=128)
    assert isinstance(wanted, TriageNet)
    with torch.no_grad():
        net = fresh(larger)
        assert isinstance(net, TriageNet)
        assert "100%" in start_from(net, folder, never)
        assert net.encoder.position.shape == (1, 1 + 16, 16)
        first, rest = wanted.encoder.position[:, :1], wanted.encoder.position[:, 1:]
        grid = F.interpolate(rest.mT.reshape(1, 16, 2, 2), (4, 4), mode="bicubic", align_corners=False)
        torch.testing.assert_close(net.encoder.position, torch.cat([first, grid.flatten(2).mT], 1))
        image = torch.randn(2, 1, 128, 128)
        torch.testing.assert_close(net.eval()(image)[0], wanted.eval()(image)[0])
    wider = replace(larger, width=32)
    assert "anew: diagnosis, encoder, severity" in start_from(fresh(wider), folder, never)


# A bundle


@pytest.fixture(scope="module")
def images(drawn: tuple[list[Record], ImageCache]) -> list[Tensor]:
    loader = Loader(*drawn, range(10), PreprocessConfig(size=64), size=64, batch=5)
    return [b.image for b in loader.epoch(0)]


def test_a_bundle_is_unfolded(exported: Exported, images: list[Tensor]) -> None:
    """The network in eval mode is the bundle's; what the bundle does not hold is said to be new."""
    tensors, config, _ = checkpoint.load(exported.bundle / "weights.safetensors")
    assert config.folded
    folded = checkpoint.network(tensors, config)
    net = fresh(replace(config, folded=False))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    said = start_from(net, exported.bundle, lambda: images)
    assert "(bundle)" in said
    assert ("anew: pcam" in said) == (not any(k.startswith("pcam.") for k in tensors))
    assert isinstance(net, TriageNet)
    same, folded = copy.deepcopy(net).eval().double(), folded.double()  # the function, not the rounding of its sums
    with torch.inference_mode():
        for image in (images[0].double(), torch.randn(2, 1, 64, 64).double()):
            for found, wanted in zip(same(image), folded(image), strict=True):
                torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * max(1.0, float(wanted.abs().max())))
    if "anew: pcam" in said:
        assert torch.equal(net.pcam.classifier.weight, before["pcam.classifier.weight"])


def test_a_bundle_can_be_trained_on(exported: Exported, images: list[Tensor]) -> None:
    """In train mode, where BatchNorm is the batch's own, the outputs on those images stay near."""
    tensors, config, _ = checkpoint.load(exported.bundle / "weights.safetensors")
    folded = checkpoint.network(tensors, config)
    net, image = fresh(replace(config, folded=False)), torch.cat(images)
    assert isinstance(net, TriageNet)
    start_from(net, exported.bundle, lambda: [image])
    with torch.no_grad():
        wanted = folded(image)[2]
        errors = [float((net.train(mode)(image)[2] - wanted).abs().mean()) for mode in (False, True)]
    assert errors[0] < 1e-4
    assert errors[1] < 0.1 < float(wanted.std())


# What is no start


def test_weights_of_which_nothing_fits_are_refused(tmp_path: Path) -> None:
    unet = fresh(replace(TINY, network="unet"))
    checkpoint.save(tmp_path / "unet.safetensors", unet.state_dict(), replace(TINY, network="unet"), {"stage": "lungs"})
    with pytest.raises(UsageError, match=r"unet\.safetensors \(lungs\): nothing in it fits this network; name weights"):
        start_from(fresh(), tmp_path / "unet.safetensors", never)


def test_a_start_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.safetensors: no such checkpoint"):
        start_from(fresh(), tmp_path, never)
    with pytest.raises(UsageError, match=r"absent\.safetensors: no such checkpoint"):
        start_from(fresh(), tmp_path / "absent.safetensors", never)


def test_a_joint_run_is_a_start_for_every_stage(tmp_path: Path) -> None:
    """small_bundle's checkpoint, as the joint stage writes it."""
    path = write_checkpoint(tmp_path / "model.safetensors", TriageNet(TINY))
    assert "(joint): 100%" in start_from(fresh(), path, never)
