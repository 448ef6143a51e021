"""report.html: every input is there, nothing in it runs or loads that should not, and it stays small."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import Page
from hypothesis import given
from hypothesis import strategies as st

from cxrvit_edge.bundle import Guard, Manifest, Selective
from cxrvit_edge.decision import Rule
from cxrvit_edge.errors import Reason
from cxrvit_edge.findings import Finding, Severity
from cxrvit_edge.preprocess import Geometry
from cxrvit_edge.report import html
from cxrvit_edge.report import thumbnails as pictures
from cxrvit_edge.report.html import PICTURED, shown, write_report
from cxrvit_edge.report.run import RESEARCH_USE, Run
from cxrvit_edge.report.words import CAVEAT, REASONS

MANIFEST = Manifest(
    name="fake",
    classes=("normal", "other_infection", "covid19"),
    preprocessing={},
    operating_points={"normal": 0.46, "other_infection": 0.31, "covid19": 0.38},
    temperature=1.0,
    views={"any": "g"},
    variants={},
    files={},
    guard=Guard(0.05, 0.5),
    golden_inputs="golden",
    intended_use="Tests & nothing <else>.",
)
RUN = Run(
    bundle="fake",
    bundle_sha256="0123456789abcdef" * 4,
    backend="onnxruntime",
    backend_version="1.23.2",
    precision="fp32",
    started="2026-11-23T01:04:07+00:00",
    seconds=8.0,
    done=20,
    resumed=3,
    stage_ms={"read": 0.8, "run": 148.24},
    notes=("int8 skipped: <b>why</b>",),
)
OK = Finding(
    file="ward 1/a.png",
    status="ok",
    sha256="ab" * 32,
    view="PA",
    probabilities={"normal": 0.125, "other_infection": 0.25, "covid19": 0.625},
    label="covid19",
    flags={"normal": False, "other_infection": False, "covid19": True},
    severity=Severity(3.25, ((0.1, 0.2), (0.35, 0.6), (1.0, 1.0))),
    priority="urgent",
)


def refused(reason: Reason, **changes: Any) -> Finding:
    return Finding("b.dcm", reason.status, reason={"code": reason.value, "message": "what next"}, **changes)


def report(folder: Path, findings: list[Finding], manifest: Manifest = MANIFEST, run: Run = RUN) -> str:
    write_report(folder / "report.html", findings, run, manifest, folder / "thumbnails")
    return (folder / "report.html").read_text("utf-8")


def picture(folder: Path, key: str, *, judged: bool) -> None:
    thumb = np.tile(np.arange(120, dtype=np.uint8), (150, 1))
    geometry = Geometry.fit(150, 120, 512, "pad")
    lungs = np.zeros((2, 256, 256), np.float32)
    lungs[0, 60:200, 50:120] = lungs[1, 60:200, 140:200] = 1
    maps = (geometry, lungs.max(axis=0), lungs) if judged else (None, None, None)
    pictures.save(folder / "thumbnails", key, thumb, *maps)


def test_every_finding_has_its_row_in_the_order_given(tmp_path: Path) -> None:
    findings = [replace(OK, file=f"{i}.png") for i in range(4)]
    findings += [refused(Reason.LATERAL_VIEW), refused(Reason.TRUNCATED), replace(OK, severity=Severity())]
    page = Page(report(tmp_path, findings))
    assert [row[0] for row in page.body] == [str(i + 1) for i in range(7)]
    assert [row[3] for row in page.body] == ["0.png", "1.png", "2.png", "3.png", "b.dcm", "b.dcm", "ward 1/a.png"]
    assert page.body[4][5] == f"Rejected: {REASONS['lateral_view']}what next"
    assert page.body[5][5] == f"Failed: {REASONS['truncated']}what next"
    assert "Not measured" in page.body[6][6]
    assert "Images are shown for the first" not in page.text


def test_a_judged_row_says_all_of_it(tmp_path: Path) -> None:
    finding = replace(OK, warnings=("turned upright", "first of 3 frames"))
    text = report(tmp_path, [finding])
    rank, priority, _, file, view, find, score, zones = Page(text).body[0]
    assert (rank, priority, view, score) == ("1", "Urgent", "PA", "3.2")
    assert file == "ward 1/a.pngWarning: turned uprightWarning: first of 3 frames"
    assert find == "COVID-19Normal0.12Other infection0.25COVID-190.62flagged"
    assert zones == "RL" + "0.10.2" + "0.30.6" + "1.01.0"  # rows from the top, image-left first
    assert 'aria-label="Zones, patient&#x27;s right and left: upper 0.1 and 0.2; middle 0.3 and 0.6; lower' in text
    assert [f"--op:{MANIFEST.operating_points[c]:.4f}" in text for c in MANIFEST.classes] == [True] * 3


def test_a_flag_is_shown_where_the_label_says_normal(tmp_path: Path) -> None:
    finding = replace(OK, label="normal", flags={"normal": True, "other_infection": True, "covid19": False})
    row = Page(report(tmp_path, [finding])).body[0]
    assert row[5] == "NormalNormal0.12Other infection0.25flaggedCOVID-190.62"  # a flagged normal raises nothing


SETS = replace(
    MANIFEST,
    sensitive_points={"normal": 0.21, "other_infection": 0.11, "covid19": 0.07},
    selective=Selective(alpha=0.1, threshold=0.77, images=130),
)


@pytest.mark.parametrize(
    ("possible", "says"),
    [
        (None, ""),
        (("covid19",), ""),
        (("normal", "other_infection"), "Network is undecided: normal or other infection"),
        (("normal", "other_infection", "covid19"), "Network is undecided: normal, other infection or COVID-19"),
        (("<b>", "covid19"), "Network is undecided: <b> or COVID-19"),
        ((), "Network is undecided: no class"),  # of a file that somebody edited
    ],
)
def test_an_undecided_network_says_between_what(
    tmp_path: Path, possible: tuple[str, ...] | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = replace(OK, prediction_set=possible)
    bars = "Normal0.12Other infection0.25COVID-190.62flagged"
    assert Page(report(tmp_path, [finding], SETS)).body[0][5] == f"COVID-19{says}{bars}"
    monkeypatch.setattr(html, "PICTURED", 0)
    assert Page(report(tmp_path, [finding], SETS)).body[0][5].startswith(f"COVID-19{says}Normal 0.12, ")


@pytest.mark.parametrize("rule", [Rule(80), Rule(95), Rule(95, True)])
def test_the_page_is_of_the_run_s_own_rule(tmp_path: Path, rule: Rule) -> None:
    text = report(tmp_path, [OK], SETS, replace(RUN, rule=rule))
    said = Page(text).text
    points = rule.points(SETS)
    assert [f"--op:{points[c]:.4f}" in text for c in SETS.classes] == [True] * 3
    assert f"Operating pointsensitivity of at least {rule.sensitivity} %" in said
    assert f"for a sensitivity of at least {rule.sensitivity} %; from there" in said
    assert "possible from a probability of 0.23 on" in said and "130 validation images" in said
    assert "90 % of films like those; at another hospital this does not hold" in said
    assert ("the film is for review" in said) == ("the network undecided, or a view" in said) == rule.selective


def test_a_bundle_without_sets_is_not_spoken_of_as_undecided(tmp_path: Path) -> None:
    assert "ndecided" not in Page(report(tmp_path, [OK])).text


def test_the_header_tells_what_was_run_and_for_what_it_may_be_used(tmp_path: Path) -> None:
    text = Page(report(tmp_path, [OK, OK, refused(Reason.BLANK)])).text
    for words in (
        RESEARCH_USE,
        CAVEAT,
        "2026-11-23 01:04 UTC",
        "0123456789ab",
        "onnxruntime 1.23.2, fp32",
        "20 inputs in 8.0 s, 2.5 a second; 3 kept from an earlier run",
        "read 0.8, run 148.2 ms",
        "int8 skipped: <b>why</b>",
        "COVID-19 or Other infection is flagged and the score is 3 or more",
        "Normal 0.46, Other infection 0.31, COVID-19 0.38",
        "Tests & nothing <else>.",
        "image-left is the patient\u2019s right (R)",
        "not for localisation",
    ):
        assert words in text
    assert "0123456789abc" not in text
    assert re.search(r"Inputs3Urgent2Review1Elevated0Routine0Judged2Rejected1Failed0", text)


def test_the_bundle_s_own_caveat_is_preferred(tmp_path: Path) -> None:
    text = Page(report(tmp_path, [OK], replace(MANIFEST, raw={"caveat": "Trained on <one> hospital."}))).text
    assert "Trained on <one> hospital." in text and CAVEAT not in text


@pytest.mark.parametrize("count", [0, 1, PICTURED, PICTURED + 1, PICTURED + 1234])
def test_the_limit_of_images_is_said(tmp_path: Path, count: int) -> None:
    picture(tmp_path, OK.sha256 or "", judged=True)
    page = Page(report(tmp_path, [OK] * count))
    assert len(page.body) == count
    assert [len(images) for images in page.images] == [2] * min(count, PICTURED) + [0] * max(0, count - PICTURED)
    beyond = f"{count - PICTURED:,} further rows are text only."
    said = f"Images are shown for the first {PICTURED} rows; {beyond}"
    assert page.text.count(said) == (2 if count > PICTURED else 0)
    assert ("No input was found." in page.text) == (count == 0)


def test_rows_beyond_the_listed_are_counted_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "LISTED", PICTURED + 5)
    page = Page(report(tmp_path, [OK] * (PICTURED + 1239)))
    assert len(page.images) == PICTURED + 5
    assert page.text.count(f"Inputs{PICTURED + 1239:,}") == 1
    assert page.text.count("1,234 rows more, less urgent than these, are in worklist.csv alone.") == 2


def test_rows_without_image_say_the_same_in_text(tmp_path: Path) -> None:
    page = Page(report(tmp_path, [replace(OK, warnings=("mended",))] * (PICTURED + 1)))
    row = page.body[-1]
    assert row[1:5] == ["Urgent", "", "ward 1/a.pngWarning: mended", "PA"]
    assert row[5] == "COVID-19Normal 0.12, Other infection 0.25, COVID-19 0.62 (flagged)"
    assert row[6:] == ["3.2", "0.1 0.2" + "0.3 0.6" + "1.0 1.0"]


def test_images_are_the_saved_files(tmp_path: Path) -> None:
    picture(tmp_path, "aa", judged=True)
    picture(tmp_path, "bb", judged=False)
    findings = [replace(OK, sha256="aa"), refused(Reason.NOT_A_CHEST, sha256="bb"), refused(Reason.TRUNCATED)]
    page = Page(report(tmp_path, findings))
    saved = [[base64.b64decode(uri.partition("base64,")[2]) for uri in images] for images in page.images]
    folder = tmp_path / "thumbnails"
    names = [["aa.jpg", "aa.overlay.png"], ["bb.jpg"], []]
    assert saved == [[(folder / name).read_bytes() for name in row] for row in names]
    assert page.body[2][2] == "no image"


def test_a_broken_picture_is_left_out(tmp_path: Path) -> None:
    for key in ("aa", "bb", "cc"):
        picture(tmp_path, key, judged=True)
    folder = tmp_path / "thumbnails"
    (folder / "aa.jpg").write_bytes((folder / "aa.jpg").read_bytes()[:-9])
    (folder / "bb.overlay.png").write_bytes((folder / "bb.overlay.png").read_bytes()[:50])
    pictures.save(folder, "dd", np.zeros((90, 80), np.uint8), None, None, None)
    (folder / "cc.jpg").write_bytes((folder / "dd.jpg").read_bytes())  # the overlay is of another size now
    page = Page(report(tmp_path, [replace(OK, sha256=key) for key in ("aa", "bb", "cc")]))
    assert [len(images) for images in page.images] == [0, 1, 1]
    assert page.body[0][2] == "no image"


@pytest.mark.parametrize("key", ["../secret", "/etc/passwd", "a\0b", "", None, "..", "é"])
def test_a_key_leads_nowhere_but_into_the_folder(tmp_path: Path, key: str | None) -> None:
    picture(tmp_path, "aa", judged=False)
    (tmp_path / "secret.jpg").write_bytes((tmp_path / "thumbnails/aa.jpg").read_bytes())
    assert Page(report(tmp_path, [replace(OK, sha256=key)])).images == [[]]


NASTY = st.text(st.characters(codec=None), max_size=40) | st.sampled_from(
    [
        "<script>alert(1)</script>.png",
        '"><img src=x onerror=alert(1)>',
        "'--><!--",
        "a&amp;b",
        "$caveat ${rows}",
        "x\udcff\udc80.dcm",
        "\u202egnp.exe",
        "</bdi></table>",
        "a\0b",
        "http://example.org/x.png",
    ]
)


@given(file=NASTY, words=NASTY)
def test_text_of_others_stays_text(tmp_path_factory: pytest.TempPathFactory, file: str, words: str) -> None:
    folder = tmp_path_factory.mktemp("text")
    plain = Page(report(folder, [OK, refused(Reason.BLANK)]))
    findings = [
        replace(OK, file=file, warnings=(words,)),
        Finding(file, "failed", reason={"code": words, "message": words}, priority="review"),
    ]
    page = Page(
        report(folder, findings, replace(MANIFEST, name=words, raw={"caveat": words}), replace(RUN, notes=(words,)))
    )
    same = {"script", "style", "img", "a", "link", "meta", "iframe", "tr", "td", "table"}
    assert {tag: n for tag, n in page.tags.items() if tag in same} == {t: n for t, n in plain.tags.items() if t in same}
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in file)
    assert page.body[0][3].startswith(visible)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)


def test_the_reader_sees_what_cannot_be_seen() -> None:
    assert shown("a\u202eb\udcff\n<") == "a\\u202eb\\udcff\\n&lt;"


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    picture(tmp_path, OK.sha256 or "", judged=True)
    text = report(tmp_path, [OK, refused(Reason.COLOUR)])
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text, re.IGNORECASE)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "action", "poster", "srcset", "data"):
            assert value.startswith(("data:", "#")), (tag, name, value)
    (policy,) = [v for tag, name, v in page.attributes if name == "content" and "default-src" in v]
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'")


def test_labels_and_headers_are_there_for_those_who_hear_the_page(tmp_path: Path) -> None:
    picture(tmp_path, OK.sha256 or "", judged=True)
    page = Page(report(tmp_path, [OK, refused(Reason.COLOUR)]))
    scopes = Counter(value for tag, name, value in page.attributes if tag == "th" and name == "scope")
    assert scopes == {"col": 8, "row": 2}
    assert sum(tag == "img" and name == "alt" for tag, name, _ in page.attributes) == page.tags["img"]
    assert page.tags["caption"] == 1
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    (script,) = re.findall(r"<script>(.*?)</script>", (tmp_path / "report.html").read_text("utf-8"), re.DOTALL)
    assert set(re.findall(r"at\('(\w+)'\)", script)) <= set(ids)


def test_every_reason_has_plain_words() -> None:
    assert set(REASONS) == {reason.value for reason in Reason}
    assert all("_" not in words for words in REASONS.values())


def test_twenty_thousand_rows_stay_small(tmp_path: Path) -> None:
    picture(tmp_path, OK.sha256 or "", judged=True)
    size = len(report(tmp_path, [replace(OK, file=f"archive/2026/{i:06d}/study.dcm") for i in range(20_000)]))
    assert size < 20_000_000


def test_it_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    before = report(tmp_path, [OK])
    broken = replace(OK, probabilities={"covid19": "high"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="format"):
        report(tmp_path, [OK, broken])
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text("utf-8") == before


def test_findings_read_back_from_json_give_the_same_page(tmp_path: Path) -> None:
    findings = [replace(OK, warnings=("w",)), refused(Reason.BLANK)]
    again = [Finding.from_dict(json.loads(json.dumps(f.to_dict()))) for f in findings]
    assert report(tmp_path, again) == report(tmp_path, findings)
