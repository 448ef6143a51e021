"""The accuracy block: counted by hand on made answers, null and explained where nothing is defined."""

from __future__ import annotations

import json
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrvit_edge import metrics
from cxrvit_edge.bundle import Bundle, Selective
from cxrvit_edge.calibration_metrics import bland_altman, brier, ece
from cxrvit_edge.evaluation import accuracy
from cxrvit_edge.findings import Judgement, Severity
from cxrvit_edge.metrics import auc, cluster_bootstrap, delong, mean_auc, number, rates, softmax
from cxrvit_edge.model.config import CLASSES
from cxrvit_edge.parity import Observation
from cxrvit_edge.selective import figures
from cxrvit_edge.studies import Study

DRAWS = 60


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open()


def made(i: int, label: int | None, logits: Any, **changes: Any) -> tuple[Observation, Study]:
    """changes: score, refused, and fields of the study."""
    score, refused = changes.pop("score", 2.0), changes.pop("refused", None)
    study = Study(**{
        "path": Path(f"{i}.png"), "label": label, "patient": f"p{i // 2}", "view": ("PA", "AP")[i % 2],
        "source": f"s{i % 3}", "split": "test", **changes,
    })  # fmt: skip
    judgement = None if refused else Judgement({}, "normal", {}, Severity(score), "routine")
    values = np.array(logits, np.float32)
    seen = Observation(f"{i:064x}", study.patient, study.source, "test", study.view, label, values, judgement, refused)
    return seen, study


def many(n: int = 90, seed: int = 0) -> list[tuple[Observation, Study]]:
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(0, 3, n), rng.normal(0, 1, (n, 3))
    logits[np.arange(n), labels] += 1.0
    return [made(i, int(y), row) for i, (y, row) in enumerate(zip(labels, logits, strict=True))]


def block(pairs: list[tuple[Observation, Study]], bundle: Bundle, draws: int = DRAWS) -> dict[str, Any]:
    found = accuracy([o for o, _ in pairs], [s for _, s in pairs], bundle, draws=draws)
    json.dumps(found, allow_nan=False)
    return found


def rounded(*values: float) -> list[float | None]:
    return [number(v) for v in values]


def test_figures_are_those_of_the_plain_functions(bundle: Bundle) -> None:
    pairs = many()
    m = bundle.manifest
    found = block(pairs, bundle)
    labels = np.array([s.label for _, s in pairs])
    p = softmax(np.stack([o.logits for o, _ in pairs]), m.temperature)
    who = [s.patient for _, s in pairs]
    assert (found["images"], found["patients"], found["refused"]) == (90, 45, {})
    assert found["classes"] == {name: int((labels == k).sum()) for k, name in enumerate(m.classes)}
    for k, name in enumerate(m.classes):
        single = delong(labels == k, p[:, k])
        over = cluster_bootstrap(lambda i, k=k: auc(labels[i] == k, p[i, k]), who, draws=DRAWS)  # type: ignore[misc]
        assert list(found["auc"][name].values()) == rounded(*astuple(single), over.low, over.high)
        at = found["operating"][name]
        assert at["threshold"] == number(m.operating_points[name])
        own = rates(labels == k, np.round(p[:, k], 6), m.operating_points[name])
        assert [at[rate]["value"] for rate in metrics.RATES] == rounded(*own)
        assert found["roc"][name][0] == [0, 0]
        assert found["roc"][name][-1] == [1, 1]
    mean = cluster_bootstrap(lambda i: mean_auc(labels[i], p[i]), who, draws=DRAWS)
    assert list(found["auc"]["mean"].values()) == rounded(*astuple(mean))
    each = [found["operating"][name]["accuracy"]["value"] for name in m.classes]
    assert found["operating"]["mean"]["accuracy"]["value"] == pytest.approx(np.mean(each), abs=1e-4)
    assert found["calibration"]["brier"]["value"] == number(brier(labels, p))
    assert found["calibration"]["ece"]["value"] == number(ece(labels, p))
    assert sum(b["count"] for b in found["calibration"]["bins"]) == 90
    assert found["severity"] is None
    for kind, of in (("by_view", lambda s: s.view), ("by_source", lambda s: s.source)):
        for group, got in found[kind].items():
            rows = np.array([i for i, (_, s) in enumerate(pairs) if of(s) == group])
            assert got["images"] == len(rows)
            e = cluster_bootstrap(
                lambda i, r=rows: auc(labels[r][i] == 1, p[r][i, 1]),  # type: ignore[misc]
                [who[i] for i in rows],
                draws=DRAWS,
            )
            assert list(got["auc"]["other_infection"].values()) == rounded(*astuple(e))
    assert set(found["by_view"]) == {"PA", "AP"}
    assert set(found["by_source"]) == {"s0", "s1", "s2"}
    pair = found["within_source"]["s0: covid19 against normal"]
    rows = np.array([i for i, (_, s) in enumerate(pairs) if s.source == "s0" and s.label in (0, 2)])
    raw = np.stack([pairs[i][0].logits for i in rows]).astype(float)
    assert pair["value"] == number(auc(labels[rows] == 2, raw[:, 2] - raw[:, 0]))
    assert pair["images"] == [int((labels[rows] == k).sum()) for k in (0, 2)]


