"""report.schema.json: every report that the builder makes is valid, and what departs from it is not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from report_builder import CANDIDATES, build

SCHEMA = json.loads((files("cxrvit_edge") / "benchmark" / "report.schema.json").read_text("utf-8"))


def errors(report: dict[str, Any]) -> list[str]:
    found = Draft202012Validator(SCHEMA).iter_errors(report)
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in found]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"energy": True},
        {"data": False},
        {"sensors": False, "passed_over": False, "problems": False},
        {"classes": (0,)},
        {"classes": (0, 2)},
        {"severity": False},
        {"sets": False},
        {"end_to_end": False, "parity": False},
        {"flips": 0},
        {"flips": 30},
        {"candidates": ()},
        {"images": 4},
    ],
    ids=str,
)
def test_reports_are_valid(options: dict[str, Any]) -> None:
    if not options.get("candidates", CANDIDATES):
        options = {**options, "parity": False}
    report = json.loads(json.dumps(build(**options), allow_nan=False))
    assert errors(report) == []


def _block(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = report["accuracy"]["by_candidate"][CANDIDATES[0]]
    return found


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda r: r.pop("caveat"), "caveat"),
        (lambda r: r.update(extra=1), "extra"),
        (lambda r: r.update(schema=2), "schema"),
        (lambda r: r.update(created="yesterday"), "created"),
        (lambda r: r["bundle"].update(sha256="c0ffee"), "bundle/sha256"),
        (lambda r: r["candidates"][0].pop("version"), "candidates/0"),
        (lambda r: r["latency"][CANDIDATES[0]].update(ratio=0.5), f"latency/{CANDIDATES[0]}/ratio"),
        (lambda r: r["latency"][CANDIDATES[0]]["single_stream"].update(p50_ms="fast"), "p50_ms"),
        (lambda r: r["latency"][CANDIDATES[0]]["single_stream"]["histogram"]["counts"].append(-1), "counts"),
        (lambda r: r["end_to_end"][CANDIDATES[0]]["shares"].update(network=93), "shares/network"),
        (lambda r: _block(r)["auc"].pop("mean"), "auc"),
        (lambda r: _block(r)["sensitive"].pop("mean"), "sensitive"),
        (lambda r: _block(r)["selective"].pop("aurc"), "selective"),
        (lambda r: _block(r)["selective"]["by_class"]["normal"].update(coverage=0.9), "selective/by_class/normal"),
        (lambda r: _block(r)["auc"]["normal"].pop("low"), "auc/normal"),
        (lambda r: _block(r)["roc"]["normal"].append([0.1]), "roc/normal"),
        (lambda r: _block(r)["roc"].update(normal=[[0.0, 0.0]] * 201), "roc/normal"),
        (lambda r: r["accuracy"]["data"]["problems"][0].update(first=["x"] * 6), "problems/0/first"),
        (lambda r: r["parity"][0]["splits"].pop("both"), "parity/0/splits"),
        (lambda r: r["parity"][0]["changes"][0].update(path="/ward/film.png"), "parity/0/changes/0"),
        (lambda r: r["parity"][0].update(at_99="yes"), "parity/0/at_99"),
    ],
)
def test_what_departs_is_named(spoil: Callable[[dict[str, Any]], object], where: str) -> None:
    report = copy.deepcopy(build())
    spoil(report)
    found = errors(report)
    assert found and any(where in line for line in found), found
