"""Prediction sets: which classes are in, and that a set is never empty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from cxrvit_edge.decision import MILLION, Rule, prediction_sets

shares = st.integers(0, MILLION).map(lambda n: n / MILLION)  # as probabilities are reported
films: st.SearchStrategy[NDArray[np.float64]] = npst.arrays(
    np.float64, st.tuples(st.integers(1, 20), st.just(3)), elements=st.floats(0, 1)
)


@pytest.mark.parametrize(
    ("p", "threshold", "expected"),
    [
        ((0.7, 0.2, 0.1), 0.7, [True, False, False]),
        ((0.6, 0.3, 0.1), 0.7, [True, True, False]),  # 1 - 0.7 is over 0.3 in binary
        ((0.6, 0.299999, 0.100001), 0.7, [True, False, False]),
        ((0.5, 0.3, 0.2), 0.1, [True, True, True]),  # no class is likely enough
        ((1.0, 0.0, 0.0), 0.0, [True, False, False]),
        ((1.0, 0.0, 0.0), 1.0, [True, True, True]),
    ],
)
def test_classes_from_the_limit_on_are_in(p: tuple[float, ...], threshold: float, expected: list[bool]) -> None:
    assert prediction_sets(np.array([p]), threshold)[0].tolist() == expected


@given(films, shares)
def test_a_set_is_never_empty(p: NDArray[np.float64], threshold: float) -> None:
    assert prediction_sets(p, threshold).any(1).all()


@given(films, shares, st.permutations(range(3)))
def test_sets_do_not_depend_on_the_order_of_films_or_classes(
    p: NDArray[np.float64], threshold: float, order: list[int]
) -> None:
    np.testing.assert_array_equal(
        prediction_sets(p[::-1][:, order], threshold), prediction_sets(p, threshold)[::-1][:, order]
    )


@given(films, shares, shares)
def test_a_higher_threshold_rules_out_less(p: NDArray[np.float64], a: float, b: float) -> None:
    """Where any class is likely enough under the lower one."""
    low, high = sorted((a, b))
    some = np.rint(p.max(1) * MILLION) >= np.rint((1 - low) * MILLION)
    assert (prediction_sets(p, low)[some] <= prediction_sets(p, high)[some]).all()


@given(shares)
def test_the_score_of_a_class_is_the_threshold_from_which_it_is_in(p: float) -> None:
    score = round(1 - p, 6)
    film = np.array([[p, 1.0, 1.0]])  # never empty
    assert prediction_sets(film, score)[0, 0]
    if p < 1:
        assert not prediction_sets(film, round(score - 1e-6, 6))[0, 0]


def test_a_rule_in_words() -> None:
    assert str(Rule()) == "sensitivity of at least 80 %"
    assert str(Rule(95, True)) == "sensitivity of at least 95 %, undecided films for review"