def test_a_bundle_with_a_second_operating_point_and_sets(bundle: Bundle) -> None:
    pairs = many()
    points, sets = {"normal": 0.2, "other_infection": 0.15, "covid19": 0.1}, Selective(0.1, 0.65, 99)
    both = replace(bundle, manifest=replace(bundle.manifest, sensitive_points=points, selective=sets))
    found, before = block(pairs, both), block(pairs, replace(bundle, manifest=replace(bundle.manifest, selective=None)))
    labels = np.array([s.label for _, s in pairs])
    p = softmax(np.stack([o.logits for o, _ in pairs]), bundle.manifest.temperature)
    for k, name in enumerate(CLASSES):
        at = found["sensitive"][name]
        own = rates(labels == k, np.round(p[:, k], 6), points[name])
        assert [at["threshold"], *(at[rate]["value"] for rate in metrics.RATES)] == rounded(points[name], *own)
        assert at["sensitivity"]["value"] >= found["operating"][name]["sensitivity"]["value"]
    who, sources = [s.patient for _, s in pairs], [s.source for _, s in pairs]
    assert found["selective"] == figures(labels, p, who, sources, CLASSES, sets, draws=DRAWS)
    assert found["selective"]["by_source"]["s1"]["images"] == 30
    assert before["selective"] is None
    assert {k: v for k, v in found.items() if k not in ("sensitive", "selective")} == {
        k: v for k, v in before.items() if k not in ("sensitive", "selective")
    }


def test_intervals_where_no_resample_differs(bundle: Bundle) -> None:
    """Classes that do not overlap, and images of one patient: no interval from 1 to 1."""
    pairs = [made(i, i % 3, tuple(8.0 * (k == i % 3) for k in range(3))) for i in range(60)]
    pairs = [(o, replace(s, patient=f"p{i}")) for i, (o, s) in enumerate(pairs)]
    found = block(pairs, bundle, draws=200)
    for name, e in found["auc"].items():
        assert (e["value"], e["low"], e["high"], e.get("cluster_low")) == (1.0, None, None, None), name
    rate = found["operating"]["covid19"]["sensitivity"]
    assert rate == {"value": 1.0, "low": number(0.025 ** (1 / 20)), "high": 1.0}  # 0.8316: as R's binom.test(20, 20)
    assert found["operating"]["covid19"]["accuracy"]["low"] == number(0.025 ** (1 / 60))
    assert found["operating"]["mean"]["sensitivity"]["low"] is None
    one = block([(o, replace(s, patient="p")) for o, s in many()], bundle, draws=200)
    assert all(e.get("cluster_low", e["low"]) is None for e in one["auc"].values())
    assert one["calibration"]["brier"]["low"] is None and one["operating"]["normal"]["accuracy"]["low"] is None


def test_the_calibration_error_has_no_interval(bundle: Bundle) -> None:
    """Of a calibrated network every quantile of the resamples lies above the true error, often above the value."""
    ece = block(many(), bundle, draws=200)["calibration"]["ece"]
    assert ece["value"] > 0 and (ece["low"], ece["high"]) == (None, None)


def test_what_triage_refuses_is_counted_and_still_measured(bundle: Bundle) -> None:
    pairs = many()
    before = block(pairs, bundle)
    odd = [
        replace(o, judgement=None, refused="not_a_chest" if i < 3 else "blank") for i, (o, _) in enumerate(pairs[:5])
    ]
    after = block([*zip(odd, [s for _, s in pairs[:5]], strict=True), *pairs[5:]], bundle)
    assert after.pop("refused") == {"blank": 2, "not_a_chest": 3}
    assert before.pop("refused") == {}
    assert after == before


