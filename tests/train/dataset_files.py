"""Small folders in the real layout of every dataset that train/data reads, of generated films.

Each maker gives the folder and the rows of its table; change the rows and write them again to make what is wrong.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import chexpert_files
import cv2
import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian

Row = dict[str, str]

NIH_COLUMNS = (
    "Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "View Position",
    "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]",
)  # fmt: skip
PADCHEST_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
PADCHEST_COLUMNS = (
    "", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM",
    "ViewPosition_DICOM", "Projection", "MethodProjection", "Pediatric", "Modality_DICOM", "Manufacturer_DICOM",
    "PhotometricInterpretation_DICOM", "Rows_DICOM", "Columns_DICOM", "ReportID", "Report", "MethodLabel", "Labels",
    "Localizations", "LabelsLocalizationsBySentence", "labelCUIS", "LocalizationsCUIS",
)  # fmt: skip
BRIXIA_COLUMNS = (
    "Filename", "BrixiaScore", "BrixiaScoreGlobal", "ConsensusTestset", "Subject", "StudyId", "StudyDate", "Sex",
    "AgeAtStudyDateFiveYear", "Modality", "Manufacturer", "PhotometricInterpretation", "Rows", "Columns",
)  # fmt: skip
COHEN_COLUMNS = (
    "patientid", "offset", "sex", "age", "finding", "RT_PCR_positive", "survival", "view", "modality", "date",
    "location", "folder", "filename", "license", "clinical_notes",
)  # fmt: skip


def write_table(path: Path, rows: Iterable[Mapping[str, str]], columns: Iterable[str], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), delimiter=delimiter, restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_film(path: Path, *, deep: bool = False) -> Path:
    """A phantom as PNG or JPEG; deep: 16 bits, 12 of them used."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = chexpert_files.film(path.name)
    cv2.imwrite(str(path), pixels.astype(np.uint16) * 16 if deep else pixels)
    return path


def write_dicom(path: Path, view: str | None = "AP") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = chexpert_files.film(path.name)
    ds = pydicom.Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4"
    ds.Modality, ds.BodyPartExamined = "CR", "CHEST"
    if view is not None:
        ds.ViewPosition = view
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OB"
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, "1.2.3.4"
    ds.save_as(path, enforce_file_format=True)
    return path


