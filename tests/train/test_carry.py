"""Weights carried in parts: what arrives, and that a part which did not is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision_files import TINY
from typer.testing import CliRunner

from cxrvit_edge.errors import BundleError, UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.triage_net import TriageNet
from export.weights import TRAINING_ONLY, write_weights
from train.__main__ import app
from train.carry import INDEX, join, split
from train.networks.build import build, load

pytestmark = pytest.mark.usefixtures("one_torch_thread")
EXTRA = {"stage": "joint", "preprocessing": {"size": 64}, "recipe": {"lr": 0.1}}


def saved(network: str, folder: Path) -> Path:
    """A run whose BatchNorm is not that of a fresh network."""
    torch.manual_seed(0)
    net = build(replace(TINY, network=network))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.running_mean, module.running_var, module.weight):
                assert value is not None
                nn.init.uniform_(value, 0.5, 1.5)
    folder.mkdir()
    checkpoint.save(folder / "model.safetensors", net.state_dict(), replace(TINY, network=network), EXTRA)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("cxrvit", tmp_path_factory.mktemp("run") / "joint")


@pytest.fixture
def parts(run: Path, tmp_path: Path) -> Path:
    split(run, tmp_path / "parts", part_mb=6)
    return tmp_path / "parts"


def test_what_arrives_is_what_export_would_store(run: Path, tmp_path: Path) -> None:
    words = ["carry", "split", str(run), str(tmp_path / "parts"), "--part-mb", "6"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    paths = [Path(line) for line in result.stdout.splitlines()]
    assert sorted(paths) == sorted((tmp_path / "parts").iterdir()) and len(paths) > 3
    assert all(p.stat().st_size <= 6_000_000 for p in paths)
    out = tmp_path / "new" / "carried.safetensors"
    result = CliRunner().invoke(app, ["carry", "join", str(tmp_path / "parts"), str(out)], catch_exceptions=False)
    assert result.stdout.strip() == str(out)
    assert [p.name for p in out.parent.iterdir()] == [out.name]

    found, config, extra = checkpoint.load(out)
    assert extra == EXTRA and config.folded
    net = load(run / "model.safetensors")[0]
    assert isinstance(net, TriageNet)
    write_weights(net, tmp_path / "stored.safetensors", {})
    stored = checkpoint.load(tmp_path / "stored.safetensors")[0]
    kept = {k for k in found if not k.startswith(TRAINING_ONLY) and not k.endswith("num_batches_tracked")}
    assert kept == stored.keys()
    assert all(found[k].dtype == v.dtype and found[k].shape == v.shape for k, v in stored.items())
    assert all(torch.equal(found[k], v) for k, v in stored.items() if v.ndim > 1)
    again = load(out)[0]  # and an export of what arrived stores them once more
    assert isinstance(again, TriageNet)
    write_weights(again, tmp_path / "again.safetensors", {})
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "stored.safetensors").read_bytes()


def test_a_teacher_travels_too(tmp_path: Path) -> None:
    source = saved("efficientnet-lite0", tmp_path / "teacher")
    split(source, tmp_path / "parts")
    net, config, extra = load(join(tmp_path / "parts", tmp_path / "teacher.safetensors"))
    own, image = load(source / "model.safetensors")[0], torch.randn(2, 1, 64, 64)
    assert (config.network, extra) == ("efficientnet-lite0", EXTRA)
    with torch.inference_mode():
        torch.testing.assert_close(net.diagnose(image), own.diagnose(image), rtol=0.02, atol=0.02)  # type: ignore[operator]
    for name, value in own.state_dict().items():
        assert torch.equal(net.state_dict()[name], value) == (
            value.ndim <= 1 or torch.equal(value.half().float(), value)
        )


def test_a_head_that_a_bundle_lacks_is_not_invented(run: Path, tmp_path: Path) -> None:
    net = load(run / "model.safetensors")[0]
    assert isinstance(net, TriageNet)
    write_weights(net, tmp_path / "stored.safetensors", {})
    split(tmp_path / "stored.safetensors", tmp_path / "parts")
    found = checkpoint.load(join(tmp_path / "parts", tmp_path / "carried.safetensors"))[0]
    stored = checkpoint.load(tmp_path / "stored.safetensors")[0]
    assert found.keys() == stored.keys() and all(torch.equal(found[k], v) for k, v in stored.items())


def test_a_damaged_or_absent_part_is_named_and_nothing_is_written(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "carried.safetensors"
    out.write_bytes(b"before")
    part = parts / "weights.01"
    whole = part.read_bytes()
    for content in (whole[:-1], whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:]):
        part.write_bytes(content)
        with pytest.raises(UsageError, match=r"weights\.01: damaged, its SHA-256"):
            join(parts, out)
    part.unlink()
    with pytest.raises(UsageError, match=r"weights\.01: is absent"):
        join(parts, out)
    part.write_bytes(whole)
    index = json.loads((parts / INDEX).read_text())
    (parts / INDEX).write_text(json.dumps({**index, "parts": index["parts"][::-1]}))
    with pytest.raises(UsageError, match="do not make the whole"):
        join(parts, out)
    for text in ("", "[]", '{"sha256": "", "parts": [1]}', '{"sha256": ""}'):
        (parts / INDEX).write_text(text)
        with pytest.raises(UsageError, match=r"parts\.json: damaged"):
            join(parts, out)
    (parts / INDEX).unlink()
    with pytest.raises(UsageError, match=r"no parts\.json in it"):
        join(parts, out)
    assert out.read_bytes() == b"before"
    assert not list(tmp_path.glob("*.part"))


def test_an_index_names_nothing_outside_its_folder(parts: Path, tmp_path: Path) -> None:
    (parts / "weights.00").rename(tmp_path / "weights.00")
    index = json.loads((parts / INDEX).read_text())
    index["parts"][0]["name"] = "../weights.00"
    (parts / INDEX).write_text(json.dumps(index))
    with pytest.raises(UsageError, match="is absent"):
        join(parts, tmp_path / "carried.safetensors")


def test_a_folder_that_holds_something_is_left_alone(run: Path, parts: Path) -> None:
    before = {p.name: p.read_bytes() for p in parts.iterdir()}
    with pytest.raises(UsageError, match="not empty; name another folder"):
        split(run, parts)
    assert {p.name: p.read_bytes() for p in parts.iterdir()} == before


def test_weights_beyond_half_precision_stay_here(run: Path, tmp_path: Path) -> None:
    tensors, config, extra = checkpoint.load(run / "model.safetensors")
    tensors["diagnosis.weight"] *= 1e8
    checkpoint.save(tmp_path / "large.safetensors", tensors, config, extra)
    with pytest.raises(BundleError, match=r"diagnosis\.weight does not fit FP16"):
        split(tmp_path / "large.safetensors", tmp_path / "parts")
    assert not (tmp_path / "parts").exists()
