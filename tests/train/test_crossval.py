"""`python -m train crossval` over a generated folder: what it learns from and judges, and nothing done twice."""

from __future__ import annotations

import csv
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from crossval_files import TINY, make_crossval_folder, run
from typer.testing import CliRunner

from cxrvit_edge.errors import UsageError
from cxrvit_edge.metrics import mean_auc
from train import crossval, recipe
from train.__main__ import app
from train.networks import build

pytestmark = pytest.mark.usefixtures("one_torch_thread")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def few_draws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossval, "figures", partial(crossval.figures, draws=20))
        patch.setattr(crossval, "against", partial(crossval.against, draws=20))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_crossval_folder(tmp_path_factory.mktemp("crossval") / "data").root


def done(data: Path, out: Path, *arguments: str) -> str:
    result = run(data, out, *arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return str(result.stdout)


@pytest.fixture(scope="module")
def made(data: Path) -> Path:
    """Two folds, the second one first, as by two processes; a first look at that one."""
    out = data.parent / "cv"
    assert "1 of 2 folds are there; still to make: --fold 0\n" in done(data, out, "--fold", "1")
    assert not (out / "crossval.json").exists()
    assert "folds are missing: a first look" in done(data, out, "--fold", "1", "--partial")
    first = json.loads((out / "crossval.json").read_text())
    assert first["partial"] and [f["name"] for f in first["folds"]] == ["1/2"] and first["unpredicted"] == 0
    assert "AUC mean" in done(data, out, "--fold", "0")
    assert not json.loads((out / "crossval.json").read_text())["partial"]
    return out


def rows_of(data: Path) -> list[dict[str, str]]:
    with (data / "manifest.csv").open(newline="") as f:
        rows = [{**r, "key": hashlib.sha256((data / r["path"]).read_bytes()).hexdigest()} for r in csv.DictReader(f)]
    return [r for r in rows if r["split"] != "test"]


def test_each_image_of_train_and_val_is_judged_once_by_who_never_saw_its_patient(data: Path, made: Path) -> None:
    rows = {r["key"]: r for r in rows_of(data)}
    p = np.load(made / "predictions.npz")
    assert sorted(p["key"].tolist()) == sorted(rows)
    group = [rows[k]["group_id"] for k in p["key"].tolist()]
    assert len(set(zip(group, p["fold"].tolist(), strict=True))) == len(set(group))
    assert (
        len(set(zip(group, p["patient"].tolist(), strict=True))) == len(set(group)) == len(set(p["patient"].tolist()))
    )
    assert {rows[k]["reuse"] for k in p["key"].tolist()} == {"yes", "unknown"}  # judged whole
    for k in (0, 1):
        part = np.load(made / f"fold-{k}" / "predictions.npz")
        assert set(part["fold"].tolist()) == {k}
        sources = build.load(made / f"fold-{k}" / "model.safetensors")[2]["sources"]
        learned = [r for r, f in zip(p["key"].tolist(), p["fold"], strict=True) if f != k and rows[r]["reuse"] == "yes"]
        assert sum(sources.values()) == len(learned)
    assert np.isfinite(p["logits"]).all()
    masked = p["lungs_kind"] == "lungvae"
    assert np.isfinite(p["lung_dice"][masked]).all() and np.isnan(p["lung_dice"][~masked]).all()


def test_figures_are_of_the_pooled_predictions(made: Path, data: Path) -> None:
    found, p = json.loads((made / "crossval.json").read_text()), np.load(made / "predictions.npz")
    z = np.exp(p["logits"].astype(float))
    assert found["diagnosis"]["auc"]["mean"]["value"] == pytest.approx(
        mean_auc(p["label"], z / z.sum(1, keepdims=True)), abs=5e-5
    )
    assert set(found["auc_within_source"]) == {
        "nih: other_infection against normal", "cohen: covid19 against other_infection",
    }  # fmt: skip
    with (data / "severity.csv").open(newline="") as f:
        judged = {r["path"] for r in csv.DictReader(f)} & {r["path"] for r in rows_of(data)}
    assert found["severity"]["brixia>=1"]["images"] + found["severity"]["brixia>=1"]["no_lungs"] == len(judged)
    assert found["training_seconds"] == pytest.approx(sum(f["seconds"] for f in found["folds"]), abs=0.1) != 0
    assert set(found["lung_dice_by_source"]) == {"nih", "cohen"}


def test_no_file_names_a_patient_or_a_path(made: Path, data: Path) -> None:
    written = [p for p in made.rglob("*") if p.name in ("crossval.json", "fold.json", "predictions.npz")]
    assert len(written) == 6
    for path in written:
        if path.suffix == ".npz":
            text = " ".join(str(v) for array in np.load(path).values() for v in array.ravel().tolist())
        else:
            text = path.read_text()
        assert "cohen:" not in text.replace("cohen: covid19", "")
        assert str(data.parent) not in text
        assert "0.png" not in text


def test_what_is_there_is_not_made_again(made: Path, data: Path) -> None:
    def stamps() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in made.glob("fold-*/*")}

    before, figures = stamps(), (made / "crossval.json").read_text()
    assert "AUC mean" in done(data, made)
    assert stamps() == before
    assert (made / "crossval.json").read_text() == figures
    # weights without predictions are judged, not trained again
    lost = made / "fold-1" / "predictions.npz"
    stored = dict(np.load(lost))
    lost.unlink()
    said = run(data, made)
    assert "judged" in said.stderr and "step" not in said.stderr and "preprocessed" not in said.stderr
    assert {k: v for k, v in stamps().items() if not k.endswith(".npz")} == {
        k: v for k, v in before.items() if not k.endswith(".npz")
    }
    for name, array in np.load(lost).items():
        np.testing.assert_array_equal(array, stored[name])


