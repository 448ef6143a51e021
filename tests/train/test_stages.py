"""Every stage, baseline and ablation takes a few steps, on generated films in every data set's real layout."""

from __future__ import annotations

from pathlib import Path

import chexpert_files
import dataset_files
import pytest
import torch
from small_bundle import Exported
from stage_runs import STEPS, TINY, train
from typer.testing import CliRunner

from cxrvit_edge.model.config import BASELINES
from train.__main__ import app

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One small folder in the layout of each data set."""
    root = tmp_path_factory.mktemp("data")
    table = chexpert_files.rows(9)
    out = {f"chexpert {k}": chexpert_files.make(root / f"chexpert-{k}", table, k) for k in ("spaces", "underscores")}
    out["nih"] = dataset_files.make_nih(root / "nih")[0]
    out["padchest"] = dataset_files.make_padchest(root / "padchest")[0]
    out["bimcv"] = dataset_files.make_bimcv(root / "bimcv")
    out["brixia"] = dataset_files.make_brixia(root / "brixia")[0]
    out["cohen"], rows = dataset_files.make_cohen(root / "cohen")
    dataset_files.write_annotations(out["cohen"] / "public-annotations.csv", [r["filename"] for r in rows[:8]])
    zones = {
        f"zone_{row}_image_{side}": [str((i + k) % 2) for i in range(12)]
        for k, row in enumerate(("upper", "middle", "lower"))
        for side in ("left", "right")
    }
    out["hospital"] = dataset_files.make_hospital(root / "hospital", 12, **zones)[0]
    return {name: str(path) for name, path in out.items()}


LAYOUTS = [
    ("chexpert spaces", "backbone"),
    ("chexpert underscores", "backbone"),
    ("nih", "backbone"),
    ("nih", "diagnosis"),
    ("padchest", "backbone"),
    ("padchest", "diagnosis"),
    ("bimcv", "diagnosis"),
    ("brixia", "severity"),
    ("cohen", "diagnosis"),
    ("cohen", "severity"),
    ("hospital", "diagnosis"),
    ("hospital", "severity"),
    ("hospital", "simclr"),
    ("hospital", "joint"),
]


@pytest.mark.parametrize(("layout", "stage"), LAYOUTS)
def test_a_stage_runs_on_each_layout(layout: str, stage: str, folders: dict[str, str], tmp_path: Path) -> None:
    """A diagnosis needs two classes, which most public sets have not: a hospital's images stand beside them."""
    beside = ("--data", folders["hospital"]) if stage == "diagnosis" and layout != "hospital" else ()
    done = train(stage, folders[layout], tmp_path / "run", *beside)
    assert set(done.extra["sources"]) - ({"hospital"} if beside else set()) == {layout.split()[0]}
    assert (tmp_path / "run" / "steps.csv").is_file()


def test_several_sets_train_one_network(folders: dict[str, str], tmp_path: Path) -> None:
    extra = ("--data", folders["nih"], "--data", f"bimcv={folders['bimcv']}", "--view", "PA")
    done = train("diagnosis", folders["cohen"], tmp_path / "run", *extra)
    assert set(done.extra["sources"]) <= {"cohen", "nih", "bimcv"} and len(done.extra["sources"]) > 1
    assert done.extra["about"]["view"] == "PA" and "view" in done.said


LONG = [(n, "severity") for n in ("densenet121", "resnet50", "hybrid")]  # ten seconds each; vit stands for them
PAIRS = [(n, s) for n in BASELINES for s in ("diagnosis", "severity")] + [
    ("densenet121", "backbone"),
    ("vit", "simclr"),
    ("hybrid", "simclr"),
]


