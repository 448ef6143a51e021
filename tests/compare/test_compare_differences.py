from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from math import comb, isnan
from typing import Any

import numpy as np
import pytest
from compare_sides import CLASSES, MANIFEST, judged, refused, sha, side
from hypothesis import given
from hypothesis import strategies as st

from cxrvit_edge.compare import figures
from cxrvit_edge.compare.differences import differences
from cxrvit_edge.compare.figures import mcnemar, places
from cxrvit_edge.compare.pairs import match
from cxrvit_edge.errors import Reason, UsageError
from cxrvit_edge.findings import Finding, Severity

P = st.tuples(*[st.integers(1, 1000)] * 3).map(lambda n: tuple(round(v / sum(n), 6) for v in n))
SCORE = st.one_of(st.none(), st.integers(0, 600).map(lambda n: n / 100))
NAMES = st.text("ab/é\udc80=<", min_size=1, max_size=6)


@st.composite
def several(draw: st.DrawFn) -> list[Finding]:
    files = draw(st.lists(NAMES, unique=True, max_size=12))
    kinds = st.one_of(
        st.builds(lambda p, s: lambda file: judged(file, p, s, content="x"), P, SCORE),
        st.builds(lambda p, s: lambda file: judged(file, p, s, content=repr(file)), P, SCORE),
        st.sampled_from(list(Reason)).map(lambda reason: lambda file: refused(file, reason, sha256=None)),
    )
    return [draw(kinds)(file) for file in files]


@given(several(), st.randoms())
def test_a_thing_is_as_itself(findings: list[Finding], random: Any) -> None:
    """Whatever it holds, and in whatever order."""
    mixed = random.sample(findings, len(findings))
    report = differences(side(*findings), side(*mixed), {}, 12)
    json.dumps(report, allow_nan=False)
    both = [f for f in findings if f.status == "ok"]
    assert report["images"] == {
        **dict.fromkeys(("a", "b", "matched"), len(findings)),
        "judged": len(both),
        **{key: {"count": 0, "first": []} for key in ("only_in_a", "only_in_b")},
    }
    assert report["identical"] == len(findings)
    worklist = report["worklist"]
    assert worklist["moved"] == 0 and worklist["largest_move"] is None
    assert all(top["shared"] == top["first"] for top in worklist["overlap"])
    assert worklist["places"] == [[i, i] for i in range(1, len(findings) + 1)]
    assert (worklist["spearman"], worklist["kendall"]) in ((1.0, 1.0), (None, None))
    assert (worklist["spearman"] is None) == bool(worklist["why"])
    flips = report["flips"]
    assert not any(flips[kind] for kind in ("images", "label", "priority", "status", "severity"))
    assert not any(flips["flags"].values())
    gaps = [*report["differences"]["probabilities"].values(), report["differences"]["severity"]]
    assert all(gap[k] in (0.0, None) for gap in gaps for k in ("mean", "mae", "rms", "largest"))
    assert report["largest"]["images"] == [] and report["largest"]["differing"] == 0


@given(several(), several())
def test_any_two_can_be_compared(a: list[Finding], b: list[Finding]) -> None:
    """And from the other side it is the mirror image."""
    there, back = differences(side(*a), side(*b), {}, 5), differences(side(*b), side(*a), {}, 5)
    json.dumps(there, allow_nan=False)
    images = there["images"]
    assert images["matched"] + images["only_in_a"]["count"] == len(a)
    assert images["matched"] + images["only_in_b"]["count"] == len(b)
    if len({f.sha256 for f in a}) == len(a) and len({f.sha256 for f in b}) == len(b):
        assert there["worklist"]["spearman"] == back["worklist"]["spearman"]
        for mine, its in zip(*(r["differences"]["probabilities"].values() for r in (there, back)), strict=True):
            assert mine["rms"] == its["rms"] and (mine["mean"] or 0) == -(its["mean"] or 0)
        assert len(there["flips"]["label"]) == len(back["flips"]["label"])


def test_a_reversed_worklist_has_rho_minus_one() -> None:
    files = [f"{i:02d}.png" for i in range(30)]
    a = [judged(file, (0.1, 0.2, 0.7), 3 + i / 10) for i, file in enumerate(files)]
    b = [judged(file, (0.1, 0.2, 0.7), 6 - i / 10) for i, file in enumerate(files)]
    found = differences(side(*a), side(*b), {}, 3)["worklist"]
    assert found["spearman"] == found["kendall"] == -1 and found["why"] is None
    assert found["overlap"] == [{"first": 10, "shared": 0}, {"first": 25, "shared": 20}]
    assert found["largest_move"]["rank"] == [30, 1] and found["largest_move"]["file"] == "00.png"
    assert found["moved"] == 30 and found["mean_move"] == 15
    assert found["priorities"] == [{"urgent": 30}, {"urgent": 30}]


