"""A report in a few lines, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cxrvit_edge.plain_text import columns, printable

Report = Mapping[str, Any]
HEAD = ("", "p50 ms", "p90 ms", "p99 ms", "images/s", "end to end", "times the fastest")


def told(report: Report) -> list[str]:
    """Speed of each candidate, its accuracy and parity where there are labels, and what was passed over."""
    return list(_told(report))


def _told(report: Report) -> Iterator[str]:
    rows = [_speed(report, c["name"]) for c in report["candidates"]]
    yield from columns([HEAD, *rows])
    accuracy = report["accuracy"]
    for name, found in (accuracy["by_candidate"] if accuracy else {}).items():
        mean = found["auc"]["mean"]
        auc = f"mean AUC {_estimate(mean)}" if mean["value"] is not None else f"no AUC: {mean.get('why', 'undefined')}"
        refused = sum(found["refused"].values())
        yield f"{name}: {auc} over {found['images']:,} labelled images, {refused:,} refused"
    for problem in accuracy["data"]["problems"] if accuracy else ():
        yield f"data: {problem['kind']}: {problem['count']:,}, first {'; '.join(problem['first'][:1])}"
    for record in report["parity"]:
        yield _parity(record)
    for missing in report["passed_over"]:
        yield f"passed over: {missing['name']}: {missing['why']}"
    if accuracy:
        yield from map(printable, accuracy["caveats"])  # with sources as the table of labels names them
    yield report["caveat"]
    yield report["research_use"]


def _speed(report: Report, name: str) -> Sequence[str]:
    latency, whole = report["latency"].get(name), report["end_to_end"].get(name)
    single = latency["single_stream"] if latency else {}
    times = (single.get(key) for key in ("p50_ms", "p90_ms", "p99_ms"))
    return (
        name,
        *(_number(ms, 1) for ms in times),
        _number(latency and latency["offline"]["images_a_second"], 2),
        _number(whole and whole["images_a_second"], 2),
        _number(latency and latency["ratio"], 2),
    )


def _parity(record: Report) -> str:
    flips = record["splits"]["both"]["flips"]
    images = record["splits"]["both"]["images"]
    held = "within its bounds" if record["within"] else f"OUTSIDE its bounds: {'; '.join(record['failures'])}"
    auc = ""
    if record["auc_per_cent"] is not None:
        passes = "yes" if record["at_99"] else "NO", "yes" if record["at_99_9"] else "NO"
        auc = f", {record['auc_per_cent']:.2f} % of its mean AUC (99 %: {passes[0]}, 99.9 %: {passes[1]})"
    changed = f"{flips['images']:,} of {images:,} images changed ({flips['label']:,} their label)"
    return f"{record['variant']} against {record['reference']}: {held}, {changed}{auc}"


def _estimate(e: Mapping[str, float | None]) -> str:
    if e["low"] is None or e["high"] is None:
        return f"{e['value']:.3f}"
    return f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"


def _number(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"
