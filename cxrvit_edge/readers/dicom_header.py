"""The header values that reading a radiograph needs, out of a pydicom data set as plain Python and numpy values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.radiograph import Identifiers

DESCRIPTIONS = (  # most specific first
    "SeriesDescription",
    "ProtocolName",
    "AcquisitionDeviceProcessingDescription",
    "PerformedProcedureStepDescription",
    "StudyDescription",
)


@dataclass(frozen=True)
class Lut:
    """A lookup table (PS3.3 C.11.1.1): input `first` and below gives entries[0], beyond the end gives the last."""

    first: int
    entries: NDArray[np.uint16]  # (n,)
    bits: int

    def __call__(self, values: NDArray[np.int64]) -> NDArray[np.uint16]:
        return self.entries[np.clip(values - self.first, 0, len(self.entries) - 1)]


@dataclass(frozen=True)
class Header:
    """One image object's header. Empty strings and None stand for absent or unreadable values."""

    identifiers: Identifiers
    modality: str
    sop_class: str
    class_name: str
    syntax: str
    syntax_name: str
    little_endian: bool
    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    allocated: int
    stored: int
    high: int
    signed: bool
    planar: int
    body_part: str = ""
    view_position: str = ""
    view_codes: tuple[str, ...] = ()
    patient_orientation: tuple[str, ...] = ()
    descriptions: dict[str, str] = field(default_factory=dict)
    lut_shape: str = ""
    slope: float = 1.0
    intercept: float = 0.0
    modality_lut: Lut | None = None
    voi_lut: Lut | None = None
    voi_function: str = ""
    window: tuple[float, float] | None = None
    padding: tuple[int, int] | None = None
    overlay_in_pixels: bool = False
    palette: tuple[Lut, Lut, Lut] | None = None


