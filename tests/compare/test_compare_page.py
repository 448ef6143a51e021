"""compare.html: well formed, self-contained, says what the report says; and the words for the terminal."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from compare_sides import OWNER, judged, refused, sha, write_results
from html_page import Page, browsed, needs_browser

from cxrvit_edge.compare import PAGE, compare, page, told, words
from cxrvit_edge.compare.page import render
from cxrvit_edge.compare.ranks import ranks
from cxrvit_edge.errors import Reason
from cxrvit_edge.findings import Finding
from cxrvit_edge.report import thumbnails
from cxrvit_edge.report.run import RESEARCH_USE
from cxrvit_edge.summary import THUMBNAILS

NASTY = 'ward/<script>x</script>&"\u202e\udcff.png'
INT8 = OWNER._replace(precision="int8")


def compared(tmp_path: Path, a: list[Finding], b: list[Finding], **options: Any) -> tuple[dict[str, Any], str]:
    """Of two output folders: the report and its page."""
    folders = []
    for name, findings, owner in (("a", a, OWNER), ("b", b, INT8)):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        folders.append(write_results(tmp_path / name, *findings, owner=owner))
    report = compare(*map(str, folders), out=tmp_path / "out", **options)
    return report, (tmp_path / "out" / PAGE).read_text("utf-8")


def both(file: str, p: Any, q: Any, x: float | None = 1.0, y: float | None = 1.0) -> tuple[Finding, Finding]:
    return judged(file, p, x), judged(file, q, y, owner=INT8)


def several() -> tuple[list[Finding], list[Finding]]:
    pairs = [
        both(f"film{i}.png", (0.7 - i / 40, 0.2, 0.1 + i / 40), (0.68 - i / 40, 0.2, 0.12 + i / 40)) for i in range(8)
    ]
    pairs += [
        both(NASTY, (0.4, 0.1, 0.5), (0.7, 0.1, 0.2), 3.5, 2.9),
        both("gone.png", (0.7, 0.2, 0.1), (0.7, 0.2, 0.1), 1, None),
    ]
    pairs += [(judged("refused.png"), refused("refused.png", Reason.BLANK, owner=INT8))]
    a, b = (list(found) for found in zip(*pairs, strict=True))
    return [*a, judged("a only.png")], b


def test_the_page_says_what_changed(tmp_path: Path) -> None:
    report, text = compared(tmp_path, *several())
    found = Page(text)
    assert report["flips"]["images"] == 3
    for words_ in (
        "COVID-19",
        "Normal",
        "blank image",
        "not measured",
        "a only.png",
        RESEARCH_USE,
        "No image has",
        "Spearman",
    ):
        assert (words_ in found.text) == (words_ != "No image has")
    assert found.text.count("no image") == 2 * len(report["largest"]["images"])  # none was kept
    assert found.tags["article"] == len(report["largest"]["images"]) == 11
    assert "script" not in found.tags and "<script>x" in found.text.replace("\u200b", "")
    assert "\u202e" not in text and "\\u202e" in text and "\\udcff" in text


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    _, text = compared(tmp_path, *several())
    found = Page(text)
    for tag, name, value in found.attributes:
        if name in ("src", "href"):
            assert value.startswith("data:"), (tag, value)
        assert not name.startswith("on")
    assert not re.search(r"url\(|@import|https?://", text)
    assert ("meta", "http-equiv", "Content-Security-Policy") in found.attributes


def test_pictures_of_two_folders_stand_beside_each_other(tmp_path: Path) -> None:
    import numpy as np

    from cxrvit_edge.preprocess import Geometry

    a, b = several()
    for name, findings, owner in (("a", a, OWNER), ("b", b, INT8)):
        write_results(tmp_path / name, *findings, owner=owner)
    thumb = np.tile(np.arange(120, dtype=np.uint8), (150, 1))
    lungs = np.zeros((2, 256, 256), np.float32)
    lungs[0, 60:200, 50:120] = lungs[1, 60:200, 140:200] = 1
    maps = (Geometry.fit(150, 120, 512, "pad"), lungs.max(axis=0), lungs)
    thumbnails.save(tmp_path / "a" / THUMBNAILS, sha(NASTY), thumb, *maps)
    thumbnails.save(tmp_path / "b" / THUMBNAILS, sha(NASTY), thumb, *maps)
    thumbnails.save(tmp_path / "b" / THUMBNAILS, sha("gone.png"), thumb, None, None, None)
    compare(str(tmp_path / "a"), str(tmp_path / "b"), out=tmp_path / "out")
    text = (tmp_path / "out" / PAGE).read_text("utf-8")
    assert text.count("data:image/jpeg") == 3 and text.count("data:image/png") == 2
    assert Page(text).text.count("no image") == 2 * 11 - 3


@pytest.mark.parametrize("case", ["none", "same", "refused", "one"])
def test_pages_of_little(tmp_path: Path, case: str) -> None:
    a, b = {
        "none": ([judged("a.png")], [judged("b.png", owner=INT8)]),
        "same": (
            [judged("a.png"), judged("b.png", score=2)],
            [judged("a.png", owner=INT8), judged("b.png", score=2, owner=INT8)],
        ),
        "refused": ([refused(f"{i}.png") for i in range(4)], [refused(f"{i}.png", owner=INT8) for i in range(4)]),
        "one": ([judged("a.png")], [judged("a.png", owner=INT8)]),
    }[case]
    report, text = compared(tmp_path, a, b)
    found, said = Page(text), "\n".join(told(report))
    assert "nan" not in found.text.lower().replace("covenant", "") and "None:" in found.text
    if case == "none":
        assert "Nothing can be compared: no image is on both sides." in said
    elif case == "same":
        assert "Yes, image by image: Spearman's rho 1.000, Kendall's tau-b 1.000." in said
        assert "No: label, flags and priority of all 2 images that both judged stay" in said
    elif case == "refused":
        assert "all images are equally urgent" in said and "There is no image that both judged." in said
        assert "Not known: no image was judged by both." in said
    else:
        assert "No correlation is defined: fewer than two images." in said


def test_words_for_the_terminal(tmp_path: Path) -> None:
    report, _ = compared(tmp_path, *several())
    lines = list(told(report))
    assert lines[0].startswith("A: ") and "small@0123456789ab, onnxruntime fp32, results of an earlier run" in lines[0]
    assert any(line.startswith("flip: label: ward/<script>") and line.endswith("COVID-19 -> Normal") for line in lines)
    assert all(line.isprintable() for line in lines)
    assert lines[-1] == RESEARCH_USE
    assert "1 image in A only: a only.png." in "\n".join(lines)
    report, _ = compared(tmp_path / "foreign", [judged("a.png")], [judged("a.png", owner=INT8, label="\x1b[2J")])
    assert all(line.isprintable() for line in told(report)), "of a results.jsonl from elsewhere"


def test_correlations_are_never_rounded_up_to_one() -> None:
    said = [words.correlation(v) for v in (1.0, 0.99999, 0.9994, -1.0, 0.25, None)]
    assert said == ["1.000", "over 0.999", "0.999", "-1.000", "0.250", "none"]
    assert [words.size(v) for v in (0.0, 2e-6, 0.0123, 0.5, 2.25)] == ["0", "0.000002", "0.012", "0.500", "2.250"]


def test_long_lists_are_cut_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "FLIPS", 3)
    report, text = compared(tmp_path, *several())
    flips = len(list(words.flips(report)))
    assert flips > 3 and f"{flips - 3} more are in compare.json." in Page(text).text
    assert render(report, {}).count("<article") == 11


def test_the_chart_draws_every_place_inside_its_frame() -> None:
    drawn = ranks([[1, 2], [2, 1], [3, 3]], [(1, 2)], 3, ["urgent", "routine"], [{"urgent": 1, "routine": 2}] * 2)
    assert drawn.count("h0") == 3 and drawn.count("<circle") == 1 and "nan" not in drawn
    assert ranks([], [], 0, [], [{}, {}]).startswith("<p")
    Page(drawn)
    assert "<circle" in ranks([[1, 1]], [(1, 1)], 1, ["urgent"], [{"urgent": 1}] * 2)


@needs_browser
def test_a_browser_reads_it_without_complaint(tmp_path: Path) -> None:
    _, text = compared(tmp_path, *several())
    assert "Decisions that changed" in browsed(tmp_path, text, "--dump-dom")