def test_equally_urgent_images_are_tied_though_the_worklist_has_them_by_name() -> None:
    a = [judged("a.png", (0.1, 0.2, 0.7), 4), *(refused(f"{i}.png") for i in range(4))]
    b = [judged("a.png", (0.9, 0.05, 0.05), 4), *(refused(f"{i}.png") for i in range(4))]
    found = differences(side(*a), side(*b), {}, 3)["worklist"]
    assert found["spearman"] == found["kendall"] == -1  # first on one side, last on the other


def test_every_kind_of_flip_is_listed_once_where_it_is() -> None:
    a = [
        judged("label.png", (0.6, 0.3, 0.1), 1.0),
        judged("same.png"),
        judged("status.png"),
        refused("reason.png", Reason.BLANK),
        judged("severity.png", (0.7, 0.2, 0.1), 1.0),
    ]
    b = [
        judged("label.png", (0.1, 0.3, 0.6), 1.0),
        judged("same.png"),
        refused("status.png"),
        refused("reason.png", Reason.COLOUR),
        judged("severity.png", (0.7, 0.2, 0.1), None),
    ]
    report = differences(side(*a), side(*b), {}, 12)
    flips = report["flips"]

    def ends(found: list[dict[str, Any]]) -> dict[str, tuple[Any, Any]]:
        assert all(image["sha256"] == sha(image["file"]) and len(image["rank"]) == 2 for image in found)
        return {image["file"]: (image["from"], image["to"]) for image in found}

    assert ends(flips["label"]) == {"label.png": ("normal", "covid19")}
    assert ends(flips["flags"]["normal"]) == {"label.png": (True, False)}
    assert ends(flips["flags"]["covid19"]) == {"label.png": (False, True)}
    assert flips["flags"]["other_infection"] == []
    assert ends(flips["priority"]) == {
        "label.png": ("routine", "elevated"),
        "status.png": ("routine", "review"),
        "severity.png": ("routine", "review"),
    }
    assert ends(flips["status"]) == {"status.png": ("ok", "not_a_chest"), "reason.png": ("blank", "colour")}
    assert ends(flips["severity"]) == {"severity.png": (1.0, None)}
    assert flips["images"] == 4 and report["identical"] == 1
    largest = report["largest"]["images"]
    assert len(largest) == 3 and largest[2]["file"] == "label.png"
    assert {image["file"]: image["difference"] for image in largest} == {
        "severity.png": 1.0,
        "status.png": 1.0,
        "label.png": 0.5,
    }


def test_figures_are_those_of_a_slow_count() -> None:
    rng = np.random.default_rng(4)
    a = [judged(f"{i}.png", tuple(rng.dirichlet([1, 1, 1]).round(6)), float(rng.uniform(0, 6))) for i in range(40)]
    b = [judged(f.file, tuple(rng.dirichlet([1, 1, 1]).round(6)), float(rng.uniform(0, 6))) for f in a]
    b[3] = replace(b[3], severity=Severity())
    found = differences(side(*a), side(*b), {}, 5)
    for name in CLASSES:
        gap = np.array([y.probabilities[name] - x.probabilities[name] for x, y in zip(a, b, strict=True)])  # type: ignore[index]
        said = found["differences"]["probabilities"][name]
        slow = [len(gap), gap.mean(), abs(gap).mean(), np.sqrt((gap**2).mean()), abs(gap).max()]
        assert list(said.values()) == pytest.approx(slow, rel=1e-5)
    scores = [abs(y.severity.score - x.severity.score) for i, (x, y) in enumerate(zip(a, b, strict=True)) if i != 3]  # type: ignore[operator, union-attr]
    severity = found["differences"]["severity"]
    assert severity["count"] == 39 and severity["mae"] == pytest.approx(np.mean(scores), rel=1e-5)
    assert severity["largest"] == pytest.approx(max(scores), rel=1e-5)
    zones = found["differences"]["zones"]
    assert zones["count"] == 39 * 6 and zones["largest"] == pytest.approx(max(scores) / 6, rel=1e-5)
    assert np.shape(zones["by_zone"]) == (3, 2)
    sizes = [image["difference"] for image in found["largest"]["images"]]
    assert len(sizes) == 5 and sizes == sorted(sizes, reverse=True) and found["largest"]["images"][0]["file"] == "3.png"


