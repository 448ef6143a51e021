"""Ranges of activations: exact maxima, histograms that lose nothing, thresholds that minimise what they say."""

from __future__ import annotations

import numpy as np
import pytest
import quant_graphs as small
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from cxrvit_edge.errors import UsageError
from export import ranges
from export.quantise import quantisable, tensors
from export.ranges import BINS, ESTIMATORS, STRIDE, Range, threshold

FLOATS = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)


def filled(*parts: NDArray[np.floating]) -> Range:
    r = Range()
    for part in parts:
        r.add(np.asarray(part, np.float32).reshape(1, -1, 1))  # (B, T, C) of one channel
    return r


def gaussian(n: int = 60_000) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(0, 1, n).astype(np.float32)


def error(x: NDArray[np.float32], t: float, levels: int = 127) -> float:
    step = t / levels
    return float(((np.clip(np.rint(x / step), -levels, levels) * step - x) ** 2).mean())


@given(st.lists(arrays(np.float32, st.integers(1, 60), elements=FLOATS), min_size=1, max_size=5))
def test_a_histogram_that_doubles_keeps_every_count(parts: list[NDArray[np.float32]]) -> None:
    r = filled(*parts)
    values = np.concatenate(parts)
    assert r.largest == np.abs(values).max()
    assert r.signed == bool((values < 0).any())
    live = np.concatenate([np.zeros(0, np.float32), *(p[::STRIDE] for p in parts if np.abs(p).max() > 0)])
    assert r.counts.sum() == len(live)
    assert r.limit == 0 or r.largest < r.limit
    if r.limit:
        # up to a bin's edge, within what float32 rounds, lie as many as numpy counts there
        edges = np.arange(1, BINS + 1) * (r.limit / BINS)
        ordered = np.sort(np.abs(live).astype(np.float64))
        up_to = r.counts.cumsum()
        assert (np.searchsorted(ordered, edges * (1 - 1e-6)) <= up_to).all()
        assert (up_to[:-1] <= np.searchsorted(ordered, edges * (1 + 1e-6))[:-1]).all()


def test_counts_are_numpys_histogram() -> None:
    x = gaussian()
    r = filled(x[:300], x[300:], 7 * x)
    doublings = np.log2(r.limit / filled(x[:300]).limit)
    assert doublings == pytest.approx(round(doublings)) and doublings >= 3
    sample = np.abs(np.concatenate([x[:300:STRIDE], x[300::STRIDE], (7 * x)[::STRIDE]]).astype(np.float64))
    expected, _ = np.histogram(sample, BINS, (0, r.limit))
    assert np.abs(r.counts - expected).sum() <= 4, "values on an edge"


@pytest.mark.parametrize(("shape", "axis"), [((2, 5, 6, 7), 1), ((2, 9, 5), 2), ((4, 5), 1)])
def test_channels(shape: tuple[int, ...], axis: int) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) * k for k in (1, 3))
    r = Range()
    r.add(a)
    r.add(b)
    both = np.abs(np.concatenate([a, b]))
    assert r.channel_max is not None
    np.testing.assert_array_equal(r.channel_max, both.max(tuple(i for i in range(len(shape)) if i != axis)))
    assert r.largest == both.max() and r.signed


def test_the_maximum_is_seen_where_the_histogram_looks_away() -> None:
    x = np.full(10, 0.5, np.float32)
    x[1] = 90  # not one of every third
    r = filled(x)
    assert r.largest == 90 and r.counts.sum() == 4
    assert threshold(r, "minmax") == 90
    assert not r.signed


def test_collect_on_a_graph() -> None:
    model, images = small.small(), small.images(3)
    wanted = tensors(model, "onnxruntime")
    found = ranges.collect(model, wanted, iter(images))
    assert list(found) == wanted
    session = ranges.tapped(model, wanted)
    for name, value in zip(wanted, session.run(wanted, {"image": np.concatenate(images)}), strict=True):
        axis = tuple(i for i in range(value.ndim) if i != (1 if value.ndim == 4 else value.ndim - 1))
        channels = found[name].channel_max
        assert channels is not None
        np.testing.assert_allclose(channels, np.abs(value).max(axis), rtol=1e-4, atol=1e-6)
        assert found[name].largest == pytest.approx(float(np.abs(value).max()), rel=1e-4)
        assert found[name].signed == bool(value.min() < 0)
    relus = [w.activation for w in quantisable(model) if w.activation.endswith(".relu")]
    assert relus and not any(found[name].signed for name in relus)


def test_tapping_leaves_the_graph_as_it_is() -> None:
    model = small.small()
    before = model.SerializeToString()
    ranges.tapped(model, ["cat2", "logits"])
    assert model.SerializeToString() == before


