"""The joint stage: its schedule, its average, and that a killed run ends as one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from train_files import Folder

from cxrvit_edge.errors import BundleError, UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.preprocess import PreprocessConfig
from train.__main__ import main
from train.cache import ImageCache
from train.data.record import Record
from train.joint import Joint, JointOptions, Phase, parse_schedule

pytestmark = pytest.mark.usefixtures("one_torch_thread")

ROOT = Path(__file__).resolve().parents[2]
TINY = NetworkConfig("edge", layers=1, heads=2, width=16, image_size=64, map_widths=(8, 4, 4), lung_widths=(8, 8, 8, 8))
OPTIONS = JointOptions(phases=(Phase(64, 2, 3),), warmup_steps=2, severity_from_epoch=1, seed=3)

Drawn = tuple[list[Record], ImageCache]


def joint(drawn: Drawn, out: Path, options: JointOptions = OPTIONS, config: NetworkConfig = TINY) -> Joint:
    return Joint(config, options, *drawn, PreprocessConfig(size=64), out, say=lambda _: None)


# --- schedule


def test_schedule() -> None:
    assert parse_schedule("256:14:16,512:1:8") == (Phase(256, 14, 16), Phase(512, 1, 8))
    assert parse_schedule("64:1:1") == (Phase(64, 1, 1),)


@pytest.mark.parametrize(
    "text", ["", "256", "256:1", "256:1:4:9", "256:a:4", "256:1:4,", "256;1;4", "256:1.5:4", "256:1:4 512:1:2"]
)
def test_schedules_that_cannot_be_read_are_shown_how(text: str) -> None:
    with pytest.raises(UsageError, match=r"write size:epochs:batch, joined by commas"):
        parse_schedule(text)


@pytest.mark.parametrize("text", ["100:1:4", "0:1:4", "-64:1:4", "64:0:4", "64:1:0", "64:1:4,65:1:4"])
def test_schedules_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="sizes are multiples of 32, epochs and batches at least 1"):
        parse_schedule(text)


def test_learning_rate_warms_up_and_falls(drawn: Drawn, tmp_path: Path) -> None:
    run = joint(drawn, tmp_path, replace(OPTIONS, lr=1.0, warmup_steps=4))
    rates = []
    for run.step in range(4):
        rates.append(run._lr(0.0))
    assert rates == [0.25, 0.5, 0.75, 1.0]
    run.step = 100
    assert run._lr(0.5) == pytest.approx(0.5)
    assert run._lr(1.0) == pytest.approx(0.02)  # never quite nothing


def test_classes_are_weighed_by_how_rare_they_are(drawn: Drawn, tmp_path: Path) -> None:
    """Training labels 0, 1, 2, 0, 1, -, 0: sqrt(6 / 3n)."""
    weight = joint(drawn, tmp_path).class_weight
    torch.testing.assert_close(weight, torch.tensor([(6 / 9) ** 0.5, 1.0, (6 / 3) ** 0.5]))


def test_fewer_images_than_a_batch_are_refused(drawn: Drawn, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="7 training images are fewer than one batch"):
        joint(drawn, tmp_path, replace(OPTIONS, phases=(Phase(64, 1, 8),)))


# --- one run, killed and not


class Watched(Joint):
    """A run that keeps the weights after every step."""

    def _update_average(self) -> None:
        self.__dict__.setdefault("seen", []).append({k: v.clone() for k, v in self.net.state_dict().items()})
        super()._update_average()


@pytest.fixture(scope="module")
def whole(drawn: Drawn, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Two epochs without a break."""
    out = tmp_path_factory.mktemp("whole")
    run = Watched(TINY, OPTIONS, *drawn, PreprocessConfig(size=64), out, say=lambda _: None)
    assert run.run() == out / "model.safetensors"
    return run


def tensors(folder: Path, name: str = "model") -> dict[str, Tensor]:
    return checkpoint.load(folder / f"{name}.safetensors")[0]


def epochs(folder: Path) -> list[dict[str, Any]]:
    """The log's lines of epochs."""
    path = folder / "log.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [r for r in rows if "epoch" in r]


