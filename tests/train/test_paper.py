"""The paper's tables as transcribed, and where our runs stand in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxrvit_edge.model.config import PRESETS, NetworkConfig
from train import paper
from train.data.record import Record
from train.evaluate import CAVEAT, figures_of
from train.predict import Predictions
from train.tables import interval, place, tables

TASKS = ("diagnosis", "severity")


def evaluation(
    config: NetworkConfig = PRESETS["paper"], sources: Sequence[str] = ("nih", "cohen"), **changes: Any
) -> dict[str, Any]:
    """An evaluation of random predictions of 60 images of the sources, half PA."""
    rng = np.random.default_rng(0)
    n = 60
    records = [
        Record(
            Path(f"{i}.png"), sources[i % len(sources)], f"p{i}", "test", view=("PA", "AP Supine")[i // 30],
            label=int(rng.integers(3)), brixia=rng.integers(0, 4, (3, 2)).astype(np.float32),
        )
        for i in range(n)
    ]  # fmt: skip
    p = Predictions(
        records,
        rng.normal(size=(n, 3)).astype(np.float32),
        rng.random((n, 3, 2)).astype(np.float32),
        np.zeros(n, np.float32),
    )
    run = {
        "name": "try",
        "stage": "joint",
        "network": config.network,
        "preset": config.preset,
        "config": asdict(config),
    }
    run |= {"options": changes.get("options", {}), "sources": changes.get("trained_on", {"nih": 9})}
    found = figures_of(p, TASKS, fixed={"normal": 0.3, "other_infection": 0.3, "covid19": 0.3}, draws=10)
    return {
        "schema": 1, "split": "test", "run": run, "with": {}, "caveat": CAVEAT,
        "pooling": changes.get("pooling", "max"),
        "sources": {s: n // len(sources) for s in sources},
        "external": dict.fromkeys(TASKS, changes.get("external", False)), **found,
    }  # fmt: skip


def section(text: str, number: int) -> list[str]:
    start = text.index(f"Table {number}.")
    return text[start:].split("\n\n")[0].splitlines()


def line(text: str, number: int, name: str, nth: int = 0) -> str:
    """The nth line from that whose first cell is `name` on."""
    lines = section(text, number)
    at = [i for i, row in enumerate(lines) if row.strip().startswith(name + "  ")]
    assert len(at) == 1, (number, name, len(at))
    return lines[at[0] + nth]


def test_averages_of_classes_are_the_papers() -> None:
    """A slip of transcription would show: every average is the mean of its three classes, within its rounding."""
    for table, tolerance in ((paper.TABLE_4, 0.0015), (paper.TABLE_5, 0.0015), (paper.TABLE_7, 0.0015)):
        for key in {r.key for r in table.rows}:
            rows = {r.part: r.values for r in table.rows if r.key == key}
            assert set(rows) == set(paper.CLASS_COLUMNS)
            means = np.mean([rows[c] for c in paper.CLASS_COLUMNS[1:]], axis=0)
            scale = 1 if key not in ("sensitivity", "specificity", "accuracy") else 100
            np.testing.assert_allclose(rows["Avg."], means, atol=tolerance * scale)


def test_averages_of_hospitals_are_the_papers() -> None:
    for table in (paper.TABLE_9, paper.TABLE_10):
        for row in table.rows:
            assert row.values[0] == pytest.approx(np.mean(row.values[1:]), abs=0.0015), row.name


def test_what_two_tables_print_is_one_figure() -> None:
    """The proposed network stands in Tables 4 and 7, 6 and 8, 9 and 10 alike; the baselines in 7 and 9."""
    seven = {(r.key, r.part): r.values for r in paper.TABLE_7.rows}
    for r in paper.TABLE_4.rows:
        if r.key == "auc":
            assert seven["proposed", r.part] == r.values
    nine = {r.key: r.values for r in paper.TABLE_9.rows}
    for key in ("vit", "hybrid", "proposed"):
        assert nine[key][1:] == seven[key, "Avg."]
    for key in ("12x12", "before", "trainable", "512"):
        assert nine[key] == nine["proposed"]
    mse = next(r.values for r in paper.TABLE_6.rows if r.key == "mse")
    assert next(r.values for r in paper.TABLE_8.rows if r.key == "proposed") == mse
    ten = {r.key: r.values for r in paper.TABLE_10.rows}
    assert ten["max"] == ten["three datasets"]
    assert ten["max"][1:] == mse


def test_known_figures() -> None:
    """Some that PAPER.md and the abstract of each table give apart."""
    averages = {r.key: np.mean(r.values) for r in paper.TABLE_7.rows if r.part == "Avg."}
    expected = {"resnet50": 0.835, "resnet152": 0.831, "densenet121": 0.856, "vit": 0.875, "hybrid": 0.872}
    for key, value in {**expected, "proposed": 0.927}.items():
        assert averages[key] == pytest.approx(value, abs=0.0011)
    assert [t.number for t in paper.TABLES] == [4, 5, 6, 7, 8, 9, 10]
    for table in paper.TABLES:
        assert all(len(r.values) == len(table.columns) for r in table.rows)


def test_without_runs_the_papers_figures_and_what_is_missing() -> None:
    text = tables([])
    for table in paper.TABLES:
        shown = "\n".join(section(text, table.number))
        for row in table.rows:
            for value in row.values:
                percent = row.key in ("sensitivity", "specificity", "accuracy")
                assert (f"{value:.1f}" if percent else f"{value:.3f}") in shown
        needs = "CNUH" if table.number == 5 else "CNUH, YNU, KNUH"
        assert shown.count(f"not measured: needs {needs}") == len(table.rows)
    assert "1.683" in text
    assert line(text, 8, "ResNet-152").split()[:5] == ["ResNet-152", "1.718", "2.135", "2.026", "not"]


def test_a_run_stands_in_the_rows_it_is_of() -> None:
    e = evaluation()
    text = tables([e])
    mean = interval(e["groups"]["view"]["PA"]["diagnosis"]["auc"]["mean"])
    assert f"{mean} (1)" in line(text, 9, "12 layers and 12 heads (ours)")
    assert f"{mean} (1)" in line(text, 9, "Proposed w/o pretrain (ours)")
    assert f"{mean} (1)" in line(text, 7, "Ours")
    for name in ("2 layers and 4 heads", "Frozen backbone weights", "1024 x 1024", "ViT w/o pretrain"):
        assert "(1)" not in line(text, 9, name)
        assert "no run" in line(text, 9, name)
    ap = interval(e["groups"]["view"]["AP, all"]["diagnosis"]["auc"]["mean"])
    assert ap != mean
    assert f"{ap} (1)" in section(text, 5)[2]
    own = e["groups"]["view"]["PA"]["diagnosis"]["own"]["covid19"]["specificity"]
    assert f"{interval(own, 100)} (1)" in "\n".join(section(text, 4))
    for cut in ("brixia>=1", "brixia>=2"):
        mse = interval(e["severity"][cut]["mse"])
        for number, name in ((6, "MSE"), (8, "Ours"), (10, "Max-pool (ours)")):
            assert f"{mse} (1)" in line(text, number, name)
    assert "no run" in line(text, 10, "Three datasets (ours)")
    assert "test split of cohen, nih; PA, 30 images; also in training" in text
    assert "test split of cohen, nih; 60 images with brixia>=2; also in training" in text
    assert CAVEAT in text


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"config": PRESETS["small"]}, "2x4"),
    ({"config": PRESETS["medium"]}, "4x8"),
    ({"config": replace(PRESETS["edge"], corpus="after-3")}, "after-3"),
    ({"config": replace(PRESETS["edge"], image_size=1024, stride=64)}, "1024"),
    ({"options": {"freeze": "backbone"}}, "frozen"),
    ({"options": {"init": "simclr"}}, "proposed simclr"),
    ({"pooling": "average"}, "average"),
    ({"trained_on": {"Brixia": 100}}, "brixia only"),
    ({"config": replace(PRESETS["edge"], network="resnet50")}, "resnet50"),
    ({"config": replace(PRESETS["edge"], network="vit"), "options": {"init": "simclr"}}, "vit simclr"),
]


@pytest.mark.parametrize(("changes", "key"), CHANGES, ids=[key for _, key in CHANGES])
def test_one_change_is_one_row(changes: dict[str, Any], key: str) -> None:
    e = evaluation(**changes)
    assert place(e) == {key}
    row = next(r for t in paper.TABLES[3:] for r in t.rows if r.key == key)
    number = next(t.number for t in paper.TABLES[3:] if row in t.rows)
    nth = 0
    assert "(1)" in line(tables([e]), number, row.name, nth)
    assert "(1)" not in "\n".join(section(tables([e]), 4))


def test_severity_stands_where_the_run_that_gives_it_does() -> None:
    e = evaluation(options={"freeze": "backbone"}, pooling="average", trained_on={"CNUH": 1})
    other = evaluation(PRESETS["edge"], trained_on={"brixia": 5})["run"] | {"name": "graded", "stage": "severity"}
    e["with"] = {"severity": {**other, "network": "resnet50"}}
    e["external"] = {"diagnosis": False, "severity": True}
    text = tables([e])
    assert "(1)" in line(text, 9, "Frozen backbone weights")  # average pooling is of the severity run
    assert "(1)" in line(text, 8, "ResNet-50")
    assert not any("(1)" in row for number in (6, 10) for row in section(text, number))
    assert "PA, 30 images; also in training" in text
    assert "60 images with brixia>=2; none of them in training" in text
    assert "severity by graded: stage severity, resnet50" in text
    e["with"] = {"severity": other}
    assert "differ in more than one setting: (1) for severity." in tables([e])


@pytest.mark.parametrize(("view", "shown", "empty"), [("PA", (4, 7, 9), 5), ("AP", (5,), 4)])
def test_a_run_of_one_view_stands_in_the_tables_of_that_view(view: str, shown: tuple[int, ...], empty: int) -> None:
    text = tables([evaluation(options={"view": view})])
    for number in (*shown, 6, 8, 10):
        assert "(1)" in "\n".join(section(text, number)), number
    assert "(1)" not in "\n".join(section(text, empty))
    assert f"from scratch, view {view} alone, trained on nih 9" in text


def test_two_changes_have_no_row_and_are_named() -> None:
    e = evaluation(PRESETS["small"], options={"freeze": "backbone"})
    assert not place(e)
    assert "In no row, since they differ in more than one setting: (1)." in tables([e])


def test_a_size_that_the_paper_has_not_is_said_to_be_ours() -> None:
    text = tables([evaluation(PRESETS["edge"]), evaluation(PRESETS["paper"])])
    added = line(text, 9, "2 layers and 6 heads (not in the paper)")
    assert "(1)" in added and "(2)" not in added
    assert "(2)" in line(text, 9, "12 layers and 12 heads (ours)")
    both = line(text, 9, "Trainable backbone weights (ours)") + line(text, 9, "Trainable backbone weights (ours)", 1)
    assert "(1)" in both and "(2)" in both


def test_a_hospital_that_is_there_is_measured() -> None:
    e = evaluation(sources=("CNUH", "ynu"), trained_on={"brixia": 5, "KNUH": 3}, external=True)
    text = tables([e])
    auc = interval(e["groups"]["source and view"]["CNUH, PA"]["diagnosis"]["auc"]["mean"])
    rows = section(text, 7)
    at = next(i for i, row in enumerate(rows) if row.strip().startswith("Ours"))
    assert f"CNUH {auc} (1)" in rows[at]
    assert "YNU " in rows[at + 1]
    assert "not measured: needs KNUH" in rows[at + 2]
    mse = interval(e["groups"]["source"]["ynu"]["severity"]["brixia>=1"]["mse"])
    assert f"YNU {mse} (1)" in "\n".join(section(text, 10))
    assert "(1)" in line(text, 10, "Three datasets (ours)")
    assert "none of them in training" in text
