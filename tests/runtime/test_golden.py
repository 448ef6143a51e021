"""The golden check: what it lets through, what it stops, and when it is repeated."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_bundle as small
from small_bundle import another_user

from cxrvit_edge.bundle import Bundle, Tolerance
from cxrvit_edge.errors import BundleError, ParityError
from cxrvit_edge.preprocess import PreprocessConfig
from cxrvit_edge.runtime import golden
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from cxrvit_edge.runtime.session import Float32, Outputs
from export import goldens

Change = Callable[[Outputs], Outputs]


class Watched:
    """A real session that counts its runs and may bend what it gives."""

    def __init__(self, session: OnnxRuntimeSession, bend: Change = lambda outputs: outputs) -> None:
        self.backend, self.version, self.precision = session.backend, session.version, session.precision
        self.fingerprint, self.batch_sizes, self.notes = session.fingerprint, session.batch_sizes, session.notes
        self.runs = 0
        self._session, self._bend = session, bend

    def run(self, batch: Float32) -> Outputs:
        self.runs += 1
        return self._bend(self._session.run(batch))


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    return Bundle.open(small_bundle)


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> OnnxRuntimeSession:
    return OnnxRuntimeSession(bundle.file("fp32.onnx"), precision="fp32", threads=1)


def check(bundle: Bundle, session: Watched, *, again: bool = False) -> None:
    golden.check(bundle, "fp32", "shared", session, again=again)


def added(name: str, value: float, where: tuple[int | slice, ...] | None = None) -> Change:
    """`value` on all of an output, or on one element of it."""

    def bend(outputs: Outputs) -> Outputs:
        changed = getattr(outputs, name).copy()
        changed[where if where is not None else ...] += value
        return outputs._replace(**{name: changed})

    return bend


def test_a_pass_is_recorded_and_not_repeated(bundle: Bundle, session: OnnxRuntimeSession, fresh_cache: Path) -> None:
    watched = Watched(session)
    for expected in (1, 1, 1):
        check(bundle, watched)
        assert watched.runs == expected
    (record,) = (fresh_cache / "golden").iterdir()
    body = json.loads(record.read_text())
    assert (body["backend"], body["version"], body["precision"]) == ("onnxruntime", session.version, "fp32")
    assert 0 <= body["logits"] <= 1e-4
    check(bundle, watched, again=True)
    assert watched.runs == 2
    other = Watched(session)
    other.version = "another"
    check(bundle, other)
    assert other.runs == 1


TOLD = ("LICENSE-WEIGHTS.md", "parity.html")  # files for people


def test_key_holds_what_a_pass_depends_on(
    bundle: Bundle, session: OnnxRuntimeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(b: Bundle = bundle, s: Watched | None = None) -> str:
        return golden.key(b, "fp32", "shared", s or Watched(session))

    def files(name: str) -> Bundle:
        return replace(bundle, manifest=replace(bundle.manifest, files={**bundle.manifest.files, name: "0" * 64}))

    before = key()
    assert key() == before
    keys = [before, *(key(files(n)) for n in bundle.manifest.files if n not in TOLD)]
    for name in ("backend", "version"):
        other = Watched(session)
        setattr(other, name, "another")
        keys.append(key(s=other))
    blur = {**bundle.manifest.preprocessing, "blur_sigma": 1.0}
    keys.append(key(replace(bundle, manifest=replace(bundle.manifest, preprocessing=blur))))
    loose = {"fp32": replace(bundle.variant("fp32"), tolerance=Tolerance(1.0, 1.0, 1.0))}
    keys.append(key(replace(bundle, manifest=replace(bundle.manifest, variants=loose))))
    for part in ("system", "machine"):
        with monkeypatch.context() as patch:
            patch.setattr(f"platform.{part}", lambda: "another")
            keys.append(key())
    for part in ("processor", "_cv2_version"):
        with monkeypatch.context() as patch:
            patch.setattr(golden, part, lambda: "another")
            keys.append(key())
    assert len(set(keys)) == len(keys) == 1 + 4 + 2 + 2 + 2 + 2
    assert key() == before
    assert key(replace(bundle, root=Path("elsewhere"))) == before, "the same bundle in another place"


@pytest.mark.parametrize(
    "bend",
    [
        pytest.param(added("logits", 2e-4, (2, 1)), id="one logit"),
        pytest.param(added("logits", -2e-4), id="logits"),
        pytest.param(added("logits", float("nan"), (3, 2)), id="nan"),
        pytest.param(added("logits", float("inf"), (0, 0)), id="infinite"),
        pytest.param(added("severity_map", 3e-4), id="map"),
        pytest.param(added("severity_map", float("nan"), (0, 0, 3, 5)), id="nan in the map"),
        pytest.param(added("lung_mask", 3e-4), id="lungs"),
        pytest.param(added("lung_mask", float("nan"), (3, 1, 0, 0)), id="nan in the lungs"),
        pytest.param(added("lung_mask", 1.0, (slice(None), slice(None), slice(0, 1))), id="a row of lungs"),
        pytest.param(lambda o: o._replace(lung_mask=o.lung_mask[:, ::-1]), id="lungs swapped"),
        pytest.param(lambda o: o._replace(severity_map=o.severity_map[..., ::-1]), id="map mirrored"),
        pytest.param(lambda o: o._replace(logits=o.logits[:1]), id="one row"),
        pytest.param(lambda o: o._replace(lung_mask=o.lung_mask[:, :1]), id="one lung"),
        pytest.param(added("embedding", 1e-3), id="embedding"),
        pytest.param(added("embedding", 0.01, (2, 7)), id="one value of the embedding"),
        pytest.param(added("embedding", float("nan"), (3, 0)), id="nan in the embedding"),
        pytest.param(lambda o: o._replace(embedding=o.embedding[::-1]), id="embeddings of other films"),
        pytest.param(lambda o: o._replace(embedding=o.embedding[:, :8]), id="a shorter embedding"),
        pytest.param(lambda o: o._replace(embedding=None), id="no embedding"),
        pytest.param(lambda o: o._replace(severity_map=o.severity_map[..., ::2, ::2]), id="a smaller map"),
    ],
)
def test_departing_is_stopped_and_not_recorded(
    bundle: Bundle, session: OnnxRuntimeSession, fresh_cache: Path, bend: Change
) -> None:
    wrong = Watched(session, bend)
    for again in (False, False, True):
        with pytest.raises(ParityError, match="does not reproduce the golden outputs"):
            check(bundle, wrong, again=again)
    assert wrong.runs == 3
    assert not list(fresh_cache.rglob("*.json"))


@pytest.mark.parametrize(
    "bend", [added("logits", 5e-5), added("severity_map", 5e-5), added("lung_mask", 0.05, (0, 0, 0, 0))]
)
def test_rounding_is_let_through(bundle: Bundle, session: OnnxRuntimeSession, fresh_cache: Path, bend: Change) -> None:
    check(bundle, Watched(session, bend))


def test_failing_takes_an_earlier_pass_off_the_record(
    bundle: Bundle, session: OnnxRuntimeSession, fresh_cache: Path
) -> None:
    good, bad = Watched(session), Watched(session, added("logits", 1.0))
    check(bundle, good)
    with pytest.raises(ParityError):
        check(bundle, bad, again=True)
    check(bundle, good)
    assert good.runs == 2, "the pass was still on record"


@pytest.mark.parametrize("kind", ["a file in the way", "closed"])
def test_without_a_writable_cache_it_runs_each_time(
    bundle: Bundle, session: OnnxRuntimeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    inputs, outputs = golden.load_inputs(bundle), golden.load_outputs(bundle, "fp32", "shared")
    cache = tmp_path / "cache"
    if kind == "closed":
        cache.mkdir(mode=0)
    else:
        cache.write_text("in the way")
    monkeypatch.setenv("CXRVIT_EDGE_CACHE", str(cache))
    watched, wrong = Watched(session), Watched(session, added("logits", 1.0))
    try:
        with another_user(), monkeypatch.context() as patch:  # root may write everywhere
            patch.setattr(golden, "load_inputs", lambda _: inputs)  # what the test's folders keep from other users
            patch.setattr(golden, "load_outputs", lambda *_: outputs)
            check(bundle, watched)
            check(bundle, watched)
            with pytest.raises(ParityError):
                check(bundle, wrong)
    finally:
        cache.chmod(0o700)
    assert watched.runs == 2


@pytest.mark.parametrize(
    "change", [{"blur_kernel": 15, "blur_sigma": 5.0}, {"offset": 140.0}, {"aspect": "squash"}], ids=str
)
def test_preprocessing_that_departs_is_stopped(
    bundle: Bundle, session: OnnxRuntimeSession, fresh_cache: Path, change: dict[str, object]
) -> None:
    other = replace(bundle.manifest, preprocessing={**bundle.manifest.preprocessing, **change})
    watched = Watched(session)
    with pytest.raises(ParityError, match="preprocessing on this box departs"):
        check(replace(bundle, manifest=other), watched)
    assert watched.runs == 0


def test_a_wider_blur_is_seen_at_full_size(bundle: Bundle, tmp_path: Path) -> None:
    """At 512 pixels, where films are not shrunk so far that the blur is lost."""
    full = {**bundle.manifest.preprocessing, "size": 512}
    goldens.write_inputs(tmp_path / "golden_inputs.npz", PreprocessConfig.from_dict(full))
    same = replace(bundle, root=tmp_path, manifest=replace(bundle.manifest, preprocessing=full))
    assert golden.load_inputs(same).shape == (4, 1, 512, 512)
    wider = replace(same, manifest=replace(bundle.manifest, preprocessing={**full, "blur_sigma": 1.6}))
    with pytest.raises(ParityError, match="preprocessing on this box departs"):
        golden.load_inputs(wider)


def test_an_opencv_that_looks_up_otherwise_is_stopped(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    look_up = cv2.LUT
    monkeypatch.setattr(cv2, "LUT", lambda pixels, table, **kw: look_up(pixels, 0.9 * table, **kw))
    with pytest.raises(ParityError, match="OpenCV"):
        golden.load_inputs(bundle)


def test_an_opencv_that_rounds_otherwise_gives_the_same_inputs(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 2/255 the box is fit, and the session is judged on the tensors of the bundle, not on its rounding."""
    import cv2

    before = golden.load_inputs(bundle)
    look_up = cv2.LUT
    monkeypatch.setattr(cv2, "LUT", lambda pixels, table, **kw: look_up(pixels, table + np.float32(1 / 64), **kw))
    np.testing.assert_array_equal(golden.load_inputs(bundle), before)


