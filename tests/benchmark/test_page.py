"""The benchmark page: every figure of the report is on it, what the report lacks is said, and it loads nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import html_page
import pytest
from html_page import browsed, needs_browser
from report_builder import CANDIDATES, CLASSES, build

from cxrvit_edge.benchmark import charts, page_parity
from cxrvit_edge.benchmark.page import render
from cxrvit_edge.report import axes
from cxrvit_edge.report.page import date
from cxrvit_edge.selective import GUARANTEE


class Page(html_page.Page):
    apart = ("br", "small")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return build(energy=True, flips=5)


@pytest.fixture(scope="module")
def shown(report: dict[str, Any]) -> Page:
    return Page(render(report))


def test_it_loads_nothing_and_runs_nothing(shown: Page) -> None:
    assert not {"script", "img", "iframe", "object", "form", "video", "use", "image"} & set(shown.tags)
    for tag, name, value in shown.attributes:
        assert not name.startswith("on")
        if name in ("href", "src"):
            assert value.startswith("#") or (tag, value) == ("link", "data:,")
        assert "http:" not in value and "https:" not in value and "url(" not in value
    policy = [v for tag, name, v in shown.attributes if tag == "meta" and v.startswith("default-src")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not re.search(r"url\(|@import", render(build()))


def test_links_lead_somewhere(shown: Page) -> None:
    links = {v for tag, name, v in shown.attributes if tag == "a" and name == "href"}
    assert links == {f"#{part}" for part in shown.ids}
    assert len(set(shown.ids)) == len(shown.ids)


def test_latencies_are_in_the_table(report: dict[str, Any], shown: Page) -> None:
    first = next(i for i, row in enumerate(shown.rows) if row[1:2] == ["Median ms"]) + 1
    rows = {row[0].split(" fastest")[0]: row for row in shown.rows[first : first + len(CANDIDATES)]}
    assert list(rows) == list(CANDIDATES)
    for name, row in rows.items():
        found = report["latency"][name]
        stream = found["single_stream"]
        expected = [stream[k] for k in ("p50_ms", "p90_ms", "p99_ms", "best_ms")]
        expected += [found["offline"]["images_a_second"], found["ratio"], found["energy"]["joules_a_study"]]
        assert [float(v) for v in row[1:]] == pytest.approx(expected, rel=0.01)
    marked = [row[0] for row in shown.rows if row and "fastest" in row[0] and row[0].startswith(CANDIDATES)]
    assert [m.split(" fastest")[0] for m in marked] == [n for n in CANDIDATES if report["latency"][n]["ratio"] == 1]


def test_every_auc_and_rate_is_on_the_page(report: dict[str, Any], shown: Page) -> None:
    for block in report["accuracy"]["by_candidate"].values():
        for e in block["auc"].values():
            assert f"{e['value']:.3f}" in shown.parts["accuracy"]
            assert f"{e['low']:.3f} to {e['high']:.3f}" in shown.parts["accuracy"]
            if "cluster_low" in e:
                assert f"{e['cluster_low']:.3f} to {e['cluster_high']:.3f}" in shown.parts["accuracy"]
        for found in block["operating"].values():
            for rate in ("sensitivity", "specificity", "accuracy"):
                e = found[rate]
                assert f"{e['value']:.3f}{e['low']:.3f} to {e['high']:.3f}" in shown.parts["accuracy"]
        for key in ("brier", "ece"):
            assert f"{block['calibration'][key]['value']:.3f}" in shown.parts["accuracy"]
        bias = block["severity"]["bland_altman"]["bias"]["value"]
        assert f"bias {bias:+.2f}" in shown.parts["accuracy"]
        for key in ("by_view", "by_source"):
            for group, found in block[key].items():
                value = found["auc"]["mean"]["value"]
                assert group in shown.parts["accuracy"]
                assert value is None or f"{value:.3f}" in shown.parts["accuracy"]
    assert "nih: other_infection against normal" in shown.parts["accuracy"]
    curves = [n for n in (f"ROC of {c}" for c in CLASSES) if n in shown.parts["accuracy"]]
    assert len(curves) == 3


def test_the_second_operating_point_and_the_sets_are_on_the_page(report: dict[str, Any], shown: Page) -> None:
    text = shown.parts["accuracy"]
    for block in report["accuracy"]["by_candidate"].values():
        for found in block["sensitive"].values():
            assert "threshold" not in found or f"{found['threshold']:.3f}" in text
        sets = block["selective"]
        for e in (sets, *sets["by_class"].values(), *sets["by_source"].values()):
            row = "".join(f"{v['value']:.3f}{v['low']:.3f} to {v['high']:.3f}" for v in (e["coverage"], e["single"]))
            assert f"{e['images']:,}{row}" in text
        for name in ("accuracy", "accuracy_single", "aurc"):
            assert f"{sets[name]['value']:.3f}{sets[name]['low']:.3f} to {sets[name]['high']:.3f}" in text
    assert "at least 0.269, chosen on other images so that 90 % of the sets" in text
    assert "0.9610.930 to 0.992" in text
    assert GUARANTEE in text


def test_a_bundle_without_them_has_no_such_parts() -> None:
    text = Page(render(build(sets=False))).parts["accuracy"]
    assert "Prediction sets" not in text and "95 % sens" not in text and "sensitivity of 95 %" not in text
    older = build(sets=False)
    for block in older["accuracy"]["by_candidate"].values():
        del block["sensitive"], block["selective"]
    assert Page(render(older)).parts["accuracy"] == text


def test_flips_are_listed_by_a_short_hash(report: dict[str, Any], shown: Page) -> None:
    text = shown.parts["parity"]
    for record in report["parity"]:
        for change in record["changes"]:
            assert change["sha256"][: page_parity.HASH] in text
            assert change["sha256"] not in text
    assert text.count("Label: Normal \N{RIGHTWARDS ARROW} Other infection") == 10
    assert text.count("Flag Normal: on \N{RIGHTWARDS ARROW} off") == 4
    assert text.count("Priority: routine \N{RIGHTWARDS ARROW} elevated") == 2


def test_parity_passes_and_fails_as_the_report_says() -> None:
    report = build(flips=5)
    report["parity"][0].update(auc_per_cent=99.5, at_99=True, at_99_9=False)
    report["parity"][1].update(auc_per_cent=98.0, at_99=False, at_99_9=False)
    rows = [r for r in Page(render(report)).rows if len(r) == 8 and "against onnxruntime fp32" in r[0]]
    assert [r[2:5] for r in rows] == [["pass", "fail", "99.50 %"], ["fail", "fail", "98.00 %"]]
    assert all(r[1].startswith("outside") and "images flipped: 5 > 3" in r[1] for r in rows)


def test_the_summary_says_whether_int8_changed_a_diagnosis() -> None:
    head = Page(render(build(flips=5, images=150))).parts["head"]
    assert "Yes, in 5 of 150 images." in head and "onnxruntime int8-cpu against onnxruntime fp32" in head
    assert head.count("No. onnxruntime") == head.count("No. openvino") == 0
    assert "No. onnxruntime int8-cpu" in Page(render(build(flips=0))).parts["head"]
    assert "No INT8 candidate ran" in Page(render(build(candidates=CANDIDATES[:1]))).parts["head"]
    assert "Not tested: it takes images" in Page(render(build(data=False))).parts["head"]
    broken = build()
    broken["parity"][0]["splits"]["both"]["not_finite"] = 2
    assert "2 images of 200 images got no number" in Page(render(broken)).parts["head"]


def test_the_summary_tells_what_the_fastest_does(report: dict[str, Any], shown: Page) -> None:
    fastest = next(n for n in CANDIDATES if report["latency"][n]["ratio"] == 1)
    head = shown.parts["head"]
    assert f"The fastest is {fastest}." in head
    assert f"{report['accuracy']['by_candidate'][fastest]['auc']['mean']['value']:.3f}" in head
    assert report["research_use"] in head and report["caveat"] in head
    assert report["environment"]["box"]["processor"] in head
    assert "Evidence of clinical performance" in head
    assert "2026-11-23 11:06 UTC" in head


def test_few_samples_and_a_busy_box_are_said() -> None:
    report = build()
    assert "one in a hundred takes longer than" in Page(render(report)).parts["head"]
    for latency in report["latency"].values():
        latency["single_stream"]["samples"] = 8
    report["environment"]["load"]["start"] = 5.82
    found = Page(render(report))
    assert "the slowest of 8 took" in found.parts["head"]
    assert "Others were at work on the box (load 5.8 a core)" in found.parts["head"]
    assert "Of fewer than 100, 99 % is the slowest." in found.parts["speed"]


def test_one_class_only_is_said_not_drawn() -> None:
    text = render(build(classes=(0,)))
    found = Page(text)
    assert "Not defined on these 200 images (one class only)." in found.parts["head"]
    assert found.parts["accuracy"].count("no curve") == 3
    assert "not defined" in found.parts["parity"]
    assert "One class only" in found.parts["accuracy"]
    assert "every image is normal: no AUC is defined" in found.parts["accuracy"]


@pytest.mark.parametrize(
    ("options", "part", "words"),
    [
        ({"data": False}, "accuracy", "No labelled images were given"),
        ({"data": False}, "parity", "Nothing was compared"),
        ({"parity": False}, "parity", "Nothing was compared"),
        ({"severity": False}, "accuracy", "no image has a reference score"),
        ({"end_to_end": False}, "files", "were not timed"),
        ({"sensors": False}, "environment", "no sensor that could be read"),
        ({"sensors": False}, "environment", "no clock: cpufreq is absent"),
        ({"energy": False}, "speed", "Energy was not measured"),
        ({"problems": False}, "accuracy", "None was found"),
        ({"flips": 0}, "parity", "Every image is judged alike"),
    ],
    ids=str,
)
def test_what_is_not_there_is_said(options: dict[str, Any], part: str, words: str) -> None:
    assert words in Page(render(build(**options))).parts[part]


def test_nothing_at_all_is_a_page_too() -> None:
    report = build(candidates=(), data=False, end_to_end=False)
    found = Page(render(report))
    assert "No candidate could be timed." in found.parts["head"]
    assert "No candidate could be timed." in found.parts["speed"]
    assert "no NVIDIA driver was found" in found.parts["environment"]


def test_a_candidate_that_failed_midway_keeps_the_looks_of_the_others() -> None:
    report = build()
    for where in (report["latency"], report["end_to_end"], report["accuracy"]["by_candidate"]):
        del where[CANDIDATES[0]]
    text = render(report)
    Page(text)
    second = text.index(axes.style(1)[0])
    assert CANDIDATES[1] in text[second : second + 200]
    assert f'stroke="{axes.style(0)[0]}" stroke-width="2"' not in text


def test_problems_and_the_box_are_named(report: dict[str, Any], shown: Page) -> None:
    problem = report["accuracy"]["data"]["problems"][0]
    assert all(line in shown.parts["accuracy"] for line in problem["first"])
    assert "and 2 more" in shown.parts["accuracy"]
    environment = shown.parts["environment"]
    for words in ("onnxruntime 1.23.2", "amx_int8", "governor performance", "MAXN", "63 at most", "NVIDIA RTX A2000"):
        assert words in environment
    assert all(note in environment for note in report["environment"]["notes"])
    assert all(p["name"] in environment and p["why"] in environment for p in report["passed_over"])


def test_texts_are_escaped() -> None:
    evil = "<script>alert('&')</script>\x1b\u202e"
    report = build()
    report["bundle"]["name"] = report["caveat"] = report["settings"]["data"] = evil
    report["environment"]["notes"].append(evil)
    report["passed_over"].append({"name": evil, "why": evil})
    report["accuracy"]["caveats"].append(evil)
    report["accuracy"]["data"]["problems"].append({"kind": evil, "count": 9, "first": [evil]})
    report["end_to_end"][CANDIDATES[0]]["statuses"][evil] = 3
    report["end_to_end"][CANDIDATES[0]]["stage_ms"][evil] = 3.0
    for block in report["accuracy"]["by_candidate"].values():
        block["by_source"][evil] = block["by_source"]["nih"]
        block["refused"][evil] = 1
    text = render(report)
    found = Page(text)
    assert "script" not in found.tags
    assert "\x1b" not in text and "\u202e" not in text and r"\x1b\u202e" in found.text
    assert found.text.count("<script>alert('&')") >= 10


@pytest.mark.parametrize("options", [{}, {"data": False}, {"classes": (0,)}, {"images": 4}], ids=str)
def test_no_number_is_missing_from_a_drawing(options: dict[str, Any]) -> None:
    text = render(build(**options))
    assert not re.search(r"[\"\s>(,](nan|inf|None)[\"\s<),]", text)
    assert "\N{EM DASH}" not in text


def test_the_page_of_many_images_stays_small() -> None:
    names = [f"{b} {p}" for b in ("onnxruntime", "openvino") for p in ("fp32", "int8", "int8-cpu")]
    text = render(build(images=1200, candidates=names, flips=260))
    assert len(text.encode()) < 1_500_000
    found = Page(text)
    assert f"{charts.POINTS:,} of 600 images drawn" in found.text
    assert "60 more are in report.json" in found.parts["parity"]


def test_dates_are_told_plainly() -> None:
    assert date("2026-11-23T11:06:42Z") == "2026-11-23 11:06 UTC"
    assert date("some day") == "some day"


@needs_browser
def test_a_browser_draws_and_prints_it(report: dict[str, Any], tmp_path: Path) -> None:
    browsed(tmp_path, render(report), "--window-size=800,600", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
