"""Charts are whole XML, without NaN, inside their picture, and say so where there is nothing to draw."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrvit_edge.benchmark import bars, charts
from cxrvit_edge.report.axes import Scale, log_ticks, ticks, written

numbers = st.floats(-1e6, 1e6)
shares = st.floats(0, 1)
maybe = st.one_of(st.none(), numbers, st.just(math.nan), st.just(math.inf))
names = st.text(st.characters(codec="utf-8"), max_size=40)
_TOKEN = re.compile(r"[A-Za-z]|-?\d+(?:\.\d+)?")


def places(path: str) -> Iterator[tuple[float, float]]:
    """Points that a path goes through; fails on a command that the charts do not use."""
    tokens, x, y = _TOKEN.findall(path), 0.0, 0.0
    assert "".join(tokens) == path.replace(" ", "")
    command, at = "", 0
    while at < len(tokens):
        if tokens[at].isalpha():
            command, at = tokens[at], at + 1
            if command == "z":
                continue
        wanted = 2 if command in "ML" else 1
        values = [float(t) for t in tokens[at : at + wanted]]
        at += wanted
        if command in "ML":
            x, y = values
        elif command in "Hh":
            x = values[0] + (x if command == "h" else 0)
        else:
            assert command in "Vv", command
            y = values[0] + (y if command == "v" else 0)
        yield x, y


def drawn(svg: str) -> ElementTree.Element:
    """The picture; fails if it is not whole, holds a NaN, or draws outside itself."""
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert root.find("title") is not None and root.find("desc") is not None
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    for element in root.iter():
        for name, value in element.attrib.items():
            if name != "aria-label":
                assert "nan" not in value.lower() and "inf" not in value.lower(), (element.tag, name, value)
        points: list[tuple[float, float]] = []
        if element.tag == "path":
            points = list(places(element.attrib["d"]))
        elif element.tag == "circle":
            points = [(float(element.attrib["cx"]), float(element.attrib["cy"]))]
        elif element.tag == "rect":
            x, y, w, h = (float(element.attrib[k]) for k in ("x", "y", "width", "height"))
            assert w >= 0 and h >= 0
            points = [(x, y), (x + w, y + h)]
        elif element.tag == "text" and "x" in element.attrib:
            points = [(float(element.attrib["x"]), float(element.attrib["y"]))]
        for x, y in points:
            assert -1 <= x <= width + 1 and -1 <= y <= height + 1, (element.tag, element.attrib, x, y)
    return root


def curve(root: ElementTree.Element) -> list[list[tuple[float, float]]]:
    return [list(places(e.attrib["d"])) for e in root.iter("path") if e.get("stroke-linejoin") == "round"]


@given(numbers, numbers, st.integers(4, 12))
def test_ticks_rise_inside_the_axis(a: float, b: float, count: int) -> None:
    low, high = min(a, b), max(a, b)
    at = ticks(low, high, count)
    assert at and all(low <= v <= high for v in at)
    assert all(x < y for x, y in pairwise(at))
    assert len(at) <= count + 2
    if high - low > 1e-3 * max(abs(low), abs(high), 1e-3):
        assert len(at) >= 2
        assert len(set(written(at))) == len(at)


@given(st.floats(1e-3, 1e4), st.floats(8, 1e5))
def test_logarithmic_ticks_rise_inside_the_axis(low: float, ratio: float) -> None:
    at = log_ticks(low, low * ratio)
    assert len(at) >= 2 and all(low <= v <= low * ratio for v in at)
    assert all(x < y for x, y in pairwise(at))


def test_ticks_are_round_numbers() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert written(ticks(0, 1)) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert written(ticks(37, 64)) == ["40", "50", "60"]
    assert written(ticks(0, 10, 4)) == ["0.0", "2.5", "5.0", "7.5", "10.0"]
    assert written(ticks(0, 4000)) == ["0", "1,000", "2,000", "3,000", "4,000"]
    assert log_ticks(30, 700) == [50, 100, 200, 500]


@given(numbers, numbers, numbers)
def test_a_scale_keeps_its_ends_and_the_order(a: float, b: float, v: float) -> None:
    scale = Scale(min(a, b), max(a, b), 10, 200)
    assert 10 <= scale(v) <= 200
    if b > a + 1e-6:
        assert (scale(a), scale(b)) == (10, 200)
        assert scale((a + b) / 2) == pytest.approx(105, abs=1)


@given(
    st.lists(
        st.builds(
            charts.Curve,
            names,
            st.lists(st.tuples(shares, shares), max_size=300),
            st.just("0.951"),
            st.one_of(st.none(), st.tuples(shares, shares)),
        ),
        max_size=7,
    )
)
@settings(max_examples=40)
def test_roc_curves_lie_in_the_square(curves: list[charts.Curve]) -> None:
    picture = charts.roc(curves, "ROC of <covid19>")
    if all(len(c.points) < 2 for c in curves):
        assert "no curve" in picture and "<svg" not in picture
        return
    lines = curve(drawn(picture))
    assert len(lines) == sum(len(c.points) > 1 for c in curves)
    for points in lines:
        assert len(points) <= charts.ROC_POINTS
        assert all(46 <= x <= 338 and 8 <= y <= 312 for x, y in points)


def test_a_perfect_roc_goes_through_the_upper_left_corner() -> None:
    picture = charts.roc([charts.Curve("a", [(0, 0), (0, 1), (1, 1)], "1.000", (0.0, 1.0))], "ROC")
    assert curve(drawn(picture)) == [[(46.0, 312.0), (46.0, 8.0), (338.0, 8.0)]]
    assert ">1.000</text>" in picture


def test_curves_differ_in_black_and_white() -> None:
    curves = [charts.Curve(f"c{i}", [(0, 0), (1, 1)]) for i in range(5)]
    paths = [e for e in drawn(charts.roc(curves, "ROC")).iter("path") if e.get("stroke-linejoin") == "round"]
    assert len({e.get("stroke-dasharray") for e in paths}) == 5
    assert len({e.get("stroke") for e in paths}) == 5


@st.composite
def _bins(draw: st.DrawFn) -> list[dict[str, float | None]]:
    counts = draw(st.lists(st.integers(0, 5000), min_size=0, max_size=15))
    n = max(len(counts), 1)
    return [
        {
            "low": i / n,
            "high": (i + 1) / n,
            "count": c,
            "confidence": draw(shares) if c else None,
            "accuracy": draw(shares) if c else None,
        }
        for i, c in enumerate(counts)
    ]


@given(_bins())
@settings(max_examples=40)
def test_a_reliability_diagram_has_a_dot_and_a_bar_for_each_bin_with_images(
    bins: list[dict[str, float | None]],
) -> None:
    held = [b for b in bins if b["count"]]
    picture = charts.reliability(bins, "Reliability")
    if not held:
        assert "no image" in picture and "<svg" not in picture
        return
    root = drawn(picture)
    assert len(root.findall("circle")) == len(root.findall("rect")) == len(held)


@given(st.lists(st.tuples(numbers, numbers), max_size=30), maybe, maybe, maybe)
@settings(max_examples=60)
def test_bland_altman_shows_points_and_limits(
    points: list[tuple[float, float]], bias: float | None, low: float | None, high: float | None
) -> None:
    found = {"bias": {"value": bias, "low": None, "high": None}, "low": low, "high": high, "points": points}
    picture, shown, of = charts.bland_altman(found, "Severity")
    assert (shown, of) == (len(points), len(points))
    if not points:
        assert "no image" in picture and "<svg" not in picture
        return
    root = drawn(picture)
    dots = next(e for e in root.iter("path") if e.get("stroke-linecap") == "round")
    assert dots.attrib["d"].count("h0") == len(points)
    known = sum(v is not None and math.isfinite(v) for v in (bias, low, high))
    assert sum("limit" in (e.text or "") or "bias" in (e.text or "") for e in root.iter("text")) == known


def test_many_points_are_thinned_and_the_farthest_stay() -> None:
    points = [(i / 500, 0.5 * math.sin(i)) for i in range(3000)]
    points[1234] = (2.0, 9.0)
    found = {"bias": {"value": 0.0}, "low": -1.0, "high": 1.0, "points": points}
    picture, shown, of = charts.bland_altman(found, "Severity")
    assert (shown, of) == (charts.POINTS, 3000)
    dots = next(e for e in drawn(picture).iter("path") if e.get("stroke-linecap") == "round")
    heights = [y for _, y in places(dots.attrib["d"])]
    assert min(heights) < 40  # the outlier, near the top


@given(st.lists(st.integers(0, 9), min_size=2, max_size=50), st.integers(2, 20))
def test_thinning_keeps_the_ends_and_the_order(values: list[int], most: int) -> None:
    points = [(float(i), float(v)) for i, v in enumerate(values)]
    kept = charts.thin(points, most)
    assert len(kept) == min(most, len(points))
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert kept == sorted(kept)


@st.composite
def _histograms(draw: st.DrawFn) -> bars.Histogram:
    counts = draw(st.lists(st.integers(0, 400), min_size=1, max_size=40))
    edges = [draw(st.floats(0.001, 1e4))]
    for _ in counts:
        edges.append(edges[-1] + draw(st.floats(0, 100)))
    marks = {name: draw(st.one_of(st.none(), st.floats(0, 2e4))) for name in ("median", "p90", "p99")}
    return bars.Histogram(draw(names), edges, counts, marks, draw(st.integers(0, 9)))


@given(st.lists(_histograms(), max_size=4))
@settings(max_examples=60)
def test_histograms_share_an_axis(rows: list[bars.Histogram]) -> None:
    picture = bars.histograms(rows, "Latency")
    held = [r for r in rows if sum(r.counts)]
    if not held:
        assert "nothing was timed" in picture and "<svg" not in picture
        return
    filled = [e for e in drawn(picture).iter("path") if e.get("fill-opacity")]
    assert len(filled) == len(held)


def test_far_apart_candidates_get_a_logarithmic_axis() -> None:
    near = [bars.Histogram("a", [10, 11, 12], [3, 4], {}), bars.Histogram("b", [30, 31, 33], [3, 4], {})]
    far = [near[0], bars.Histogram("b", [300, 310, 330], [3, 4], {})]
    assert "logarithmic" not in bars.histograms(near, "Latency")
    assert "logarithmic" in bars.histograms(far, "Latency")


def test_one_slow_run_does_not_squeeze_the_rest() -> None:
    rows = [bars.Histogram("a", [10, 11, 12, 13, 14, 500], [200, 300, 200, 300, 1], {"median": 12.0})]
    picture = bars.histograms(rows, "Latency")
    assert "1 beyond, to 500" in picture
    path = next(e for e in drawn(picture).iter("path") if e.get("fill-opacity"))
    at = [x for x, _ in places(path.attrib["d"])]
    assert max(at) - min(at) > 300


parts = st.dictionaries(st.sampled_from(["read", "decode", "run", "write"]), st.one_of(st.none(), st.floats(0, 1e5)))


@given(st.lists(st.tuples(names, parts), max_size=5))
@settings(max_examples=60)
def test_stacked_bars_are_as_long_as_their_parts(rows: list[tuple[str, dict[str, float | None]]]) -> None:
    picture = bars.stacked(rows, "Stages", "ms")
    if not any(v for _, p in rows for v in p.values()):
        assert "nothing was measured" in picture and "<svg" not in picture
        return
    root = drawn(picture)
    width: dict[str, float] = {}
    for rect in root.iter("rect"):
        if rect.attrib["height"] == "20":
            width[rect.attrib["y"]] = width.get(rect.attrib["y"], 0.0) + float(rect.attrib["width"])
    sums = [sum(v for v in p.values() if v) for _, p in rows]
    longest = max(sums)
    expected = [518 * s / longest for s in sums if s]
    assert list(width.values()) == pytest.approx(expected, abs=1.0)


def test_a_part_looks_alike_in_every_bar() -> None:
    rows = [("a", {"read": 5.0, "run": 20.0}), ("b", {"run": 10.0, "write": 3.0})]
    root = drawn(bars.stacked(rows, "Stages", "ms"))
    fills = [e.attrib["fill"] for e in root.iter("rect") if e.attrib["height"] == "20"]
    assert fills[1] == fills[2] and len(set(fills)) == 3


@given(st.lists(st.tuples(names, maybe, st.integers(0, 9)), max_size=5))
@settings(max_examples=40)
def test_plain_bars_leave_out_what_is_not_known(rows: list[tuple[str, float | None, int]]) -> None:
    picture = bars.plain(rows, "Throughput", "images a second")
    known = [v for _, v, _ in rows if v is not None and math.isfinite(v) and v >= 0]
    if not known:
        assert "nothing was measured" in picture and "<svg" not in picture
        return
    assert len(drawn(picture).findall("rect")) == len(known)


@given(maybe, maybe, maybe)
def test_an_interval_in_a_cell(value: float | None, low: float | None, high: float | None) -> None:
    picture = charts.interval(value, (low, high), (None, None), (0.5, 1.0))
    if value is None or not math.isfinite(value):
        assert picture == ""
    else:
        root = ElementTree.fromstring(picture)
        assert len(root.findall("circle")) == 1
        for path in root.iter("path"):
            assert all(0 <= x <= 160 and 0 <= y <= 18 for x, y in places(path.attrib["d"]))
