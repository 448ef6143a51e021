from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from reader_files import (
    CR_CLASS,
    JPEG_LS,
    P12,
    SC_CLASS,
    compressed,
    data_set,
    get,
    of,
    part10,
    refused,
    why,
)

from cxrvit_edge.errors import Reason
from cxrvit_edge.readers import view_from_text

# --- orientation and view


@pytest.mark.parametrize(
    ("orientation", "mirrored"),
    [
        (["L", "F"], False),
        (["LP", "FA"], False),
        (["R", "F"], True),
        (["RA", "F"], True),
        ([""], False),
        (["L"], False),
    ],
)
def test_patient_orientation(orientation: list[str], mirrored: bool) -> None:
    words = P12.copy()
    words[:, :5] = 0
    result = of(words, BitsStored=12, PatientOrientation=orientation, PixelPaddingValue=0)
    np.testing.assert_array_equal(result.pixels, words[:, ::-1] if mirrored else words)
    assert result.valid is not None
    np.testing.assert_array_equal(result.valid, (words != 0)[:, ::-1] if mirrored else words != 0)
    assert len(result.warnings) == mirrored


@pytest.mark.parametrize("orientation", [["F", "L"], ["F", "R"], ["H", "L"], ["L", "H"], ["R", "H"], ["L", "P"]])
def test_turned_images_are_rejected(orientation: list[str]) -> None:
    assert why(PatientOrientation=orientation) is Reason.ROTATED
    assert Reason.ROTATED.status == "rejected"


@pytest.mark.parametrize("orientation", [["A", "F"], ["P", "F"], ["AL", "F"], ["F", "A"]])
def test_lateral_orientation(orientation: list[str]) -> None:
    assert why(PatientOrientation=orientation, ViewPosition="") is Reason.LATERAL_VIEW


@pytest.mark.parametrize("view", ["LL", "RL", "LATERAL", "LAT", "Left lateral"])
def test_lateral_views_are_rejected(view: str) -> None:
    assert why(ViewPosition=view) is Reason.LATERAL_VIEW
    assert (
        why(ViewPosition="", SeriesDescription=f"Chest {'lateral' if len(view) == 2 else view}") is Reason.LATERAL_VIEW
    )


@pytest.mark.parametrize(
    ("tags", "view"),
    [
        ({"ViewPosition": "AP"}, "AP"),
        ({"ViewPosition": "AP", "SeriesDescription": "CHEST PA"}, "AP"),
        ({"ViewPosition": "", "SeriesDescription": "view: PA"}, "PA"),
        ({"ViewPosition": "", "ProtocolName": "Thorax a.p."}, "AP"),
        ({"ViewPosition": "", "AcquisitionDeviceProcessingDescription": "[CHEST,PA]"}, "PA"),
        ({"ViewPosition": "", "StudyDescription": "CHEST PA AND LATERAL"}, "unknown"),
        ({"ViewPosition": "", "SeriesDescription": "W033 Chest AP Supine"}, "AP"),
        ({"ViewPosition": ""}, "unknown"),
        ({"ViewPosition": "LLD"}, "unknown"),
        ({"ViewPosition": "AP LLD"}, "unknown"),
    ],
)
def test_view(tags: dict[str, str], view: str) -> None:
    result = of(P12, **tags)
    assert result.view == view
    assert len(result.warnings) == ("LLD" in tags["ViewPosition"])


def test_view_code() -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "399348003", "SCT", "antero-posterior"
    assert of(P12, ViewPosition="", ViewCodeSequence=Sequence([code])).view == "AP"


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("PA", "PA"),
        ("AP", "AP"),
        ("AP Supine", "AP"),
        ("AP_horizontal", "AP"),
        ("portable a.p. erect", "AP"),
        ("postero-anterior", "PA"),
        ("posteroanterior", "PA"),
        ("L", "lateral"),
        ("Lateral", "lateral"),
        ("frontal-unstated", "unknown"),
        ("Frontal", "unknown"),
        ("", "unknown"),
        ("AP/PA", "unknown"),
        ("PAIN", "unknown"),
        ("bilateral", "unknown"),
        ("left anterior oblique", "unknown"),
    ],
)
def test_view_from_text(text: str, view: str) -> None:
    assert view_from_text(text) == view


# --- what is no frontal chest radiograph


