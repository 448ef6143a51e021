"""A cross-validation of generated films, committed by the command, and the card's tables and plots of it."""

from __future__ import annotations

import csv
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from crossval_files import make_crossval_folder, run

pytest.importorskip("matplotlib")

import train.crossval
from benchmarks import crossval, crossval_curves
from cxrvit_edge.metrics import auc, softmax
from cxrvit_edge.model.config import CLASSES
from export import card_crossval, card_plots
from export.decisions import fit_temperature, selective

pytestmark = pytest.mark.usefixtures("one_torch_thread")

PAIR = "nih: other_infection against normal"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_crossval_folder(tmp_path_factory.mktemp("card") / "data", patients=24).root


@pytest.fixture(scope="module")
def results(data: Path) -> Path:
    """crossval_base, _edge (held against it) and _by_source, as the command writes them."""
    root, out = data.parent, data.parent / "results"
    out.mkdir()
    runs = {"base": ("--seed", "1"), "edge": ("--against", str(root / "base")), "by_source": ("--by", "source")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossval, "RESULTS", out)
        for name in ("figures", "against"):
            patch.setattr(train.crossval, name, partial(getattr(train.crossval, name), draws=60))
        for name, options in runs.items():
            result = run(data, root / name, *options)
            assert result.exit_code == 0, result.output + repr(result.exception)
            assert crossval.main([str(root / name), "--data", str(data), "--name", name]) == 0
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def test_what_is_committed_names_no_patient_path_or_label(data: Path, results: Path) -> None:
    committed = rows(results / "crossval_edge.csv")
    stored = np.load(data.parent / "edge" / "predictions.npz")
    assert [r["sha256"] for r in committed] == sorted(stored["key"].tolist())
    at = {k: i for i, k in enumerate(stored["key"].tolist())}
    for r in committed:
        i = at[r["sha256"]]
        assert int(r["fold"]) == stored["fold"][i]
        np.testing.assert_allclose([float(r[f"logit_{c}"]) for c in CLASSES], stored["logits"][i], atol=6e-5)
        zones = [float(r[z.replace(" ", "_").replace("-", "_")] or "nan") for z in crossval_curves.ZONES]
        np.testing.assert_allclose(zones, stored["zones"][i].ravel(), atol=6e-5)
        np.testing.assert_allclose(float(r["score"] or "nan"), np.sum(zones), atol=4e-4)
    text = (results / "crossval_edge.json").read_text() + (results / "crossval_edge.csv").read_text()
    assert "cohen:1" not in text and ".png" not in text and str(data.parent) not in text
    assert not {"label", "view", "source", "patient"} & set(committed[0])
    found, before = (
        json.loads(p.read_text()) for p in (results / "crossval_edge.json", data.parent / "edge/crossval.json")
    )
    assert {k: v for k, v in found.items() if k != "curves"} == before