def test_images_without_a_label_count_for_severity_alone(bundle: Bundle) -> None:
    """Bias is the network's score less the radiologist's; limits are 1.96 standard deviations of it away."""
    rng = np.random.default_rng(3)
    truth, score = rng.integers(0, 7, 30).astype(float), rng.uniform(0, 6, 30)
    both = enumerate(zip(truth, score, strict=True))
    scored = [made(200 + i, None, [0, 0, 0], severity=t, score=s) for i, (t, s) in both]
    scored += [made(300, None, [0, 0, 0], severity=3.0, refused="not_a_chest")]
    scored += [made(301, None, [0, 0, 0], severity=3.0, score=None)]
    pairs = many()
    found, without = block([*pairs, *scored], bundle), block(pairs, bundle)
    assert found.pop("refused") == {"not_a_chest": 1}
    del without["refused"]
    s = found.pop("severity")
    assert without.pop("severity") is None
    assert found == without
    expected = metrics.severity(truth, score)
    assert (s["images"], s["not_scored"]) == (30, 2)
    assert [s[name]["value"] for name in ("mse", "mae", "cc", "r2")] == rounded(*astuple(expected))
    assert s["mse"]["low"] < s["mse"]["value"] < s["mse"]["high"]
    assert s["constant"] == {"score": number(truth.mean()), "mse": number(truth.var())}
    limits = bland_altman(truth, score)
    drawn = s["bland_altman"]
    assert [drawn["bias"]["value"], drawn["low"], drawn["high"]] == rounded(limits.bias, limits.low, limits.high)
    assert drawn["points"][0] == rounded((truth[0] + score[0]) / 2, score[0] - truth[0])
    assert len(drawn["points"]) == 30


def test_one_class_only_is_said_and_is_not_zero(bundle: Bundle) -> None:
    pairs = [(replace(o, truth=2), replace(s, label=2)) for o, s in many(20)]
    found = block(pairs, bundle)
    for name in ("normal", "covid19", "mean"):
        e = found["auc"][name]
        assert (e["value"], e["low"], e["high"]) == (None, None, None)
        assert e["why"] == "one class only: every labelled image is covid19"
    assert found["roc"] == {name: [] for name in bundle.manifest.classes}
    covid = found["operating"]["covid19"]
    assert covid["specificity"]["value"] is None
    assert covid["sensitivity"]["value"] == covid["accuracy"]["value"] is not None
    assert found["calibration"]["brier"]["value"] is not None
    assert "fewer than 5" in found["by_view"]["PA"]["auc"]["covid19"]["why"]
    assert found["within_source"] == {}


def test_a_missing_class_leaves_the_others(bundle: Bundle) -> None:
    pairs = [pair for pair in many() if pair[1].label != 0]
    found = block(pairs, bundle)["auc"]
    assert found["normal"]["why"] == "no image of the class"
    assert found["mean"]["why"] == "a class has no image"
    assert found["covid19"]["value"] is not None
    assert "why" not in found["covid19"]


def test_nothing_labelled(bundle: Bundle) -> None:
    for pairs in ([], [made(i, None, [0, 0, 0]) for i in range(4)]):
        found = block(pairs, bundle)
        assert (found["images"], found["patients"]) == (0, 0)
        assert found["auc"]["mean"]["why"] == "no labelled image"
        assert found["calibration"]["why"] == "no labelled image"
        assert found["operating"]["mean"]["accuracy"]["value"] is None
        assert (found["by_view"], found["by_source"], found["within_source"]) == ({}, {}, {})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_gives_no_numbers_has_no_figures(bundle: Bundle, value: float) -> None:
    pairs = many()
    pairs[4] = made(4, pairs[4][1].label, [value, 0, 0], refused="not_finite")
    found = block(pairs, bundle)
    why = "the network gave 1 images values that are not finite"
    assert all(e["value"] is None and e["why"] == why for e in found["auc"].values())
    assert all(rate["value"] is None for rate in found["operating"]["mean"].values())
    assert found["calibration"]["why"] == why
    assert found["by_view"]["PA"]["auc"]["normal"]["why"] == "values that are not finite"
    assert found["by_view"]["AP"]["auc"]["normal"]["value"] is not None


def test_a_table_without_sources_has_no_groups_of_them(bundle: Bundle) -> None:
    pairs = [(o, replace(s, source="")) for o, s in many()]
    found = block(pairs, bundle)
    assert (found["by_source"], found["within_source"]) == ({}, {})
    pairs[0] = (pairs[0][0], replace(pairs[0][1], source="here"))
    assert set(block(pairs, bundle)["by_source"]) == {"here", "not stated"}


def test_lists_of_two_lengths_are_a_mistake(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="zip"):
        accuracy([many(2)[0][0]], [], bundle)


rows = st.tuples(st.sampled_from([None, 0, 1, 2]), *[st.integers(-2, 2)] * 3, st.integers(0, 5), st.booleans())


@settings(max_examples=25)
@given(st.lists(rows, max_size=16))
def test_any_answers_give_json(bundle: Bundle, sample: list[tuple[Any, ...]]) -> None:
    pairs = [
        made(
            i,
            label,
            logits,
            patient=str(patient),
            severity=float(patient) if on else None,
            score=2.0 if i % 3 else None,
        )
        for i, (label, *logits, patient, on) in enumerate(sample)
    ]
    found = block(pairs, bundle, draws=6)
    assert found["images"] == sum(label is not None for label, *_ in sample)
    for e in found["auc"].values():
        assert ("why" in e) == (e["value"] is None)
