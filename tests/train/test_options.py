"""The command line of training: each option once, wrong values named, and that a value reaches the recipe."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from train_files import Folder
from typer.testing import CliRunner

from train import options, stages
from train.__main__ import STAGES, app, main
from train.recipe import PAPER, SHORT, Phase

ROOT = Path(__file__).resolve().parents[2]
WIDE = {"COLUMNS": "160", "TERM": "dumb", "NO_COLOR": "1"}


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# Help


@pytest.mark.parametrize("stage", STAGES)
def test_help_names_each_option_once_in_its_panel(stage: str) -> None:
    result = CliRunner().invoke(app, [stage, "--help"], env=WIDE)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    offered = re.findall(r"^\W*(--[a-z-]+)\b", result.stdout, re.MULTILINE)
    wanted = {**options.SHARED, **options.OWN[stage]}
    assert sorted(offered) == sorted([*map(flag, wanted), "--help"])
    for panel in ("Data", "Network and where it starts", "Recipe (default: the preset's)", "Run"):
        assert sum(f"─ {panel} ─" in line for line in lines) == 1
    assert any("─ This stage ─" in line for line in lines) == (stage in ("diagnosis", "severity", "simclr", "joint"))
    example = next(line for line in lines if "Example:" in line)
    assert f"python -m train {stage} " in example
    assert "--data" in example


def test_the_example_of_each_stage_is_one_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options parse, its network and its recipe are there; the data is not, so it is not run."""
    for stage, doc in STAGES.items():
        words = doc.split("Example: python -m train ")[1].split()
        values = parsed(monkeypatch, *words)
        assert stages.network_config(stage, values).network in stages.NETWORKS[stage]
        assert stages.recipe_of(stage, values).phases


def test_the_first_help_lists_every_verb() -> None:
    result = CliRunner().invoke(app, ["--help"], env=WIDE)
    assert all(re.search(rf"^\W*{stage} ", result.stdout, re.MULTILINE) for stage in STAGES)


def test_help_loads_no_torch() -> None:
    code = "import sys, train.__main__; sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# From words to a recipe


