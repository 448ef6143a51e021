"""A run: what it leaves, that it goes on where it was, and that it stops when it should."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cxrvit_edge.errors import BundleError, UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.triage_net import TriageNet
from cxrvit_edge.preprocess import PreprocessConfig
from train.augment import Augmentation
from train.cache import ImageCache
from train.data.record import Record
from train.loader import Batch
from train.objective import Term
from train.objectives.joint import Joint, Weights
from train.recipe import Recipe, parse_schedule
from train.stopping import Interrupted
from train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_torch_thread")

ROOT = Path(__file__).resolve().parents[2]
TINY = NetworkConfig("edge", layers=1, heads=2, width=16, image_size=64, map_widths=(8, 4, 4), lung_widths=(8, 8, 8, 8))
RECIPE = Recipe(parse_schedule("64:2e:3"), warmup=2, ema=0.9, seed=3, lr=1e-3)

Drawn = tuple[list[Record], ImageCache]


class Told(Joint):
    """The joint objective whose validation says what it is told, and that can fail at a step."""

    figures: list[float]
    fail: tuple[int, Exception] | None = None
    send: tuple[int, int] | None = None

    def forward(self, batch: Batch, step: int) -> dict[str, Term]:
        if self.fail and step == self.fail[0]:
            raise self.fail[1]
        if self.send and step == self.send[0]:
            os.kill(os.getpid(), self.send[1])
        return super().forward(batch, step)

    def validate(self, net: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        if not hasattr(self, "figures"):
            return super().validate(net, batches)
        return {"auc": self.figures.pop(0)}


def objective(config: NetworkConfig = TINY, **told: Any) -> Told:
    torch.manual_seed(3)
    out = Told(TriageNet(config), torch.ones(3), Weights(severity_from=1))
    for name, value in told.items():
        setattr(out, name, value)
    return out


def trainer(drawn: Drawn, out: Path, recipe: Recipe = RECIPE, config: NetworkConfig = TINY, **told: Any) -> Trainer:
    preprocessing = PreprocessConfig(size=64)
    return Trainer(objective(config, **told), config, recipe, *drawn, preprocessing, out, say=lambda _: None)


def tensors(folder: Path, name: str = "model") -> dict[str, Tensor]:
    return checkpoint.load(folder / f"{name}.safetensors")[0]


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def whole(drawn: Drawn, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Two epochs of two steps without a break."""
    run = trainer(drawn, tmp_path_factory.mktemp("whole"))
    assert run.run() == run.out / "model.safetensors"
    return run


# What it leaves


def test_a_run_leaves_a_network_and_a_log(whole: Trainer) -> None:
    names = ["last.safetensors", "model.safetensors", "steps.csv", "validation.csv"]
    assert sorted(p.name for p in whole.out.iterdir()) == names
    weights, config, extra = checkpoint.load(whole.out / "model.safetensors")
    assert config == TINY and extra["stage"] == "joint" and extra["steps"] == 4
    assert extra["sources"] == {"cohen": 3, "nih": 4}
    assert PreprocessConfig.from_dict(extra["preprocessing"]) == PreprocessConfig(size=64)
    with torch.inference_mode():
        logits, severity_map, lungs, _ = checkpoint.network(weights, config)(torch.randn(2, 1, 64, 64))
    assert torch.isfinite(logits).all()
    assert severity_map.shape == (2, 1, 32, 32) and lungs.shape == (2, 2, 32, 32)
    (step,) = rows(whole.out / "steps.csv")
    assert step["step"] == "4" and all(float(step[k]) > 0 for k in ("diagnosis", "severity", "findings", "lungs", "lr"))
    judged = [(r["step"], r["weights"]) for r in rows(whole.out / "validation.csv")]
    assert judged == [("2", "average"), ("4", "average"), ("4", "last")]


def test_every_part_has_learnt(whole: Trainer) -> None:
    fresh = dict(objective().net.named_parameters())
    moved = {k.split(".")[0] for k, p in whole.objective.net.named_parameters() if not torch.equal(p, fresh[k])}
    assert moved == {"backbone", "pcam", "encoder", "diagnosis", "severity", "lungs"}