@pytest.mark.parametrize(
    ("network", "stage"),
    [pytest.param(n, s, marks=[pytest.mark.slow] if n == "resnet152" or (n, s) in LONG else []) for n, s in PAIRS],
)
def test_a_baseline_runs_in_each_stage(network: str, stage: str, folders: dict[str, str], tmp_path: Path) -> None:
    if network.startswith(("resnet", "hybrid")):
        pytest.importorskip("monai", reason="monai is not installed")
    data = folders["nih" if stage == "backbone" else "hospital"]
    done = train(stage, data, tmp_path / "run", "--network", network)
    assert done.config.network == network


ABLATIONS: dict[str, tuple[str, ...]] = {  # Table 9 and 10, one option each
    "2 layers, 4 heads": ("--preset", "small"),
    "4 layers, 8 heads": ("--preset", "medium"),
    "1 map": ("--corpus", "after-1"),
    "3 maps": ("--corpus", "after-3"),
    "10 maps": ("--corpus", "after-10"),
    "frozen backbone": ("--freeze", "backbone"),
    "1024 pixels": ("--image-size", "1024", "--schedule", "1024:1:2"),
    "average pooling": ("--roi", "average"),
    "one source": ("--source", "hospital"),
    "leave one source out": ("--leave-out", "cohen"),
}


LONG_ABLATIONS = ("1024 pixels", "one source", "average pooling", "4 layers, 8 heads")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG_ABLATIONS else []) for n in ABLATIONS]
)
def test_an_ablation_is_one_option(name: str, folders: dict[str, str], tmp_path: Path) -> None:
    stage = "severity" if name in ("average pooling", "one source") else "diagnosis"
    also = ("--data", folders["cohen"]) if "source" in name else ()
    sizes = ("--image-size", "64", "--threads", "1") if "heads" in name else TINY
    done = train(stage, folders["hospital"], tmp_path / "run", *also, *ABLATIONS[name], sizes=sizes)
    c = done.config
    found = {
        "2 layers, 4 heads": (c.layers, c.heads, c.width) == (2, 4, 768),
        "4 layers, 8 heads": (c.layers, c.heads, c.width) == (4, 8, 768),
        "1 map": c.corpus == "after-1",
        "3 maps": c.corpus == "after-3",
        "10 maps": c.corpus == "after-10",
        "frozen backbone": done.extra["recipe"]["freeze"] == "backbone",
        "1024 pixels": (c.image_size, c.stride, c.grid) == (1024, 64, 16),
        "average pooling": done.extra["about"].get("pooling") == "average",
        "one source": set(done.extra["sources"]) == {"hospital"},
        "leave one source out": set(done.extra["sources"]) == {"hospital"},
    }
    assert found[name]


def test_simclr_then_backbone_then_diagnosis(folders: dict[str, str], tmp_path: Path) -> None:
    """Each stage starts from the one before; what it learnt is what the next one starts from."""
    first = train("simclr", folders["hospital"], tmp_path / "simclr")
    second = train("backbone", folders["nih"], tmp_path / "backbone", "--init", str(first.out))
    third = train("diagnosis", folders["hospital"], tmp_path / "diagnosis", "--init", str(second.out), "--lr", "1e-9")
    assert "weights from" in second.said and "(simclr)" in second.said and "(backbone)" in third.said
    assert (second.extra["about"]["init"], third.extra["about"]["init"]) == ("simclr", "backbone")
    a, b = second.net.state_dict(), third.net.state_dict()
    for k in (k for k in a if k.startswith("backbone.") and k.endswith("conv1.weight")):
        torch.testing.assert_close(b[k], a[k], rtol=0, atol=1e-6)


@pytest.mark.parametrize("network", ["unet", "adain", "cxrvit"])
def test_lungs_then_severity(network: str, folders: dict[str, str], tmp_path: Path) -> None:
    """A segmenter learns from masks; the severity stage takes its masks for films that have none."""
    from train_files import make_folder

    data = make_folder(tmp_path / "data").root
    masks = ("--mask-kind", "generalblockchain", "--mask-kind", "lungvae") if network == "adain" else ()
    lungs = train("lungs", data, tmp_path / "lungs", "--network", network, *masks)
    assert lungs.config.network == network
    done = train("severity", folders["brixia"], tmp_path / "severity", "--lungs", str(lungs.out))
    assert "segmented once" in done.said
    again = train("severity", folders["brixia"], tmp_path / "severity-2", "--lungs", str(lungs.out))
    assert "segmented once" not in again.said


