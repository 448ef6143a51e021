"""The exception tree, and the reason codes that a result carries.

CxrVitError
├── InputError      a file that cannot be triaged: carries a Reason, becomes a result and never ends a run
├── BundleError     a bundle that is missing, tampered with, or of another schema
├── EngineError     a back end that cannot be built, loaded or run
├── ParityError     a session whose outputs depart from the bundle's golden outputs
├── DicomError      a DICOM object that cannot be written or sent
└── UsageError      a setting or an argument that cannot be honoured

A message names the file or setting, the cause, and the next step.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

Status = Literal["ok", "rejected", "failed"]


class Reason(str, Enum):
    """Why an input has no finding. `status` tells a rejection (stands) from a failure (tried again)."""

    # rejected: readable, or known without reading, and not a frontal chest radiograph that the network may judge
    NOT_AN_IMAGE = "not_an_image"
    IS_DIRECTORY = "is_directory"
    WRONG_MODALITY = "wrong_modality"
    WRONG_BODY_PART = "wrong_body_part"
    WRONG_OBJECT = "wrong_object"
    LATERAL_VIEW = "lateral_view"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    BLANK = "blank"
    COLOUR = "colour"
    ROTATED = "rotated"
    INVERTED = "inverted"
    NOT_A_CHEST = "not_a_chest"
    OUTSIDE = "outside_folder"
    # failed: could not be read or judged this time
    NOT_FOUND = "not_found"
    NO_PERMISSION = "no_permission"
    EMPTY_FILE = "empty_file"
    TRUNCATED = "truncated"
    UNREADABLE = "unreadable"
    CANNOT_DECODE = "cannot_decode"
    NO_PIXELS = "no_pixels"
    NOT_FINITE = "not_finite"
    TIMED_OUT = "timed_out"
    DECODER_DIED = "decoder_died"
    INTERNAL = "internal"

    @property
    def status(self) -> Status:
        return "rejected" if self in _REJECTIONS else "failed"


_REJECTIONS = frozenset(
    {
        Reason.NOT_AN_IMAGE,
        Reason.IS_DIRECTORY,
        Reason.WRONG_MODALITY,
        Reason.WRONG_BODY_PART,
        Reason.WRONG_OBJECT,
        Reason.LATERAL_VIEW,
        Reason.TOO_LARGE,
        Reason.TOO_SMALL,
        Reason.BLANK,
        Reason.COLOUR,
        Reason.ROTATED,
        Reason.INVERTED,
        Reason.NOT_A_CHEST,
        Reason.OUTSIDE,
    }
)


class CxrVitError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(CxrVitError):
    """A file that gets no finding; `reason` says which kind, the message says what and what next."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[InputError], tuple[Reason, str]]:
        return (type(self), (self.reason, str(self)))  # crosses process borders whole


class BundleError(CxrVitError):
    """The bundle cannot be used."""


class EngineError(CxrVitError):
    """A back end is missing, or an engine cannot be built, loaded or run."""


class ParityError(CxrVitError):
    """A session did not reproduce the golden outputs."""


class DicomError(CxrVitError):
    """A DICOM object cannot be made or sent."""


class UsageError(CxrVitError):
    """An argument or a setting that cannot be honoured."""
