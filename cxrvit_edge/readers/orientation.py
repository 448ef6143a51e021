"""Turning pictures upright by what their headers say. Never by their pixels."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import InputError, Reason

Pixels = TypeVar("Pixels", bound=np.generic)

EXIF_WORDS = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "mirrored and turned",
    6: "turned by 90 degrees clockwise",
    7: "mirrored and turned",
    8: "turned by 90 degrees counter-clockwise",
}


def apply_exif(pixels: NDArray[Pixels], orientation: int) -> NDArray[Pixels]:
    """Pixels (H, W) turned upright by EXIF orientation 1 to 8 (CIPA DC-008, tag 274); C-contiguous."""
    if orientation >= 5:
        pixels = pixels.T
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def must_mirror(patient_orientation: tuple[str, ...]) -> bool:
    """Whether a frontal image with this PatientOrientation (0020,0020) is mirrored; absent is taken as `L\\F`.

    First letters decide (`L\\FP` is `L\\F`): they name the main direction of rows and of columns (PS3.3 C.7.6.1.1.1).
    Raises InputError: LATERAL_VIEW for anterior or posterior rows, ROTATED for all but `L\\F` and `R\\F`.
    """
    letters = [value.strip().upper()[:1] for value in patient_orientation]
    if len(letters) != 2 or not all(letters) or not set(letters) <= set("LRAPHF"):
        return False
    row, column = letters
    if column == "F" and row in "LR":
        return row == "R"
    shown = f"PatientOrientation {row}\\{column}"
    if (column in "HF" and row in "AP") or (row in "HF" and column in "AP"):
        raise InputError(Reason.LATERAL_VIEW, f"{shown} is a lateral view; send the frontal view")
    raise InputError(Reason.ROTATED, f"{shown} is not upright; turn it to L\\F at the workstation and send it again")
