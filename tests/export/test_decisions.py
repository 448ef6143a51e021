"""What export chooses: a temperature that calibrates, thresholds that reach their sensitivity, a guard that lets in."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrvit_edge.bundle import Guard
from cxrvit_edge.decision import MILLION, prediction_sets
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


@given(st.lists(rows, min_size=1, max_size=60))
def test_sensitive_points_reach_nineteen_in_twenty_and_lie_no_higher(
    drawn: list[tuple[int, float, float, float]],
) -> None:
    drawn += [(k, 0.2, 0.3, 0.5) for k in range(3)]
    labels, p = np.array([r[0] for r in drawn]), np.array([r[1:] for r in drawn])
    usual = decisions.operating_points(labels, p, CLASSES)
    found = decisions.operating_points(labels, p, CLASSES, decisions.SENSITIVE)
    for k, name in enumerate(CLASSES):
        assert found[name] <= usual[name]
        assert (np.round(p[labels == k, k], 6) >= found[name]).mean() >= 0.95


alphas = st.floats(0.01, 0.6)


@given(st.lists(rows, min_size=1, max_size=60), alphas)
def test_as_many_scores_as_the_rank_are_within_the_threshold(
    drawn: list[tuple[int, float, float, float]], alpha: float
) -> None:
    """And of the other scores none: it lies between the two."""
    labels, p = np.array([r[0] for r in drawn]), np.array([r[1:] for r in drawn])
    found = decisions.selective(labels, p, alpha)
    assert (found.alpha, found.images, found.method) == (alpha, len(drawn), "lac")
    covered = prediction_sets(
        np.column_stack([p[np.arange(len(labels)), labels], np.ones(len(labels))]), found.threshold
    )
    rank = int(np.ceil((len(drawn) + 1) * (1 - alpha) - 1e-9))
    assert found.threshold == round(found.threshold, 6)
    if rank > len(drawn):
        assert found.threshold == 1.0
        return
    own = np.sort(np.rint(p[np.arange(len(labels)), labels] * MILLION))[::-1]
    assert covered[:, 0].sum() == (own >= own[rank - 1]).sum() >= rank


@given(st.lists(rows, min_size=1, max_size=60), alphas, alphas)
def test_less_risk_takes_no_smaller_sets(drawn: list[tuple[int, float, float, float]], a: float, b: float) -> None:
    labels, p = np.array([r[0] for r in drawn]), np.array([r[1:] for r in drawn])
    low, high = sorted((a, b))
    assert decisions.selective(labels, p, low).threshold >= decisions.selective(labels, p, high).threshold


@given(st.lists(rows, min_size=1, max_size=60), alphas, st.permutations(range(3)), st.randoms(use_true_random=False))
def test_neither_the_order_of_films_nor_the_names_of_classes_matter(
    drawn: list[tuple[int, float, float, float]], alpha: float, names: list[int], random: Random
) -> None:
    labels, p = np.array([r[0] for r in drawn]), np.array([r[1:] for r in drawn])
    order = random.sample(range(len(drawn)), len(drawn))
    renamed = np.argsort(names)[labels]  # column k of the others is column names[k] of these
    assert decisions.selective(renamed[order], p[order][:, names], alpha) == decisions.selective(labels, p, alpha)


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.1), (57, 0.1), (130, 0.1), (130, 0.25)])
def test_coverage_on_exchangeable_films(n: int, alpha: float) -> None:
    """Over many splits into val and new films: between 1 - alpha and 1/(n + 1) more, whatever the network is worth."""
    rng = np.random.default_rng(n)
    held = []
    for _ in range(400):
        labels = rng.integers(0, 3, n + 200)
        logits = rng.normal(0, 2, (n + 200, 3))
        logits[np.arange(n + 200), labels] += 1.0
        p = softmax(logits, 0.4)  # far too sure of itself
        found = decisions.selective(labels[:n], p[:n], alpha)
        sets = prediction_sets(p[n:], found.threshold)
        held.append(sets[np.arange(200), labels[n:]].mean())
    spread = 4 * np.std(held) / np.sqrt(len(held))
    assert 1 - alpha - spread <= np.mean(held)
    assert np.mean(held) <= 1 - alpha + 1 / (n + 1) + spread + 0.01  # sets without a likely class hold every class


def test_too_few_films_rule_nothing_out() -> None:
    labels = np.arange(8) % 3
    assert decisions.selective(labels, np.eye(3)[labels]).threshold == 1.0
    assert decisions.selective(np.arange(9) % 3, np.eye(3)[np.arange(9) % 3]).threshold == 0.5  # midway from 0 to 1
    with pytest.raises(UsageError, match="no labelled image"):
        decisions.selective(labels[:0], np.zeros((0, 3)))
