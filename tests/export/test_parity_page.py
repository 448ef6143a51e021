"""The parity page: every figure of the records is on it, it loads nothing, and it escapes what it shows."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import Page, browsed, needs_browser
from small_bundle import Exported

from cxrvit_edge import parity_auc
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.findings import Severity
from cxrvit_edge.report.run import RESEARCH_USE
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from export.parity import BOUNDS, Observation, compare, observe, require
from export.parity_page import render
from train.data import manifest

NAME = "<ward> & 'night'"


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [value]
    return []


@pytest.fixture(scope="module")
def records(exported: Exported) -> dict[str, dict[str, Any]]:
    """Of the small bundle: one that is exact, one that departs in every way, one without numbers."""
    bundle = Bundle.open(exported.bundle)
    session = OnnxRuntimeSession(bundle.file("fp32.onnx"), precision="fp32", threads=1)
    a = observe(session, manifest.read(exported.data), bundle)
    noise = np.random.default_rng(0).normal(0, 0.3, (len(a), 3))
    b = [replace(o, logits=(o.logits + n).astype(np.float32)) for o, n in zip(a, noise, strict=True)]

    def said(o: Observation, **changes: Any) -> Observation:
        assert o.judgement is not None
        return replace(o, judgement=replace(o.judgement, **changes))

    assert a[0].judgement is not None
    flags = {name: not on for name, on in a[0].judgement.flags.items()}
    b[0] = said(b[0], label="covid19" if a[0].judgement.label != "covid19" else "normal", flags=flags)
    b[1] = replace(b[1], judgement=None, refused="not_a_chest")
    b[2] = said(b[2], severity=Severity(None), priority="review")
    b[3] = said(b[3], severity=Severity((a[3].score or 0) + 1.0))
    broken = [replace(o, logits=o.logits * np.float32("nan"), judgement=None, refused="not_finite") for o in a]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity_auc, "DRAWS", 100)
        out = {
            "fp16": compare(a, a, bundle, BOUNDS["fp16"], "torch, rounded to half", against="fp32 on torch"),
            "int8": compare(a, b, bundle, BOUNDS["int8"], "ONNX Runtime <exact>", against="fp32 on torch"),
            "odd": compare(a, broken, bundle, BOUNDS["fp16"], "overflowing"),
        }
    require(out["odd"], "odd", allow_failing=True)
    return out


@pytest.fixture(scope="module")
def page(records: dict[str, dict[str, Any]]) -> Page:
    return Page(html(records))


def html(records: dict[str, dict[str, Any]], **more: Any) -> str:
    calibration = {"int8": {"source": "CheXpert", "estimator": "percentile", "images": ["ab", "cd"], "seed": 7,
                            "strata": {"PA <M>": 3}}}  # fmt: skip
    return render(NAME, "c0ffee" * 10, records, calibration=calibration, caveat="Sources & labels go together.", **more)


def test_it_loads_nothing_and_runs_nothing(page: Page) -> None:
    assert not {"script", "img", "iframe", "object", "form", "video"} & set(page.tags)
    assert page.tags["table"] >= 7
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("href", "src"):
            assert value.startswith(("#", "data:")), (tag, value)
    assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert ids == ["fp16", "int8", "odd"]
    assert [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")] == [f"#{i}" for i in ids]


def test_what_must_be_said_is_said(page: Page) -> None:
    assert RESEARCH_USE in page.text
    assert "Sources & labels go together." in page.text
    assert NAME in page.text
    assert "c0ffee" * 10 in page.text
    assert "no AUC here is evidence of clinical performance" in page.text
    assert "source CheXpert; estimator percentile; images: 2; seed 7; strata: PA <M> 3" in page.text
    assert "ONNX Runtime <exact>" in page.text


def test_every_figure_is_there(page: Page, records: dict[str, dict[str, Any]]) -> None:
    cells = " ".join(cell for row in page.rows for cell in row)
    shown = {float(n) for n in re.findall(r"[-+]?\d+(?:\.\d+)?(?:e-?\d+)?", cells.replace(",", ""))}
    for name, record in records.items():
        for split, found in record["splits"].items():
            for key in ("flips", "logits", "probabilities"):
                for value in numbers(found[key]):
                    ratio = value == found["logits"]["rms_of_std"] and key == "logits"
                    expected = float(f"{100 * value if ratio else value:.3g}")
                    assert expected in shown, (name, split, key, value)
            for value in numbers({k: v for k, v in found["auc"].items() if k != "per_cent"}):
                assert {round(value, 4), round(value, 3)} & shown, (name, split, value)
            assert found["severity"]["mae"] is None or float(f"{found['severity']['mae']:.3g}") in shown


def test_the_first_table_has_a_verdict_for_each(page: Page, records: dict[str, dict[str, Any]]) -> None:
    rows = {row[0]: row for row in page.rows[1:4]}
    assert list(rows) == ["fp16", "int8", "odd"]
    assert [rows[n][1] for n in rows] == ["Within bounds", "Outside bounds", "Outside, allowed"]
    both = records["int8"]["splits"]["both"]
    assert rows["int8"][2] == f"{both['flips']['images']}at most 3"
    assert rows["int8"][3] == f"{both['probabilities']['largest']:.3g}at most 0.05"
    assert rows["int8"][4] == f"{100 * both['logits']['rms_of_std']:.3g} %at most 2 %"
    assert rows["int8"][5] == f"{both['severity']['mae']:.3g}at most 0.05"
    assert rows["int8"][7] == f"{both['auc']['per_cent']:.2f} %"
    assert rows["odd"][3:5] == ["not finite", "not finite"]
    assert rows["odd"][5:] == ["none measured", "not defined", "not defined"]


def test_failures_and_flips_are_listed(page: Page, records: dict[str, dict[str, Any]]) -> None:
    for record in records.values():
        for failure in record["failures"]:
            assert failure in page.text
    listed = [row for row in page.rows if re.fullmatch("[0-9a-f]{64}", row[0])]
    changes = [c for r in records.values() for c in r["changes"]]
    assert [row[0] for row in listed] == [c["sha256"] for c in changes]
    first = records["int8"]["changes"][0]
    names = {"normal": "Normal", "other_infection": "Other infection", "covid19": "COVID-19"}
    assert f"Label: {names[first['label'][0]]} to {names[first['label'][1]]}" in listed[0][2]
    for name, (before, after) in first["flags"].items():
        assert f"Flag {names[name]}: {'on' if before else 'off'} to {'on' if after else 'off'}" in listed[0][2]
    assert "Status: ok to not a whole frontal chest" in listed[1][2]
    assert re.search(r"Severity: \d\.\d\d to not measured", listed[2][2])
    assert "exported all the same" in page.text
    assert "Every image is judged as by the reference" in page.text


def test_a_record_of_another_form_is_left_out(records: dict[str, dict[str, Any]]) -> None:
    old = {"images": 32, "largest_logit_difference": 1e-6, "executor": "old form"}
    text = html({"fp32": old, "fp16": records["fp16"]})
    assert "old form" not in text
    assert [row[0] for row in Page(text).rows[1:2]] == ["fp16"]


@needs_browser
def test_a_browser_draws_it(records: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert browsed(tmp_path, html(records), "--window-size=800,600", "--dump-dom").count("<section") == 3