def test_the_average_follows_the_weights(drawn: Drawn, tmp_path: Path) -> None:
    """a <- keep a + (1 - keep) w with keep = min(ema, t / (t + 10))."""

    class Watched(Trainer):
        def _update_average(self) -> None:
            seen.append({k: v.clone() for k, v in self.objective.net.state_dict().items()})
            super()._update_average()

    seen: list[dict[str, Tensor]] = []
    run = Watched(objective(), TINY, RECIPE, *drawn, PreprocessConfig(size=64), tmp_path, say=lambda _: None)
    assert run.average is not None
    wanted = {k: v.clone() for k, v in run.average.state_dict().items()}
    run.run()
    for t, weights in enumerate(seen, 1):
        keep = min(0.9, t / (t + 10))
        wanted = {k: keep * wanted[k] + (1 - keep) * v if v.is_floating_point() else v for k, v in weights.items()}
    found = tensors(tmp_path, "last")
    for k, v in wanted.items():
        if v.is_floating_point():
            torch.testing.assert_close(found[f"average.{k}"], v, rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_weights(whole: Trainer, drawn: Drawn, tmp_path: Path) -> None:
    trainer(drawn, tmp_path).run()
    assert same(tensors(tmp_path, "last"), tensors(whole.out, "last"))


# What is kept


@pytest.mark.parametrize(("higher", "kept"), [(True, 0.8), (False, 0.6)])
def test_the_best_weights_are_kept(drawn: Drawn, tmp_path: Path, higher: bool, kept: float) -> None:
    recipe = replace(RECIPE, ema=0.0, validate=1)
    run = trainer(drawn, tmp_path, recipe, figures=[0.7, 0.8, 0.6, 0.65], higher=higher)
    run.run()
    extra = checkpoint.load(tmp_path / "model.safetensors")[2]
    assert extra["validation"] == {"auc": kept} and extra["step"] == (2 if higher else 3)
    assert not same(tensors(tmp_path), dict(run.objective.net.state_dict()))


def test_a_later_phase_is_judged_anew(drawn: Drawn, tmp_path: Path) -> None:
    """0.9 at 32 pixels is no reason to keep those weights when the run ends at 64."""
    recipe = replace(RECIPE, ema=0.0, phases=parse_schedule("32:2:3,64:1:3"), validate=1)
    trainer(drawn, tmp_path, recipe, figures=[0.9, 0.8, 0.5]).run()
    assert checkpoint.load(tmp_path / "model.safetensors")[2]["validation"] == {"auc": 0.5}


def test_patience_ends_a_run(drawn: Drawn, tmp_path: Path) -> None:
    recipe = replace(RECIPE, ema=0.0, phases=parse_schedule("64:9:3"), validate=1, patience=2)
    said: list[str] = []
    run = trainer(drawn, tmp_path, recipe, figures=[0.5, 0.7, 0.6, 0.7, 0.9])
    run.say = said.append
    run.run()
    assert run.step == 4 and said[-1] == "no gain in 2 validations: stopped at step 4"
    assert checkpoint.load(tmp_path / "model.safetensors")[2]["step"] == 2


def test_a_figure_that_is_not_defined_is_no_gain(drawn: Drawn, tmp_path: Path) -> None:
    """The newest weights are kept until one is defined; patience runs all the same."""
    recipe = replace(RECIPE, ema=0.0, phases=parse_schedule("64:9:3"), validate=1, patience=3)
    run = trainer(drawn, tmp_path / "a", recipe, figures=[math.nan] * 9)
    run.run()
    assert run.step == 3 and checkpoint.load(tmp_path / "a" / "model.safetensors")[2]["step"] == 3
    run = trainer(drawn, tmp_path / "b", recipe, figures=[math.nan, 0.6, math.nan, 0.5, math.nan])
    run.run()
    assert run.step == 5 and checkpoint.load(tmp_path / "b" / "model.safetensors")[2]["step"] == 2


def test_without_val_the_last_weights_are_kept(drawn: Drawn, tmp_path: Path) -> None:
    records, cache = drawn
    train_only = [r if r.split == "train" else replace(r, split="test") for r in records]
    run = trainer((train_only, cache), tmp_path, replace(RECIPE, ema=0.0))
    run.run()
    assert same(tensors(tmp_path), run.objective.net.state_dict())


# Going on

KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {here!r}]
import torch
torch.set_num_threads(1)
from pathlib import Path
import test_trainer
import train.stopping
import train.trainer
from train_files import draw

train.trainer.SAVE_EVERY = 0.0  # after every step
run = test_trainer.trainer(draw(), Path(sys.argv[1]), send=({step}, signal.{signal}))
try:
    run.run()
except train.stopping.Interrupted as stopped:
    print(stopped)
    sys.exit(130)