def test_training_goes_on_from_a_bundle(exported: Exported, folders: dict[str, str], tmp_path: Path) -> None:
    sizes = ("--image-size", "64", "--layers", "1", "--heads", "2", "--width", "48", "--threads", "1")
    done = train("diagnosis", folders["hospital"], tmp_path / "run", "--init", str(exported.bundle), sizes=sizes)
    assert done.extra["about"]["init"] == "bundle" and not done.config.folded


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        ("severity", ("--network", "unet"), "--network unet: stage severity trains cxrvit, densenet121"),
        ("diagnosis", ("--schedule", "128:1:2"), "--schedule asks for more than the 64 pixels"),
        ("diagnosis", ("--source", "amc"), "no image is left"),
        ("lungs", (), "no image to learn lungs from"),
        ("diagnosis", ("--init", "nowhere"), "--init nowhere: no such file"),
        ("severity", ("--image-size", "1024"), "an ablation of diagnosis"),
    ],
)
def test_what_cannot_be_trained_is_told(
    stage: str, arguments: tuple[str, ...], message: str, folders: dict[str, str], tmp_path: Path
) -> None:
    from cxrvit_edge.errors import UsageError

    command = [stage, "--data", folders["hospital"], "--out", str(tmp_path / "run"), *TINY, *STEPS, *arguments]
    with pytest.raises(UsageError, match=message):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_what_a_run_learned_from_is_not_its_test(folders: dict[str, str], tmp_path: Path) -> None:
    """evaluate splits as the run did: with a source left out, all others' test images were learned from."""
    import json

    data = ("--data", folders["cohen"])
    run = train("diagnosis", folders["hospital"], tmp_path / "run", *data, "--leave-out", "cohen", "--split-seed", "3")
    command = ["evaluate", str(run.out), "--data", folders["hospital"], *data]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    found = json.loads((run.out / "evaluation-test.json").read_text())
    assert set(found["sources"]) == {"cohen"}
    from cxrvit_edge.errors import UsageError

    for other in (("--leave-out", "hospital"), ("--split-seed", "4")):
        with pytest.raises(UsageError, match="was trained with"):
            CliRunner().invoke(app, [*command, *other], catch_exceptions=False)


def test_one_class_alone_is_told(folders: dict[str, str], tmp_path: Path) -> None:
    from cxrvit_edge.errors import UsageError

    command = ["diagnosis", "--data", folders["nih"], "--out", str(tmp_path / "run"), *TINY, *STEPS]
    with pytest.raises(UsageError, match="every training image is normal: nothing to tell apart"):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_the_seed_of_a_run_moves_no_patient(folders: dict[str, str], tmp_path: Path) -> None:
    from train.choose import selected
    from train.options import SHARED

    values = {k: default for k, (_, default) in SHARED.items()} | {"data": [folders["hospital"]]}
    splits = [[r.split for r in selected({**values, "seed": seed})[0]] for seed in (0, 1, 2)]
    assert splits[0] == splits[1] == splits[2]
    other = [[r.split for r in selected({**values, "split_seed": seed})[0]] for seed in range(6)]
    assert any(o != other[0] for o in other)


def test_a_fresh_run_removes_what_a_run_wrote_and_nothing_else(folders: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    train("diagnosis", folders["hospital"], out)
    (out / "mine").mkdir()
    (out / "mine" / "notes.txt").write_text("kept")
    done = train("diagnosis", folders["hospital"], out, "--fresh", "--lr", "0.001")
    assert (out / "mine" / "notes.txt").read_text() == "kept"
    assert done.extra["recipe"]["lr"] == 0.001
