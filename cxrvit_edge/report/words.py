"""What codes and classes are called on a page that people read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cxrvit_edge.errors import Reason

if TYPE_CHECKING:
    from cxrvit_edge.findings import Finding

CAVEAT = (
    "The network was trained on public data in which disease and image source go together (confounding), "
    "so it may tell the source instead of the disease."
)
CLASS_NAMES = {"normal": "Normal", "other_infection": "Other infection", "covid19": "COVID-19"}
IN_A_SENTENCE = {"normal": "normal", "other_infection": "other infection", "covid19": "COVID-19"}
SEVERITY_CAPTION = "Severity map: forward pass, not specific to a class; not for localisation."
RELEVANCE_CAPTION = "Relevance to {}, by relevance propagation ({} back end); not for localisation."
RELEVANCE_LEGEND = (
    "What in the image spoke for its label, by relevance propagation through the transformer (Chefer et al. 2020), on "
    "a scale of each image's own up to its most (red). It tells what the network looked at, which may lie outside the "
    "lungs, and is not for localisation."
)
REASONS: dict[str, str] = {
    Reason.NOT_AN_IMAGE: "not an image file",
    Reason.IS_DIRECTORY: "a folder, not a file",
    Reason.WRONG_MODALITY: "not a plain radiograph",
    Reason.WRONG_BODY_PART: "not the chest",
    Reason.WRONG_OBJECT: "a DICOM object of another kind",
    Reason.LATERAL_VIEW: "lateral view; only frontal views are judged",
    Reason.TOO_LARGE: "image too large",
    Reason.TOO_SMALL: "image too small",
    Reason.BLANK: "blank image",
    Reason.COLOUR: "colour picture",
    Reason.ROTATED: "image is turned or upside down",
    Reason.INVERTED: "image is inverted",
    Reason.NOT_A_CHEST: "not a whole frontal chest",
    Reason.OUTSIDE: "a link out of the folder, not followed",
    Reason.NOT_FOUND: "file not found",
    Reason.NO_PERMISSION: "no permission to read the file",
    Reason.EMPTY_FILE: "empty file",
    Reason.TRUNCATED: "file cut short",
    Reason.UNREADABLE: "file cannot be read",
    Reason.CANNOT_DECODE: "image cannot be decoded",
    Reason.NO_PIXELS: "no image in the file",
    Reason.NOT_FINITE: "the network gave no number",
    Reason.TIMED_OUT: "took too long to decode",
    Reason.DECODER_DIED: "the decoder crashed",
    Reason.INTERNAL: "internal error",
}


UNLIKE = "unlike the films the network learned from"


def unlike(finding: Finding) -> str:
    """What is said of a film over its bundle's threshold of `ood.Familiar`; empty of any other."""
    return UNLIKE if finding.ood is not None and finding.ood.over else ""


def undecided(finding: Finding) -> str:
    """What is said of a film whose prediction set is not of one class; empty if it is, or if it has none."""
    possible = finding.prediction_set
    if possible is None or len(possible) == 1:
        return ""
    names = [IN_A_SENTENCE.get(name, name) for name in possible]
    listed = " or ".join([*filter(None, [", ".join(names[:-1])]), *names[-1:]])
    return f"network is undecided: {listed or 'no class'}"