"""


@pytest.mark.parametrize(("name", "step", "code"), [("SIGKILL", 1, -9), ("SIGKILL", 3, -9), ("SIGTERM", 2, 130)])
def test_a_stopped_run_ends_as_if_it_had_not_been(
    whole: Trainer, drawn: Drawn, tmp_path: Path, name: str, step: int, code: int
) -> None:
    """In the middle of an epoch, then the same call again: the same weights, bit for bit."""
    script = KILLED.format(root=str(ROOT), here=str(Path(__file__).parent), step=step, signal=name)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    saved = step if name == "SIGKILL" else step + 1  # a SIGTERM lets the step end
    assert checkpoint.load(tmp_path / "last.safetensors")[2]["step"] == saved
    said: list[str] = []
    run = trainer(drawn, tmp_path)
    run.say = said.append
    run.run()
    assert said[0] == f"goes on after step {saved} of 4"
    for kept in ("model", "last"):
        assert same(tensors(tmp_path, kept), tensors(whole.out, kept)), kept
    assert [r["step"] for r in rows(tmp_path / "validation.csv")] == ["2", "4", "4"]
    assert [r["step"] for r in rows(tmp_path / "steps.csv")] == ["4"]
    assert not list(tmp_path.glob("*.part"))


def test_ctrl_c_ends_after_the_step_and_saves(drawn: Drawn, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped after step 2; run it again to go on"):
        trainer(drawn, tmp_path, send=(1, signal.SIGINT)).run()
    assert checkpoint.load(tmp_path / "last.safetensors")[2]["step"] == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_is_not_trained_again(whole: Trainer, drawn: Drawn, tmp_path: Path) -> None:
    for path in whole.out.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    trainer(drawn, tmp_path, fail=(0, AssertionError("a step was made"))).run()
    assert same(tensors(tmp_path), tensors(whole.out))


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 4},
    "phases": {"phases": parse_schedule("64:3e:3")},
    "augmentation": {"augmentation": Augmentation(noise=0.5)},
    "rate": {"lr": 2e-3},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_go_on_with_another_recipe(whole: Trainer, drawn: Drawn, tmp_path: Path, change: str) -> None:
    before = (whole.out / "last.safetensors").read_bytes()
    (tmp_path / "last.safetensors").write_bytes(before)
    with pytest.raises(UsageError, match="unfinished run with another recipe; name another --out, or --fresh"):
        trainer(drawn, tmp_path, replace(RECIPE, **CHANGES[change])).run()
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_a_run_does_not_go_on_with_other_data_or_another_network(whole: Trainer, drawn: Drawn, tmp_path: Path) -> None:
    (tmp_path / "last.safetensors").write_bytes((whole.out / "last.safetensors").read_bytes())
    records, cache = drawn
    other = [replace(r, label=2) if i == 0 else r for i, r in enumerate(records)]
    with pytest.raises(UsageError, match="another data;"):
        trainer((other, cache), tmp_path).run()
    with pytest.raises(UsageError, match="another network"):
        trainer(drawn, tmp_path, config=replace(TINY, layers=2)).run()


def test_a_damaged_checkpoint_is_named(whole: Trainer, drawn: Drawn, tmp_path: Path) -> None:
    (tmp_path / "last.safetensors").write_bytes((whole.out / "last.safetensors").read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"last\.safetensors: damaged"):
        trainer(drawn, tmp_path).run()


# What stops it


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_lower(drawn: Drawn, tmp_path: Path, error: Exception) -> None:
    with pytest.raises(UsageError, match=r"3 images of 64 pixels at once; raise --accumulate \(now 1\)"):
        trainer(drawn, tmp_path, fail=(1, error)).run()


def test_another_error_is_not_taken_for_it(drawn: Drawn, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        trainer(drawn, tmp_path, fail=(1, RuntimeError("shapes do not fit"))).run()


def test_a_loss_that_is_not_finite_ends_the_run(drawn: Drawn, tmp_path: Path) -> None:
    recipe = replace(RECIPE, lr=1e30, warmup=0, clip=0.0)
    with pytest.raises(UsageError, match=r"is not finite at step \d; lower --lr \(now 1e\+30\)"):
        trainer(drawn, tmp_path, recipe).run()
    assert not (tmp_path / "model.safetensors").exists()


def test_batches_that_cannot_be_split_are_refused(drawn: Drawn, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--accumulate 2: every batch"):
        replace(RECIPE, accumulate=2)
    with pytest.raises(UsageError, match="7 training images are fewer than one batch of 8"):
        trainer(drawn, tmp_path, replace(RECIPE, phases=parse_schedule("64:1e:8")))


# How it steps


def gradients_off(drawn: Drawn, out: Path, recipe: Recipe) -> Trainer:
    """After its run, with augmentation and the average off, statistics frozen, plain descent."""
    plain = {"optimizer": "sgd", "momentum": 0.0, "clip": 0.0, "weight_decay": 0.0, "warmup": 0, "ema": 0.0}
    run = trainer(drawn, out, replace(recipe, **plain, freeze="batchnorm", augmentation=None))
    run.run()
    return run


def test_micro_batches_take_the_step_of_the_whole_batch(drawn: Drawn, tmp_path: Path) -> None:
    """Where every image knows everything: weights are per micro-batch."""
    records, cache = drawn
    full = [
        replace(r, label=i % 3, findings=torch.zeros(10).numpy(), lungs=Path("m.png")) for i, r in enumerate(records)
    ]
    full = [replace(r, brixia=None, label=r.label or 1) for r in full]  # no zones: they weigh by their number
    recipe = replace(RECIPE, phases=parse_schedule("64:2:4"), lr=0.1)
    one = gradients_off((full, cache), tmp_path / "1", recipe).objective.net.state_dict()
    two = gradients_off((full, cache), tmp_path / "2", replace(recipe, accumulate=2)).objective.net.state_dict()
    for k in one:
        torch.testing.assert_close(two[k], one[k], rtol=1e-4, atol=1e-5, msg=k)


def test_the_encoder_steps_by_its_share_of_the_rate(drawn: Drawn, tmp_path: Path) -> None:
    recipe = replace(RECIPE, phases=parse_schedule("64:1:4"), lr=0.1)
    moved = []
    for rate in (1.0, 0.25):
        run = gradients_off(drawn, tmp_path / str(rate), replace(recipe, encoder_rate=rate))
        moved.append(run.objective.net.state_dict())
    start = dict(trainer(drawn, tmp_path / "start", recipe).objective.net.named_parameters())
    for k, value in start.items():
        share = 0.25 if k.startswith("encoder.") else 1.0
        torch.testing.assert_close(moved[1][k] - value, share * (moved[0][k] - value), rtol=1e-3, atol=1e-6, msg=k)
    assert any(not torch.equal(moved[0][k], v) for k, v in start.items() if k.startswith("encoder."))


@pytest.mark.parametrize("freeze", ["none", "batchnorm", "backbone"])
def test_what_is_frozen_stays(drawn: Drawn, tmp_path: Path, freeze: str) -> None:
    run = trainer(drawn, tmp_path, replace(RECIPE, freeze=freeze, ema=0.0, phases=parse_schedule("64:1:3")))
    before = {k: v.clone() for k, v in run.objective.net.state_dict().items()}
    run.run()
    after = run.objective.net.state_dict()
    moved = [k for k in before if not torch.equal(before[k], after[k])]
    statistics = [k for k in moved if "running_" in k]
    if freeze == "none":
        assert statistics and any(k.startswith("backbone.") for k in moved)
    if freeze == "batchnorm":
        assert not statistics and any(k.startswith("backbone.") for k in moved)
    if freeze == "backbone":
        assert not [k for k in moved if k.startswith("backbone.")] and statistics  # of the heads


def test_bfloat16_runs_on_a_cpu_and_fp16_is_refused(drawn: Drawn, tmp_path: Path) -> None:
    recipe = replace(RECIPE, precision="bf16", phases=parse_schedule("64:1:3"))
    trainer(drawn, tmp_path, recipe).run()
    assert all(v.dtype == torch.float32 for k, v in tensors(tmp_path).items() if v.is_floating_point())
    with pytest.raises(UsageError, match="--precision fp16 is for a GPU"):
        trainer(drawn, tmp_path, replace(RECIPE, precision="fp16"))


def test_tensorboard_has_the_same_figures(drawn: Drawn, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trainer(drawn, tmp_path, replace(RECIPE, ema=0.0))
    run.tensorboard = True
    run.run()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (row,) = rows(tmp_path / "steps.csv")
    (loss,) = events.Scalars("train/diagnosis")
    assert loss.step == 4 and math.isclose(loss.value, float(row["diagnosis"]), rel_tol=1e-4)
    assert len(events.Scalars("validation_last/auc")) == 2
