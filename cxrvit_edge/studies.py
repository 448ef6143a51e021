"""Labelled images, each once and each a file that can be opened, and what was wrong with the others."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.plain_text import printable
from cxrvit_edge.radiograph import View

NAMES = ("normal", "other_infection", "covid19")
EVERY = "all"  # the split of images that have none, and the word for every split
SHOWN = 5  # of each kind of problem
LONGEST = 200  # characters of one problem


@dataclass(frozen=True)
class Study:
    """One labelled image.

    label: index of its class (normal, other infection, COVID-19); patient: images of one patient share it
    severity: a radiologist's score, 0-6; zones: (3, 2) of 0 or 1, upper to lower, image-left and image-right lung
    """

    path: Path
    label: int | None
    patient: str
    view: View = "unknown"
    source: str = ""
    split: str = EVERY
    severity: float | None = None
    zones: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Problem:
    """What is wrong with `count` rows or files, the first five of them in words.

    kind: absent, unreadable, path, label, number, duplicate (one is kept), contradiction (none is), severity (a table
    that cannot be used), folder, one_class, no_label
    """

    kind: str
    count: int
    first: tuple[str, ...]


@dataclass(frozen=True)
class Labelled:
    """studies: in the order of the CSV, or by name; root: folder of the CSV, or the folder given."""

    studies: list[Study]
    problems: list[Problem]
    root: Path


class Problems:
    """Counted by kind, in the order in which they are met."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, words: str) -> None:
        self._counts[kind] += 1
        first = self._found.setdefault(kind, [])
        if len(first) < SHOWN:
            first.append(printable(words[:LONGEST]))

    def listed(self) -> list[Problem]:
        return [Problem(kind, self._counts[kind], tuple(first)) for kind, first in self._found.items()]


class Listed(NamedTuple):
    """A study and where it was named, for a message."""

    where: str
    study: Study


def unique(listed: Iterable[Listed], problems: Problems) -> list[Listed]:
    """Each file once; none of those with two labels."""
    by_file: dict[str, list[Listed]] = {}
    for one in map(_posix, listed):
        try:
            real = os.path.realpath(one.study.path)
        except (OSError, ValueError):
            real = str(one.study.path)
        by_file.setdefault(real, []).append(one)
    out = []
    for same in by_file.values():
        labels = {s.study.label for s in same if s.study.label is not None}
        first = same[0]
        if len(labels) > 1:
            named = " and ".join(NAMES[label] for label in sorted(labels))
            problems.add("contradiction", f"{first.where}: labelled {named}; none of its {len(same)} rows is used")
            continue
        if len(same) > 1:
            problems.add("duplicate", f"{same[1].where}: the same file as {first.where}; counted once")
        label = next(iter(labels), None)
        out.append(
            Listed(first.where, first.study if first.study.label == label else replace(first.study, label=label))
        )
    return out


def openable(listed: Iterable[Listed], problems: Problems) -> Iterator[Study]:
    for where, study in listed:
        if fault := _fault(study.path):
            problems.add(fault[0], f"{where}: {fault[1]}")
        else:
            yield study


def _posix(listed: Listed) -> Listed:
    """With the path of a table that was written on Windows."""
    path = listed.study.path
    if "\\" in str(path) and _fault(path):
        return listed._replace(study=replace(listed.study, path=Path(str(path).replace("\\", "/"))))
    return listed


def _fault(path: Path) -> tuple[str, str] | None:
    """Kind of problem and what it is; None for a regular file that may be read."""
    try:
        path.stat()
        regular = path.is_file()
    except (FileNotFoundError, NotADirectoryError):
        return "absent", "no such file"
    except (OSError, ValueError) as error:  # ValueError: a null character
        return "unreadable", getattr(error, "strerror", None) or str(error)
    if not regular:
        return "unreadable", "a folder or a device, not a file"
    allowed = os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)
    return None if allowed else ("unreadable", "no permission to read it")


def sample(studies: list[Study], limit: int, seed: int) -> list[Study]:
    """By class in the proportion of all (largest remainders), but one of each class where there is room."""
    if limit >= len(studies):
        return studies
    rng = np.random.default_rng(seed)
    groups: dict[int | None, list[int]] = {}
    for i, s in enumerate(studies):
        groups.setdefault(s.label, []).append(i)
    share = {label: limit * len(rows) / len(studies) for label, rows in groups.items()}
    least = 1 if limit >= len(groups) else 0
    count = {label: max(least, int(x)) for label, x in share.items()}
    while (total := sum(count.values())) != limit:
        step = 1 if total < limit else -1
        able = [k for k in count if least <= count[k] + step <= len(groups[k])]
        count[max(able, key=lambda k: step * (share[k] - count[k]))] += step
    chosen = [i for label, rows in groups.items() for i in rng.permutation(rows)[: count[label]]]
    return [studies[i] for i in sorted(chosen)]