def test_a_run_leaves_a_network_and_a_log(whole: Watched) -> None:
    assert sorted(p.name for p in whole.out.iterdir()) == ["last.safetensors", "log.jsonl", "model.safetensors"]
    weights, config, extra = checkpoint.load(whole.out / "model.safetensors")
    assert config == TINY
    assert (extra["stage"], extra["epoch"], extra["step"]) == ("joint", 2, 4)
    assert extra["sources"] == {"cohen": 3, "nih": 4}
    assert PreprocessConfig.from_dict(extra["preprocessing"]) == PreprocessConfig(size=64)
    with torch.inference_mode():
        logits, severity_map, lungs = checkpoint.network(weights, config)(torch.randn(2, 1, 64, 64))
    assert torch.isfinite(logits).all()
    assert severity_map.shape == (2, 1, 32, 32)
    assert lungs.shape == (2, 2, 32, 32)
    rows = epochs(whole.out)
    assert [r["epoch"] for r in rows] == [1, 2]
    assert rows[0]["severity"] == 0.0  # from the second epoch on
    assert rows[1]["severity"] > 0.0
    assert all(r["diagnosis"] > 0 and r["lungs"] > 0 and r["findings"] > 0 for r in rows)
    assert "dice_lungvae" in rows[1]
    assert "auc" in rows[1]


def test_every_part_has_learnt(whole: Watched, drawn: Drawn, tmp_path: Path) -> None:
    fresh = dict(joint(drawn, tmp_path).net.named_parameters())
    moved = {k.split(".")[0] for k, p in whole.net.named_parameters() if not torch.equal(p, fresh[k])}
    assert moved == {"backbone", "pcam", "encoder", "diagnosis", "severity", "lungs"}


def test_what_is_kept_is_the_average(whole: Watched, drawn: Drawn, tmp_path: Path) -> None:
    """a <- keep a + (1 - keep) w with keep = min(0.99, t / (t + 10)); counters are copied."""
    average = {k: v.clone() for k, v in joint(drawn, tmp_path).net.state_dict().items()}
    seen: list[dict[str, Tensor]] = whole.__dict__["seen"]
    assert len(seen) == 4
    for t, weights in enumerate(seen, 1):
        keep = min(0.99, t / (t + 10))
        for k, v in weights.items():
            average[k] = keep * average[k] + (1 - keep) * v if v.is_floating_point() else v
    last, kept = tensors(whole.out, "last"), tensors(whole.out)
    for k, v in average.items():
        torch.testing.assert_close(last[f"average.{k}"], v, rtol=1e-4, atol=1e-6)
    for k, _ in whole.net.named_parameters():
        assert torch.equal(kept[k], last[f"average.{k}"])
    assert not torch.equal(kept["diagnosis.weight"], seen[-1]["diagnosis.weight"])


def test_the_same_seed_gives_the_same_weights(whole: Watched, drawn: Drawn, tmp_path: Path) -> None:
    joint(drawn, tmp_path / "a").run()
    again, wanted = tensors(tmp_path / "a"), tensors(whole.out)
    assert all(torch.equal(again[k], wanted[k]) for k in wanted)


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {here!r}]
import torch
torch.set_num_threads(1)
from pathlib import Path
import test_joint
from train_files import draw

class Killed(test_joint.Joint):
    def _update_average(self):
        super()._update_average()
        if self.step == 3:  # in the middle of the second epoch
            os.kill(os.getpid(), signal.SIGKILL)

