"""Runs on disk, evaluated from their images' files: which network gives what, and what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from train_files import Folder

from cxrvit_edge.errors import InputError, UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import CLASSES, NetworkConfig
from cxrvit_edge.model.triage_net import TriageNet
from cxrvit_edge.preprocess import PreprocessConfig, preprocess
from cxrvit_edge.radiograph import read
from cxrvit_edge.zones import severity_array, zone_masks
from train.data import manifest
from train.data.masks import read_lungs
from train.data.record import Record
from train.evaluate import evaluate_run
from train.evaluation_text import text
from train.networks import build
from train.predict import Networks, array_of, predict_files
from train.runs import combine, load_run

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TINY = NetworkConfig("edge", layers=1, heads=2, width=16, image_size=64, map_widths=(8, 4, 4), lung_widths=(4, 4, 4, 4))
LIGHT = replace(TINY, network="vit")  # no DenseNet in it: quick to make and to save
LUNGS = replace(TINY, network="unet")
P64 = PreprocessConfig(size=64)


def save(folder: Path, stage: str, *, config: NetworkConfig = LIGHT, seed: int = 0, **extra: object) -> Path:
    torch.manual_seed(seed)
    net = build.build(config)
    folder.mkdir(parents=True)
    about = {"stage": stage, "preprocessing": PreprocessConfig(size=config.image_size).to_dict(), **extra}
    checkpoint.save(folder / "model.safetensors", net.state_dict(), config, about)
    return folder


@pytest.fixture
def records(folder: Folder) -> list[Record]:
    """Five to test on, three for val, four to train on; all of them may be read."""
    found = manifest.read(folder.root)
    return [replace(r, split=("test", "val", "train")[min(i // 5 + (i // 8), 2)]) for i, r in enumerate(found)]


def test_a_joint_run_gives_everything(records: list[Record], tmp_path: Path) -> None:
    run = save(tmp_path / "joint", "joint", config=TINY, sources={"nih": 3, "cohen": 5}, recipe={"freeze": "none"})
    found = evaluate_run(run, records, draws=20, say=lambda _: None)
    assert json.loads((run / "evaluation-test.json").read_text()) == found
    assert found["tasks"] == ["diagnosis", "severity", "lungs", "findings"]
    test = [r for r in records if r.split == "test"]
    assert found["images"] == len(test)
    assert found["measured_on"] == f"test split of cohen, nih, {len(test)} images"
    assert found["external"] == dict.fromkeys(found["tasks"], False)
    assert found["run"]["options"] == {"freeze": "none"}
    assert found["lungs_from"] == "the joint network joint"
    # val has all three classes here, and its thresholds are those of its own probabilities
    val = [r for r in records if r.split == "val"]
    assert {r.label for r in val} == {0, 1, 2}
    net = load_run(run).net
    v = predict_files(Networks(diagnosis=net, preprocessing={"diagnosis": P64}), val)
    assert np.isnan(v.zones).all()
    for k, name in enumerate(CLASSES):
        own = min(v.probabilities[v.labels == k, k])  # of one or two positives, all are needed for 80 %
        assert found["diagnosis"]["fixed"][name]["threshold"] == pytest.approx(own, abs=6e-5)
    written = text(found)
    assert found["caveat"] in written
    assert "nan" not in written.lower().replace("hannover", "").split()


def test_predictions_follow_the_files(records: list[Record], tmp_path: Path) -> None:
    """The same as read, preprocess and the network's own forward, one image after the other."""
    net = load_run(save(tmp_path / "run", "joint", config=TINY)).net
    assert isinstance(net, TriageNet)
    with torch.no_grad():
        net.lungs.out.weight.mul_(30)  # some films then have two lungs
    p = predict_files(
        Networks(net, net, net, net, dict.fromkeys(("diagnosis", "severity", "lungs", "findings"), P64)),
        records,
        batch=5,
    )
    scored = 0
    for i, record in enumerate(records):
        image, geometry = preprocess(read(record.path), P64)
        with torch.inference_mode():
            logits, maps, lungs, _ = net(torch.from_numpy(image)[None])
            findings = net.find(torch.from_numpy(image)[None])
        np.testing.assert_allclose(p.logits[i], logits[0].numpy(), rtol=1e-3, atol=1e-4)
        assert p.findings is not None
        np.testing.assert_allclose(p.findings[i], findings[0].numpy(), rtol=1e-3, atol=1e-4)
        zones = zone_masks(lungs[0].numpy())
        if zones is None:
            assert np.isnan(p.zones[i]).all()
        else:
            scored += 1
            np.testing.assert_allclose(p.zones[i], severity_array(maps[0, 0].numpy(), zones), atol=1e-3)
        if record.lungs is None:
            assert np.isnan(p.lung_dice[i])
        else:
            truth = read_lungs(record.lungs, geometry, 32).max(0) >= 128
            ours = lungs[0].numpy().max(0) >= 0.5
            expected = 2 * (truth & ours).sum() / (truth.sum() + ours.sum())
            assert p.lung_dice[i] == pytest.approx(expected, abs=0.02)  # a pixel at 0.5 may fall either way
    assert scored


