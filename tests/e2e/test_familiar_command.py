"""Films unlike those the network learned from, over real files and a real network, as a user meets them."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import lines, run

pytest.importorskip("torch")

from small_bundle import Exported, forget_embedding, reseal

from cxrvit_edge import ood
from cxrvit_edge.bundle import WEIGHTS, Bundle
from cxrvit_edge.preprocess import PreprocessConfig, preprocess
from cxrvit_edge.radiograph import read
from cxrvit_edge.runtime.torch import TorchSession
from train.ood import fit_familiar

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def films(exported: Exported) -> Path:
    return exported.data / "images"


@pytest.fixture(scope="module")
def scores(exported: Exported, films: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A bundle whose fit has half of the films over it, and the score of each by the reference network."""
    folder = shutil.copytree(exported.bundle, tmp_path_factory.mktemp("bundle") / "b", copy_function=os.link)
    bundle, paths = Bundle.open(folder), sorted(films.iterdir())
    config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
    batch = np.stack([preprocess(read(path), config)[0] for path in paths])
    embedding = TorchSession(bundle.file(WEIGHTS), threads=1).run(batch).embedding
    assert embedding is not None
    fit, _ = fit_familiar(embedding[::2], np.arange(6) % 3)
    known = {path.as_posix(): fit.score(e) for path, e in zip(paths, embedding, strict=True)}
    ordered = sorted(known.values())
    limit = (ordered[5] + ordered[6]) / 2
    ood.write(folder / "ood.npz", replace(fit, threshold=limit))
    shares = {"nih": {"images": 40, "over": 0.24}, "cohen": {"images": 30, "over": 0.05}}
    entry = {"file": "ood.npz", "threshold": limit, "share": 0.02, "left_out": shares}
    reseal(folder, {"guard": {**bundle.manifest.raw["guard"], "ood": entry}})
    return folder, known


@pytest.fixture(scope="module")
def usual(exported: Exported, films: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("usual") / "out"
    assert run("triage", films, "--out", out, "--bundle", exported.bundle, "--quiet") == 0
    return lines(out)


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_film_over_the_threshold_is_for_review_and_the_reason_is_plain(
    scores: tuple[Path, dict[str, float]],
    usual: dict[str, dict[str, Any]],
    films: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    backend: str,
) -> None:
    bundle, known = scores
    out = tmp_path / "out"
    assert run("triage", films, "--out", out, "--bundle", bundle, "--backend", backend, "--quiet") == 0
    found, limit = lines(out), ood.read(bundle / "ood.npz").threshold
    over = {name for name in found if known[name] > limit}
    assert len(over) == 6 and len(found) == 12
    with (out / "worklist.csv").open(newline="") as f:
        table = {row["file"]: row for row in csv.DictReader(f)}
    for name, line in found.items():
        assert line["status"] == "ok" and line["ood"]["threshold"] == limit
        assert line["ood"]["score"] == pytest.approx(known[name], rel=1e-2)
        assert line["probabilities"] == pytest.approx(usual[name]["probabilities"], abs=1e-4)
        assert usual[name]["priority"] != "review" and usual[name]["ood"] is None
        assert line["priority"] == ("review" if name in over else usual[name]["priority"])
        assert len(line["warnings"]) == (name in over)
        assert table[name]["reason"] == ("unlike the films the network learned from" if name in over else "")
        if name in over:
            assert line["warnings"][0].startswith("unlike the films the network learned from: ")
            assert f"lie {line['ood']['score']:.1f} from them" in line["warnings"][0]
    page = (out / "report.html").read_text("utf-8")
    assert page.count('<p class="doubt">Unlike the films the network learned from</p>') == 6
    assert page.count("<li>Warning: unlike the films") == 6
    assert "a lung not measured, unlike the films the network learned from," in page
    assert "but the network was, 5 to 24 % of the films were over it" in page and "2 % of the validation films" in page
    assert run("triage", films, "--out", out, "--bundle", bundle, "--backend", backend, "--json", "--quiet") == 0
    assert json.loads(capsys.readouterr().out)["run"]["resumed"] == 12


def test_inspect_names_it(scores: tuple[Path, dict[str, float]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", scores[0], "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["guard"]["ood"]["left_out"]["nih"] == {"images": 40, "over": 0.24}
    assert "ood.npz" in shown["files"]


def test_a_bundle_older_than_the_embedding_has_no_score(
    exported: Exported, usual: dict[str, dict[str, Any]], films: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(exported.bundle, tmp_path / "b", copy_function=os.link)
    forget_embedding(folder)
    assert run("triage", films, "--out", tmp_path / "out", "--bundle", folder, "--quiet", "--verify") == 0
    for name, line in lines(tmp_path / "out").items():
        assert line["ood"] is None and line["priority"] == usual[name]["priority"]
        assert line["probabilities"] == pytest.approx(usual[name]["probabilities"], abs=1e-5)
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "unlike" not in page.lower()


def test_a_fit_that_cannot_be_read_is_told_before_any_film(
    scores: tuple[Path, dict[str, float]], films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(scores[0], tmp_path / "b", copy_function=os.link)
    (folder / "ood.npz").unlink()
    (folder / "ood.npz").write_bytes(b"nothing")
    reseal(folder)
    assert run("triage", films, "--out", tmp_path / "out", "--bundle", folder, "--quiet") == 2
    assert "no fit of familiar films" in capsys.readouterr().err
