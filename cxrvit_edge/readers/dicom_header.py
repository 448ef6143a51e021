"""The header values that reading a radiograph needs, as plain Python and numpy values."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.radiograph import Identifiers
from cxrvit_edge.readers.dicom_elements import Elements

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
    syntax: str
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

    @property
    def class_name(self) -> str:
        """The SOP class's name in PS3.6, empty if it has none."""
        return _uid_name(self.sop_class)

    @property
    def syntax_name(self) -> str:
        return _uid_name(self.syntax)


def extract(meta: Elements, ds: Elements) -> Header:
    """Header of a file's meta group and its data set, read up to its pixels. Odd optional values count as absent.

    Raises InputError(CANNOT_DECODE) for a lookup table that cannot be read.
    """
    syntax = meta.text("TransferSyntaxUID")
    if not syntax:
        syntax = (
            "1.2.840.10008.1.2" if not ds.explicit else "1.2.840.10008.1.2.1" if ds.little else "1.2.840.10008.1.2.2"
        )
    sop_class = ds.text("SOPClassUID") or meta.text("MediaStorageSOPClassUID")
    signed = ds.whole("PixelRepresentation", 0) == 1
    stored = ds.whole("BitsStored", ds.whole("BitsAllocated", 0))
    centre, width = ds.number("WindowCenter"), ds.number("WindowWidth")
    low = ds.whole("PixelPaddingValue", None, signed)
    limit = ds.whole("PixelPaddingRangeLimit", low, signed)
    intercept = ds.number("RescaleIntercept") or 0.0
    negative = signed or intercept < 0
    return Header(
        identifiers=Identifiers(
            study_uid=ds.text("StudyInstanceUID") or None,
            series_uid=ds.text("SeriesInstanceUID") or None,
            sop_instance_uid=ds.text("SOPInstanceUID") or None,
            sop_class_uid=sop_class or None,
        ),
        modality=ds.text("Modality"),
        sop_class=sop_class,
        syntax=syntax,
        little_endian=ds.little,
        rows=ds.whole("Rows", 0),
        columns=ds.whole("Columns", 0),
        frames=max(1, ds.whole("NumberOfFrames", 1)),
        samples=ds.whole("SamplesPerPixel", 1),
        photometric=ds.text("PhotometricInterpretation").upper(),
        allocated=ds.whole("BitsAllocated", 0),
        stored=stored,
        high=ds.whole("HighBit", stored - 1),
        signed=signed,
        planar=ds.whole("PlanarConfiguration", 0),
        body_part=ds.text("BodyPartExamined"),
        view_position=ds.text("ViewPosition"),
        view_codes=_meanings(ds, "ViewCodeSequence"),
        patient_orientation=tuple(str(value) for value in ds.many("PatientOrientation")),
        descriptions=_descriptions(ds),
        lut_shape=ds.text("PresentationLUTShape").upper(),
        slope=ds.number("RescaleSlope") or 1.0,
        intercept=intercept,
        modality_lut=_sequence_lut(ds, "ModalityLUTSequence", signed),
        voi_lut=_sequence_lut(ds, "VOILUTSequence", negative),
        voi_function=ds.text("VOILUTFunction").upper(),
        window=(centre, width) if centre is not None and width is not None and width >= 1 else None,
        padding=None if low is None or limit is None else (min(low, limit), max(low, limit)),
        overlay_in_pixels=_overlay_in_pixels(ds),
        palette=_palette(ds),
    )


def _uid_name(uid: str) -> str:
    from pydicom.uid import UID_dictionary

    return str(UID_dictionary[uid][0]) if uid in UID_dictionary else ""


def _meanings(ds: Elements, sequence: str) -> tuple[str, ...]:
    return tuple(filter(None, (item.text("CodeMeaning") for item in ds.items(sequence))))


def _descriptions(ds: Elements) -> dict[str, str]:
    found = {keyword: " ".join(str(value) for value in ds.many(keyword)) for keyword in DESCRIPTIONS}
    found["AnatomicRegionSequence"] = " ".join(_meanings(ds, "AnatomicRegionSequence"))
    return {keyword: words for keyword, words in found.items() if words.strip()}


def _overlay_in_pixels(ds: Elements) -> bool:
    """Whether a group 60xx says that its plane lies in unused bits of the pixels (retired, PS3.5-2004 8.1.2)."""
    return any(ds.whole(f"OverlayBitPosition{plane}", 0) > 0 for plane in range(16))


def _sequence_lut(ds: Elements, keyword: str, signed_input: bool) -> Lut | None:
    items = ds.items(keyword)
    return _lut(items[0], "LUTDescriptor", "LUTData", keyword, signed_input) if items else None


def _palette(ds: Elements) -> tuple[Lut, Lut, Lut] | None:
    if ds.text("PhotometricInterpretation").upper() != "PALETTE COLOR":
        return None
    red, green, blue = (
        _lut(ds, f"{c}PaletteColorLookupTableDescriptor", f"{c}PaletteColorLookupTableData", "palette", False)
        for c in ("Red", "Green", "Blue")
    )
    return red, green, blue


def _lut(ds: Elements, descriptor: str, data: str, name: str, signed_input: bool) -> Lut:
    try:
        count, first, bits = (int(value) for value in ds.many(descriptor)[:3])
        count = count % 65536 or 65536
        if signed_input and first > 32767:  # SS read as US
            first -= 65536
        raw = ds.raw(data) or b""
        narrow = bits <= 8 and len(raw) < 2 * count
        entries = np.frombuffer(raw, np.uint8 if narrow else ("<u2" if ds.little else ">u2"), count=count)
        entries = entries.astype(np.uint16)
        if not 1 <= bits <= 16 or abs(first) > 65536:
            raise ValueError("descriptor")
    except (ValueError, OverflowError):
        raise InputError(
            Reason.CANNOT_DECODE, f"the lookup table in {name} cannot be read; export the image without it"
        ) from None
    return Lut(first, entries, max(bits, int(entries.max()).bit_length()))
