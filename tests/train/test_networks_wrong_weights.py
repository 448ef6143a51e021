"""Files and state dicts that `--weights` cannot start a network from: refused, with what was expected."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision_files import TINY, drawn, resnet_names, vit_weights

from cxrvit_edge.errors import UsageError
from train.networks import public_weights
from train.networks.build import build
from train.networks.public_weights import adapt, read

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def resnet50() -> dict[str, Tensor]:
    return drawn(resnet_names((3, 4, 6, 3)))


def without(weights: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {k: v for k, v in weights.items() if k != key}


@pytest.mark.parametrize(
    "name", ["resnet50", "resnet152", "densenet121", "vit", "hybrid", "cxrvit", "efficientnet-lite0"]
)
def test_another_networks_weights_are_refused(name: str, resnet50: dict[str, Tensor]) -> None:
    config = replace(TINY, network=name)
    wrong = [vit_weights() if name != "vit" else resnet50, {"a": torch.zeros(2)}, build(config).state_dict()]
    if name == "resnet152":
        wrong.append(resnet50)
    for weights in wrong:
        with pytest.raises(
            UsageError, match=rf"file\.pth: .*{name} starts from the weights of (torchvision's|the package) \w+"
        ):
            adapt(config, weights, name="file.pth")


def test_weights_that_do_not_fit_are_refused(resnet50: dict[str, Tensor]) -> None:
    config, vit = replace(TINY, network="resnet50"), replace(TINY, network="vit")
    with pytest.raises(UsageError, match=r"missing \['backbone\.layer4\.2\.bn3\.bias'\].*torchvision's resnet50"):
        adapt(config, without(resnet50, "layer4.2.bn3.bias"))
    with pytest.raises(UsageError, match=r"no bn1\.running_mean in it.*torchvision's resnet50"):
        adapt(config, without(resnet50, "bn1.running_mean"))
    with pytest.raises(UsageError, match=r"unexpected \['backbone\.layer4\.3\.x'\]"):
        adapt(config, {**resnet50, "layer4.3.x": torch.zeros(2)})
    with pytest.raises(UsageError, match=r"no conv1\.weight of 1 or 3 channels"):
        adapt(config, {**resnet50, "conv1.weight": torch.zeros(64, 4, 7, 7)})
    with pytest.raises(UsageError, match=r"missing \['encoder\.blocks\.1\..*torchvision's vit_b_16"):
        adapt(vit, vit_weights(layers=1))
    with pytest.raises(UsageError, match=r"preset 'edge' has: .*encoder\.embed\.weight \(16, 1, 16, 16\)"):
        adapt(replace(vit, width=32), vit_weights())
    with pytest.raises(UsageError, match=r"encoder\.position \(1, 19, 16\)"):
        adapt(vit, vit_weights(positions=19))


@pytest.mark.parametrize("name", ["unet", "adain"])
def test_segmenters_have_no_public_weights(name: str) -> None:
    assert name not in public_weights.SOURCES
    with pytest.raises(UsageError, match=f"{name}: no public weights"):
        adapt(replace(TINY, network=name), {})


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def test_files_that_are_no_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = tmp_path / "whole.pth"
    torch.save({"conv1.weight": torch.zeros(8)}, whole)
    bad = {
        "html.pth": b"<html>404 not found</html>",
        "empty.pth": b"",
        "half.pth": whole.read_bytes()[: len(whole.read_bytes()) // 2],
        "harmful.pth": pickle.dumps(Harmful(), protocol=2),
        "noise.pth": bytes(range(256)),
        "text.pth": b"cbuiltins\nlist\n0.",  # pops from an empty stack
        "html.safetensors": b"<html>404 not found</html>",
        "empty.safetensors": b"",
    }
    for name, data in bad.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(UsageError, match=rf"{name}: cannot be read as weights"):
            read(path)
    assert not (tmp_path / "ran").exists()
    for name in ("absent.pth", "absent.safetensors"):
        with pytest.raises(UsageError, match=rf"{name}: no such file"):
            read(tmp_path / name)
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "more.pth")
    with pytest.raises(UsageError, match=r"more\.pth: holds more than a state dict"):
        read(tmp_path / "more.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UsageError, match="cannot be read as weights"):
        read(tmp_path / "folder.pth")
