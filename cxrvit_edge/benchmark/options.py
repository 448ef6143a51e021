"""What `cxrvit-edge benchmark` was asked for."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from cxrvit_edge.discover import StrPath
from cxrvit_edge.errors import UsageError
from cxrvit_edge.runtime.select import BACKENDS, PRECISIONS

SECONDS = 10.0  # a scenario and candidate: over 64 images in the slowest of the default bundle on two cores
LONGEST = 3600.0
ROUNDS = 2  # of end to end
OUTPUTS = "outputs.csv"


@dataclass(frozen=True)
class Options:
    """UsageError for what cannot be honoured.

    data: labelled images, see `labels.read`; split, images, seed: which of them, None for all. backends, precisions:
    names, auto, all. seconds: least time of measuring, a scenario and candidate. reference: an outputs.csv of an
    earlier report to hold this one against; out: folder of the report; draws: of each bootstrap.
    """

    data: StrPath | None = None
    split: str = "test"
    images: int | None = None
    bundle: StrPath | None = None
    backends: tuple[str, ...] = ("auto",)
    precisions: tuple[str, ...] = ("auto",)
    seconds: float = SECONDS
    reference: StrPath | None = None
    out: StrPath = "benchmark-out"
    draws: int = 2000
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        for flag, given, known in (
            ("--backend", self.backends, BACKENDS),
            ("--precision", self.precisions, PRECISIONS),
        ):
            if not given:
                raise UsageError(f"{flag}: none given; choose auto, all, {', '.join(known)}")
            if unknown := [name for name in given if name not in ("auto", "all", *known)]:
                raise UsageError(f"{flag} {unknown[0]}: choose auto, all, {', '.join(known)}")
        if not (math.isfinite(self.seconds) and 0 < self.seconds <= LONGEST):
            raise UsageError(f"--seconds is {self.seconds:g}: must be above 0 and at most {LONGEST:g}")
        for flag, value, least in (("--images", self.images, 1), ("draws", self.draws, 100)):
            if value is not None and value < least:
                raise UsageError(f"{flag} is {value}: must be at least {least}")
        if self.reference is not None and self.data is None:
            raise UsageError("--reference holds outputs for images: name them with --data")
        if self.data is not None and not os.path.lexists(self.data):
            where = os.fspath(self.data)
            raise UsageError(f"--data {where}: no such file or folder; check the spelling and the mount")
        out = Path(self.out)
        if os.path.exists(out) and not os.path.isdir(out):  # noqa: PTH110, PTH112  False where it may not be looked at
            raise UsageError(f"--out {out}: a file; give a folder")
        written = os.path.realpath(out / OUTPUTS)
        if self.reference is not None and os.path.realpath(self.reference) == written:
            raise UsageError(f"--out {out}: would write over the --reference {written}; give another folder")