def test_inputs_are_four_films_of_both_depths(bundle: Bundle) -> None:
    inputs = golden.load_inputs(bundle)
    assert inputs.shape == (4, 1, small.SIZE, small.SIZE)
    assert inputs.dtype == np.float32
    assert [x.std() > 0.5 for x in inputs] == [True] * 4
    assert np.abs(inputs).max() <= 2.0
    assert inputs[2, 0, 0, 0] == 0, "padding"
    with np.load(bundle.file("golden_inputs.npz")) as stored:
        assert stored["inputs"].dtype == np.uint8
        assert {stored[f"pixels_{i}"].dtype for i in range(4)} == {np.dtype(np.uint8), np.dtype(np.uint16)}


def test_outputs_are_the_variants_own(bundle: Bundle, session: OnnxRuntimeSession) -> None:
    expected = golden.load_outputs(bundle, "fp32", "shared")
    half = small.SIZE // 2
    assert expected.embedding is not None
    assert [v.shape for v in expected if v is not None] == [
        (4, 3),
        (4, 1, half, half),
        (4, 2, half, half),
        (4, small.config().width),
    ]
    np.testing.assert_array_less(0.1, expected.embedding.std())
    assert len({tuple(row) for row in expected.logits}) == 4, "films that the network cannot tell apart prove nothing"
    found = golden.compare(session.run(golden.load_inputs(bundle)), expected)
    assert found.logits <= 1e-4
    assert found.maps <= 1e-5
    assert found.embedding <= 1e-5


@pytest.mark.parametrize("name", ["golden_inputs.npz", "golden_fp32.npz"])
@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 not really", None])
def test_a_golden_file_that_is_none_is_named(
    small_bundle: Path, session: OnnxRuntimeSession, tmp_path: Path, fresh_cache: Path, name: str, content: bytes | None
) -> None:
    folder = shutil.copytree(small_bundle, tmp_path / "bundle", copy_function=os.link)
    if content is None:  # an archive, but of other arrays
        (folder / name).unlink()
        np.savez(folder / name, other=np.zeros(3))
    else:
        small.replace(folder / name, content)
    small.reseal(folder)
    with pytest.raises(BundleError, match=f"{name}: not .*; export the bundle again"):
        check(Bundle.open(folder), Watched(session))