def test_folds_that_are_committed_go_on_elsewhere(
    data: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("figures", "against"):
        monkeypatch.setattr(train.crossval, name, partial(getattr(train.crossval, name), draws=20))
    monkeypatch.setattr(crossval, "RESULTS", tmp_path)
    there, here = results.parent / "base", tmp_path / "here"
    shutil.copytree(there / "fold-1", here / "fold-1")
    options = ("--seed", "1")
    assert run(data, here, *options, "--fold", "1", "--partial").exit_code == 0
    asked = ["--data", str(data), "--name", "edge"]
    assert crossval.main([str(here), *asked]) == 0
    assert "1 of 2 folds by patient" in card_crossval.blocks(tmp_path)[0]

    assert crossval.main([str(tmp_path / "on"), *asked, "--restore"]) == 0
    result = run(data, tmp_path / "on", *options)
    assert result.exit_code == 0 and "fold 1: is there" in result.output and "fold 0: is there" not in result.output
    was, now = (dict(np.load(out / "predictions.npz")) for out in (there, tmp_path / "on"))
    order = [now["key"].tolist().index(key) for key in was["key"].tolist()]
    for name, values in was.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(now[name][order], values, atol=6e-5, err_msg=name)
        else:
            assert now[name][order].tolist() == values.tolist(), name

    assert crossval.main([str(tmp_path / "on"), *asked, "--restore"]) == 2
    assert "would be lost" in capsys.readouterr().out

    other = make_crossval_folder(tmp_path / "other", patients=20).root
    assert crossval.main([str(tmp_path / "no"), "--data", str(other), "--name", "edge", "--restore"]) == 2
    assert "other data" in capsys.readouterr().out
    assert crossval.main([str(tmp_path / "no"), "--data", str(data), "--name", "absent", "--restore"]) == 2


def test_curves_are_of_the_figures_beside_them(data: Path, results: Path) -> None:
    found = json.loads((results / "crossval_edge.json").read_text())
    p, c = np.load(data.parent / "edge" / "predictions.npz"), found["curves"]
    logits, labels = p["logits"].astype(np.float64), p["label"]
    probabilities = softmax(logits)
    for k, name in enumerate(CLASSES):
        positive, score = labels == k, probabilities[:, k]
        e = c["roc"]["curves"][name]
        assert e["images"] == [int((~positive).sum()), int(positive.sum())]
        for rate, value in list(zip(c["roc"]["rates"], e["value"], strict=True))[::20]:
            false = np.array([0.0, *(np.mean(score[~positive] >= t) for t in np.sort(score)[::-1])])
            hits = np.array([0.0, *(np.mean(score[positive] >= t) for t in np.sort(score)[::-1])])
            assert value == pytest.approx(np.interp(rate, false, hits), abs=6e-5)
        assert all(a <= v <= b for a, v, b in zip(e["low"], e["value"], e["high"], strict=True))
        assert np.trapezoid(e["value"], c["roc"]["rates"]) == pytest.approx(auc(positive, score), abs=0.03)
    scaled, fold = c["reliability"]["scaled"], p["fold"]
    decided = np.zeros(len(labels), bool)
    for k in (0, 1):
        t = fit_temperature(labels[fold != k], logits[fold != k])
        assert scaled["temperatures"][str(k)] == t
        threshold = selective(labels[fold != k], softmax(logits[fold != k], t)).threshold
        decided[fold == k] = (softmax(logits[fold == k], t) >= 1 - threshold).sum(1) == 1
    whole = c["selective"]["groups"]["all"]
    assert whole["single"]["value"] == pytest.approx(decided.mean(), abs=5e-5)
    right = probabilities.argmax(1) == labels
    assert whole["error"]["value"] == whole["curve"]["value"][-1] == pytest.approx(1 - right.mean(), abs=5e-5)
    nih = (p["source"] == "nih") & (labels == 0)
    assert c["right"]["nih"]["normal"]["value"] == pytest.approx(right[nih].mean(), abs=5e-5)
    assert sum(b["count"] for b in scaled["bins"]) == len(labels)
    severity = found["severity"]["brixia>=1"]
    assert sum(b["network"]["images"] for b in c["severity"]["brixia>=1"]["by_score"]) == severity["images"]
    known = [e["value"] for e in c["severity"]["brixia>=1"]["zones"].values() if e["value"] is not None]
    assert np.mean(known) == pytest.approx(severity["zone_auc_mean"]["value"], abs=1e-4)


def test_a_curve_is_defined_by_hand() -> None:
    x, y = np.array([[0.5, 1.0], [np.nan, np.nan]]), np.array([[1.0, 1.0], [0.5, 1.0]])
    at = np.array([0.0, 0.25, 0.5, 1.0])
    np.testing.assert_array_equal(crossval_curves._along(at, x, y, start=True)[0], [0.0, 0.5, 1.0, 1.0])
    assert np.isnan(crossval_curves._along(at, x, y)[1]).all()


def test_wrong_use_is_told(data: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, other = data.parent / "edge", make_crossval_folder(tmp_path / "other", patients=8).root
    inside = Path(__file__).parent / "truth.csv"
    for words, said in (
        ([str(tmp_path), "--data", str(data), "--name", "a"], "not there; name the --out"),
        ([str(made), "--data", str(other), "--name", "a"], "not what"),
        ([str(made), "--data", str(data), "--name", "A b"], "small letters"),
        ([str(made), "--data", str(data), "--name", "a", "--truth", str(inside)], "holds no labels"),
    ):
        assert crossval.main(words) == 2
        assert said in capsys.readouterr().out
    assert not (crossval.RESULTS / "crossval_a.json").exists() and not inside.exists()


def test_truth_goes_where_it_is_asked_for(
    data: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossval, "RESULTS", tmp_path)
    words = [str(data.parent / "edge"), "--data", str(data), "--name", "edge", "--truth", str(tmp_path / "t.csv")]
    assert crossval.main(words) == 0
    assert (tmp_path / "crossval_edge.json").read_bytes() == (results / "crossval_edge.json").read_bytes()
    found = rows(tmp_path / "t.csv")
    assert {r["source"] for r in found} == {"nih", "cohen"} and {r["label"] for r in found} == set(CLASSES)
    assert {r["affected_upper_image_left"] for r in found} == {"", "0.0", "1.0"}
    assert "patient" not in found[0]


def test_the_card_prints_the_figures_of_the_json(results: Path) -> None:
    c, s = (json.loads((results / f"crossval_{n}.json").read_text()) for n in ("edge", "by_source"))
    first, compared, left_out = card_crossval.blocks(results)
    e = c["diagnosis"]["auc"]["normal"]
    assert f"| normal | {c['diagnosis']['classes']['normal']} | {e['value']:.3f} ({e['cluster_low']:.3f} to " in first
    within = c["auc_within_source"][PAIR]
    counts = f"{within['images'][0]} and {within['images'][1]}"
    assert f"| {PAIR} | {within['value']:.3f} ({within['low']:.3f} to {within['high']:.3f}), {counts} | " in first
    view = c["auc_within_source_and_view"][PAIR.replace(":", ", PA:")]
    assert f", {counts} | {view['value']:.3f} ({view['low']:.3f} to " in first
    for cut, v in c["severity"].items():
        gain, r = v["constant"]["gain"], v["radiologists"]
        assert f"| {cut} | {v['images']} | {v['mse']['value']:.2f} (" in first
        assert f"| {gain['value']:+.2f} ({gain['low']:+.2f} to {gain['high']:+.2f}) |" in first
        assert f"| {cut} | {r['images']} | {r['second_against_first']['mse']['value']:.2f} (" in first
        assert f"| {cut} | {v['zone_auc']['value']:.3f} (" in first
    for source, kinds in c["lung_dice_by_source"].items():
        for kind, v in kinds.items():
            assert f"| {source} | {kind} | {v['images']} | {v['value']:.3f} (" in first
    d = c["against"]["base"]["auc"]["mean"]
    assert (
        f"| AUC mean, pooled | {d['images']} | {d['value']:.3f} | {d['other']:.3f} | {d['difference']['value']:+.3f}"
        in compared
    )
    seen, unseen = c["auc_within_source"][PAIR], s["auc_within_source"][PAIR]
    line = next(x for x in left_out.splitlines() if x.startswith(f"| {PAIR} "))
    assert line.startswith(f"| {PAIR} | {unseen['value']:.3f}") and f"| {seen['value']:.3f} (" in line
    assert "nan" not in (first + compared + left_out).replace("dominant", "").lower().split()


def test_a_block_without_its_json_is_left_out(results: Path, tmp_path: Path) -> None:
    assert card_crossval.blocks(tmp_path) == [] and card_plots.block(tmp_path) == ""
    shutil.copy(results / "crossval_edge.json", tmp_path)
    assert len(card_crossval.blocks(tmp_path)) == 1  # the JSON of `base` is not there
    shutil.copy(results / "crossval_base.json", tmp_path)
    assert [b.splitlines()[0][:11] for b in card_crossval.blocks(tmp_path)] == ["### Cross-v", "### Against"]
    shutil.move(tmp_path / "crossval_edge.json", tmp_path / "crossval_by_source.json")
    (alone,) = card_crossval.blocks(tmp_path)
    assert alone.startswith("### A source left out") and "also learned from" not in alone


def test_figures_that_are_not_defined_are_said_to_be(results: Path) -> None:
    c: dict[str, Any] = json.loads((results / "crossval_edge.json").read_text())
    c["auc_within_source"][PAIR] |= {"low": None, "high": None}
    c["auc_within_source_and_view"] = {}
    c["severity"]["brixia>=1"]["constant"]["gain"] = {"value": None, "low": None, "high": None}
    c["severity"]["brixia>=2"] = {"images": 0, "no_lungs": 3}
    text = card_crossval.folds(c)
    assert "| fewer than 5 of a class | fewer than 5 of a class |" in text
    assert "| not defined | " in text and "brixia>=2" not in text
    del c["curves"], c["severity"], c["lung_dice_by_source"]
    assert "Severity" not in card_crossval.folds(c)


def test_plots_are_small_and_show_what_the_json_holds(results: Path, tmp_path: Path) -> None:
    made = card_plots.write(tmp_path, results)
    assert [p.name for p in made] == [f"{p.name}.svg" for p in card_plots.PLOTS]
    c, by_source = (json.loads((results / f"crossval_{n}.json").read_text()) for n in ("edge", "by_source"))
    again = card_plots.svg(card_plots.PLOTS[0], c, by_source, card_plots.digest(results))
    assert made[0].read_text() == again
    within = c["auc_within_source"][PAIR]["value"]
    words = {}
    for path in made:
        text = path.read_text()
        assert len(text) < 60_000 and card_plots.digest(results) in text
        words[path.stem] = "\n".join(
            e.text or "" for e in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")
        )
        assert f"]({path.relative_to(tmp_path).as_posix()})" in card_plots.block(results)
    assert f"{within:.2f} (" in words["roc"] and "source left out of training" in words["sources"]
    assert (
        f"junior, MSE {c['severity']['brixia>=1']['radiologists']['second_against_first']['mse']['value']:.2f} ("
        in words["severity"]
    )
    assert f"ECE {c['curves']['reliability']['as_trained']['ece']['value']:.3f}" in words["reliability"]
    assert f"{within:.3f} (" in card_plots.block(results)


def test_plots_go_with_their_json(results: Path, tmp_path: Path) -> None:
    own = shutil.copytree(results, tmp_path / "results")
    folder = tmp_path / card_plots.FOLDER
    folder.mkdir(parents=True)
    names = {f"{p.name}.svg" for p in card_plots.PLOTS}
    for name in names:
        (folder / name).write_text("of before")
    c = json.loads((own / "crossval_edge.json").read_text())
    del c["curves"]["severity"]  # as of a network that only diagnoses
    (own / "crossval_edge.json").write_text(json.dumps(c))
    assert {p.name for p in card_plots.write(tmp_path, own)} == names - {"severity.svg", "zones.svg"}
    assert not (folder / "zones.svg").exists()
    (own / "crossval_edge.json").unlink()
    assert card_plots.write(tmp_path, own) == [] and not list(folder.iterdir())
