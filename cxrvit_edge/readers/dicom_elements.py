"""The elements of a DICOM data set that reading a radiograph needs, found in one walk that never recurses (PS3.5 7).

Nothing is kept of the others, so a header's memory and time are bounded by MAX_ELEMENTS, whatever it holds. Values are
converted when asked for; pydicom is imported only for text that is not ASCII.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.radiograph import Limits
from cxrvit_edge.readers.containers import cut_short

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
MAX_ELEMENTS = 1_000_000  # a radiograph has 50 to 500, an enhanced object of 1,000 frames some 50,000
_MOST_ITEMS = 16  # of a sequence that is read
_LONGEST = 65536  # bytes of a value that is converted; lookup tables are taken raw
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_NUMBERS = {"US": "u2", "SS": "i2", "UL": "u4", "SL": "i4", "UV": "u8", "SV": "i8", "FL": "f4", "FD": "f8"}
_FREE_TEXT = frozenset({"LO", "SH", "PN", "UC", "LT", "ST", "UT"})  # in the character set of (0008,0005)
_ONE_VALUE = frozenset({"LT", "ST", "UT", "UR"})
_TEXT = _FREE_TEXT | _ONE_VALUE | {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI"}

KNOWN: dict[str, tuple[int, str]] = {  # by keyword (PS3.6): tag, and the VR where the file gives none
    "MediaStorageSOPClassUID": (0x00020002, "UI"),
    "TransferSyntaxUID": (0x00020010, "UI"),
    "SpecificCharacterSet": (0x00080005, "CS"),
    "SOPClassUID": (0x00080016, "UI"),
    "SOPInstanceUID": (0x00080018, "UI"),
    "Modality": (0x00080060, "CS"),
    "CodeMeaning": (0x00080104, "LO"),
    "StudyDescription": (0x00081030, "LO"),
    "SeriesDescription": (0x0008103E, "LO"),
    "AnatomicRegionSequence": (0x00082218, "SQ"),
    "BodyPartExamined": (0x00180015, "CS"),
    "ProtocolName": (0x00181030, "LO"),
    "AcquisitionDeviceProcessingDescription": (0x00181400, "LO"),
    "ViewPosition": (0x00185101, "CS"),
    "StudyInstanceUID": (0x0020000D, "UI"),
    "SeriesInstanceUID": (0x0020000E, "UI"),
    "PatientOrientation": (0x00200020, "CS"),
    "SamplesPerPixel": (0x00280002, "US"),
    "PhotometricInterpretation": (0x00280004, "CS"),
    "PlanarConfiguration": (0x00280006, "US"),
    "NumberOfFrames": (0x00280008, "IS"),
    "Rows": (0x00280010, "US"),
    "Columns": (0x00280011, "US"),
    "BitsAllocated": (0x00280100, "US"),
    "BitsStored": (0x00280101, "US"),
    "HighBit": (0x00280102, "US"),
    "PixelRepresentation": (0x00280103, "US"),
    "PixelPaddingValue": (0x00280120, "US or SS"),
    "PixelPaddingRangeLimit": (0x00280121, "US or SS"),
    "WindowCenter": (0x00281050, "DS"),
    "WindowWidth": (0x00281051, "DS"),
    "RescaleIntercept": (0x00281052, "DS"),
    "RescaleSlope": (0x00281053, "DS"),
    "VOILUTFunction": (0x00281056, "CS"),
    "RedPaletteColorLookupTableDescriptor": (0x00281101, "US"),
    "GreenPaletteColorLookupTableDescriptor": (0x00281102, "US"),
    "BluePaletteColorLookupTableDescriptor": (0x00281103, "US"),
    "RedPaletteColorLookupTableData": (0x00281201, "OW"),
    "GreenPaletteColorLookupTableData": (0x00281202, "OW"),
    "BluePaletteColorLookupTableData": (0x00281203, "OW"),
    "ModalityLUTSequence": (0x00283000, "SQ"),
    "LUTDescriptor": (0x00283002, "US"),
    "LUTData": (0x00283006, "OW"),
    "VOILUTSequence": (0x00283010, "SQ"),
    "ViewCodeSequence": (0x00540220, "SQ"),
    "PerformedProcedureStepDescription": (0x00400254, "LO"),
    "PresentationLUTShape": (0x20500020, "CS"),
} | {f"OverlayBitPosition{plane}": (0x60000102 + (plane << 17), "US") for plane in range(16)}
_TAGS = frozenset(tag for tag, _ in KNOWN.values())
_HEADS = {order: (struct.Struct(order + "HH2sH").unpack_from, struct.Struct(order + "I").unpack_from) for order in "<>"}


def broken(what: str) -> InputError:
    return InputError(Reason.UNREADABLE, f"the DICOM data set is broken: {what}; export it again from the PACS")


def gives_vr(data: bytes, at: int) -> bool:
    """Whether the element at `at` has a VR; items of an explicit data set may do without (PS3.5 6.2.2)."""
    vr = data[at + 4 : at + 6]
    return vr.isalpha() and vr.isupper()


class Elements:
    """The known elements of one data set (or item), by keyword; odd values count as absent."""

    def __init__(
        self, data: bytes, little: bool, explicit: bool, limits: Limits, charset: tuple[str, ...] = ()
    ) -> None:
        self.data, self.little, self.explicit, self.limits, self.charset = data, little, explicit, limits, charset
        self._order = "<" if little else ">"
        self._places: dict[int, tuple[bytes, int, int]] = {}  # VR, start and end of the value
        self._count = 0

    def read(self, at: int, end: int, only_group: int | None = None) -> int:
        """Take in the elements from `at` on; the offset of the pixel element, else of where the data set ends.

        only_group: stop before the first element of another group. Raises InputError: TRUNCATED, UNREADABLE,
        TOO_LARGE (nested deeper than limits.max_depth, more than MAX_ELEMENTS).
        """
        while at + 8 <= end:
            tag, vr, length, value = self._head(at, end, self.explicit)
            if tag in _PIXELS or (only_group is not None and tag >> 16 != only_group):
                return at
            if tag == ITEM_END:
                return value
            at = self._behind(value, end, self.explicit) if length == UNDEFINED else value + length
            if at > end:
                raise cut_short("the file ends inside its header")
            if tag in _TAGS:
                self._places[tag] = (vr, value, at)
        return end

    def many(self, keyword: str, signed: bool = False) -> list[Any]:
        """Values as str, int or float; none of an element that is absent, empty or of another kind."""
        tag, known_vr = KNOWN[keyword]
        if tag not in self._places:
            return []
        code, start, end = self._places[tag]
        vr = known_vr if code in (b"", b"UN") else code.decode()
        if vr == "US or SS":
            vr = "SS" if signed else "US"
        raw = self.data[start : min(end, start + _LONGEST)]
        if vr in _NUMBERS:
            dtype = np.dtype(self._order + _NUMBERS[vr])
            return [] if (end - start) % dtype.itemsize else np.frombuffer(raw, dtype).tolist()
        if vr not in _TEXT:
            return []
        text = self._decode(raw, vr).rstrip(" \x00")
        return [] if not text else [text] if vr in _ONE_VALUE else text.split("\\")

    def text(self, keyword: str) -> str:
        values = [str(value).strip(" \x00") for value in self.many(keyword)]
        return values[0] if values else ""

    def number(self, keyword: str, signed: bool = False) -> float | None:
        for value in self.many(keyword, signed)[:1]:
            try:
                result = float(value)
            except ValueError:
                return None
            return result if np.isfinite(result) else None
        return None

    def whole(self, keyword: str, default: Any, signed: bool = False) -> Any:
        """The number as an integer; one beyond 32 bits counts as absent."""
        value = self.number(keyword, signed)
        return default if value is None or abs(value) >= 1 << 32 else int(value)

    def raw(self, keyword: str) -> bytes | None:
        """Bytes of the value; None if it is absent."""
        place = self._places.get(KNOWN[keyword][0])
        return None if place is None else self.data[place[1] : place[2]]

    def items(self, keyword: str) -> list[Elements]:
        """First items of a sequence; none of one that is broken."""
        found: list[Elements] = []
        tag = KNOWN[keyword][0]
        vr, at, end = self._places.get(tag, (b"", 0, 0))
        if vr not in (b"", b"SQ", b"UN"):
            return found
        charset = self._charset()
        try:
            while at + 8 <= end and len(found) < _MOST_ITEMS:
                tag, length, at = self._item(at)
                if tag != ITEM:
                    break
                item = Elements(self.data, self.little, self.explicit and gives_vr(self.data, at), self.limits, charset)
                behind = item.read(at, end if length == UNDEFINED else min(end, at + length))
                at = behind if length == UNDEFINED else at + length
                found.append(item)
        except InputError:
            return []
        return found

    def _head(self, at: int, end: int, explicit: bool) -> tuple[int, bytes, int, int]:
        """Tag, VR (empty if not given), length and start of the value of the element at `at`."""
        self._count += 1
        if self._count > MAX_ELEMENTS:
            raise InputError(
                Reason.TOO_LARGE, f"more than {MAX_ELEMENTS:,} elements in its header; export it again from the PACS"
            )
        head, long = _HEADS[self._order]
        group, number, vr, length = head(self.data, at)
        tag = group << 16 | number
        if explicit and group != 0xFFFE:
            if vr in _SHORT:
                return tag, vr, length, at + 8
            if vr in _LONG:
                if at + 12 > end:
                    raise cut_short("the file ends inside its header")
                return tag, vr, long(self.data, at + 8)[0], at + 12
            if vr.isalpha() and vr.isupper():
                return tag, vr, length, at + 8
        return tag, b"", long(self.data, at + 4)[0], at + 8

    def _item(self, at: int) -> tuple[int, int, int]:
        """Tag, length and start of the value of an item or a delimiter: they never have a VR."""
        tag, _, length, value = self._head(at, at + 8, False)
        return tag, length, value

    def _behind(self, at: int, end: int, explicit: bool) -> int:
        """Offset behind a value of undefined length, whatever is nested in it."""
        if at + 8 <= end and self._item(at)[0] not in (ITEM, SEQUENCE_END):
            mark = self.data.find(struct.pack(self._order + "HHI", 0xFFFE, 0xE0DD, 0), at, end)
            if mark < 0:
                raise cut_short("the file ends inside its header")
            return mark + 8
        opened: list[bool | None] = [None]  # None: a sequence; else an item, and whether it gives VRs
        while opened:
            if at + 8 > end:
                raise cut_short("the file ends inside its header")
            inside = opened[-1]
            tag, _, length, value = self._head(at, end, bool(inside))
            at = value
            if tag == (SEQUENCE_END if inside is None else ITEM_END):
                opened.pop()
            elif inside is None and tag != ITEM:
                raise broken("something else where an item of a sequence should be")
            elif length != UNDEFINED:
                at += length
            elif inside is None:
                outer = explicit if len(opened) == 1 else bool(opened[-2])
                opened.append(outer and gives_vr(self.data, at))
            else:
                opened.append(None)
                if len(opened) > 2 * self.limits.max_depth:
                    message = f"sequences are nested deeper than the limit of {self.limits.max_depth} (--max-depth)"
                    raise InputError(Reason.TOO_LARGE, f"{message}; export it again from the PACS")
        return at

    def _charset(self) -> tuple[str, ...]:
        return tuple(map(str, self.many("SpecificCharacterSet"))) or self.charset

    def _decode(self, raw: bytes, vr: str) -> str:
        if vr not in _FREE_TEXT or (raw.isascii() and b"\x1b" not in raw):
            return raw.decode("latin-1")
        from pydicom.charset import convert_encodings, decode_bytes

        from cxrvit_edge.readers.quiet import quiet_pydicom

        try:
            with quiet_pydicom():
                return decode_bytes(raw, convert_encodings(list(self._charset()) or ""), {0x5C, 0x0A, 0x0C, 0x0D})
        except Exception:  # a character set that does not exist, or that the bytes do not keep to
            return raw.decode("latin-1")
