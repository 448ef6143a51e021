"""What export chooses: a temperature that calibrates, thresholds that reach their sensitivity, a guard that lets in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrvit_edge.bundle import Guard
from cxrvit_edge.errors import UsageError
from cxrvit_edge.metrics import softmax
from cxrvit_edge.model.config import CLASSES
from export import decisions


def loss(labels: np.ndarray, logits: np.ndarray, temperature: float) -> float:
    scaled = logits.astype(np.float64) / temperature
    own = scaled[np.arange(len(labels)), labels]
    return float((np.logaddexp.reduce(scaled, axis=1) - own).mean())


@pytest.mark.parametrize("truth", [0.4, 1.0, 2.5, 6.0])
def test_a_known_temperature_is_recovered(truth: float) -> None:
    """Labels drawn from softmax(logits / truth)."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(0, 2, (20_000, 3)) * max(truth, 1)).astype(np.float32)
    drawn = rng.uniform(size=(20_000, 1)) < np.cumsum(softmax(logits, truth), axis=1)
    labels = drawn.argmax(axis=1)
    found = decisions.fit_temperature(labels, logits)
    assert found == pytest.approx(truth, rel=0.05)
    best = min(loss(labels, logits, t) for t in np.geomspace(0.25, 8, 200))
    assert loss(labels, logits, found) <= best + 1e-9


@pytest.mark.parametrize(("sign", "bound"), [(1.0, 0.25), (-1.0, 8.0)])
def test_temperature_stays_in_bounds(sign: float, bound: float) -> None:
    """A network that is always right would be sharpened for ever, one that is always wrong softened."""
    labels = np.arange(30) % 3
    logits = (sign * 4 * np.eye(3)[labels]).astype(np.float32)
    assert decisions.fit_temperature(labels, logits) == pytest.approx(bound, rel=1e-3)


def test_softmax_of_large_logits() -> None:
    p = softmax(np.array([[1000.0, 999.0, -1000.0]], np.float32), 0.5)
    np.testing.assert_allclose(p, [[1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2)), 0]], atol=1e-12)


rows = st.tuples(st.integers(0, 2), *[st.floats(0, 1)] * 3)


@given(st.lists(rows, min_size=1, max_size=60))
def test_operating_points_reach_four_fifths(drawn: list[tuple[int, float, float, float]]) -> None:
    """Of the probabilities as they are reported, and midway to the next lower score."""
    drawn += [(k, 0.2, 0.3, 0.5) for k in range(3)]
    labels, p = np.array([r[0] for r in drawn]), np.array([r[1:] for r in drawn])
    points = decisions.operating_points(labels, p, CLASSES)
    assert list(points) == list(CLASSES)
    for k, name in enumerate(CLASSES):
        assert points[name] == round(points[name], 6)
        own = p[labels == k, k]
        assert (np.round(own, 6) >= points[name]).mean() >= 0.8
        threshold = np.sort(own)[::-1][int(np.ceil(0.8 * own.size - 1e-9)) - 1]  # the score that must be flagged
        lower = p[:, k][p[:, k] < threshold].max(initial=0.0)
        assert points[name] == pytest.approx((threshold + lower) / 2, abs=1.01e-6), "as far from both as can be"


@pytest.mark.parametrize("missing", range(3))
def test_a_class_without_an_image_is_named(missing: int) -> None:
    labels = np.array([k for k in range(3) if k != missing] * 4)
    with pytest.raises(UsageError, match=f"no {CLASSES[missing]} image in the validation split"):
        decisions.operating_points(labels, np.full((8, 3), 1 / 3), CLASSES)


films = st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.5, 1)), min_size=1, max_size=30)


@given(films)
def test_guard_lets_every_validation_film_with_lungs_in(drawn: list[tuple[float, float]]) -> None:
    areas, confidences = np.array(drawn).T
    bounds = decisions.guard(areas, confidences)
    assert (areas >= bounds.least_lungs).all()
    assert (confidences >= bounds.least_confidence).all()
    assert 0.01 <= bounds.least_lungs <= 0.10
    assert 0.5 <= bounds.least_confidence <= 0.95


def test_guard_has_a_margin_and_a_floor() -> None:
    bounds = decisions.guard(np.array([0.12, 0.3, 0.4]), np.array([0.91, 0.8, 0.95]))
    assert (bounds.least_lungs, bounds.least_confidence) == (0.06, 0.75)
    empty = decisions.guard(np.array([0.0, 0.3]), np.array([0.0, 0.9]))
    assert (empty.least_lungs, empty.least_confidence) == (0.01, 0.5)


def test_refused_by_each_bound_and_not_for_a_lung_unseen() -> None:
    bounds = Guard(0.1, 0.6, 0.2)
    areas = np.array([0.3, 0.05, 0.3, 0.3, 0.3])
    confidences = np.array([0.9, 0.9, 0.5, 0.9, 0.9])
    separations = np.array([0.4, 0.4, 0.4, 0.1, np.nan])
    assert decisions.refused(bounds, areas, confidences, separations).tolist() == [False, True, True, True, False]
