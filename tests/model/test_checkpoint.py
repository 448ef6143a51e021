"""Weights in and out: whole or not at all, the config in the header, nothing unpickled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cxrvit_edge.errors import BundleError, UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import NetworkConfig, preset
from cxrvit_edge.model.triage_net import TriageNet

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TINY = NetworkConfig("edge", layers=1, heads=2, width=16, image_size=64, map_widths=(8, 4, 4), lung_widths=(4, 4, 4, 4))


@pytest.fixture(scope="module")
def net() -> TriageNet:
    torch.manual_seed(0)
    return TriageNet(TINY).eval()


@pytest.fixture
def saved(net: TriageNet, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, net.state_dict(), TINY, {"epoch": 3, "stage": "joint"})
    return path


def test_round_trip(net: TriageNet, saved: Path) -> None:
    tensors, config, extra = checkpoint.load(saved)
    assert config == TINY
    assert extra == {"epoch": 3, "stage": "joint"}
    own = net.state_dict()
    assert set(tensors) == set(own)
    assert all(torch.equal(tensors[k], own[k]) and tensors[k].dtype == own[k].dtype for k in own)
    again = checkpoint.network(tensors, config)
    assert not again.training
    image = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        for a, b in zip(again(image), net(image), strict=True):
            assert torch.equal(a, b)


def test_the_config_is_in_the_header(saved: Path) -> None:
    """Read as the format says: 8 bytes of length, then JSON."""
    data = saved.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert NetworkConfig.from_json(header["__metadata__"]["config"]) == TINY
    assert header["__metadata__"]["format"] == "cxrvit-edge"


def test_half_weights_are_computed_with_in_float32(net: TriageNet) -> None:
    halves = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    built = checkpoint.network(halves, TINY)
    for k, v in built.state_dict().items():
        if v.is_floating_point():
            assert v.dtype == torch.float32
            assert torch.equal(v, halves[k].float())


def test_channels_last_weights_keep_their_meaning(net: TriageNet, tmp_path: Path) -> None:
    shuffled = {
        k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v.clone() for k, v in net.state_dict().items()
    }
    checkpoint.save(tmp_path / "m.safetensors", shuffled, TINY)
    tensors, _, extra = checkpoint.load(tmp_path / "m.safetensors")
    assert extra == {}
    assert all(torch.equal(tensors[k], v) for k, v in net.state_dict().items())


def test_a_saved_file_leaves_no_part(saved: Path) -> None:
    assert [p.name for p in saved.parent.iterdir()] == ["model.safetensors"]


def test_equal_content_is_an_equal_file(tmp_path: Path) -> None:
    """safetensors alone writes its metadata in another order each time."""
    path, seen = tmp_path / "m.safetensors", set()
    for _ in range(12):
        checkpoint.save(path, {"a": torch.ones(3)}, TINY, {"epoch": 3})
        seen.add(path.read_bytes())
    assert len(seen) == 1


def test_metadata_beyond_ascii_survives(net: TriageNet, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, {"a": torch.ones(3)}, TINY, {"note": 'Kölner "Archiv" \\ 胸部 \u2028 \t'})
    tensors, config, extra = checkpoint.load(path)
    assert extra == {"note": 'Kölner "Archiv" \\ 胸部 \u2028 \t'}
    assert config == TINY
    assert tensors["a"].tolist() == [1.0, 1.0, 1.0]


def test_others_on_the_box_may_read_it(saved: Path) -> None:
    assert saved.stat().st_mode & 0o777 == 0o644


def test_a_save_that_fails_leaves_the_old_file_and_no_part(saved: Path) -> None:
    before = saved.read_bytes()
    shared = torch.zeros(4)
    with pytest.raises(RuntimeError, match="share memory"):  # safetensors refuses two names for one storage
        checkpoint.save(saved, {"a": shared, "b": shared}, TINY)
    assert saved.read_bytes() == before
    occupied = saved.parent / "folder"
    occupied.mkdir()
    with pytest.raises(OSError, match="folder"):
        checkpoint.save(occupied, {"a": torch.zeros(2)}, TINY)
    assert sorted(p.name for p in saved.parent.iterdir()) == ["folder", "model.safetensors"]


def test_a_save_replaces_the_old_file_whole(saved: Path) -> None:
    checkpoint.save(saved, {"a": torch.ones(2)}, TINY, {"epoch": 4})
    tensors, _, extra = checkpoint.load(saved)
    assert list(tensors) == ["a"]
    assert extra == {"epoch": 4}


def test_damaged_files_are_named(saved: Path) -> None:
    whole = saved.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    broken_config = whole.replace(b'{\\"preset\\"', b'{{"preset\\"', 1)
    assert broken_config != whole
    torch.save({"a": torch.zeros(2)}, saved.with_name("pickle.pt"))
    wrong = {
        "empty": b"",
        "text": b"<html>404 not found</html>",
        "pickle": saved.with_name("pickle.pt").read_bytes(),
        "half": whole[: len(whole) // 2],
        "a byte short": whole[:-1],
        "a byte long": whole + b"\0",
        "only the header": whole[: 8 + length],
        "length": (length + 1).to_bytes(8, "little") + whole[8:],
        "header": whole[:8] + b"X" + whole[9:],
        "config": broken_config,
    }
    for name, data in wrong.items():
        path = saved.with_name(f"{name}.safetensors")
        path.write_bytes(data)
        with pytest.raises(BundleError, match=r"\.safetensors: "):
            checkpoint.load(path)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"other": "1"},
        {"config": "{"},
        {"config": "[]"},
        {"config": '{"preset": "edge"}'},
        {"config": TINY.to_json(), "extra": "{"},
    ],
)
def test_headers_that_are_not_ours_are_named(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(BundleError, match=r"m\.safetensors: .*header"):
        checkpoint.load(path)


def test_a_newer_config_says_so(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    config = json.dumps(json.loads(TINY.to_json()) | {"rope": True})
    save_file({"a": torch.zeros(2)}, path, metadata={"config": config})
    with pytest.raises(UsageError, match="rope"):
        checkpoint.load(path)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.safetensors: no such checkpoint"):
        checkpoint.load(tmp_path / "absent.safetensors")
    with pytest.raises(UsageError, match="cannot be read"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(net: TriageNet, value: float) -> None:
    tensors = dict(net.state_dict())
    tensors["diagnosis.weight"] = tensors["diagnosis.weight"].clone()
    tensors["diagnosis.weight"][1, 2] = value
    with pytest.raises(BundleError, match=r"run1: .*not finite in \['diagnosis.weight'\]"):
        checkpoint.network(tensors, TINY, name="run1")


@pytest.mark.parametrize("name", ["small", "paper"])
def test_another_presets_weights_are_refused(net: TriageNet, name: str) -> None:
    with pytest.raises(BundleError, match=f"do not fit preset '{name}'"):
        checkpoint.network(net.state_dict(), preset(name))


@pytest.mark.parametrize(("given", "wanted"), [(1, 2), (2, 1)])
def test_another_depth_is_refused(given: int, wanted: int) -> None:
    tensors = TriageNet(replace(TINY, layers=given)).state_dict()
    with pytest.raises(BundleError, match=r"encoder\.blocks\.1"):
        checkpoint.network(tensors, replace(TINY, layers=wanted))


def test_only_heads_that_train_may_be_absent(net: TriageNet) -> None:
    def without(start: str) -> dict[str, Tensor]:
        return {k: v for k, v in net.state_dict().items() if not k.startswith(start)}

    image = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        for a, b in zip(checkpoint.network(without("pcam."), TINY)(image), net(image), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(BundleError, match="lungs"):
        checkpoint.network(without("lungs."), TINY)
    with pytest.raises(BundleError, match="unexpected"):
        checkpoint.network({**net.state_dict(), "head.weight": torch.zeros(2)}, TINY)