def make_nih(root: Path, images: int = 9, *, flat: bool = False, lists: bool = True) -> tuple[Path, list[Row]]:
    """Three images a patient; the last patient's are the test list. Findings in turn: none, two, none of the ten."""
    findings = ("No Finding", "Infiltration|Pneumonia", "Hernia")
    rows = []
    for i in range(images):
        name = f"{i // 3 + 1:08d}_{i % 3:03d}.png"
        rows.append(
            {
                "Image Index": name, "Finding Labels": findings[i % 3], "Follow-up #": str(i % 3),
                "Patient ID": str(i // 3 + 1), "Patient Age": "58", "Patient Gender": "MF"[i // 3 % 2],
                "View Position": "PA" if i % 2 == 0 else "AP",
            }
        )  # fmt: skip
        write_film(root / ("images" if flat else f"images_{i % 2 + 1:03d}/images") / name)
    write_table(root / "Data_Entry_2017.csv", rows, NIH_COLUMNS)
    if lists:
        names = [r["Image Index"] for r in rows]
        cut = max(0, images - 3)
        (root / "train_val_list.txt").write_text("\n".join(names[:cut]) + "\n")
        (root / "test_list.txt").write_text("\n".join(names[cut:]) + "\n")
    return root, rows


def make_padchest(root: Path, images: int = 8, *, flat: bool = False, packed: bool = False) -> tuple[Path, list[Row]]:
    """Two images a patient, then a lateral, a costal view, a child and an image its readers excluded."""
    labels = ("['normal']", "['pneumonia', 'infiltrates']", "['normal', 'unchanged']", "['pacemaker', 'kyphosis']")
    rows: list[Row] = []

    def add(name: str, projection: str, labels_: str, pediatric: str = "No") -> None:
        i = len(rows)
        folder = str(i % 3)
        rows.append(
            {
                "": str(i), "ImageID": name, "ImageDir": folder, "StudyDate_DICOM": str(20140110 + i),
                "StudyID": f"s{i}", "PatientID": f"p{i // 2}", "PatientSex_DICOM": "FM"[i // 2 % 2],
                "Projection": projection, "MethodProjection": "Manual review of DICOM fields", "Pediatric": pediatric,
                "PhotometricInterpretation_DICOM": "MONOCHROME1" if i == 1 else "MONOCHROME2",
                "Report": "torax, sin hallazgos", "MethodLabel": "Physician", "Labels": labels_,
            }
        )  # fmt: skip
        write_film(root / name if flat else root / folder / name, deep=True)

    for i in range(images):
        add(f"2168401113669640125{i:02d}_02-09{i}-102.png", ("PA", "AP", "AP_horizontal")[i % 3], labels[i % 4])
    for i, (projection, text, child) in enumerate(
        [("L", "['normal']", "No"), ("COSTAL", "[]", "No"), ("PA", "['normal']", "PED"), ("PA", "['exclude']", "No")]
    ):
        add(f"9{i}_left-out.png", projection, text, child)
    write_table(root / (PADCHEST_TABLE + (".gz" if packed else "")), rows, PADCHEST_COLUMNS)
    return root, rows


def make_bimcv(root: Path, patients: int = 4, *, parts: bool = False) -> Path:
    """Two visits each, the last patient's tests negative; further a lateral, an abdomen and one without any view.

    parts: subjects and derivatives in folders of their own, as the archives of iteration 1 unpack
    """
    head = root / "bimcv_covid19_posi_head_iter1" if parts else root
    tests, labels, people = [], [], []
    for i in range(patients):
        subject = f"sub-S{3044 + i:05d}"
        base = (root / f"bimcv_covid19_posi_subjects_{i % 2 + 1}" if parts else root) / subject
        people.append({"participant": subject, "modality_dicom": "['CR']", "age": "[60]", "gender": "FM"[i % 2]})
        for visit in range(2):
            session = f"ses-E{6211 + 2 * i + visit:05d}"
            view = ("ap", "pa")[i % 2]
            name = f"{subject}_{session}_run-1_bp-chest_vp-{view}_{'cr' if i % 2 else 'dx'}.png"
            _bimcv_image(base / session / "mod-rx" / name, f"2020032{visit * 4}", inverted=i == 1)
            text = "['normal']" if i == 0 else "['infiltrates', 'COVID 19']"
            labels.append({"PatientID": subject, "ReportID": session, "Report": "x", "Labels": text})
        result = "NEGATIVO" if i == patients - 1 else "POSITIVO"
        for date, value in (("10.03.2020", "INDETERMINADO"), ("12.03.2020", result)):
            tests.append({"participant": subject, "date": date, "test": "PCR", "result": value})
        if i == 0:
            folder = base / "ses-E06211" / "mod-rx"
            stem = f"{subject}_ses-E06211"
            _bimcv_image(folder / f"{stem}_run-2_bp-chest_vp-ll_dx.png", "20200320")
            _bimcv_image(folder / f"{stem}_run-3_bp-chest_vp-pa_dx.png", "20200320", series="TORAX LAT")
            _bimcv_image(folder / f"{stem}_run-4_bp-abdomen_vp-ap_dx.png", "20200320")
            _bimcv_image(folder / f"{stem}_run-5_bp-chest_cr.png", "20200320")
            _bimcv_image(folder / f"{stem}_run-6_bp-chest_cr.png", "20200320", series="TORAX AP")
    write_table(head / "participants.tsv", people, people[0], "\t")
    write_table(head / "derivatives" / "EHR" / "sil_reg_covid_posi.tsv", tests, tests[0], "\t")
    write_table(head / "derivatives" / "labels" / "labels_covid_posi.tsv", labels, labels[0], "\t")
    return root


def _bimcv_image(path: Path, date: str, *, series: str = "", inverted: bool = False) -> None:
    write_film(path, deep=True)
    tags: dict[str, Any] = {
        "00080020": {"vr": "DA", "Value": [date]},
        "00100040": {"vr": "CS", "Value": ["F"]},
        "00280004": {"vr": "CS", "Value": ["MONOCHROME1" if inverted else "MONOCHROME2"]},
        "00185101": {"vr": "CS"},
    }
    if series:
        tags["0008103E"] = {"vr": "LO", "Value": [series]}
    path.with_suffix(".json").write_text(json.dumps(tags))


def make_brixia(root: Path, images: int = 8, *, delimiter: str = ";") -> tuple[Path, list[Row]]:
    """Two images a patient; the last image is of the consensus test set. The first's score has lost a leading zero."""
    rows = []
    for i in range(images):
        digits = [(i + k) % 4 for k in range(6)]
        name = f"{1000 + i}.dcm"
        rows.append(
            {
                "Filename": name, "BrixiaScore": str(int("".join(map(str, digits)))),
                "BrixiaScoreGlobal": str(sum(digits)), "ConsensusTestset": str(int(i == images - 1)),
                "Subject": f"b{i // 2}", "StudyId": f"st{i}", "StudyDate": str(20200301 + 3 * i), "Sex": "MF"[i % 2],
                "Modality": "CR",
            }
        )  # fmt: skip
        write_dicom(root / "dicom_clean" / name, ("AP", "PA", None)[i % 3])
    write_table(root / "metadata_global_v2.csv", rows, BRIXIA_COLUMNS, delimiter)
    consensus = [{"Filename": rows[-1]["Filename"], **{f"Mode{z}": "2" for z in "ABCDEF"}, "ModeGlobal": "12"}]
    write_table(root / "metadata_consensus_v1.csv", consensus, consensus[0])
    return root, rows


def make_cohen(root: Path, images: int = 8) -> tuple[Path, list[Row]]:
    """Two images a patient, findings in turn, then a lateral and a CT slice."""
    findings = ("Pneumonia/Viral/COVID-19", "No Finding", "Pneumonia/Bacterial/Streptococcus", "todo")
    licences = ("CC BY-NC-SA", "CC0", "", "CC BY 4.0")
    rows = []
    for i in range(images + 2):
        view = ("PA", "AP", "AP Supine")[i % 3] if i < images else ("L", "Axial")[i - images]
        rows.append(
            {
                "patientid": str(i // 2), "offset": str(3 * (i % 2)) if i != 2 else "", "sex": "MF"[i // 2 % 2],
                "finding": findings[i // 2 % 4], "view": view, "modality": "CT" if view == "Axial" else "X-ray",
                "folder": "images", "filename": f"film-{i}.{'jpg' if i % 2 else 'png'}", "license": licences[i % 4],
            }
        )  # fmt: skip
        if view != "Axial":
            write_film(root / "images" / rows[-1]["filename"])
    write_table(root / "metadata.csv", rows, COHEN_COLUMNS)
    return root, rows


def write_annotations(path: Path, names: Iterable[str]) -> None:
    """public-annotations.csv: the senior scores 0, 1, 2, 3, 2, 1, the junior 1 throughout."""
    rows = []
    for name in names:
        row = {"filename": name}
        row |= {f"S-{z}": s for z, s in zip("ABCDEF", "012321", strict=True)} | {"S-Global": "9"}
        row |= {f"J-{z}": "1" for z in "ABCDEF"} | {"J-Global": "6"}
        rows.append(row)
    write_table(path, rows, rows[0])


def make_hospital(root: Path, images: int = 12, **columns: Iterable[str]) -> tuple[Path, list[Row]]:
    """images.csv with path, label, view and patient (two images each); `columns` adds others, a value an image."""
    rows: list[Row] = []
    for i in range(images):
        name = f"films/{i:02d}.png"
        write_film(root / name)
        label = ("normal", "other", "covid")[i // 2 % 3]
        rows.append({"path": name, "label": label, "view": ("PA", "AP")[i % 2], "patient": f"h{i // 2}"})
    for column, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[column] = value
    write_table(root / "images.csv", rows, rows[0])
    return root, rows
