"""Observations equal what triage says of the same files; what is stored comes back."""

from __future__ import annotations

import csv
import threading
from collections.abc import Callable
from pathlib import Path

import fakes
import numpy as np
import pytest
import small_bundle as small
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cxrvit_edge.benchmark import outputs
from cxrvit_edge.benchmark.observe import observe
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import EngineError, UsageError
from cxrvit_edge.findings import Judgement, Severity
from cxrvit_edge.labels import Study, read
from cxrvit_edge.parity import Observation
from cxrvit_edge.runtime.select import Sessions, open_sessions
from cxrvit_edge.runtime.session import Float32, Outputs
from cxrvit_edge.triage import Triage

CLASSES = ("normal", "other_infection", "covid19")
WROTE = {"classes": CLASSES, "precisions": {"one": "fp32", "two": "int8"}, "bundle": "b" * 64, "weights": "w" * 64}


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    return Bundle.open(small_bundle)


@pytest.fixture(scope="module")
def sessions(bundle: Bundle) -> Sessions:
    return open_sessions(bundle, threads=1)


def test_what_is_observed_is_what_triage_says(
    exported: small.Exported, bundle: Bundle, sessions: Sessions, tmp_path: Path
) -> None:
    """Of labelled films, and of files that triage rejects before and after the network, or that cannot be read."""
    labelled = read(exported.data, split="all").studies
    others = {"blank.png": np.zeros((96, 96), np.uint8), "noise.png": fakes.film(3), "film.dcm": None, "cut.jpg": None}
    for name, pixels in others.items():
        path = tmp_path / name
        if pixels is not None:
            fakes.cv2.imwrite(str(path), pixels)
        else:
            whole = fakes.cv2.imencode(".jpg", fakes.film(1))[1].tobytes()
            path.write_bytes(whole[: len(whole) // 3] if name == "cut.jpg" else b"\0" * 128 + b"DICM" + b"\0" * 64)
    studies = [*labelled, *(Study(tmp_path / name, 0, name) for name in others)]
    steps: list[float] = []
    seen = observe({"one": sessions, "two": sessions}, studies, bundle, steps.append)
    triage = Triage(bundle, sessions, mode="latency")
    findings = {f.file: f for f in triage([study.path for study in studies])}
    said = {study.path.as_posix(): o for study, o in zip(seen.studies, seen.by_candidate["one"], strict=True)}
    for file, o in said.items():
        finding = findings[file]
        reason = (finding.reason or {}).get("code")
        assert (o.sha256, o.refused) == (finding.sha256, reason)
        if o.judgement:
            j = o.judgement
            assert (j.probabilities, j.label, j.flags) == (finding.probabilities, finding.label, finding.flags)
            assert j.severity == finding.severity
    left = {study.path.as_posix() for study in studies} - set(said)
    assert all(findings[file].status != "ok" for file in left)
    problems = {p.kind: p for p in seen.problems}
    unread = [file for file in left if findings[file].status == "failed"]
    assert (
        problems["unreadable"].count == len(unread) >= 2 and problems["refused"].count == len(left) - len(unread) >= 1
    )
    assert any(line.startswith("cut.jpg: ") for line in problems["unreadable"].first)
    assert steps == sorted(steps) and steps[-1] == 1.0
    assert [o.sha256 for o in seen.by_candidate["two"]] == [o.sha256 for o in seen.by_candidate["one"]]
    assert all(np.array_equal(a.logits, b.logits) for a, b in zip(*seen.by_candidate.values(), strict=True))
    assert not any(thread.name.startswith("reader") for thread in threading.enumerate())


def test_the_labels_view_comes_before_the_files(tmp_path: Path) -> None:
    graphs = {"PA": "front", "AP": "back"}
    bundle = fakes.make_bundle(tmp_path / "bundle", views=graphs)
    front, back = fakes.FakeSession(), fakes.FakeSession()
    own = fakes.sessions({"front": front, "back": back})
    paths = fakes.write_films(tmp_path / "films", 4)
    views = ("PA", "AP", "unknown", "lateral")
    studies = [Study(path, 0, path.name, view=view) for path, view in zip(paths, views, strict=True)]  # type: ignore[arg-type]
    seen = observe({"x": own}, studies, bundle)
    assert (len(front.batches), len(back.batches)) == (1, 2), "the unknown goes to AP"
    assert [o.view for o in seen.by_candidate["x"]] == ["PA", "AP", "unknown"]
    assert [f.graph for f in seen.inputs] == ["front", "back", "back"]
    assert [(p.kind, p.count) for p in seen.problems] == [("refused", 1)]
    assert "the labels say lateral" in seen.problems[0].first[0]


def test_the_same_content_under_two_names_counts_once(tmp_path: Path) -> None:
    """As in public data sets that hold each other's films; with two labels it does not count."""
    bundle = fakes.make_bundle(tmp_path / "bundle")
    paths = fakes.write_films(tmp_path / "films", 3)
    for path in paths[:2]:
        path.with_name(f"again_{path.name}").write_bytes(path.read_bytes())
    again = [path.with_name(f"again_{path.name}") for path in paths[:2]]
    labelled = [(paths[0], 0), (paths[1], 1), (again[0], 2), (again[1], 1), (paths[2], 2)]
    seen = observe(
        {"x": fakes.sessions(fakes.FakeSession())}, [Study(path, label, path.name) for path, label in labelled], bundle
    )
    assert [s.path for s in seen.studies] == paths[1:]
    assert [(o.truth, o.patient) for o in seen.by_candidate["x"]] == [(1, paths[1].name), (2, paths[2].name)]
    assert {p.kind: p.first for p in seen.problems} == {
        "duplicate": (f"{again[1].name}: the same content as {paths[1].name}; counted once",),
        "contradiction": (f"{again[0].name}: the same content as {paths[0].name}; labelled otherwise: none is used",),
    }


class Failing(fakes.FakeSession):
    def run(self, batch: Float32) -> Outputs:
        if len(self.batches) == 2:
            raise EngineError("out of memory")
        return super().run(batch)


class NotFinite(fakes.FakeSession):
    def run(self, batch: Float32) -> Outputs:
        return super().run(batch)._replace(logits=np.full((len(batch), 3), np.nan, np.float32))


def test_a_candidate_that_fails_leaves_the_others(tmp_path: Path) -> None:
    bundle = fakes.make_bundle(tmp_path / "bundle")
    studies = [Study(path, 0, "p") for path in fakes.write_films(tmp_path / "films", 5)]
    several = {"good": fakes.FakeSession(), "bad": Failing(), "nan": NotFinite()}
    seen = observe({name: fakes.sessions(s) for name, s in several.items()}, studies, bundle)
    assert seen.failed == {"bad": "out of memory"} and list(seen.by_candidate) == ["good", "nan"]
    assert [len(own) for own in seen.by_candidate.values()] == [5, 5]
    assert all(o.refused == "not_finite" and np.isnan(o.logits).all() for o in seen.by_candidate["nan"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupt_ends_the_reader(tmp_path: Path, error: type[BaseException]) -> None:
    bundle = fakes.make_bundle(tmp_path / "bundle")
    studies = [Study(path, 0, "p") for path in fakes.write_films(tmp_path / "films", 9)]

    def stop(fraction: float) -> None:
        raise error

    before = set(threading.enumerate())
    with pytest.raises(error):
        observe({"x": fakes.sessions(fakes.FakeSession())}, studies, bundle, stop)
    assert set(threading.enumerate()) == before


def observation(logits: Float32, digest: str, refused: str | None, zones: bool) -> Observation:
    severity = Severity(1.25, ((0.25, 0.0), (0.5, 0.0), (0.0, 0.5))) if zones else Severity()
    p = {"normal": 0.25, "other_infection": 0.700001, "covid19": 0.049999}
    flags = {"normal": False, "other_infection": True, "covid19": False}
    judgement = None if refused else Judgement(p, "other_infection", flags, severity, "elevated" if zones else "review")
    return Observation(digest, "patient 7", "=source", "test", "PA", 1, logits, judgement, refused)


@given(
    arrays.arrays(np.float32, (4, 3), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    st.sampled_from([None, "not_a_chest"]),
    st.booleans(),
)
def test_what_is_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory, logits: Float32, refused: str | None, zones: bool
) -> None:
    path = tmp_path_factory.mktemp("outputs") / "outputs.csv"
    seen = [observation(row, f"{i:064x}", refused, zones) for i, row in enumerate(logits)]
    outputs.write_outputs(path, {"one": seen, "two": seen[:2]}, **WROTE)  # type: ignore[arg-type]
    text = path.read_text()
    assert "patient" not in text and "=source" not in text
    stored = outputs.read_outputs(path, CLASSES)
    assert (stored.bundle, stored.weights, stored.reference()) == ("b" * 64, "w" * 64, "one")
    known, own, missing = outputs.matched(stored.by_candidate["one"], seen)
    assert missing == [] and own == seen
    for a, b in zip(known, seen, strict=True):
        assert np.array_equal(a.logits, b.logits) and a.logits.dtype == np.float32
        assert (a.judgement, a.refused, a.view, a.patient, a.truth) == (b.judgement, b.refused, b.view, b.patient, 1)
        assert a.priority == b.priority


def test_logits_that_are_no_numbers_come_back(tmp_path: Path) -> None:
    seen = [observation(np.array([np.nan, np.inf, -0.0], np.float32), "0" * 64, "not_finite", False)]
    outputs.write_outputs(tmp_path / "outputs.csv", {"one": seen}, **WROTE)  # type: ignore[arg-type]
    back = outputs.read_outputs(tmp_path / "outputs.csv", CLASSES).by_candidate["one"][0]
    assert np.array_equal(back.logits, seen[0].logits, equal_nan=True) and back.refused == "not_finite"


def test_images_of_one_side_only_are_named() -> None:
    def some(numbers: str) -> list[Observation]:
        return [observation(np.zeros(3, np.float32), n * 64, None, True) for n in numbers]

    known, own, missing = outputs.matched(some("edcb"), some("abcdx"))
    assert [o.sha256[0] for o in known] == [o.sha256[0] for o in own] == ["b", "c", "d"]
    assert [(p.kind, p.count) for p in missing] == [("not_in_reference", 2), ("only_in_reference", 1)]
    assert missing[1].first == (f"{'e' * 16}: not in the data, left out of the parity",)


def no_header(rows: list[list[str]]) -> list[list[str]]:
    return rows[1:]


def bad_number(rows: list[list[str]]) -> list[list[str]]:
    return [rows[0], [*rows[1][:6], "many", *rows[1][7:]], *rows[2:]]


def two_bundles(rows: list[list[str]]) -> list[list[str]]:
    return [*rows, [*rows[1][:2], "c" * 64, *rows[1][3:]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_header, "no column 'candidate'"),
        (bad_number, "line 2: not a row of outputs .could not convert"),
        (two_bundles, "holds outputs of 2 bundles"),
        (lambda rows: rows[:1], "holds no outputs"),
        (lambda rows: [rows[0], rows[1][:7]], "line 2: not a row of outputs"),
        (lambda rows: [*rows[:2], rows[2][:17]], "line 3: not a row of outputs .it has another number of cells"),
        (lambda rows: [[]], "holds no outputs"),
    ],
)
def test_a_file_of_other_things(
    tmp_path: Path, change: Callable[[list[list[str]]], list[list[str]]], message: str
) -> None:
    path = tmp_path / "outputs.csv"
    seen = [observation(np.zeros(3, np.float32), c * 64, None, True) for c in "ab"]
    outputs.write_outputs(path, {"one": seen}, **WROTE)  # type: ignore[arg-type]
    with path.open(newline="") as f:
        rows = change(list(csv.reader(f)))
    with path.open("w", newline="") as f:
        csv.writer(f).writerows(rows)
    with pytest.raises(UsageError, match=message):
        outputs.read_outputs(path, CLASSES)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        outputs.read_outputs(tmp_path / "absent.csv", CLASSES)
    (tmp_path / "image.csv").write_bytes(bytes(range(256)))
    with pytest.raises(UsageError, match=r"not a row of outputs|no column"):
        outputs.read_outputs(tmp_path / "image.csv", CLASSES)


def test_the_reference_among_several() -> None:
    def of(*precisions: tuple[str, str]) -> str:
        stored = outputs.Stored(Path("x"), "b", "w", {name: [] for name, _ in precisions}, dict(precisions))
        return stored.reference()

    assert of(("onnxruntime int8", "int8")) == "onnxruntime int8"
    assert of(("onnxruntime int8", "int8"), ("torch fp32", "fp32")) == "torch fp32"
    assert of(("torch fp32", "fp32"), ("onnxruntime fp32", "fp32")) == "onnxruntime fp32"


def test_outputs_of_another_bundle(tmp_path: Path) -> None:
    bundle = fakes.make_bundle(tmp_path / "one")
    again = fakes.make_bundle(tmp_path / "again", temperature=2.0)
    weights = outputs.weights_sha256(bundle)

    def stored(of: Bundle, weights: str) -> outputs.Stored:
        return outputs.Stored(Path("outputs.csv"), of.sha256, weights, {}, {})

    assert outputs.require_same(stored(bundle, weights), bundle) is None
    note = outputs.require_same(stored(again, weights), bundle)
    assert note is not None and "another export" in note and "same weights" in note
    with pytest.raises(UsageError, match=r"--reference outputs\.csv: its outputs are those of another bundle"):
        outputs.require_same(stored(again, "f" * 64), bundle)
