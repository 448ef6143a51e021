"""worklist.csv: every input, most urgent first, for a spreadsheet."""

from __future__ import annotations

import csv
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cxrvit_edge.bundle import Manifest
from cxrvit_edge.errors import Reason
from cxrvit_edge.findings import Finding
from cxrvit_edge.plain_text import escaped
from cxrvit_edge.report.words import unlike

ZONES = tuple(f"zone_image_{side}_{row}" for side in ("left", "right") for row in ("upper", "middle", "lower"))
_NO_STUDY = frozenset({Reason.NOT_AN_IMAGE.value, Reason.IS_DIRECTORY.value})
_STATUSES = {"ok": 0, "failed": 1, "rejected": 2}
_EXECUTED = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001  full-width ones too


def urgency(finding: Finding, manifest: Manifest) -> tuple[Any, ...]:
    """Sort key: files that are no image last of all; else by priority, ok before failed before rejected, score and
    probability of a flagged class falling, name."""
    order = manifest.priority.order
    rank = order.index(finding.priority) if finding.priority in order else len(order)
    score = finding.severity.score if finding.severity else None
    probabilities = finding.probabilities or {}
    highest = max((probabilities.get(name, 0.0) for name in manifest.priority.flagged), default=0.0)
    return (
        (finding.reason or {}).get("code") in _NO_STUDY,
        rank,
        _STATUSES.get(finding.status, len(_STATUSES)),
        -(score if score is not None else -1.0),
        -highest,
        finding.file,
    )


class Ranked(NamedTuple):
    """files: most urgent first; statuses, priorities: how many findings have each."""

    files: list[str]
    statuses: Counter[str]
    priorities: Counter[str]


def ranked(files: Sequence[str], findings: Iterable[Finding], manifest: Manifest) -> Ranked:
    """Order of the worklist, as `urgency` gives it, in one pass.

    files: name of each finding, in the same order.
    """
    import numpy as np

    classes, scores, highest = array("H"), array("d"), array("d")
    statuses: Counter[str] = Counter()
    priorities: Counter[str] = Counter()
    for finding in findings:
        no_study, rank, status, score, high, _ = urgency(finding, manifest)
        classes.append(no_study << 15 | min(rank, 8191) << 2 | status)
        scores.append(score)
        highest.append(high)
        statuses[finding.status] += 1
        priorities[finding.priority] += 1
    by_name = sorted(range(len(files)), key=files.__getitem__)
    columns = (np.array(values)[by_name] for values in (highest, scores, classes))
    order = np.lexsort(tuple(columns))  # stable: by name where all else is equal
    return Ranked([files[by_name[i]] for i in order], statuses, priorities)


def write_worklist(path: Path, findings: Iterable[Finding], manifest: Manifest) -> None:
    """Write `findings`, most urgent first, to `path`; it appears whole or not at all. OSError if it cannot.

    UTF-8, with a byte order mark only if a text is not ASCII: Excel needs it then, and other readers stumble over it.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # a killed run's is written over
    header = (
        *("rank", "priority", "file", "status", "reason", "view", "label"),
        *(f"p_{name}" for name in manifest.classes),
        *("score", *ZONES, "prediction_set"),
    )
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(header)
            writer.writerows(_row(rank, finding, manifest.classes) for rank, finding in enumerate(findings, 1))
        if not _is_ascii(temporary):
            _mark(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def cell(text: str) -> str:
    """Text that a spreadsheet shows and does not execute: a leading formula character gets an apostrophe before it.

    Control characters and the lone surrogates of undecodable file names are shown as backslash escapes.
    """
    if text.startswith(_EXECUTED):
        text = f"'{text}"
    return escaped(text)


def _row(rank: int, finding: Finding, classes: Sequence[str]) -> Iterator[str | int]:
    yield rank
    yield cell(finding.priority)
    yield cell(finding.file)
    yield cell(finding.status)
    reason = finding.reason or {}
    yield cell(f"{reason.get('code', '')}: {reason.get('message', '')}" if reason else unlike(finding))
    yield cell(finding.view)
    yield cell(finding.label or "")
    for name in classes:
        yield _number((finding.probabilities or {}).get(name))
    severity = finding.severity
    yield _number(severity.score if severity else None)
    for side in range(2):
        for row in range(3):
            yield _number(severity.zones[row][side] if severity and severity.zones else None)
    yield cell(" or ".join(finding.prediction_set or ()))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _is_ascii(path: Path) -> bool:
    with open(path, "rb") as f:
        return all(block.isascii() for block in iter(lambda: f.read(1 << 20), b""))


def _mark(path: Path) -> None:
    marked = path.with_name(f"{path.name}.bom")
    try:
        with open(path, "rb") as source, open(marked, "wb") as out:
            out.write(b"\xef\xbb\xbf")
            while block := source.read(1 << 20):
                out.write(block)
        marked.replace(path)
    except BaseException:
        marked.unlink(missing_ok=True)
        raise
