"""Familiar films: the score's properties, its file, and what a bundle that carries it makes of a film."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeSession, make_bundle, write_bundle
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_bundle import reseal

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import BundleError, InputError, Reason
from cxrvit_edge.findings import Finding, judge
from cxrvit_edge.ood import Familiar, Ood, familiar_of, read, write
from cxrvit_edge.preprocess import Geometry
from cxrvit_edge.report.words import unlike
from cxrvit_edge.report.worklist import write_worklist

D, K = 12, 4


def a_fit(seed: int = 0, **changes: Any) -> Familiar:
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(D, D)))[0][:, :K]
    parts = (rng.normal(size=D), axes, np.diag(rng.uniform(0.5, 2, K)), rng.normal(size=(3, K)))
    centre, axes, whiten, means = (p.astype(np.float32) for p in parts)
    return replace(Familiar(centre, axes, whiten, means, 0.5, 3.0), **changes)


def plainly(fit: Familiar, x: NDArray[np.floating]) -> float:
    """The score as the module's docstring has it."""
    p = fit.axes.T @ (x - fit.centre)
    rest = (x - fit.centre) - fit.axes @ p
    squares = min(float(((p @ fit.whiten - m) ** 2).sum()) for m in fit.means)
    return float(np.sqrt(squares + (float(rest @ rest) / fit.residual if fit.residual else 0.0)))


@given(st.integers(0, 1000), st.floats(0.01, 100), st.sampled_from([0.0, 0.5]))
def test_the_score_is_the_distance_of_its_definition(seed: int, size: float, residual: float) -> None:
    fit = a_fit(seed, residual=residual)
    films = (size * np.random.default_rng(seed).normal(size=(3, D))).astype(np.float32)
    expected = [plainly(fit, film) for film in films]
    np.testing.assert_allclose(fit.scores(films), expected, rtol=1e-4, atol=1e-4)
    assert fit.score(films[1]) == round(float(fit.scores(films)[1]), 4)


@given(st.integers(0, 1000))
def test_farther_along_any_line_from_a_class_is_no_less_unlike_in_the_end(seed: int) -> None:
    fit = a_fit(seed)
    way = np.random.default_rng(seed).normal(size=D)
    far = fit.scores(fit.centre + np.array([[20.0], [40.0], [80.0]]) * way)
    assert far[0] < far[1] < far[2]


def test_a_fit_survives_its_file(tmp_path: Path) -> None:
    write(tmp_path / "ood.npz", a_fit())
    again = read(tmp_path / "ood.npz")
    for name, value in vars(a_fit()).items():
        np.testing.assert_array_equal(getattr(again, name), value)


def saved(path: Path, **changes: Any) -> None:
    write(path, a_fit())
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    with path.open("wb") as f:
        np.savez(f, **{k: v for k, v in {**arrays, **changes}.items() if v is not None})


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": None},
        {"threshold": np.float64("nan")},
        {"threshold": np.float64("inf")},
        {"threshold": np.float64(0)},
        {"residual": np.float64(-1)},
        {"centre": np.zeros(D + 1, np.float32)},
        {"axes": np.zeros((D, D + 1), np.float32)},
        {"axes": np.zeros((D, 0), np.float32), "whiten": np.zeros((0, 0), np.float32)},
        {"whiten": np.full((K, K), np.nan, np.float32)},
        {"means": np.zeros((0, K), np.float32)},
        {"means": np.zeros((3, K), np.int64)},
        {"centre": np.array([object()] * D, dtype=object)},
        {"more": np.zeros(1 << 20, np.float32)},
    ],
    ids=str,
)
def test_a_file_that_is_no_fit_is_a_bundle_error(tmp_path: Path, changes: dict[str, Any]) -> None:
    saved(tmp_path / "ood.npz", **changes)
    with pytest.raises(BundleError, match="no fit of familiar films that this version reads"):
        read(tmp_path / "ood.npz")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "absent"])
def test_a_damaged_file_is_a_bundle_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "ood.npz"
    write(path, a_fit())
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b""}.get(damage, b"{}"))
    if damage == "absent":
        path.unlink()
    with pytest.raises(BundleError):
        read(path)


def with_fit(folder: Path, fit: Familiar, **entry: Any) -> Bundle:
    write_bundle(folder)
    write(folder / "ood.npz", fit)
    guard = {"least_lungs": 0.05, "least_confidence": 0.5, "ood": {"file": "ood.npz", **entry}}
    reseal(folder, {"guard": guard})
    return Bundle.open(folder)


