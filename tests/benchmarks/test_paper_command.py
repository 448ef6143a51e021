"""The paper's tables from the command line: with nothing, with a run's evaluation, with a benchmark report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import paper, record
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.evaluation import accuracy
from cxrvit_edge.findings import Judgement, Severity
from cxrvit_edge.parity import Observation
from cxrvit_edge.studies import Study

COMMITTED = Path(paper.__file__).parent / "results" / paper.DEFAULT


def report(bundle: Bundle, candidates: dict[str, float]) -> dict[str, Any]:
    """What `cxrvit-edge benchmark` writes, of made answers. candidates: name -> how far classes lie apart."""
    rng, n = np.random.default_rng(0), 80
    labels = rng.integers(0, 3, n)
    noise = rng.normal(0, 1, (n, 3))
    found = {}
    for name, apart in candidates.items():
        logits = noise.copy()
        logits[np.arange(n), labels] += apart
        views = ["PA" if i % 4 else "AP" for i in range(n)]
        studies = [
            Study(Path(f"{i}.png"), int(labels[i]), f"p{i}", views[i], "town", "test", severity=float(i % 7))  # type: ignore[arg-type]
            for i in range(n)
        ]
        seen = [
            Observation(
                *(f"{i:064x}", f"p{i}", "town", "test", views[i], int(labels[i]), logits[i].astype(np.float32)),  # type: ignore[arg-type]
                Judgement({}, "normal", {}, Severity(float(i % 7) + 1), "routine"),
                None,
            )
            for i in range(n)
        ]
        found[name] = accuracy(seen, studies, bundle, draws=40)
    return {
        "schema": 1,
        "caveat": "made answers",
        "bundle": {"name": bundle.manifest.name, "sha256": bundle.sha256},
        "candidates": [{"name": name} for name in found],
        "accuracy": {"data": {"split": "test"}, "by_candidate": found},
    }


def section(text: str, number: int) -> str:
    return text[text.index(f"Table {number}. ") :].partition("\n\n")[0]


def test_without_an_evaluation_nothing_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    assert paper.main([]) == 0
    said = capsys.readouterr().out
    for number in range(4, 11):
        assert "not measured: needs CNUH" in section(said, number)
    assert "0.932" in section(said, 4)
    assert "[A]" not in said
    assert "No row compares methods" in said


def test_the_committed_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    assert paper.main([]) == 0
    said = capsys.readouterr().out
    body = json.loads(COMMITTED.read_text())
    auc = body["groups"]["view"]["PA"]["diagnosis"]["auc"]["mean"]["value"]
    assert f"{auc:.3f} [" in section(said, 4)
    mse = body["severity"]["brixia>=1"]["mse"]["value"]
    assert f"{mse:.3f} [" in section(said, 6)
    assert body["caveat"] in said
    assert "edge (2 layers, 6 heads)" in said
    text = COMMITTED.read_text()
    assert "/" not in "".join(body["run"]["name"]) and ".jpg" not in text and ".png" not in text  # no image is named


def test_the_committed_evaluation_is_of_the_default_weights() -> None:
    import hashlib

    weights = Bundle.open().file("weights.safetensors").read_bytes()
    assert json.loads(COMMITTED.read_text())["run"]["checkpoint_sha256"] == hashlib.sha256(weights).hexdigest()


def test_a_report_has_a_line_a_candidate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Bundle.open()
    made = report(bundle, {"onnxruntime fp32": 1.5, "onnxruntime int8": 1.0})
    path = tmp_path / "report.json"
    path.write_text(json.dumps(made))
    assert paper.main([str(path)]) == 0
    said = capsys.readouterr().out
    for name, block in made["accuracy"]["by_candidate"].items():
        n = list(made["accuracy"]["by_candidate"]).index(name) + 1
        assert f"({n}) {bundle.manifest.name}, {name}: stage joint, cxrvit, preset edge (2 layers, 6 heads)" in said
        assert f"{block['by_view']['PA']['auc']['mean']['value']:.3f} [" in section(said, 4)
        assert f"{block['by_view']['AP']['auc']['covid19']['value']:.3f} [" in section(said, 5)
        assert f"{block['severity']['mae']['value']:.3f} [" in section(said, 6)
    assert "test split of town; PA, 60 images; none of them in training" in said
    assert "made answers" in said


def test_a_report_of_another_bundle_is_refused(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = report(Bundle.open(small_bundle), {"onnxruntime fp32": 1.5})
    path = tmp_path / "report.json"
    path.write_text(json.dumps(made))
    assert paper.main([str(path)]) == 2
    assert "name it with --bundle" in capsys.readouterr().out
    assert paper.main([str(path), "--bundle", str(small_bundle)]) == 0
    assert "preset edge (1 layers, 2 heads)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "neither an evaluation"),
        ('{"accuracy": null, "bundle": {}, "candidates": []}', "a report without accuracy"),
    ],
)
def test_what_is_neither_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, why: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    assert paper.main([str(path)]) == 2
    said = capsys.readouterr().out
    assert str(path) in said
    assert why in said
    assert paper.main([str(tmp_path / "absent.json")]) == 2
