"""Many processes (torchrun, gloo) take the steps of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from train_files import Folder

from cxrvit_edge.model import checkpoint
from train.distributed import World, in_turn, world

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "train")
TINY = ("--image-size", "64", "--layers", "1", "--heads", "2", "--width", "16", "--threads", "1")


def train(
    folder: Folder, out: Path, *arguments: str, processes: int = 1, stage: str = "diagnosis"
) -> dict[str, Tensor]:
    """Weights at the end of a run of the command."""
    launcher = ("-m", "train") if processes == 1 else TORCHRUN
    command = [sys.executable, *launcher, stage, "--data", str(folder.root), "--out", str(out), *TINY, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [str(out / "model.safetensors")] * processes
    tensors, _, extra = checkpoint.load(out / "last.safetensors")
    assert extra["processes"] == processes
    return {k: v for k, v in tensors.items() if k.startswith("objective.")}


def test_two_processes_take_the_steps_of_one(folder: Folder, tmp_path: Path) -> None:
    """The same global batch, statistics of BatchNorm frozen, no augmentation: within 1e-4 after 10 steps."""
    arguments = ("--schedule", "64:10:4", "--freeze", "batchnorm", "--no-augment", "--ema", "0", "--validate", "10")
    paper = ("--optimizer", "sgd", "--lr", "0.001", "--clip", "1", "--weight-decay", "0", "--warmup", "0")
    one = train(folder, tmp_path / "one", *arguments, *paper)
    two = train(folder, tmp_path / "two", *arguments, *paper, processes=2)
    start = train(folder, tmp_path / "start", "--schedule", "64:1:4", *arguments[2:], *paper)
    assert set(one) == set(two)
    apart = {k: (one[k] - two[k]).abs().max().item() for k in one if one[k].is_floating_point()}
    assert max(apart.values()) < 1e-4, max(apart, key=lambda k: apart[k])
    moved = max((one[k] - start[k]).abs().max().item() for k in apart)
    assert moved > 1e-3, "nine more steps change weights by more than the bound"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["simclr", "joint"])
def test_other_stages_run_in_two_processes(folder: Folder, tmp_path: Path, stage: str) -> None:
    """Gathered contrasts, frozen parts and running averages; every parameter's gradient arrives."""
    found = train(folder, tmp_path / stage, "--schedule", "64:3:4", processes=2, stage=stage)
    assert all(bool(torch.isfinite(v).all()) for v in found.values() if v.is_floating_point())


def test_alone_there_is_nobody_to_wait_for() -> None:
    with world("cpu") as where:
        assert (where.rank, where.size, where.first, where.device.type) == (0, 1, True, "cpu")
        with in_turn(where):
            pass
        assert where.sum(torch.tensor([2.0])).item() == 2.0
    assert World().first
