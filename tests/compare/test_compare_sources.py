from __future__ import annotations

import json
from pathlib import Path

import pytest
from compare_sides import CLASSES, OWNER, judged, refused, write_results
from fakes import write_bundle

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.compare import compare
from cxrvit_edge.compare.sources import Source, parse, read_results, read_side
from cxrvit_edge.errors import UsageError
from cxrvit_edge.journal import RESULTS


@pytest.mark.parametrize(
    ("text", "backend", "precision"),
    [
        ("fp32", "auto", "fp32"),
        ("int8", "auto", "int8"),
        ("openvino", "openvino", "auto"),
        ("auto", "auto", "auto"),
        ("openvino:int8", "openvino", "int8"),
        ("torch:fp32", "torch", "fp32"),
        ("auto:fp16", "auto", "fp16"),
        ("tensorrt-rtx:auto", "tensorrt-rtx", "auto"),
    ],
)
def test_words_are_of_the_embedded_bundle_or_of_one_named_before_an_at(
    tmp_path: Path, text: str, backend: str, precision: str
) -> None:
    assert parse(text) == Source(text, None, None, backend, precision)
    bundle = str(write_bundle(tmp_path / "a@b"))
    assert parse(bundle) == Source(bundle, None, bundle, "auto", "auto")
    assert parse(f"{bundle}@{text}") == Source(f"{bundle}@{text}", None, bundle, backend, precision)


def test_a_word_comes_before_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / "int8")
    assert parse("int8").bundle is None
    assert parse("./int8").bundle == "./int8"


def test_a_triage_folder_is_read(tmp_path: Path) -> None:
    out = write_results(tmp_path / "out", judged("a.png"))
    assert parse(str(out)).results == out
    assert parse(str(out / RESULTS)).results == out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("absent", "no such file or folder"),
        ("fp64", "no such file or folder"),
        ("openvino:fp64", "no such file or folder"),
        ("absent@int8", "there is no bundle absent"),
        ("@int8", "no such file or folder"),
        ("empty", "holds neither manifest.json"),
        ("empty@int8", "holds neither manifest.json"),
        ("out@int8", "leave @int8 out"),
        ("x" * 5000, "no such file or folder"),
    ],
)
def test_what_is_none_of_these_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_results(tmp_path / "out", judged("a.png"))
    with pytest.raises(UsageError, match=said):
        parse(text)


def test_results_are_read_and_left_as_they_are(tmp_path: Path) -> None:
    """The last line of an input stands; damaged ones are counted; one without its end is of a run at work."""
    old, new = judged("a.png", (0.7, 0.2, 0.1)), judged("a.png", (0.1, 0.2, 0.7))
    out = write_results(tmp_path / "out", old, refused("b.dcm"), new)
    path = out / RESULTS
    whole = path.read_bytes()
    wrong_type = json.dumps({**json.loads(whole.splitlines()[0]), "probabilities": "high"}).encode()
    no_rule = whole.splitlines()[0].replace(b'"sensitivity":80', b'"sensitivity":"80"')
    path.write_bytes(
        whole + b"\xff\x00 nonsense\n[]\n{}\n" + wrong_type + b"\n" + no_rule + b"\n" + whole.splitlines()[1][:50]
    )
    (out / ".lock").unlink()
    before = path.read_bytes()
    owner, findings, damaged = read_results(out)
    assert owner == OWNER and damaged == 5
    assert {f.file: f for f in findings} == {"a.png": new, "b.dcm": refused("b.dcm")}
    assert path.read_bytes() == before and not (out / ".lock").exists()


def test_results_of_an_operating_point_that_their_bundle_has_not(tmp_path: Path) -> None:
    """As only a hand can make them: told like any others."""
    embedded = Bundle.open()
    own = OWNER._replace(bundle=f"{embedded.manifest.name}@{embedded.sha256[:12]}")
    forged = own._replace(sensitivity=17)
    a, b = (
        write_results(tmp_path / o.backend / str(o.sensitivity), judged("a.png", owner=o), owner=o)
        for o in (own, forged)
    )
    report = compare(str(a), str(b))
    assert report["b"]["operating_points"] == {}
    assert any("B at a sensitivity of at least 17 %" in note for note in report["notes"])


@pytest.mark.parametrize("content", [b"", b"nonsense\n", b'{"schema":1}\n'])
def test_a_file_without_results_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RESULTS).write_bytes(content)
    with pytest.raises(UsageError, match="holds no results of ours"):
        read_results(tmp_path)


def test_results_of_two_owners_or_of_another_schema_are_told(tmp_path: Path) -> None:
    other = OWNER._replace(precision="int8")
    a = write_results(tmp_path / "a", judged("a.png"))
    b = write_results(tmp_path / "b", judged("b.png", owner=other), owner=other)
    with (a / RESULTS).open("ab") as file:
        file.write((b / RESULTS).read_bytes())
    with pytest.raises(UsageError, match=r"fp32, sensitivity .*, and of small@0123456789ab, onnxruntime, int8, sens"):
        read_results(a)
    (b / RESULTS).write_bytes(b'{"schema":2,"file":"a.png"}\n')
    with pytest.raises(UsageError, match="schema 2, this version reads 1"):
        read_results(b)


def test_the_manifest_is_of_the_bundle_where_it_is_at_hand(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", name="mine"))
    owner = OWNER._replace(bundle=f"mine@{bundle.sha256[:12]}")
    out = write_results(tmp_path / "out", judged("a.png", owner=owner), owner=owner)
    found = read_side(parse(str(out)), [bundle])
    assert found.known and found.manifest is bundle.manifest and not found.notes
    stranger = read_side(parse(str(out)))
    assert not stranger.known and stranger.manifest.classes == CLASSES
    assert "not at hand" in stranger.notes[0]
    embedded = Bundle.open()
    owner = OWNER._replace(bundle=f"{embedded.manifest.name}@{embedded.sha256[:12]}")
    out = write_results(tmp_path / "embedded", judged("a.png", owner=owner), owner=owner)
    assert read_side(parse(str(out))).manifest == embedded.manifest
