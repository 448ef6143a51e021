"""Familiar films fitted: shrinkage, invariance, threshold, sources left out, and the written bundle's effect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from train.data.record import Record
from train.ood import DIMENSIONS, fit, fit_familiar, ledoit_wolf, threshold

Float64 = NDArray[np.float64]


def films(seed: int, n: int = 60, d: int = 10) -> tuple[Float64, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 3 * rng.normal(size=(3, d))[labels], labels


@given(st.integers(0, 200))
def test_the_full_distance_does_not_depend_on_how_features_are_mixed(seed: int) -> None:
    x, labels = films(seed)
    rng = np.random.default_rng(seed + 1)
    mix, shift = rng.normal(size=(10, 10)) + 3 * np.eye(10), rng.normal(size=10)
    other = rng.normal(size=(5, 10)) * 5
    options = {"dimensions": 10, "floor": 0.0, "shrinkage": 0.0}
    one, _ = fit_familiar(x, labels, **options)  # type: ignore[arg-type]
    two, _ = fit_familiar(x @ mix + shift, labels, **options)  # type: ignore[arg-type]
    assert one.residual == two.residual == 0
    np.testing.assert_allclose(one.scores(other), two.scores(other @ mix + shift), rtol=2e-2)
    means = np.stack([x[labels == c].mean(0) for c in range(3)])
    inverse = np.linalg.inv(np.cov((x - means[labels]).T, ddof=0))
    squares = [min((o - m) @ inverse @ (o - m) for m in means) for o in other]
    np.testing.assert_allclose(one.scores(other), np.sqrt(squares), rtol=2e-2)


@given(st.integers(0, 200), st.floats(0.1, 10))
def test_the_shrunk_distance_does_not_depend_on_turning_shifting_or_scale(seed: int, scale: float) -> None:
    x, labels = films(seed)
    rng = np.random.default_rng(seed + 1)
    turn = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    other = rng.normal(size=(5, 10)) * 5
    one, a = fit_familiar(x, labels, dimensions=4, floor=0.0)
    two, b = fit_familiar(scale * (x @ turn) + 7, labels, dimensions=4, floor=0.0)
    assert a == pytest.approx(b, abs=1e-6)
    np.testing.assert_allclose(one.scores(other), two.scores(scale * (other @ turn) + 7), rtol=1e-2)


def test_shrinkage_finds_the_covariance_better_than_the_plain_one() -> None:
    rng = np.random.default_rng(0)
    true = np.diag(rng.uniform(0.5, 2, 20))
    for n, least in ((10, 0.5), (1000, 0.0)):
        x = rng.normal(size=(n, 20)) @ np.sqrt(true)
        found, shrinkage = ledoit_wolf(x)
        assert least <= shrinkage <= 1
        np.testing.assert_allclose(found, found.T)
        assert np.trace(found) == pytest.approx(np.trace(x.T @ x / n))
        assert ((found - true) ** 2).sum() <= ((x.T @ x / n - true) ** 2).sum()
    assert shrinkage < 0.3, "with many films there is little to mend"
    assert ledoit_wolf(np.zeros((5, 3)))[1] == 1.0


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=300), st.floats(0, 0.5))
def test_at_most_the_share_is_over_the_threshold_and_no_lower_one_would_do(scores: list[float], share: float) -> None:
    values = np.array(scores)
    limit = threshold(values, share)
    allowed = int(share * len(values))
    assert (values > limit).sum() <= allowed
    assert (values > limit - 2e-4).sum() > allowed or allowed >= len(values)


def test_rounding_noise_in_directions_without_spread_moves_nothing() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(80, 3)), 1e-7 * rng.normal(size=(80, 20))], axis=1)  # (80, 23)
    labels = np.arange(80) % 3
    noisy = x + rng.normal(0, 0.002 * x.std(), x.shape)
    found, _ = fit_familiar(x, labels)
    assert np.abs(found.scores(noisy) - found.scores(x)).max() < 1
    bare, _ = fit_familiar(x, labels, floor=0.0)
    assert np.abs(bare.scores(noisy) - bare.scores(x)).max() > 5


def record(i: int, split: str, source: str, label: int | None, reuse: str = "yes") -> Record:
    return Record(Path(f"{i}.png"), source, f"p{i}", split, label=label, reuse=reuse)  # type: ignore[arg-type]


def hospitals(apart: float) -> tuple[list[Record], Float64]:
    """Two sources alike, and a third that lies `apart` in a direction of its own."""
    rng = np.random.default_rng(1)
    records = [record(i, ("train", "train", "train", "val")[i // 3 % 4], "abc"[i % 3], i // 12 % 3) for i in range(360)]
    x = rng.normal(size=(360, 40))
    x[:, 0] += apart * np.array([r.source == "c" for r in records])
    return records, x


def test_another_hospitals_share_is_told() -> None:
    said: list[str] = []
    records, x = hospitals(30.0)
    found = fit(records, x, said.append)
    assert found is not None
    entry = found.record
    assert entry["films"] == 270 and entry["dimensions"] == DIMENSIONS
    assert entry["val"] == {"images": 90, "over": round(1 / 90, 4)}
    assert entry["left_out"]["c"] == {"images": 120, "over": 1.0}
    assert max(entry["left_out"][name]["over"] for name in "ab") < 0.2
    assert any("without c: 100% of its 120 films" in line for line in said)
    assert any("may be those of another hospital" in line for line in said)
    assert found.familiar.threshold == entry["threshold"]
    said.clear()
    alike = fit(*hospitals(0.0), said.append)
    assert alike is not None and max(one["over"] for one in alike.record["left_out"].values()) < 0.2
    assert not any("another hospital" in line for line in said)


def test_only_what_may_be_learned_from_is_fitted() -> None:
    records, x = hospitals(0.0)
    found = fit(records, x, lambda _: None)
    strange = [record(1000, "train", "a", 1, "unknown"), record(1001, "train", "a", None)]
    more = fit([*records, *strange], np.concatenate([x, x[:2] + 1e3]), lambda _: None)
    assert found is not None and more is not None
    for name, value in vars(found.familiar).items():
        np.testing.assert_array_equal(getattr(more.familiar, name), value)


@pytest.mark.parametrize("kept", ["train", "val"])
def test_without_films_there_is_no_fit_and_it_is_said(kept: str) -> None:
    records, x = hospitals(0.0)
    rows = [i for i, r in enumerate(records) if r.split == kept]
    said: list[str] = []
    assert fit([records[i] for i in rows], x[rows], said.append) is None
    assert "there will be no score" in said[0]
