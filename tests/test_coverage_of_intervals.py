"""95 % intervals hold the truth in 95 % of simulated studies: DeLong where images are independent, the cluster
bootstrap also where patients have several.

Accepted is what chance leaves of 95 % (three standard errors of a binomial share), and a point below: every interval
that rests on a normal or a percentile is a little short in samples of this size.
"""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest

from cxrvit_edge.metrics import Estimate, delong, delong_difference
from cxrvit_edge.resampling import Auc, Float, Rates, weighted_bootstrap

pytestmark = pytest.mark.slow
SHORT = 0.01


def accepted(studies: int) -> tuple[float, float]:
    noise = 3 * sqrt(0.95 * 0.05 / studies)
    return 0.95 - noise - SHORT, 0.95 + noise


def held(estimates: list[Estimate], truth: float) -> float:
    return sum(e.low <= truth <= e.high for e in estimates) / len(estimates)


def test_delong_and_its_paired_difference() -> None:
    """Two readers of 80 ill and 120 well, binormal: AUC is Phi(d / sqrt 2), and they share half of their variance."""
    rng = np.random.default_rng(0)
    studies, positive = 3000, np.arange(200) < 80
    separations = (1.0, 1.3)
    areas = [NormalDist().cdf(d / sqrt(2)) for d in separations]
    single, difference = [], []
    for _ in range(studies):
        shared = rng.normal(size=200) * sqrt(0.5)
        a, b = (d * positive + shared + rng.normal(size=200) * sqrt(0.5) for d in separations)
        single.append(delong(positive, a))
        difference.append(delong_difference(positive, a, b))
    low, high = accepted(studies)  # 0.928 to 0.962
    assert low <= held(single, areas[0]) <= high
    assert low <= held(difference, areas[1] - areas[0]) <= high


def test_cluster_bootstrap_of_patients_with_several_images() -> None:
    """300 patients with 1 to 6 images that share most of their score: AUC is Phi(d / sqrt 2) over images.

    DeLong, which takes images as independent, is held against the same studies: it is far too sure. (With 120 patients
    instead, some 48 of them ill, the interval of the sensitivity held it in 91 % of the studies.)
    """
    rng = np.random.default_rng(1)
    studies, draws, d, patients = 1000, 500, 1.0, 300
    area, sensitivity = NormalDist().cdf(d / sqrt(2)), NormalDist().cdf(d)  # at a threshold of 0
    clustered: dict[str, list[Estimate]] = {"auc": [], "sensitivity": []}
    independent = []
    for study in range(studies):
        images = rng.integers(1, 7, size=patients)
        who = np.repeat(np.arange(patients), images)
        positive = np.repeat(rng.random(patients) < 0.4, images)
        score = d * positive + (rng.normal(size=patients) * sqrt(0.7))[who] + rng.normal(size=len(who)) * sqrt(0.3)
        measured, at = Auc(positive, score), Rates(positive, score, 0.0)

        def measure(weights: Float, measured: Auc = measured, at: Rates = at) -> dict[str, Float]:
            return {"auc": measured(weights), "sensitivity": at(weights)[0]}

        found = weighted_bootstrap(measure, [str(w) for w in who], draws=draws, seed=study)
        for name, estimates in clustered.items():
            estimates.append(found[name])
        independent.append(delong(positive, score))
    low, high = accepted(studies)  # 0.919 to 0.971
    assert low <= held(clustered["auc"], area) <= high
    assert low <= held(clustered["sensitivity"], sensitivity) <= high
    assert held(independent, area) < 0.85