def test_a_percentile_keeps_that_share() -> None:
    x = gaussian()
    r = filled(np.repeat(x, STRIDE))
    found = [threshold(r, "percentile", percentile=p) for p in (51, 90, 99, 99.9, 99.99, 99.999, 100)]
    assert found == sorted(found) and found[-1] <= r.largest
    for p, t in zip((51, 90, 99, 99.9), found, strict=False):
        exact = np.percentile(np.abs(x), p, method="inverted_cdf")
        assert exact <= t * 1.000001 <= exact + 1.01 * r.limit / BINS


@pytest.mark.parametrize("levels", [127, 255])
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "relu", "outlier", "uniform"])
def test_mse_is_near_the_best_there_is(kind: str, levels: int) -> None:
    rng = np.random.default_rng(5)
    kinds: dict[str, NDArray[np.floating]] = {
        "gaussian": gaussian(),
        "laplace": rng.laplace(0, 1, 60_000),
        "relu": np.maximum(gaussian(), 0),
        "outlier": np.concatenate([gaussian(), [-300]]),
        "uniform": rng.uniform(-1, 1, 60_000),
    }
    x = kinds[kind].astype(np.float32)
    r = filled(np.repeat(x, STRIDE))  # each value is sampled once
    t = threshold(r, "mse", levels=levels)
    assert 0 < t <= r.largest
    best = min(error(x, c, levels) for c in r.largest * np.linspace(0.005, 1, 400))
    assert error(x, t, levels) <= 1.1 * best + 1e-12
    if kind == "uniform":
        assert t > 0.95 * r.largest


@pytest.mark.parametrize("levels", [127, 255])
def test_entropy_clips_an_outlier_and_no_more(levels: int) -> None:
    calm, harmed = filled(gaussian()), filled(np.concatenate([[40.0], gaussian()]))
    for r in (calm, harmed):
        t = threshold(r, "entropy", levels=levels)
        assert levels * r.limit / BINS * 0.999 <= t <= r.largest
    assert threshold(harmed, "entropy", levels=levels) < 0.3 * harmed.largest
    assert 1.5 < threshold(calm, "entropy", levels=levels) <= calm.largest


@given(
    arrays(np.float32, st.integers(1, 80), elements=FLOATS), st.sampled_from(ESTIMATORS), st.sampled_from([127, 255])
)
def test_every_threshold_is_positive_and_within_the_largest(x: NDArray[np.float32], how: str, levels: int) -> None:
    r = filled(x)
    t = threshold(r, how, levels=levels)
    assert np.isfinite(t) and t > 0
    if r.largest:
        assert t <= r.largest
    if r.largest and how == "minmax":
        assert t == r.largest


@pytest.mark.parametrize("how", ESTIMATORS)
def test_a_tensor_of_zeros(how: str) -> None:
    r = filled(np.zeros(50), np.zeros(50))
    assert (r.largest, r.limit, r.signed) == (0, 0, False)
    assert threshold(r, how) == 1.0
    assert ranges.scales({"x": r}, how, form="tensorrt")["x"].largest == 1.0


@pytest.mark.parametrize("how", ESTIMATORS)
def test_a_tensor_of_next_to_nothing(how: str) -> None:
    """A channel that died in training: its activations are no zeros, but hardly numbers."""
    r = filled(np.full(50, 1e-37), np.full(50, 3e-40), np.zeros(9))
    assert 0 < threshold(r, how) <= 1.0
    r.add(np.full((1, 50, 1), 2.0, np.float32))
    assert threshold(r, how) == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    x = gaussian(30)
    x[7] = value
    with pytest.raises(UsageError, match=r"not finite on a calibration image"):
        filled(x)
    model, bad = small.small(), small.images(1)[0]
    bad[0, 0, 3, 3] = value
    with pytest.raises(UsageError, match=r"not finite"):
        ranges.collect(model, tensors(model, "tensorrt"), [bad])


def test_an_unknown_estimator_is_named() -> None:
    with pytest.raises(UsageError, match=r"--range histogram: choose one of minmax, entropy, percentile, mse"):
        threshold(filled(gaussian(30)), "histogram")


def test_scales_know_the_form() -> None:
    x = gaussian()
    found = {"signed": filled(x), "relu": filled(np.maximum(x, 0))}
    for how in ESTIMATORS:
        trt, ort = (ranges.scales(found, how, form=f) for f in ("tensorrt", "onnxruntime"))
        assert [(s["signed"].unsigned, s["relu"].unsigned) for s in (trt, ort)] == [(False, True)] * 2
        assert trt["signed"] == ort["signed"]
        assert trt["relu"].largest == threshold(found["relu"], how, levels=127)
        assert ort["relu"].largest == threshold(found["relu"], how, levels=255)
    low, high = (ranges.scales(found, "percentile", percentile=p, form="tensorrt") for p in (90, 99))
    assert low["relu"].largest < high["relu"].largest
