"""Parity over any splits, and the share of the reference's AUC in MLPerf's terms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import UsageError
from cxrvit_edge.parity import BOTH, BOUNDS, Observation, compare, per_cent


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open()


def seen(splits: list[str], noise: float = 0.0) -> list[Observation]:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (len(splits), 3))
    logits[np.arange(len(splits)), np.arange(len(splits)) % 3] += 1.0
    logits += np.random.default_rng(1).normal(0, 1, logits.shape) * noise
    return [
        Observation(f"{i:064x}", f"p{i // 2}", "made", s, "PA", i % 3, row.astype(np.float32), None, "not_a_chest")
        for i, (s, row) in enumerate(zip(splits, logits, strict=True))
    ]


def compared(a: list[Observation], b: list[Observation], bundle: Bundle, **more: Any) -> dict[str, Any]:
    return compare(a, b, bundle, BOUNDS["int8"], "x", draws=20, **more)


def test_splits_are_those_of_the_images(bundle: Bundle) -> None:
    names = ["test", "train", "val", "elsewhere", "all"] * 6
    found = compared(seen(names), seen(names, 0.2), bundle)["splits"]
    assert list(found) == ["train", "val", "test", "all", "elsewhere", BOTH]
    assert [found[name]["images"] for name in found] == [6, 6, 6, 6, 6, 30]


def test_the_only_split_is_both(bundle: Bundle) -> None:
    a, b = seen(["all"] * 30), seen(["all"] * 30, 0.2)
    found = compared(a, b, bundle)
    assert list(found["splits"]) == ["all", BOTH]
    assert found["splits"]["all"] == found["splits"][BOTH]
    halves = [[replace(o, split=("val", "test")[i % 2]) for i, o in enumerate(run)] for run in (a, b)]
    assert compared(*halves, bundle)["splits"][BOTH] == found["splits"][BOTH]


def test_none_to_compare_is_said(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="no image to compare"):
        compared([], [], bundle)


def test_draws_are_those_asked_for(bundle: Bundle) -> None:
    a, b = seen(["test"] * 30), seen(["test"] * 30, 0.5)
    few, more = (
        compare(a, b, bundle, BOUNDS["int8"], "x", draws=n)["splits"][BOTH]["auc"]["mean"]["difference"]
        for n in (20, 200)
    )
    assert few["value"] == more["value"]
    assert few["low"] != more["low"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (100.0, (True, True)), (100.4, (True, True)), (99.9, (True, True)), (99.8999, (True, False)),
        (99.0, (True, False)), (98.9999, (False, False)), (None, (None, None)),
    ],
)  # fmt: skip
def test_per_cent_in_mlperfs_words(value: float | None, expected: tuple[bool | None, bool | None]) -> None:
    record = {"splits": {BOTH: {"auc": {"per_cent": value}}}}
    assert per_cent(record) == {"auc_per_cent": value, "at_99": expected[0], "at_99_9": expected[1]}


def test_per_cent_of_a_comparison(bundle: Bundle) -> None:
    names = ["test"] * 60
    same = per_cent(compared(seen(names), seen(names), bundle))
    assert same == {"auc_per_cent": 100.0, "at_99": True, "at_99_9": True}
    worse = per_cent(compared(seen(names), seen(names, 3.0), bundle))
    assert worse["auc_per_cent"] < 99
    assert (worse["at_99"], worse["at_99_9"]) == (False, False)
    nobody = [replace(o, truth=None) for o in seen(names)]
    assert per_cent(compared(nobody, nobody, bundle)) == {"auc_per_cent": None, "at_99": None, "at_99_9": None}
    one = [replace(o, truth=1) for o in seen(names)]
    assert per_cent(compared(one, one, bundle))["auc_per_cent"] is None