def extract(ds: Any) -> Header:
    """Header of a pydicom data set read up to its pixels. Odd optional values count as absent.

    Raises InputError(CANNOT_DECODE) for a lookup table that cannot be read.
    """
    meta = getattr(ds, "file_meta", {})
    implicit, little = (bool(flag) for flag in ds.original_encoding[:2])
    syntax = text(meta, "TransferSyntaxUID")
    if not syntax:
        syntax = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"
    sop_class = text(ds, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID")
    signed = whole(ds, "PixelRepresentation", 0) == 1
    stored = whole(ds, "BitsStored", whole(ds, "BitsAllocated", 0))
    centre, width = number(ds, "WindowCenter"), number(ds, "WindowWidth")
    low = whole(ds, "PixelPaddingValue", None)
    limit = whole(ds, "PixelPaddingRangeLimit", low)
    negative = signed or (number(ds, "RescaleIntercept") or 0.0) < 0
    return Header(
        identifiers=Identifiers(
            study_uid=text(ds, "StudyInstanceUID") or None,
            series_uid=text(ds, "SeriesInstanceUID") or None,
            sop_instance_uid=text(ds, "SOPInstanceUID") or None,
            sop_class_uid=sop_class or None,
        ),
        modality=text(ds, "Modality"),
        sop_class=sop_class,
        class_name=_uid_name(sop_class),
        syntax=syntax,
        syntax_name=_uid_name(syntax),
        little_endian=little,
        rows=whole(ds, "Rows", 0),
        columns=whole(ds, "Columns", 0),
        frames=max(1, whole(ds, "NumberOfFrames", 1)),
        samples=whole(ds, "SamplesPerPixel", 1),
        photometric=text(ds, "PhotometricInterpretation").upper(),
        allocated=whole(ds, "BitsAllocated", 0),
        stored=stored,
        high=whole(ds, "HighBit", stored - 1),
        signed=signed,
        planar=whole(ds, "PlanarConfiguration", 0),
        body_part=text(ds, "BodyPartExamined"),
        view_position=text(ds, "ViewPosition"),
        view_codes=_meanings(ds, "ViewCodeSequence"),
        patient_orientation=tuple(str(value) for value in many(ds, "PatientOrientation")),
        descriptions=_descriptions(ds),
        lut_shape=text(ds, "PresentationLUTShape").upper(),
        slope=number(ds, "RescaleSlope") or 1.0,
        intercept=number(ds, "RescaleIntercept") or 0.0,
        modality_lut=_sequence_lut(ds, "ModalityLUTSequence", signed, little),
        voi_lut=_sequence_lut(ds, "VOILUTSequence", negative, little),
        voi_function=text(ds, "VOILUTFunction").upper(),
        window=(centre, width) if centre is not None and width is not None and width >= 1 else None,
        padding=None if low is None or limit is None else (min(low, limit), max(low, limit)),
        overlay_in_pixels=_overlay_in_pixels(ds),
        palette=_palette(ds, little),
    )


def many(ds: Any, keyword: str) -> list[Any]:
    """Values of an element; an absent, empty or unreadable one has none."""
    try:
        value = ds.get(keyword)
        if value is None or value == "":
            return []
        if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
            return [value]
        return list(value)
    except Exception:  # pydicom's converters raise whatever the value makes them stumble over
        return []


def text(ds: Any, keyword: str) -> str:
    values = [str(value).strip(" \x00") for value in many(ds, keyword)]
    return values[0] if values else ""


def number(ds: Any, keyword: str) -> float | None:
    for value in many(ds, keyword)[:1]:
        try:
            result = float(value)
        except (TypeError, ValueError, OverflowError):
            return None
        return result if np.isfinite(result) else None
    return None


def whole(ds: Any, keyword: str, default: Any) -> Any:
    value = number(ds, keyword)
    return default if value is None else int(value)


def _uid_name(uid: str) -> str:
    if not uid:
        return ""
    from pydicom.uid import UID

    name = UID(uid).name
    return "" if name == uid else str(name)


def _meanings(ds: Any, sequence: str) -> tuple[str, ...]:
    return tuple(filter(None, (text(item, "CodeMeaning") for item in many(ds, sequence))))


def _descriptions(ds: Any) -> dict[str, str]:
    found = {keyword: " ".join(str(value) for value in many(ds, keyword)) for keyword in DESCRIPTIONS}
    found["AnatomicRegionSequence"] = " ".join(_meanings(ds, "AnatomicRegionSequence"))
    return {keyword: words for keyword, words in found.items() if words.strip()}


def _overlay_in_pixels(ds: Any) -> bool:
    """Whether a group 60xx says that its plane lies in unused bits of the pixels (retired, PS3.5-2004 8.1.2)."""
    try:
        return any(
            (0x6000 + 2 * plane, 0x0102) in ds and int(ds[0x6000 + 2 * plane, 0x0102].value or 0) > 0
            for plane in range(16)
        )
    except Exception:
        return False


def _sequence_lut(ds: Any, keyword: str, signed_input: bool, little: bool) -> Lut | None:
    items = many(ds, keyword)
    return _lut(items[0], "LUTDescriptor", "LUTData", keyword, signed_input, little) if items else None


def _palette(ds: Any, little: bool) -> tuple[Lut, Lut, Lut] | None:
    if text(ds, "PhotometricInterpretation").upper() != "PALETTE COLOR":
        return None
    red, green, blue = (
        _lut(ds, f"{c}PaletteColorLookupTableDescriptor", f"{c}PaletteColorLookupTableData", "palette", False, little)
        for c in ("Red", "Green", "Blue")
    )
    return red, green, blue


def _lut(ds: Any, descriptor: str, data: str, name: str, signed_input: bool, little: bool) -> Lut:
    try:
        count, first, bits = (int(value) for value in many(ds, descriptor)[:3])
        count = count % 65536 or 65536
        if signed_input and first > 32767:  # SS read as US
            first -= 65536
        raw = ds.get(data)
        if isinstance(raw, bytes | bytearray):
            narrow = bits <= 8 and len(raw) < 2 * count
            entries = np.frombuffer(raw, np.uint8 if narrow else ("<u2" if little else ">u2"), count=count)
        else:
            entries = np.asarray(raw if hasattr(raw, "__iter__") else [raw])[:count]
        entries = np.ascontiguousarray(entries, dtype=np.uint16)
        if not len(entries) or not 1 <= bits <= 16:
            raise ValueError("empty")
    except Exception:
        raise InputError(
            Reason.CANNOT_DECODE, f"the lookup table in {name} cannot be read; export the image without it"
        ) from None
    return Lut(first, entries, max(bits, int(entries.max()).bit_length()))
