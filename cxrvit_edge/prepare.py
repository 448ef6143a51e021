"""One file to what the network takes of it: read, decode, preprocess. The same in a thread and in a worker process."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.guard import check_pixels, describe
from cxrvit_edge.preprocess import Float32, Geometry, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Limits, View
from cxrvit_edge.readers import decode, load, sniff
from cxrvit_edge.readers.containers import sniff_raster
from cxrvit_edge.report import thumbnails

HERE = ("PNG", "JPEG")  # walked before they are decoded, and in tests without end no decoder of theirs has crashed
HEAD = 256  # bytes that tell the kind of a file


@dataclass(frozen=True)
class Recipe:
    """What is done to every file alike. pictures: whether thumbnails are made."""

    config: PreprocessConfig
    limits: Limits = field(default_factory=Limits)
    pictures: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {"config": self.config.to_dict(), "limits": asdict(self.limits), "pictures": self.pictures}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        config = PreprocessConfig.from_dict(values["config"])
        return cls(config, Limits(**values["limits"]), bool(values["pictures"]))


@dataclass
class Film:
    """What became of one file; `error` where it went no further. Fields before that are kept.

    tensor (1, S, S) and description of guard.describe are None if it failed; thumbnail (h, w) if none was asked for.
    """

    sha256: str | None = None
    view: View = "unknown"
    warnings: tuple[str, ...] = ()
    thumbnail: NDArray[np.uint8] | None = None
    tensor: Float32 | None = None
    description: Float32 | None = None
    geometry: Geometry | None = None
    error: InputError | None = None


def place(path: str) -> Literal["thread", "worker"]:
    """Where a file is decoded. DICOM, TIFF and BMP in a worker process, where a decoder may crash, hang, or hold the
    interpreter's lock; PNG and JPEG, and what is no image at all, in a thread."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  a pipe would wait for its writer
            return "thread"
        with open(path, "rb", buffering=0) as file:
            head = file.read(HEAD)
    except (OSError, ValueError):
        return "thread"  # load says what is wrong
    if sniff(head, os.path.basename(path)) is None or sniff_raster(head) in HERE:  # noqa: PTH119
        return "thread"
    return "worker"


def prepare(
    path: str, recipe: Recipe, enter: Callable[[str], None] = lambda _: None, out: Float32 | None = None
) -> Film:
    """Film of a file, as far as it gets. InputErrors are in it; other exceptions are faults of ours and are raised.

    enter: called with the name of each stage as it begins; out: (1, S, S) float32 to fill.
    """
    film = Film()
    try:
        enter("read")
        data = load(Path(path), recipe.limits)
        film.sha256 = hashlib.sha256(data).hexdigest()
        enter("decode")
        radiograph = decode(data, Path(path).name, recipe.limits)
        del data
        enter("preprocess")
        film.view, film.warnings = radiograph.view, radiograph.warnings
        if recipe.pictures:
            film.thumbnail = thumbnails.thumbnail(radiograph)
        check_pixels(radiograph)
        film.tensor, film.geometry = preprocess(radiograph, recipe.config, out)
        film.description = describe(film.tensor, film.geometry)
    except InputError as error:
        film.error = InputError(error.reason, str(error))  # without the frames, which hold the file and its pixels
        film.view = "lateral" if error.reason is Reason.LATERAL_VIEW else film.view
    if film.error is not None:
        film.tensor = film.geometry = film.description = None
    return film
