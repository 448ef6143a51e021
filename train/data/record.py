"""What every dataset gives: one Record an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Record:
    """One image and what is known of it; None or NaN where nothing is.

    patient: images of one patient (or near duplicates) share it, and never straddle splits
    label: index into CLASSES
    findings: (10,) float32, 0 or 1 or NaN, in the order of FINDINGS
    brixia: (3, 2) float32, 0-3 a zone, rows upper to lower, columns image-left and image-right lung
    second_brixia: the same by a second radiologist
    zones: (3, 2) float32, 0 or 1 or NaN a zone, scored so by the radiologist (Toussie et al. 2020); wins over brixia
    lungs: path of a lung mask at the size of the image; lungs_kind names its convention
    opacity: path of a mask of what a radiologist outlined (ground glass, consolidation) at the size of the image
    day: days from the patient's first image or from onset, for the course over time
    inverted: the file's pixels are the stored values of a MONOCHROME1 image: brighter is less dense
    reuse: licence class; weights that are published are trained on some of them only
    sex: female, male or unknown
    """

    path: Path
    source: str
    patient: str
    split: Split
    view: str = "unknown"
    label: int | None = None
    findings: NDArray[np.float32] = field(default_factory=lambda: np.full(10, np.nan, np.float32))
    brixia: NDArray[np.float32] | None = None
    second_brixia: NDArray[np.float32] | None = None
    zones: NDArray[np.float32] | None = None
    lungs: Path | None = None
    lungs_kind: str | None = None
    opacity: Path | None = None
    day: float | None = None
    inverted: bool = False
    reuse: str = "yes"
    sex: str = "unknown"