def test_folds_of_other_settings_data_or_recipe_are_not_mixed(
    made: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: str, of: Path = data) -> str:
        found = run(of, made, *arguments).exception
        assert isinstance(found, UsageError)
        return str(found)

    assert wrong("--lr", "0.5", "--seed", "3").startswith(f"{made / 'fold-0'}: made with another --lr and --seed;")
    assert "another --split-seed and data" in wrong("--split-seed", "2")
    other = make_crossval_folder(tmp_path / "data", patients=13).root
    assert "another data; name another --out, or --fresh" in wrong(of=other)
    (made / "fold-0" / "predictions.npz").rename(tmp_path / "kept.npz")
    (made / "fold-0" / "model.safetensors").rename(tmp_path / "kept.safetensors")
    monkeypatch.setitem(recipe.SHORT, "joint", recipe.Recipe(recipe.parse_schedule("256:1e:4"), clip=9.0))
    assert "its folds differ in their recipes" in wrong("--fold", "0")
    (tmp_path / "kept.npz").rename(made / "fold-0" / "predictions.npz")
    (tmp_path / "kept.safetensors").rename(made / "fold-0" / "model.safetensors")
    assert "AUC mean" in done(data, made)  # what is there is pooled whatever the preset has become


def test_fresh_makes_a_fold_again(data: Path, tmp_path: Path) -> None:
    light = ("--stage", "diagnosis", "--network", "vit", "--fold", "0")
    done(data, tmp_path / "cv", *light)
    first = (tmp_path / "cv" / "fold-0" / "predictions.npz").stat().st_mtime_ns
    done(data, tmp_path / "cv", *light, "--fresh", "--lr", "0.01")
    assert (tmp_path / "cv" / "fold-0" / "predictions.npz").stat().st_mtime_ns > first
    assert json.loads((tmp_path / "cv" / "fold-0" / "fold.json").read_text())["settings"]["lr"] == 0.01


def test_zones_are_judged_by_themselves(data: Path, tmp_path: Path) -> None:
    done(data, tmp_path / "cv", "--stage", "severity", "--network", "vit", "--fold", "0", "--partial")
    found = json.loads((tmp_path / "cv" / "crossval.json").read_text())
    assert found["severity"]["brixia>=1"]["images"] and "auc_within_source" not in found and "lung_dice" not in found
    assert found["settings"]["normal_weight"] == 0.3


def test_a_baseline_is_compared_on_the_images_that_both_have(made: Path, data: Path) -> None:
    out = data.parent / "baseline"
    light = ("--stage", "diagnosis", "--network", "vit", "--by", "source")
    said = done(data, out, *light, "--against", str(made), "--against", str(made))
    assert "less cv " in said and "less cv (2)" in said and "severity" not in said
    found = json.loads((out / "crossval.json").read_text())
    assert [f["name"] for f in found["folds"]] == ["cohen", "nih"]
    assert "severity" not in found and "lung_dice" not in found
    ours, theirs = np.load(out / "predictions.npz"), np.load(made / "predictions.npz")
    assert (ours["fold"] == (ours["source"] == "nih")).all()
    at = {k: i for i, k in enumerate(theirs["key"].tolist())}
    same = [at[k] for k in ours["key"].tolist()]
    areas = []
    for p, rows in ((ours, slice(None)), (theirs, same)):
        z = np.exp(p["logits"][rows].astype(float))
        areas.append(mean_auc(ours["label"], z / z.sum(1, keepdims=True)))
    mean = found["against"]["cv"]["auc"]["mean"]
    assert (mean["value"], mean["other"]) == pytest.approx(areas, abs=5e-5)
    assert mean["difference"]["value"] == pytest.approx(areas[0] - areas[1], abs=1e-4)
    part = json.loads((made / "crossval.json").read_text())["images"]
    done(data, out, *light, "--judged", "reusable", "--against", str(made))
    found = json.loads((out / "crossval.json").read_text())
    reusable = sum(r["reuse"] == "yes" for r in rows_of(data))
    assert found["images"] == found["against"]["cv"]["images"] == reusable < part


def test_another_that_is_not_made_is_named(made: Path, data: Path, tmp_path: Path) -> None:
    found = run(data, made, "--against", str(tmp_path)).exception
    assert isinstance(found, UsageError) and "name the --out of a cross-validation whose folds are all made" in str(
        found
    )


def test_a_folds_run_is_not_evaluated_on_what_it_learned(made: Path, data: Path) -> None:
    command = ["evaluate", str(made / "fold-0"), "--data", str(data)]
    found = CliRunner().invoke(app, command).exception
    assert isinstance(found, UsageError)
    assert str(found).startswith("the run is fold 0/2 of a cross-validation")


@pytest.mark.slow
def test_a_fold_that_is_stopped_goes_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "cv"
    arguments = ["--data", str(data), "--out", str(out), *TINY, "--schedule", "64:40:4", "--folds", "2", "--fold", "0"]
    command = [sys.executable, "-m", "train", "crossval", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (out / "fold-0" / "steps.csv").is_file():  # written after 20 steps
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "run it again to go on" in said
    state = json.loads((out / "fold-0" / "fold.json").read_text())
    assert state["seconds"] > 0 and state["checkpoint"] is None
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "goes on after step" in again.stderr
    assert "1 of 2 folds are there; still to make: --fold 1" in again.stdout
    assert json.loads((out / "fold-0" / "fold.json").read_text())["seconds"] > state["seconds"]