def test_images_are_matched_by_content_then_by_name() -> None:
    a = [
        judged("x/1.png", content="same"),
        judged("x/2.png", content="same"),
        judged("x/3.png"),
        refused("y", sha256=None),
    ]
    b = [
        judged("2.png", content="same"),
        judged("x/2.png", content="same"),
        judged("x/3.png", content="changed since"),
        refused("y", Reason.NO_PERMISSION),
        judged("x/1.png", content="another"),
    ]
    pairs, only_a, only_b = match(a, b)
    assert [(p.a.file, p.b.file) for p in pairs] == [("x/1.png", "2.png"), ("x/2.png", "x/2.png"), ("y", "y")]
    assert [f.file for f in only_a] == ["x/3.png"] and [f.file for f in only_b] == ["x/1.png", "x/3.png"]


def test_nothing_matched_and_nothing_judged() -> None:
    report = differences(side(judged("a.png")), side(judged("b.png")), {}, 3)
    assert report["images"]["matched"] == 0 and report["worklist"]["spearman"] is None
    assert report["worklist"]["why"] == "fewer than two images"
    assert report["images"]["only_in_a"] == {"count": 1, "first": ["a.png"]}
    refusals = [refused(f"{i}.png") for i in range(5)]
    report = differences(side(*refusals), side(*refusals), {}, 3)
    assert report["worklist"]["spearman"] is None and "equally urgent" in report["worklist"]["why"]
    assert report["differences"]["severity"]["mae"] is None
    assert differences(side(refusals[0]), side(refusals[0]), {}, 3)["worklist"]["why"] == "fewer than two images"


def test_tau_is_left_out_where_its_pairs_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MOST_PAIRED", 3)
    four = [judged(f"{i}.png", score=float(i)) for i in range(4)]
    found = differences(side(*four), side(*four), {}, 3)["worklist"]
    assert found["spearman"] == 1 and found["kendall"] is None and "left out above 3" in found["why"]


def test_bundles_of_other_classes_are_compared_on_the_common_ones() -> None:
    other = replace(MANIFEST, classes=("covid19", "tuberculosis"), operating_points={})
    b = judged("a.png", probabilities={"covid19": 0.4, "tuberculosis": 0.6}, flags={"covid19": False})
    report = differences(side(judged("a.png", (0.7, 0.2, 0.1))), side(b, manifest=other), {}, 3)
    assert report["classes"] == {
        "common": ["covid19"],
        "only_in_a": ["normal", "other_infection"],
        "only_in_b": ["tuberculosis"],
        "flagged": ["covid19"],
    }
    assert list(report["differences"]["probabilities"]) == ["covid19"]
    assert report["differences"]["probabilities"]["covid19"]["mean"] == pytest.approx(0.3)
    with pytest.raises(UsageError, match="no class in common"):
        differences(side(judged("a.png")), side(manifest=replace(other, classes=("tuberculosis",))), {}, 3)


def test_labels_say_which_side_is_right() -> None:
    right, wrong, worse = (0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.8)
    outcomes = [(right, right), (right, wrong), (wrong, right), (right, worse), (wrong, worse), (worse, worse)]
    a = [judged(f"{i}.png", p) for i, (p, _) in enumerate(outcomes)] + [refused("6.png"), judged("7.png", right)]
    b = [judged(f"{i}.png", q) for i, (_, q) in enumerate(outcomes)] + [judged("6.png"), judged("7.png", wrong)]
    truths = {sha(f"{i}.png"): 0 for i in range(7)}  # of 7.png none is known
    found = differences(side(*a), side(*b), truths, 3)
    assert found["labels"] == {
        "images": 6,
        "right": {"a": 3, "b": 2},
        "flips": {"a_right": 2, "b_right": 1, "both_wrong": 1},
        "mcnemar_p": 1.0,
    }
    assert {image["file"]: image.get("truth") for image in found["flips"]["label"]} == {
        **dict.fromkeys(("1.png", "2.png", "3.png", "4.png"), 0),
        "7.png": None,
    }
    assert differences(side(*a), side(*a), truths, 3)["labels"]["mcnemar_p"] is None


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_sum(b: int, c: int) -> None:
    n = b + c
    if not n:
        assert isnan(mcnemar(b, c))
        return
    tail = Fraction(2 * sum(comb(n, k) for k in range(min(b, c) + 1)), 2**n)
    assert mcnemar(b, c) == pytest.approx(float(min(tail, Fraction(1))), rel=1e-9)


def test_mcnemar_of_very_many() -> None:
    assert mcnemar(2000, 2000) == 1.0
    assert 0 <= mcnemar(0, 3000) < 1e-300 and mcnemar(900, 1100) == pytest.approx(8.5e-6, rel=0.02)


def test_places_keep_the_farthest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "PLACES", 50)
    monkeypatch.setattr(figures, "FARTHEST", 10)
    a = np.arange(1, 1001)
    b = a.copy()
    b[[7, 993]] = b[[993, 7]]
    kept = places(a, b - a)
    assert len(kept) == 50 and [8, 994] in kept and [994, 8] in kept
    assert kept == sorted(kept) and kept[-1][0] > 900
