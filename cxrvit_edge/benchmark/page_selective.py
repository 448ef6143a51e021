"""Prediction sets on the benchmark page: how often the class is in the set, and how often the set is of one class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cxrvit_edge.benchmark.charts import candidate
from cxrvit_edge.report.html import shown
from cxrvit_edge.report.markup import estimate, name, table
from cxrvit_edge.selective import GUARANTEE

Blocks = Mapping[str, Mapping[str, Any]]


def selective(blocks: Blocks, place: Mapping[str, int]) -> str:
    """Nothing where the bundle has no prediction sets."""
    held = {which: block["selective"] for which, block in blocks.items() if block.get("selective")}
    if not held:
        return ""
    first = next(iter(held.values()))
    rows, whole = [], []
    for which, found in held.items():
        for row, (group, e) in enumerate(_groups(found)):
            key = candidate(which, place[which]) if row == 0 else ""
            rows.append([key, group, f"{e['images']:,}", estimate(e["coverage"]), estimate(e["single"])])
        keys = ("accuracy", "accuracy_single", "aurc")
        whole.append([candidate(which, place[which]), *(estimate(found[k]) for k in keys)])
    caption = (
        f"A set holds the classes with a probability of at least {1 - first['threshold']:.3f}, chosen on other images "
        f"so that {100 * (1 - first['alpha']):g} % of the sets hold the true class. With --selective, an image whose "
        "set is not of one class is for review"
    )
    head = ["Candidate", "Images of", "Images", "Set holds the class", "Set of one class"]
    more = ["Candidate", "Label right, all", "Label right, sets of one class", "Area under risk and coverage"]
    return (
        f"<h3>Prediction sets</h3>{table(head, rows, caption, texts=2, kind='grouped')}{table(more, whole)}"
        f'<p class="read">{shown(GUARANTEE)} The area under risk and coverage is the mean error over all shares of '
        "the images, the least certain left out first: 0 is best.</p>"
    )


def _groups(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "<b>All</b>", found
    yield from ((name(c), e) for c, e in found["by_class"].items())
    yield from ((shown(source), e) for source, e in found["by_source"].items())
