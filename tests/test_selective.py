"""Figures of prediction sets, counted by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cxrvit_edge.bundle import Selective
from cxrvit_edge.metrics import cluster_bootstrap, number, softmax
from cxrvit_edge.selective import figures

CLASSES = ("normal", "other_infection", "covid19")
SETS = Selective(0.1, 0.7, 99)


def made(n: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    logits = rng.normal(0, 1, (n, 3))
    logits[np.arange(n), labels] += 1.5
    return labels, softmax(logits), [f"p{i // 2}" for i in range(n)], [("", "here", "there")[i % 3] for i in range(n)]


def test_shares_are_counted() -> None:
    labels, p, patients, sources = made()
    found: dict[str, Any] = figures(labels, p, patients, sources, CLASSES, SETS, draws=200)
    json.dumps(found, allow_nan=False)
    sets = [{k for k in range(3) if round(float(row[k]), 6) >= 0.3} for row in p]
    assert all(sets) and {len(s) for s in sets} == {1, 2}
    covered = np.array([int(y) in s for y, s in zip(labels, sets, strict=True)])
    single = np.array([len(s) == 1 for s in sets])
    right = p.argmax(1) == labels
    assert (found["alpha"], found["threshold"], found["images"]) == (0.1, 0.7, 80)
    for name, hits, of in (
        ("coverage", covered, covered | True),
        ("single", single, covered | True),
        ("accuracy", right, covered | True),
        ("accuracy_single", right, single),
    ):
        e = cluster_bootstrap(lambda i, h=hits, o=of: h[i][o[i]].mean(), patients, draws=200)  # type: ignore[misc]
        assert list(found[name].values()) == [number(v) for v in (e.value, e.low, e.high)], name
    for k, name in enumerate(CLASSES):
        own = found["by_class"][name]
        assert own["images"] == (labels == k).sum()
        assert own["coverage"]["value"] == number(covered[labels == k].mean())
    assert list(found["by_source"]) == ["here", "there"]
    here = np.array([s == "here" for s in sources])
    assert found["by_source"]["here"]["images"] == here.sum()
    assert found["by_source"]["here"]["single"]["value"] == number(single[here].mean())


def test_area_under_risk_and_coverage() -> None:
    """Of equal confidence all are taken at once: 0.9 right; 0.8 right and wrong; 0.5 wrong."""
    p = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.8, 0.1, 0.1], [0.5, 0.3, 0.2]])
    labels = np.array([0, 0, 1, 2])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        found = figures(labels[order], p[order], list("abcd"), [""] * 4, CLASSES, SETS, draws=50)
        assert found["aurc"]["value"] == number((0 + 1 / 3 + 1 / 3 + 2 / 4) / 4)


def test_a_share_of_all_has_the_exact_interval() -> None:
    labels, p = np.arange(30) % 3, np.eye(3)[np.arange(30) % 3]
    found = figures(labels, p, [f"p{i}" for i in range(30)], ["x"] * 30, CLASSES, SETS, draws=50)
    assert found["coverage"] == {"value": 1.0, "low": number(0.025 ** (1 / 30)), "high": 1.0}
    assert found["by_class"]["normal"]["coverage"]["low"] == number(0.025 ** (1 / 10))
    assert found["aurc"]["value"] == 0


@pytest.mark.parametrize("broken", [True, False])
def test_without_images_or_finite_values_nothing_is_defined(broken: bool) -> None:
    labels, p, patients, sources = made(6)
    p[2] = np.nan
    n = 6 if broken else 0
    found = figures(labels[:n], p[:n], patients[:n], sources[:n], CLASSES, SETS, draws=50)
    assert found["images"] == n
    assert all(found[name]["value"] is None for name in ("coverage", "single", "accuracy", "accuracy_single", "aurc"))
    assert found["by_class"]["covid19"]["coverage"]["value"] is None
