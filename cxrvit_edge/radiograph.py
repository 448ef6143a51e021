"""A radiograph as the network and the report need it, and `read`, the one way to get it from a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

View = Literal["PA", "AP", "lateral", "unknown"]


@dataclass(frozen=True)
class Identifiers:
    """DICOM identifiers needed to refer back to the source object. Never logged."""

    study_uid: str | None = None
    series_uid: str | None = None
    sop_instance_uid: str | None = None
    sop_class_uid: str | None = None


@dataclass(frozen=True)
class Limits:
    """What a file may ask of the box before it is turned away.

    max_pixels, max_bytes, min_side, max_frames and max_depth are read from sizes and headers, before pixels are
    decoded; more than them is `rejected` as too_large (under min_side, too_small). decode_seconds is the time that a
    worker process may take for a file; a decoder that takes longer is ended and its file is `failed`.
    """

    max_pixels: int = 100_000_000  # of one frame: about 10,000 x 10,000; the largest detectors give 18 million
    max_bytes: int = 512 * 1024 * 1024  # of the file
    min_side: int = 64  # pixels; below this no lung field can be told
    max_frames: int = 1_000  # of a DICOM object; a fluoroscopy or tomosynthesis export has hundreds
    max_depth: int = 32  # DICOM sequences within sequences; structured reports nest about 10
    decode_seconds: float = 60.0


@dataclass(frozen=True)
class Radiograph:
    """Pixels upright, image-left = patient's right, brighter = denser, at the depth they were stored in.

    pixels: (H, W) uint8 or uint16, C-contiguous
    valid: (H, W) bool, False on DICOM pixel padding; None if all are valid
    window: (centre, width) in units of `pixels`, for display only (it clips, so the network never sees it)
    warnings: what was assumed or mended, in plain words
    """

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    view: View = "unknown"
    valid: NDArray[np.bool_] | None = None
    window: tuple[float, float] | None = None
    identifiers: Identifiers = field(default_factory=Identifiers)
    warnings: tuple[str, ...] = ()


def read(path: str | Path, *, limits: Limits | None = None) -> Radiograph:
    """Read one PNG, JPEG, TIFF, BMP or DICOM file.

    Raises InputError with the reason when it is not a frontal chest radiograph that can be read.
    """
    from cxrvit_edge.readers import read_file

    return read_file(Path(path), limits or Limits())