def test_networks_of_one_task_each(records: list[Record], tmp_path: Path) -> None:
    """Diagnosis, severity and lungs of three sizes; lungs are brought to the map's grid."""
    larger = replace(LIGHT, image_size=96)
    runs = [
        load_run(save(tmp_path / "d", "diagnosis")),
        load_run(save(tmp_path / "s", "severity", config=larger, seed=1, about={"pooling": "average"})),
        load_run(save(tmp_path / "l", "lungs", config=LUNGS, seed=2)),
    ]
    networks, given, source = combine(*runs)
    assert source == "the lungs run l"
    assert (networks.diagnosis, networks.severity, networks.lungs) == tuple(r.net for r in runs)
    assert given["severity"].pooling == "average"
    found = evaluate_run(
        tmp_path / "d", records, severity=tmp_path / "s", lungs=tmp_path / "l", draws=10, say=lambda _: None
    )
    assert found["pooling"] == "average"
    assert found["with"]["severity"]["name"] == "s"
    assert found["tasks"] == ["diagnosis", "severity", "lungs"]
    assert "findings" not in found


def test_masks_are_held_against_each_other_on_the_finest_grid(records: list[Record], tmp_path: Path) -> None:
    """Whatever the size of the network beside the segmenter."""
    lungs = load_run(save(tmp_path / "l", "lungs", config=replace(LUNGS, image_size=128), seed=2))
    diagnosis = load_run(save(tmp_path / "d", "diagnosis"))
    assert diagnosis.preprocessing.size < lungs.preprocessing.size
    alone = predict_files(combine(lungs)[0], records).lung_dice
    beside = predict_files(combine(diagnosis, None, lungs)[0], records).lung_dice
    assert np.isfinite(alone).any()
    np.testing.assert_array_equal(beside, alone)


def test_films_without_lungs_have_no_zones(records: list[Record]) -> None:
    torch.manual_seed(0)
    grading, segmenting = build.build(LIGHT).eval(), build.build(LUNGS).eval()
    last = [p for p in segmenting.parameters() if p.shape == (2,)]
    with torch.no_grad():
        last[-1].fill_(-99.0)  # the bias of both lungs
    n = Networks(severity=grading, lungs=segmenting, preprocessing={"severity": P64, "lungs": P64})
    p = predict_files(n, records[:3])
    assert np.isnan(p.zones).all()
    assert [float(d) for d in p.lung_dice] == [0.0, 0.0, 0.0]