def parsed(monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    """The values that the command hands to stages.run."""
    got: list[tuple[str, dict[str, Any]]] = []

    def run(stage: str, values: dict[str, Any], say: object) -> Path:
        got.append((stage, values))
        return Path("weights")

    monkeypatch.setattr(stages, "run", run)
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == "weights"
    assert got[0][0] == words[0]
    return got[0][1]


def test_values_reach_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = (
        *("--schedule", "256:3e:8,512:40:4", "--optimizer", "sgd", "--lr", "0.25", "--momentum", "0.8"),
        *("--weight-decay", "0.125", "--decay", "step", "--warmup", "7", "--clip", "2", "--accumulate", "2"),
        *("--ema", "0.5", "--precision", "bf16", "--freeze", "batchnorm", "--balance", "--no-augment"),
        *("--encoder-rate", "0.25", "--validate", "11", "--patience", "4", "--seed", "9"),
    )
    values = parsed(monkeypatch, "diagnosis", "--data", "a", "--data", "nih=b", "--out", "run", *recipe)
    assert values["data"] == ["a", "nih=b"]
    r = stages.recipe_of("diagnosis", values)
    assert r.phases == (Phase(256, 3, 8, epochs=True), Phase(512, 40, 4))
    assert (r.optimizer, r.lr, r.momentum, r.weight_decay) == ("sgd", 0.25, 0.8, 0.125)
    assert (r.decay, r.warmup, r.clip, r.accumulate, r.ema) == ("step", 7, 2.0, 2, 0.5)
    assert (r.precision, r.freeze, r.balance, r.augmentation) == ("bf16", "batchnorm", True, None)
    assert (r.encoder_rate, r.validate, r.patience, r.seed) == (0.25, 11, 4, 9)


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_not_given_is_the_presets(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for preset, recipes in (("paper", PAPER), ("edge", SHORT)):
        values = parsed(monkeypatch, stage, "--data", "a", "--out", "run", "--preset", preset)
        r = stages.recipe_of(stage, values)
        wanted, given = recipes[stage].to_dict(), r.to_dict()
        assert {k: v for k, v in given.items() if k != "augmentation"} == {
            k: v for k, v in wanted.items() if k != "augmentation"
        }
        assert r.augmentation is not None
        # films turned on their side are for those who must not find lungs in them
        assert (r.augmentation.negative > 0) == (stage in ("lungs", "joint"))
        config = stages.network_config(stage, values)
        assert config.preset == preset
        assert config.layers == (12 if preset == "paper" else 2)


def test_values_reach_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ("--image-size", "1024", "--layers", "3", "--heads", "2", "--width", "64", "--corpus", "after-3")
    config = stages.network_config("diagnosis", parsed(monkeypatch, "diagnosis", "--data", "a", "--out", "r", *sizes))
    assert (config.image_size, config.trunk_size, config.stride, config.grid) == (1024, 128, 32, 4)
    assert (config.layers, config.heads, config.width, config.corpus) == (3, 2, 64, "after-3")
    whole = parsed(monkeypatch, "diagnosis", "--data", "a", "--out", "r", *sizes, "--trunk-size", "0")
    config = stages.network_config("diagnosis", whole)
    assert (config.image_size, config.trunk_size, config.stride, config.grid) == (1024, 0, 64, 16)
    baseline = ("--network", "resnet50", "--image-size", "1024")
    config = stages.network_config("severity", parsed(monkeypatch, "severity", "--data", "a", "--out", "r", *baseline))
    assert (config.network, config.trunk_size, config.stride) == ("resnet50", 0, 32)


def test_values_reach_the_loader_and_what_is_said_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ("--brixia-threshold", "2", "--normal-weight", "0.5", "--roi", "average", "--workers", "3")
    values = parsed(monkeypatch, "severity", "--data", "a", "--out", "r", *own, "--view", "PA", "--leave-out", "amc")
    loading = stages.loading_of("severity", values)
    assert loading == {"brixia_threshold": 2.0, "normal_weight": 0.5, "workers": 3, "views": 1}
    about = stages.about("severity", values)
    assert about["pooling"] == "average"
    assert about["brixia_threshold"] == 2.0
    assert (about["view"], about["leave_out"], about["init"]) == ("PA", ["amc"], None)
    assert stages.loading_of("simclr", parsed(monkeypatch, "simclr", "--data", "a", "--out", "r"))["views"] == 2


# Wrong values

WRONG = [
    ("diagnosis", "--schedule", "64", "schedule '64': write size:steps:batch"),
    ("diagnosis", "--schedule", "1024:1:2", "--schedule asks for more than the 512 pixels"),
    ("diagnosis", "--preset", "huge", "no preset 'huge': choose one of paper"),
    ("diagnosis", "--network", "unet", "--network unet: stage diagnosis trains cxrvit"),
    ("backbone", "--network", "vit", "--network vit: stage backbone trains cxrvit"),
    ("diagnosis", "--corpus", "after-2", "corpus 'after-2': choose one of before"),
    ("diagnosis", "--image-size", "500", "image_size 500 is not a multiple of 32"),
    ("diagnosis", "--image-size", "0", "--image-size"),
    ("diagnosis", "--heads", "5", "width 384 is not a multiple of heads 5"),
    ("diagnosis", "--layers", "0", "--layers"),
    ("diagnosis", "--optimizer", "lion", "--optimizer lion: choose one of adam"),
    ("diagnosis", "--decay", "linear", "--decay linear: choose one of constant"),
    ("diagnosis", "--precision", "fp8", "--precision fp8: choose one of auto"),
    ("diagnosis", "--freeze", "all", "--freeze all: choose one of none"),
    ("diagnosis", "--accumulate", "3", "--accumulate 3: every batch"),
    ("diagnosis", "--lr", "-1", "--lr above 0"),
    ("diagnosis", "--lr", "fast", "--lr"),
    ("diagnosis", "--clip", "-1", "--clip and --weight-decay are not negative"),
    ("diagnosis", "--seed", "-1", "--seed -1"),
    ("diagnosis", "--view", "lateral", "--view lateral: choose one of any, PA, AP"),
    ("diagnosis", "--uncertain", "half", "--uncertain half: choose one of ones"),
    ("diagnosis", "--absent", "maybe", "--absent maybe: choose one of error, skip"),
    ("diagnosis", "--mask-kind", "mine", "--mask-kind mine: choose one of generalblockchain"),
    (
        "diagnosis",
        "--device",
        "gpu",
        "--device gpu: choose one of auto, cpu, cuda|--device gpu: choose auto, cpu or cuda",
    ),
    ("diagnosis", "--threads", "-1", "--threads"),
    ("diagnosis", "--workers", "0", "--workers"),
    ("diagnosis", "--label-smoothing", "2", "--label-smoothing"),
    ("diagnosis", "--source", "nowhere", "no image is left"),
    ("diagnosis", "--leave-out", "nowhere", "no source 'nowhere' to leave out; there are cohen, nih"),
    ("severity", "--roi", "median", "--roi median: choose one of max, average"),
    ("severity", "--normal-weight", "-1", "--normal-weight"),
    ("simclr", "--temperature", "0", "--temperature"),
    ("simclr", "--no-augment", "", "--no-augment: simclr tells two augmentations"),
    ("summary", "--view", "lateral", "--view lateral: choose one of any, PA, AP"),
]


@pytest.mark.parametrize(("stage", "option", "value", "message"), WRONG, ids=[f"{w[0]}{w[1]} {w[2]}" for w in WRONG])
def test_wrong_values_are_named_and_exit_code_2(
    stage: str, option: str, value: str, message: str,
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = () if stage == "summary" else ("--out", str(tmp_path / "run"))
    command = ["train", stage, "--data", str(folder.root), *out, option, *([value] if value else [])]
    monkeypatch.setattr(sys, "argv", command)
    for name, text in WIDE.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert re.search("|".join(map(re.escape, message.split("|"))), capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()  # nothing was read before it was seen


@pytest.mark.parametrize("missing", ["--data", "--out"])
def test_what_a_run_needs_is_asked_for(missing: str) -> None:
    given = {"--data": "a", "--out": "b"}
    del given[missing]
    result = CliRunner().invoke(app, ["diagnosis", *(w for pair in given.items() for w in pair)], env=WIDE)
    assert result.exit_code == 2
    assert missing in result.stderr


def test_data_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "joint", "--data", str(tmp_path / "x"), "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert f"error: {tmp_path / 'x'}: no such file or folder" in capsys.readouterr().err


def test_a_verb_that_is_not_there_is_an_error_and_its_message() -> None:
    result = CliRunner().invoke(app, ["pretrain"], env=WIDE)
    assert result.exit_code == 2
    assert "pretrain" in result.stderr


def test_the_command_as_it_is_typed(folder: Folder, tmp_path: Path) -> None:
    """The module, from a shell: the message alone, no traceback."""
    command = [sys.executable, "-m", "train", "diagnosis", "--data", str(folder.root), "--out", str(tmp_path / "run")]
    done = subprocess.run([*command, "--view", "up"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: --view up: choose one of any, PA, AP\n"