@pytest.mark.parametrize(
    "entry",
    [
        *[{"file": "other.npz"}, {"file": ""}, {"file": 3}, {}, [], "ood.npz"],
        {"file": "weights.safetensors", "share": "few"},
        {"file": "weights.safetensors", "left_out": {"nih": {"images": 3}}},
    ],
    ids=str,
)
def test_an_entry_that_cannot_be_used_is_a_bundle_error(tmp_path: Path, entry: Any) -> None:
    write_bundle(tmp_path)
    reseal(tmp_path, {"guard": {"least_lungs": 0.05, "least_confidence": 0.5, "ood": entry}})
    with pytest.raises(BundleError):
        Bundle.open(tmp_path)


WHOLE = Geometry.fit(64, 64, 64, "pad")


def outputs(embedding: NDArray[np.float32] | None) -> Any:
    batch = np.random.default_rng(0).normal(size=(1, 1, 64, 64)).astype(np.float32)
    return FakeSession().run(batch)._replace(embedding=None if embedding is None else embedding[None])


def test_a_film_over_the_threshold_is_for_review_and_keeps_its_probabilities(tmp_path: Path) -> None:
    fit = a_fit()
    bundle, near = with_fit(tmp_path / "b", fit), fit.centre
    far = (fit.centre + 50 * fit.axes[:, 0]).astype(np.float32)
    plain = judge(outputs(near), 0, make_bundle(tmp_path / "plain"), "PA", WHOLE)
    assert plain.ood is None and plain.priority != "review"
    found, other = (judge(outputs(e), 0, bundle, "PA", WHOLE) for e in (near, far))
    assert found.ood == Ood(fit.score(near), fit.threshold) and not found.ood.over
    assert other.ood == Ood(fit.score(far), fit.threshold) and other.ood.over
    assert replace(found, ood=None) == plain
    assert replace(other, ood=None, priority=plain.priority) == plain
    assert (found.priority, other.priority) == (plain.priority, "review")
    assert f"{other.ood.score:.1f}" in other.ood.warning and "unlike the films" in other.ood.warning


def test_a_score_of_exactly_the_threshold_is_not_over() -> None:
    assert not Ood(3.0, 3.0).over
    assert Ood(3.0001, 3.0).over


def test_a_session_without_embedding_gives_no_score(tmp_path: Path) -> None:
    assert judge(outputs(None), 0, with_fit(tmp_path, a_fit()), "PA", WHOLE).ood is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_is_told(tmp_path: Path, value: float) -> None:
    embedding = np.full(D, value, np.float32)
    with np.errstate(invalid="ignore"), pytest.raises(InputError) as caught:
        judge(outputs(embedding), 0, with_fit(tmp_path, a_fit()), "PA", WHOLE)
    assert caught.value.reason is Reason.NOT_FINITE


def test_a_later_file_of_the_same_name_is_read_anew(tmp_path: Path) -> None:
    first = familiar_of(with_fit(tmp_path / "b", a_fit()))
    shutil.rmtree(tmp_path / "b")
    second = familiar_of(with_fit(tmp_path / "b", a_fit(1, threshold=9.0)))
    assert first is not None and second is not None
    assert (first.threshold, second.threshold) == (3.0, 9.0)


def test_line_and_worklist_tell_it(tmp_path: Path) -> None:
    over = Finding("a.png", "ok", priority="review", ood=Ood(12.5, 3.0), warnings=(Ood(12.5, 3.0).warning,))
    under = Finding("b.png", "ok", priority="routine", ood=Ood(1.5, 3.0))
    for finding in (over, under, Finding("c.png", "failed")):
        line = json.loads(json.dumps(finding.to_dict()))
        assert Finding.from_dict(line) == finding
        assert Finding.from_dict({k: v for k, v in line.items() if k != "ood"}) == replace(finding, ood=None)
    assert over.to_dict()["ood"] == {"score": 12.5, "threshold": 3.0}
    for wrong in (3, {"score": 1.0}, "over"):
        with pytest.raises(ValueError, match="no finding"):
            Finding.from_dict({**over.to_dict(), "ood": wrong})
    assert unlike(over) and not unlike(under)
    write_worklist(tmp_path / "w.csv", [over, under], make_bundle(tmp_path / "b").manifest)
    rows = (tmp_path / "w.csv").read_text().splitlines()
    assert "unlike the films the network learned from" in rows[1] and "unlike" not in rows[2]
