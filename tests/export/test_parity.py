"""The parity contract: what triage says of each image, held against the reference, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from small_bundle import Exported

from cxrvit_edge import Triage, parity_auc
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import InputError, ParityError, UsageError
from cxrvit_edge.findings import Judgement, Severity
from cxrvit_edge.metrics import auc, cluster_bootstrap, delong, mean_auc, softmax
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from cxrvit_edge.runtime.session import Float32, Outputs
from export.half import HalfSession
from export.parity import BOUNDS, Bounds, Observation, compare, observe, require
from train.data import manifest
from train.data.record import Record

pytestmark = pytest.mark.usefixtures("one_torch_thread")

LOOSE = Bounds(10**6, 10, 10, 10)
DRAWS = parity_auc.DRAWS


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_auc, "DRAWS", 100)


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    return Bundle.open(small_bundle)


@pytest.fixture(scope="module")
def records(exported: Exported) -> list[Record]:
    return manifest.read(exported.data)


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> OnnxRuntimeSession:
    return OnnxRuntimeSession(bundle.file("fp32.onnx"), precision="fp32", threads=1)


@pytest.fixture(scope="module")
def reference(session: OnnxRuntimeSession, records: list[Record], bundle: Bundle) -> list[Observation]:
    return observe(session, records, bundle)


class Changed:
    """A session whose outputs pass through `change`."""

    fingerprint = "changed"
    batch_sizes: Sequence[int] = ()
    notes: Sequence[str] = ()

    def __init__(self, inner: OnnxRuntimeSession, change: Callable[[Outputs], Outputs]) -> None:
        self.backend, self.version, self.precision = inner.backend, inner.version, "changed"
        self._inner, self._change = inner, change

    def run(self, batch: Float32) -> Outputs:
        assert batch.shape[0] == 1
        return self._change(self._inner.run(batch))


def test_observed_is_what_triage_says(
    reference: list[Observation], records: list[Record], exported: Exported, bundle: Bundle
) -> None:
    """Held against the pipeline itself over the same files."""
    files = sorted((exported.data / "images").iterdir())
    said = {f.sha256: f for f in Triage.open(exported.bundle)(files)}
    assert len(said) == len(reference) == len(records) == 12
    for o, record in zip(reference, records, strict=True):
        finding = said[o.sha256]
        assert o.sha256 == hashlib.sha256(record.path.read_bytes()).hexdigest()
        assert (o.patient, o.source, o.split, o.truth) == (record.patient, "generated", record.split, record.label)
        assert (finding.status, o.refused) == ("ok", None)
        assert o.judgement is not None
        assert (o.judgement.label, o.judgement.flags, o.priority) == (finding.label, finding.flags, finding.priority)
        assert o.judgement.severity == finding.severity
        assert finding.probabilities is not None
        for name, p in zip(
            bundle.manifest.classes, softmax(o.logits[None], bundle.manifest.temperature)[0], strict=True
        ):
            assert finding.probabilities[name] == pytest.approx(p, abs=1e-5)


@pytest.mark.parametrize(
    ("told", "view"), [("AP Supine", "AP"), ("PA", "PA"), ("frontal-unstated", "unknown"), ("unknown", "unknown")]
)
def test_view_is_the_records_word(
    session: OnnxRuntimeSession, records: list[Record], bundle: Bundle, told: str, view: str
) -> None:
    (found,) = observe(session, [replace(records[0], view=told)], bundle)
    assert (found.view, found.refused) == (view, None)


def test_what_triage_turns_away_has_its_code(
    session: OnnxRuntimeSession, records: list[Record], bundle: Bundle, tmp_path: Path
) -> None:
    """Blank and lateral before the network, no lungs and no number after it; logits are kept all the same."""
    assert cv2.imwrite(str(tmp_path / "blank.png"), np.full((160, 144), 7, np.uint8))
    odd = [replace(records[0], path=tmp_path / "blank.png"), replace(records[0], view="Lateral")]
    assert [o.refused for o in observe(session, odd, bundle)] == ["blank", "lateral_view"]
    faint = Changed(session, lambda o: o._replace(lung_mask=o.lung_mask * 0.1))
    broken = Changed(session, lambda o: o._replace(severity_map=o.severity_map * np.float32("nan")))
    for changed, code in ((faint, "not_a_chest"), (broken, "not_finite")):
        (found,) = observe(changed, records[:1], bundle)
        assert (found.refused, found.judgement, found.priority) == (code, None, "review")
        assert np.isfinite(found.logits).all()


def test_progress_and_an_image_that_cannot_be_read(
    session: OnnxRuntimeSession, records: list[Record], bundle: Bundle
) -> None:
    told: list[tuple[int, int]] = []
    missing = [*records[:2], replace(records[2], path=Path("gone.png"))]
    with pytest.raises(InputError, match=r"gone\.png"):
        observe(session, missing, bundle, lambda done, n: told.append((done, n)))
    assert told == [(1, 3), (2, 3)]


def test_reference_against_itself_is_within_any_bounds(reference: list[Observation], bundle: Bundle) -> None:
    found = compare(reference, reference, bundle, Bounds(0, 0, 0, 0), "the same", against="itself")
    assert (found["within"], found["failures"], found["changes"]) == (True, [], [])
    assert (found["reference"], found["executor"]) == ("itself", "the same")
    assert found["bounds"] == {"flips": 0, "probability": 0, "logits_rms": 0, "severity_mae": 0}
    assert [(s, v["images"], v["patients"]) for s, v in found["splits"].items()] == [
        ("val", 6, 6), ("test", 6, 6), ("both", 12, 12),
    ]  # fmt: skip
    for figures in found["splits"].values():
        assert figures["auc"]["per_cent"] == 100
        assert figures["auc"]["mean"]["difference"] == {"value": 0, "low": 0, "high": 0}
        assert figures["logits"] == {"largest": 0, "rms": 0, "rms_of_std": 0}
    require(found, "fp32", allow_failing=False)
    assert "allowed_failing" not in found


def test_half_of_the_small_network(reference: list[Observation], records: list[Record], bundle: Bundle) -> None:
    """A real variant, through everything: its record is JSON, short, and its figures are those of its logits."""
    session = HalfSession(bundle.file("weights.safetensors"))
    variant = observe(session, records, bundle)
    found = compare(reference, variant, bundle, BOUNDS["fp16"], "torch, rounded to half")
    text = json.dumps(found, allow_nan=False)
    assert len(text) < 6000
    assert json.loads(text) == found
    gap = np.stack([b.logits - a.logits for a, b in zip(reference, variant, strict=True)]).astype(float)
    both = found["splits"]["both"]["logits"]
    assert both["largest"] == pytest.approx(np.abs(gap).max(), rel=1e-4)
    assert both["rms"] == pytest.approx(np.sqrt((gap**2).mean()), rel=1e-4)
    assert found["within"] == (not found["failures"])
    assert not found["within"], "random weights magnify rounding: 3 % of the logits' spread"
    assert any("RMS logit difference" in f and "> 0.002" in f for f in found["failures"])


def made(i: int, logits: list[float], score: float | None = 2.0, **changes: Any) -> Observation:
    """An observation whose judgement follows from the logits at operating points of 0.5."""
    p = softmax(np.array([logits]))[0]
    names = ("normal", "other_infection", "covid19")
    flags = {name: bool(v >= 0.5) for name, v in zip(names, p, strict=True)}
    judgement = Judgement(
        {}, names[int(p.argmax())], flags, Severity(score), "routine" if flags["normal"] else "urgent"
    )
    fields: dict[str, Any] = {
        "sha256": f"{i:064x}", "patient": f"p{i // 2}", "source": "made", "split": ("val", "test")[i % 2], "view": "PA",
        "truth": i % 3, "logits": np.array(logits, np.float32), "judgement": judgement, "refused": None,
    }  # fmt: skip
    return Observation(**{**fields, **changes})


def many(n: int = 60, noise: float = 0.0, seed: int = 0) -> list[Observation]:
    base = np.random.default_rng(seed).normal(0, 1, (n, 3))
    base[np.arange(n), np.arange(n) % 3] += 1.0
    return [made(i, list(row)) for i, row in enumerate(base + np.random.default_rng(1).normal(0, 1, (n, 3)) * noise)]


def test_figures_are_those_of_the_plain_formulas(bundle: Bundle) -> None:
    """AUC, DeLong and the bootstrap as cxrvit_edge.metrics gives them, on the very draws."""
    a, b = many(), many(noise=0.3)
    found = compare(a, b, bundle, LOOSE, "x")["splits"]["test"]
    keep = [i for i, o in enumerate(a) if o.split == "test"]
    t = bundle.manifest.temperature
    x, y = (np.stack([o.logits for o in run])[keep].astype(float) for run in (a, b))
    p, q = softmax(x, t), softmax(y, t)
    labels, patients = np.array([a[i].truth for i in keep]), [a[i].patient for i in keep]
    assert found["logits"]["rms_of_std"] == pytest.approx(
        np.sqrt(((x - y) ** 2).mean()) / np.sqrt(x.var(0).mean()), rel=1e-5
    )
    assert found["probabilities"]["largest"] == pytest.approx(np.abs(p - q).max(), rel=1e-5)
    for k, name in enumerate(bundle.manifest.classes):
        for run, own in (("reference", p), ("variant", q)):
            expected = delong(labels == k, own[:, k])
            assert found["auc"][name][run] == pytest.approx(vars(expected), rel=1e-5)
        difference = cluster_bootstrap(
            lambda i, k=k: auc(labels[i] == k, q[i, k]) - auc(labels[i] == k, p[i, k]),  # type: ignore[misc]
            patients,
            draws=100,
        )
        assert found["auc"][name]["difference"] == pytest.approx(vars(difference), rel=1e-4, abs=1e-9)
        assert difference.low < difference.value < difference.high
    mean = cluster_bootstrap(lambda i: mean_auc(labels[i], q[i]) - mean_auc(labels[i], p[i]), patients, draws=100)
    assert found["auc"]["mean"]["difference"] == pytest.approx(vars(mean), rel=1e-4, abs=1e-9)
    assert found["auc"]["per_cent"] == pytest.approx(100 * mean_auc(labels, q) / mean_auc(labels, p), rel=1e-5)


def test_images_without_a_label_count_everywhere_but_in_auc(bundle: Bundle) -> None:
    a, b = many(), many(noise=0.3)
    extra = [made(60, [0, 0, 0], truth=None)], [made(60, [9, 0, 0], truth=None)]
    before, after = compare(a, b, bundle, LOOSE, "x"), compare([*a, *extra[0]], [*b, *extra[1]], bundle, LOOSE, "x")
    assert after["splits"]["val"]["images"] == before["splits"]["val"]["images"] + 1
    assert after["splits"]["both"]["auc"] == before["splits"]["both"]["auc"]
    assert after["splits"]["both"]["logits"]["largest"] == 9


def test_each_change_is_counted_and_listed_once(bundle: Bundle) -> None:
    def judged(i: int, **changes: Any) -> None:
        old = a[i].judgement
        assert old is not None
        b[i] = replace(a[i], judgement=replace(old, **changes))

    flags = {"normal": False, "other_infection": False, "covid19": False}
    a = [replace(o, judgement=Judgement({}, "normal", flags, Severity(2.0), "routine")) for o in many(12)]
    b = list(a)
    judged(0, label="covid19", flags={**flags, "covid19": True}, priority="urgent")  # val
    judged(1, flags={**flags, "other_infection": True})  # test
    judged(3, priority="elevated")
    judged(4, severity=Severity(None), priority="review")
    b[5] = replace(a[5], judgement=None, refused="not_a_chest")
    a[7] = replace(a[7], judgement=None, refused="not_a_chest")
    judged(8, severity=Severity(3.5))
    found = compare(a, b, bundle, LOOSE, "x")
    both = found["splits"]["both"]
    assert both["flips"] == {"images": 5, "label": 1, "flags": 2, "priority": 5, "status": 2, "severity": 1}
    assert found["splits"]["val"]["flips"]["images"] == 2
    assert found["splits"]["test"]["flips"]["images"] == 3
    assert both["severity"] == {"images": 9, "mae": pytest.approx(1.5 / 9, rel=1e-5), "largest": 1.5,
                                "appeared": 0, "vanished": 1}  # fmt: skip
    listed = {int(c.pop("sha256"), 16): c for c in found["changes"]}
    assert listed == {
        0: {"split": "val", "label": ["normal", "covid19"], "flags": {"covid19": [False, True]},
            "priority": ["routine", "urgent"]},
        1: {"split": "test", "flags": {"other_infection": [False, True]}},
        3: {"split": "test", "priority": ["routine", "elevated"]},
        4: {"split": "val", "severity": [2.0, None], "priority": ["routine", "review"]},
        5: {"split": "test", "status": ["ok", "not_a_chest"], "priority": ["routine", "review"]},
        7: {"split": "test", "status": ["not_a_chest", "ok"], "priority": ["review", "routine"]},
    }  # fmt: skip
    assert compare(a, b, bundle, replace(LOOSE, flips=4), "x")["failures"] == ["images flipped: 5 > 4"]


def shifted(by: float) -> Callable[[Observation], Observation]:
    return lambda o: replace(o, logits=(o.logits + np.array([by, 0, 0])).astype(np.float32))


def scored(o: Observation, score: float | None) -> Observation:
    assert o.judgement is not None
    return replace(o, judgement=replace(o.judgement, severity=Severity(score)))


@pytest.mark.parametrize(
    ("bounds", "failure"),
    [
        (replace(LOOSE, probability=0.05), r"largest probability difference 0\.\d+ > 0\.05"),
        (replace(LOOSE, logits_rms=0.02), r"RMS logit difference, of their standard deviation, 0\.\d+ > 0\.02"),
        (replace(LOOSE, severity_mae=0.05), r"severity score MAE 0\.25 > 0\.05"),
    ],
)
def test_each_bound_fails_by_itself(bundle: Bundle, bounds: Bounds, failure: str) -> None:
    a = many()
    b = [shifted(1.0)(scored(o, 2.25)) for o in a]
    assert compare(a, b, bundle, LOOSE, "x")["within"]
    (found,) = compare(a, b, bundle, bounds, "x")["failures"]
    assert re.fullmatch(failure, found)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_fails_whatever_the_bounds(bundle: Bundle, value: float) -> None:
    a = many()
    b = list(a)
    b[7] = replace(a[7], logits=np.array([value, 0, 0], np.float32), judgement=None, refused="not_finite")
    found = compare(a, b, bundle, replace(LOOSE, probability=float("inf"), logits_rms=float("inf")), "x")
    assert not found["within"]
    assert "images with values that are not finite: 1" in found["failures"]
    assert found["splits"]["both"]["logits"] == {"largest": None, "rms": None, "rms_of_std": None}
    if value != -float("inf"):  # which is a probability of 0
        assert found["splits"]["both"]["probabilities"]["largest"] is None
        assert found["splits"]["both"]["auc"]["mean"]["variant"] is None
    assert found["splits"]["val"]["not_finite"] == 0
    json.dumps(found, allow_nan=False)


def test_a_map_that_is_not_finite_fails_though_the_reference_refused_the_image(bundle: Bundle) -> None:
    a = [replace(o, judgement=None, refused="not_finite") for o in many(4)]
    assert "images with values that are not finite: 4" in compare(a, a, bundle, LOOSE, "x")["failures"]


def test_losing_every_score_is_no_way_round_the_severity_bound(bundle: Bundle) -> None:
    a = many(12)
    b = [scored(o, None) for o in a]
    found = compare(a, b, bundle, BOUNDS["int8"], "x")
    assert found["splits"]["both"]["severity"]["mae"] is None
    assert found["failures"] == ["images flipped: 12 > 3"]


def test_other_images_or_none(bundle: Bundle) -> None:
    a = many(6)
    for b in (a[::-1], a[:5]):
        with pytest.raises(UsageError, match="did not see the same images"):
            compare(a, b, bundle, LOOSE, "x")
    train = [replace(o, split="train") for o in a]
    with pytest.raises(UsageError, match="no image in the val or test split"):
        compare(train, train, bundle, LOOSE, "x")
    assert set(compare([*train, *a[::2]], [*train, *a[::2]], bundle, LOOSE, "x")["splits"]) == {"val", "both"}


def test_require_refuses_and_remembers(bundle: Bundle) -> None:
    a = many()
    found = compare(a, [shifted(1.0)(o) for o in a], bundle, BOUNDS["int8"], "ONNX Runtime", against="fp32 on torch")
    with pytest.raises(ParityError) as refused:
        require(found, "int8", allow_failing=False)
    assert str(refused.value).startswith("int8 on ONNX Runtime departs from fp32 on torch: largest probability diff")
    for step in ("--debug", "--allow-failing int8", "FP16", "bounds"):
        assert step in str(refused.value)
    assert all(failure in str(refused.value) for failure in found["failures"])
    assert "allowed_failing" not in found
    require(found, "int8", allow_failing=True)
    assert found["allowed_failing"] is True


def test_bounds_and_draws_are_those_of_the_contract() -> None:
    assert DRAWS == 2000
    assert BOUNDS["fp16"] == Bounds(0, 0.005, 0.002, 0.005)
    assert BOUNDS["int8"] == BOUNDS["int8-cpu"] == Bounds(3, 0.05, 0.02, 0.05)
    assert BOUNDS["fp32"].flips == 0
    assert BOUNDS["fp32"].probability <= 1e-4
