"""Labelled radiographs: a CSV of labels, or a folder by class, to studies; what is wrong with them is named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.radiograph import View

LABELS = {
    "normal": 0,
    "other": 1, "other_infection": 1, "other infection": 1,
    "covid": 2, "covid19": 2, "covid-19": 2,
    "": None,
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """One labelled image. label: index of its class; severity: a radiologist's score, 0-6; zones: (3, 2) of 0 or 1."""

    path: Path
    label: int | None
    patient: str
    view: View = "unknown"
    source: str = ""
    split: str = ""
    severity: float | None = None
    zones: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Problem:
    """What is wrong with `count` rows or files, the first five of them in words."""

    kind: str
    count: int
    first: tuple[str, ...]


@dataclass(frozen=True)
class Labelled:
    studies: list[Study]
    problems: list[Problem]
    root: Path


def read(path: str | Path, split: str = "test", limit: int | None = None, seed: int = 0) -> Labelled:
    raise NotImplementedError