def test_without_a_lung_network_true_masks_and_the_embedded_bundle_serve(records: list[Record], tmp_path: Path) -> None:
    run = load_run(save(tmp_path / "s", "severity"))
    networks, given, source = combine(run)
    assert source == "the true masks where an image has them, else the embedded bundle"
    embedded = given["lungs"]
    drawn, bare = records[0], records[3]
    assert drawn.lungs is not None and bare.lungs is None
    p = predict_files(networks, [drawn, bare], pooling="average")
    assert np.isfinite(p.zones).all()
    for i, record in enumerate((drawn, bare)):
        with torch.inference_mode():
            film = torch.from_numpy(preprocess(read(record.path), P64)[0])[None]
            severity_map = run.net.grade(film).sigmoid()[0, 0].numpy()  # type: ignore[operator]
            image, geometry = preprocess(read(record.path), embedded.preprocessing)
            masks = embedded.net.segment(torch.from_numpy(image)[None]).sigmoid()[0].numpy()  # type: ignore[operator]
        if record.lungs is not None:
            masks = read_lungs(record.lungs, geometry, 256) / np.float32(255)
        np.testing.assert_allclose(p.zones[i], array_of(severity_map, masks, "average"), atol=1e-3)
    few = [drawn, bare, *(r for r in records if r.split == "train")]
    found = evaluate_run(tmp_path / "s", few, draws=10, say=lambda _: None)
    assert found["tasks"] == ["severity", "lungs"]
    assert found["with"]["lungs"]["name"] == embedded.name
    assert found["lungs_from"] == source
    train = [r for r in records if r.split == "train" and r.brixia is not None]
    expected = np.mean([np.count_nonzero(np.asarray(r.brixia) >= 2) for r in train])
    test = found["severity"]["brixia>=2"]
    assert test["images"] == 0 or test["constant"]["score"] == pytest.approx(expected, abs=5e-5)
    assert "true masks" in text(found)


def test_on_val_both_thresholds_are_val_s(records: list[Record], tmp_path: Path) -> None:
    run = save(tmp_path / "vit", "diagnosis")
    found = evaluate_run(run, records, split="val", draws=10, out=tmp_path / "elsewhere", say=lambda _: None)
    assert found["run"]["network"] == "vit"
    assert found["external"] == {"diagnosis": None}
    assert (tmp_path / "elsewhere" / "evaluation-val.json").is_file()
    assert {p.name for p in run.iterdir()} == {"model.safetensors"}
    for name in CLASSES:
        assert found["diagnosis"]["own"][name]["threshold"] == found["diagnosis"]["fixed"][name]["threshold"]


def test_backbone_has_findings_alone(records: list[Record], tmp_path: Path) -> None:
    found = evaluate_run(save(tmp_path / "b", "backbone"), records, draws=10, say=lambda _: None)
    assert found["tasks"] == ["findings"]
    assert "diagnosis" not in found
    assert "Finding, AUC" in text(found)


def test_backbone_needs_findings(records: list[Record], tmp_path: Path) -> None:
    nothing = np.full(10, np.nan, np.float32)
    with pytest.raises(UsageError, match=r"no image of the test split has any; name --data that has findings"):
        evaluate_run(save(tmp_path / "b", "backbone"), [replace(r, findings=nothing) for r in records])


def test_a_run_of_one_view_is_judged_on_it(records: list[Record], tmp_path: Path) -> None:
    run = save(tmp_path / "pa", "diagnosis", about={"view": "PA"})
    found = evaluate_run(run, records, draws=10, say=lambda _: None)
    pa = [r for r in records if r.view == "PA"]
    assert found["measured_on"].endswith("images; diagnosis on those of view PA alone")
    labelled = [r for r in pa if r.split == "test" and r.label is not None]
    assert found["diagnosis"]["images"] == len(labelled) < found["images"]
    assert found["groups"]["view"]["AP, all"]["diagnosis"]["images"] == 0
    alone = evaluate_run(run, pa, draws=10, say=lambda _: None)
    assert found["diagnosis"] == alone["diagnosis"]  # the thresholds of val too
    ap = save(tmp_path / "ap", "diagnosis", about={"view": "AP"})
    found = evaluate_run(ap, records, draws=10, say=lambda _: None)
    assert found["diagnosis"] == found["groups"]["view"]["AP Supine"]["diagnosis"]