@pytest.mark.parametrize("modality", ["CT", "MR", "US", "MG", "XA", "NM", "PT", "RF", "ES"])
def test_wrong_modality_is_named_without_decoding(modality: str) -> None:
    data = compressed(data_set(P12, Modality=modality, SOPClassUID=None), JPEG_LS, [b"no code stream"])
    reason, message = refused(data)
    assert reason is Reason.WRONG_MODALITY
    assert modality in message


def test_an_image_class_of_another_modality() -> None:
    ct = "1.2.840.10008.5.1.4.1.1.2"
    for modality in ("", "OT", "CR"):
        assert why(Modality=modality, SOPClassUID=ct) is Reason.WRONG_MODALITY


@pytest.mark.parametrize("modality", ["CR", "DX", "RG", "OT", ""])
def test_secondary_captures_of_radiographs(modality: str) -> None:
    for kind in (SC_CLASS, SC_CLASS + ".2", SC_CLASS + ".3"):
        np.testing.assert_array_equal(of(P12, Modality=modality, SOPClassUID=kind).pixels, P12)


def test_no_modality_at_all_is_said() -> None:
    data = part10(data_set(P12, Modality=None, SOPClassUID=None), preamble=False)
    assert get(data).warnings == ("Modality is absent: taken as a radiograph",)


@pytest.mark.parametrize(
    ("kind", "modality"),
    [
        ("88.11", "SR"),
        ("88.33", ""),
        ("11.1", "PR"),
        ("104.1", "DOC"),
        ("66.4", "SEG"),
        ("481.5", "RTPLAN"),
        ("88.59", "KO"),
    ],
)
def test_objects_without_a_picture(kind: str, modality: str) -> None:
    assert why(None, SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{kind}", Modality=modality) is Reason.WRONG_OBJECT


def test_dicomdir() -> None:
    ds = data_set(None, SOPClassUID="1.2.840.10008.1.3.10", Modality=None)
    assert refused(part10(ds))[0] is Reason.WRONG_OBJECT


@pytest.mark.parametrize(
    "part", ["HIP", "EXTREMITY", "HAND", "SKULL", "ABDOMEN", "TSPINE", "T-SPINE", "RIB", "CSPINE", "PELVIS"]
)
def test_wrong_body_parts(part: str) -> None:
    reason, message = refused(part10(data_set(P12, BodyPartExamined=part, StudyDescription="CHEST")))
    assert reason is Reason.WRONG_BODY_PART
    assert reason.status == "rejected"
    assert "body part" in message


@pytest.mark.parametrize("part", ["CHEST", "THORAX", "LUNG", "chest ", "CHEST_PA", "TORAX", "", "UNKNOWN", "HEART"])
def test_chests_are_taken(part: str) -> None:
    assert of(P12, BodyPartExamined=part, StudyDescription="No finding").warnings == ()


def test_more_than_a_chest_is_said() -> None:
    for part in ("CHEST_TO_ABDOMEN", "CHEST ABDOMEN", "CHESTABDPELVIS"):
        assert len(of(P12, BodyPartExamined=part).warnings) == 1


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ("XR HIP LEFT", False),
        ("Knie / knee ap", False),
        ("Abdomen supine", False),
        ("THORACIC SPINE AP", False),
        ("Hand PA", False),
        ("CHEST AND ABDOMEN", True),
        ("Tórax", True),
        ("No finding", True),
        ("", True),
    ],
)
def test_descriptions_decide_where_the_body_part_is_empty(words: str, taken: bool) -> None:
    for keyword in ("SeriesDescription", "StudyDescription", "ProtocolName"):
        data = part10(data_set(P12, SpecificCharacterSet="ISO_IR 192", BodyPartExamined="", **{keyword: words}))
        if taken:
            get(data)
        else:
            assert refused(data)[0] is Reason.WRONG_BODY_PART


def test_an_unknown_body_part_is_taken_if_a_description_says_chest_and_never_quoted() -> None:
    of(P12, BodyPartExamined="SECRET", StudyDescription="CHEST 2 VIEWS")
    assert why(BodyPartExamined="SECRET") is Reason.WRONG_BODY_PART


def test_identifiers() -> None:
    found = of(P12).identifiers
    assert (found.study_uid, found.series_uid, found.sop_instance_uid) == ("1.2.3.2", "1.2.3.3", "1.2.3.4")
    assert found.sop_class_uid == CR_CLASS
