"""Which DICOM objects are frontal chest radiographs, told from header values alone."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from cxrvit_edge.errors import InputError, Reason

RADIOGRAPHS = frozenset({"CR", "DX", "RG"})
UNNAMED = frozenset({"", "OT", "SC"})  # what film digitisers and converters write
_NO_IMAGE = frozenset(
    {"SR", "PR", "KO", "DOC", "SEG", "REG", "FID", "PLAN", "AU", "ECG", "EPS", "HD", "RWV", "SMR", "STAIN"}
    | {"RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "RTIMAGE", "M3D"}
)
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_RADIOGRAPH_CLASSES = frozenset({"1", "1.1", "1.1.1", "7", "7.1", "7.2", "7.3", "7.4"})  # CR, DX, Secondary Capture
_OBJECT_CLASSES = re.compile(r"(9|11|66|67|68|78|79|80|81|88|90|104|130|131|200|201|481)(\.|$)")
DICOMDIR = "1.2.840.10008.1.3.10"

_CHEST = re.compile(r"CHEST|CXR|THORA|TORAX|TORAKS|BRUSTKORB|PULM|\bLUNGE?[NS]?\b|\bPOUMONS?\b|\bTHX\b")
_PLAINLY_CHEST = re.compile(r"CHEST|CXR")
_WITH_MORE = re.compile(r"ABDOM|PELVI|NECK|HEAD|SKULL|WHOLE ?BODY|BABYGRAM")
_SPINE_OR_RIBS = re.compile(r"SPINE|SPINAL|VERTEBRA|RIBS?\b|STERNUM|SHOULDER|CLAVICLE|OUTLET|INLET|SCAPULA")
_ELSEWHERE = re.compile(
    r"\b(HIPS?|KNEES?|ANKLES?|FOOT|FEET|TOES?|HEELS?|LEGS?|FEMURS?|THIGHS?|TIBIA|FIBULA|PATELLA|CALCANEUS|PELVIS|"
    r"HANDS?|FINGERS?|THUMBS?|WRISTS?|ELBOWS?|ARMS?|FOREARMS?|HUMERUS|SHOULDERS?|CLAVICLES?|SCAPULA|ACJOINT|"
    r"SKULL|HEAD|BRAIN|FACE|FACIAL|SINUS(?:ES)?|NASAL|ORBITS?|JAW|MANDIBLE|TEETH|DENTAL|TMJ|NECK|AIRWAY|"
    r"[CTLS]? ?SPINE|LUMBAR|CERVICAL|SACRUM|COCCYX|SCOLIOSIS|SI JOINTS?|RIBS?|STERNUM|BREASTS?|MAMMO\w*|"
    r"ABDOMEN|ABDOMINAL|ABD|KUB|ESOPHAGUS|STOMACH|COLON|BLADDER|URETERS?|KIDNEYS?|"
    r"EXTREMIT(?:Y|IES)|(?:UPPER|LOWER) LIMB)\b"
)
_UNSAID = frozenset(
    {"", "UNKNOWN", "OTHER", "NONE", "NA", "N A", "UNDEFINED", "UNSPECIFIED", "DEFAULT", "BODY", "TRUNK"}
)


def _words(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.upper())
    return " ".join(re.findall(r"[A-Z0-9]+", "".join(c for c in plain if not unicodedata.combining(c))))


def _says_chest(words: str) -> bool:
    return bool(_CHEST.search(words)) and (bool(_PLAINLY_CHEST.search(words)) or not _SPINE_OR_RIBS.search(words))


def is_radiograph(sop_class: str) -> bool:
    """Whether this SOP class is one of those that hold radiographs."""
    return sop_class.startswith(_STORAGE) and sop_class[len(_STORAGE) :] in _RADIOGRAPH_CLASSES


def check_object(modality: str, sop_class: str, class_name: str) -> tuple[str, ...]:
    """Warnings for an object that may be a radiograph.

    Modality (0008,0060), SOP Class UID (0008,0016) and that class's name in PS3.6. Raises InputError: WRONG_OBJECT for
    what is no image, WRONG_MODALITY for an image that is no projection radiograph.
    """
    modality = modality.strip().upper()
    kind = sop_class[len(_STORAGE) :] if sop_class.startswith(_STORAGE) else ""
    if sop_class == DICOMDIR or modality in _NO_IMAGE or _OBJECT_CLASSES.match(kind):
        what = class_name or f"a {modality} object"
        raise InputError(Reason.WRONG_OBJECT, f"{what} holds no radiograph; send the CR or DX image object")
    if modality not in RADIOGRAPHS and modality not in UNNAMED:
        shown = modality if re.fullmatch(r"[A-Z0-9]{2,8}", modality) else "of the file"
        raise InputError(Reason.WRONG_MODALITY, f"modality {shown} is not a chest radiograph (CR, DX); leave it out")
    if kind and kind not in _RADIOGRAPH_CLASSES:
        what = class_name or (sop_class if re.fullmatch(r"[0-9.]{1,64}", sop_class) else "an unknown kind of object")
        raise InputError(Reason.WRONG_MODALITY, f"{what} is not a radiograph (CR, DX); leave it out")
    if not modality and not kind.startswith(("1", "7")):
        return ("Modality is absent: taken as a radiograph",)
    if kind == "1.1.1":
        return ("raw detector data (for processing): contrast may differ from presentation images",)
    return ()


def check_body_part(body_part: str, descriptions: Mapping[str, str]) -> tuple[str, ...]:
    """Warnings for a header that says chest, or says nothing.

    BodyPartExamined (0018,0015) decides where it says something known; else the words of the descriptions (series,
    protocol, study, region code meanings; most specific first). Raises InputError(WRONG_BODY_PART), which names the
    word and never the whole text.
    """
    part = _words(body_part)
    if _CHEST.search(part) and not _SPINE_OR_RIBS.search(part):
        if _WITH_MORE.search(part):
            return ("body part is more than the chest: only the lung fields are judged",)
        return ()
    if part in ("HEART", "CARDIAC", "MEDIASTINUM", "THORACIC"):
        return ()
    if part not in _UNSAID and (_ELSEWHERE.search(part) or _SPINE_OR_RIBS.search(part) or _WITH_MORE.search(part)):
        raise _wrong_part(part.lower(), "BodyPartExamined")
    texts = {name: _words(text) for name, text in descriptions.items()}
    if any(_says_chest(text) for text in texts.values()):
        return ()
    for name, text in texts.items():
        found = _ELSEWHERE.search(text)
        if found:
            raise _wrong_part(found[0].lower(), name)
    if part not in _UNSAID:
        message = "BodyPartExamined is not one known as chest; correct it to CHEST at the modality if it is one"
        raise InputError(Reason.WRONG_BODY_PART, message)
    return ()


def _wrong_part(part: str, where: str) -> InputError:
    return InputError(
        Reason.WRONG_BODY_PART, f"body part {part} ({where}) is not the chest; correct the header if it is"
    )