def test_each_task_is_external_or_not(records: list[Record], tmp_path: Path) -> None:
    """By the sources of the run that gives it."""
    test = {r.source for r in records if r.split == "test"}
    joint = save(tmp_path / "j", "joint", config=TINY, sources=dict.fromkeys(test, 1))
    brixia = save(tmp_path / "s", "severity", sources={"brixia": 5})
    lungs = save(tmp_path / "l", "lungs", config=LUNGS)
    found = evaluate_run(joint, records, severity=brixia, lungs=lungs, draws=10, say=lambda _: None)
    assert found["external"] == {"diagnosis": False, "severity": True, "lungs": None, "findings": False}
    assert "also in training (diagnosis), none in training (severity), not recorded (lungs)" in text(found)


def test_what_cannot_be_evaluated(records: list[Record], tmp_path: Path) -> None:
    simclr = save(tmp_path / "c", "simclr")
    with pytest.raises(UsageError, match="no output to evaluate"):
        evaluate_run(simclr, records)
    with pytest.raises(UsageError, match=r"no model\.safetensors"):
        evaluate_run(tmp_path, records)
    diagnosis = save(tmp_path / "d", "diagnosis")
    with pytest.raises(UsageError, match="gives no lungs"):
        evaluate_run(diagnosis, records, lungs=diagnosis)
    with pytest.raises(UsageError, match="no image in the test split"):
        evaluate_run(diagnosis, [r for r in records if r.split != "test"])
    (diagnosis / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="name --out"):
        evaluate_run(diagnosis, records)
    with pytest.raises(UsageError, match="which this version does not know"):
        load_run(save(tmp_path / "x", "another"))
    with pytest.raises(UsageError, match="cannot be combined"):
        squash = save(tmp_path / "q", "severity", preprocessing=PreprocessConfig(size=64, aspect="squash").to_dict())
        combine(load_run(save(tmp_path / "e", "diagnosis")), load_run(squash))


def test_a_broken_file_ends_it_or_is_counted(records: list[Record], tmp_path: Path) -> None:
    run = save(tmp_path / "d", "diagnosis")
    test = [r for r in records if r.split == "test"]
    test[1].path.write_bytes(b"no image")
    with pytest.raises(InputError):
        evaluate_run(run, test, draws=10, say=lambda _: None)
    found = evaluate_run(run, test, draws=10, broken="skip", say=lambda _: None)
    assert (found["images"], found["unreadable"]) == (len(test) - 1, 1)
    alone = evaluate_run(run, [test[0], *test[2:]], draws=10, say=lambda _: None)
    assert found["diagnosis"] == alone["diagnosis"]
    assert "cannot be read" not in text(alone)
    assert "1 more cannot be read" in text(found)
    with pytest.raises(UsageError, match="can be read"):
        evaluate_run(run, [test[1]], broken="skip", say=lambda _: None)


def test_inverted_files_are_read_as_they_are_meant(records: list[Record], tmp_path: Path) -> None:
    """A file of MONOCHROME1's stored values gives what its negative gives."""
    film = read(records[0].path).pixels
    cv2.imwrite(str(tmp_path / "film.png"), film)
    cv2.imwrite(str(tmp_path / "stored.png"), 255 - film)
    pair = [
        Record(tmp_path / "film.png", "s", "p", "test"),
        Record(tmp_path / "stored.png", "s", "p", "test", inverted=True),
    ]
    net = build.build(LIGHT).eval()
    p = predict_files(Networks(diagnosis=net, preprocessing={"diagnosis": P64}), pair)
    np.testing.assert_allclose(p.logits[0], p.logits[1], atol=1e-4)


def test_an_outline_of_another_size_is_read_at_the_films(tmp_path: Path) -> None:
    """The mask file may be smaller than its film."""
    mask = np.zeros((40, 40), np.uint8)
    mask[8:32, 4:18] = mask[8:32, 22:36] = 255
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    cv2.imwrite(str(tmp_path / "f.png"), np.random.default_rng(0).integers(0, 255, (80, 80)).astype(np.uint8))
    record = Record(tmp_path / "f.png", "s", "p", "test", lungs=tmp_path / "m.png", lungs_kind="k")
    net = build.build(LIGHT).eval()
    p = predict_files(Networks(severity=net, preprocessing={"severity": P64}), [record])
    assert np.isfinite(p.zones).all()