from cxrvit_edge.preprocess import PreprocessConfig
Killed(test_joint.TINY, test_joint.OPTIONS, *draw(), PreprocessConfig(size=64), Path(sys.argv[1])).run()
"""


def test_a_killed_run_ends_as_if_it_had_not_been(whole: Watched, drawn: Drawn, tmp_path: Path) -> None:
    """SIGKILL in the second epoch, then the same call again: the same weights, bit for bit."""
    code = KILLED.format(root=str(ROOT), here=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.safetensors", "log.jsonl"]

    said: list[str] = []
    run = Joint(TINY, OPTIONS, *drawn, PreprocessConfig(size=64), tmp_path, say=said.append)
    run.run()
    assert said[0] == "resumed after epoch 1 of 2"
    for name in ("model", "last"):
        found, wanted = tensors(tmp_path, name), tensors(whole.out, name)
        assert set(found) == set(wanted)
        assert [k for k in wanted if not torch.equal(found[k], wanted[k])] == []
    assert [r["epoch"] for r in epochs(tmp_path)] == [1, 2]


def test_a_finished_run_is_not_trained_again(whole: Watched, drawn: Drawn, tmp_path: Path) -> None:
    (tmp_path / "last.safetensors").write_bytes((whole.out / "last.safetensors").read_bytes())
    joint(drawn, tmp_path).run()
    again, wanted = tensors(tmp_path), tensors(whole.out)
    assert all(torch.equal(again[k], wanted[k]) for k in wanted)
    assert epochs(tmp_path) == []


@pytest.mark.parametrize("change", ["seed", "phases", "augmentation", "preset"])
def test_a_run_is_not_resumed_with_other_options(whole: Watched, drawn: Drawn, tmp_path: Path, change: str) -> None:
    before = (whole.out / "last.safetensors").read_bytes()
    (tmp_path / "last.safetensors").write_bytes(before)
    other: dict[str, Any] = {
        "seed": {"seed": 4},
        "phases": {"phases": (Phase(64, 3, 3),)},
        "augmentation": {"augmentation": replace(OPTIONS.augmentation, noise=0.5)},
        "preset": {},
    }
    config = replace(TINY, layers=2) if change == "preset" else TINY
    with pytest.raises(UsageError, match="made with another preset or options; name another --out or delete it"):
        joint(drawn, tmp_path, replace(OPTIONS, **other[change]), config).run()
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_a_damaged_checkpoint_is_not_resumed(whole: Watched, drawn: Drawn, tmp_path: Path) -> None:
    (tmp_path / "last.safetensors").write_bytes((whole.out / "last.safetensors").read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"last\.safetensors: damaged"):
        joint(drawn, tmp_path).run()


def test_a_loss_that_is_not_finite_ends_the_run(drawn: Drawn, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"loss is not finite at epoch 1, step \d; lower --lr \(now 1e\+30\)"):
        joint(drawn, tmp_path, replace(OPTIONS, lr=1e30, warmup_steps=1)).run()
    assert not (tmp_path / "model.safetensors").exists()


def test_nothing_known_of_a_batch_is_no_loss(drawn: Drawn, tmp_path: Path) -> None:
    """Records without labels, findings, lungs and scores train nothing, and stop nothing."""
    records, cache = drawn
    blank = np.full(10, np.nan, np.float32)
    unknown = [
        replace(r, label=None, brixia=None, lungs=None, lungs_kind=None, findings=blank, split="train") for r in records
    ]
    options = replace(OPTIONS, phases=(Phase(64, 1, 10),), augmentation=replace(OPTIONS.augmentation, negative=0.0))
    run = joint((unknown, cache), tmp_path, options)
    losses = run._one_epoch(options.phases[0])
    assert losses == {"lungs": 0.0, "severity": 0.0, "diagnosis": 0.0, "findings": 0.0}


# --- the command


def test_the_command_trains_a_folder(folder: Folder, tmp_path: Path) -> None:
    """As CONTRIBUTING has it, small: finishes, keeps to the licences, and what it writes is a network."""
    out = tmp_path / "runs" / "tiny"
    command = [sys.executable, "-W", "error", "-m", "train", "joint", "--data", str(folder.root), "--out", str(out)]
    command += ["--schedule", "64:1:4", "--threads", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out / "model.safetensors")
    assert "11 images" in done.stderr
    weights, config, extra = checkpoint.load(out / "model.safetensors")
    assert config.preset == "edge"
    assert (extra["epoch"], extra["step"]) == (1, 1)
    assert sum(extra["sources"].values()) == 7  # one of eight may not be used
    assert checkpoint.network(weights, config).config == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedule", "64"], "write size:epochs:batch"),
        (["--preset", "huge"], "no preset 'huge'"),
        (["--data", "nowhere"], r"manifest.csv: not found"),
        (["--schedule", "64:1:99"], "7 training images are fewer than one batch"),
    ],
)
def test_wrong_use_is_a_message_and_exit_code_2(
    folder: Folder,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"--data": str(folder.root), "--out": str(tmp_path / "run"), "--schedule": "64:1:4"}
    options |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    monkeypatch.setattr(sys, "argv", ["train", "joint", *(a for pair in options.items() for a in pair)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
