"""Folders in the CheXpert layout, generated: small phantoms under the names that a train.csv lists."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.phantom import make_phantom

LABELS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS)
PREFIXES = {"spaces": "CheXpert-v1.0-small/", "underscores": "/nas/public/CheXpert/CheXpert-v1.0/"}
Layout = Literal["spaces", "underscores"]
Row = dict[str, str]


def row(place: str, sex: str = "Female", frontal: str = "Frontal", view: str = "AP", **labels: str) -> Row:
    """place: train/patient00001/study1/view1_frontal.jpg; labels by name with underscores, blank where not given."""
    out = dict.fromkeys(COLUMNS, "")
    out |= {"Path": place, "Sex": sex, "Age": "60", "Frontal/Lateral": frontal, "AP/PA": view}
    return out | {name.replace("_", " "): text for name, text in labels.items()}


def rows(patients: int, seed: int = 0) -> list[Row]:
    """Two studies of every third patient, a lateral beside every fourth study, one LL, one unknown sex."""
    rng = np.random.default_rng(seed)
    out = []
    for patient in range(1, patients + 1):
        sex = "Unknown" if patient == 5 else ("Female", "Male")[rng.integers(2)]
        for study in range(1, 3 if patient % 3 == 0 else 2):
            place = f"train/patient{patient:05d}/study{study}/view"
            drawn = rng.choice(["", "0.0", "1.0", "-1.0"], len(LABELS), p=[0.6, 0.1, 0.2, 0.1])
            labels = {name.replace(" ", "_"): str(text) for name, text in zip(LABELS, drawn, strict=True)}
            view = "LL" if patient == 7 else ("PA" if rng.random() < 0.25 else "AP")
            out.append(row(f"{place}1_frontal.jpg", sex, "Frontal", view, **labels))
            if rng.integers(4) == 0:
                out.append(row(f"{place}2_lateral.jpg", sex, "Lateral", "", **labels))
    return out


def write_table(path: Path, table: Iterable[Row], layout: Layout = "spaces") -> None:
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow([c if layout == "spaces" or c in COLUMNS[:5] else c.replace(" ", "_") for c in COLUMNS])
        writer.writerows([PREFIXES[layout] + r["Path"], *(r[c] for c in COLUMNS[1:])] for r in table)


def write_images(root: Path, places: Sequence[str]) -> None:
    """A phantom under each name; no two alike, and the same under the same name."""
    for place in places:
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), film(place))


def film(name: str) -> NDArray[np.uint8]:
    """(96, 88) uint8."""
    rng = np.random.default_rng(list(name.encode()))
    noisy = _phantoms()[rng.integers(4)] + rng.normal(0, 3, (96, 88))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def make(root: Path, table: list[Row], layout: Layout = "spaces") -> Path:
    root.mkdir(parents=True)
    write_table(root / "train.csv", table, layout)
    write_images(root, [r["Path"] for r in table])
    return root


@cache
def _phantoms() -> tuple[NDArray[Any], ...]:
    return tuple(make_phantom(seed, height=96, width=88).pixels / 16 for seed in range(4))
