"""Write the example films: `python examples/make_phantoms.py [--out DIR]`. Nothing in them comes from a patient."""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no install

from cxrvit_edge.phantom import MAX_VALUE, make_phantom
from cxrvit_edge.phantom.thorax import FIELD_CM

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

U16 = NDArray[np.uint16]
BITS = 12
LABEL = "SYNTHETIC"
_GLYPHS = {  # 5 x 7 dots, a row a number; OpenCV's own text differs between its versions
    "S": (15, 16, 16, 14, 1, 1, 30),
    "Y": (17, 17, 10, 4, 4, 4, 4),
    "N": (17, 25, 21, 19, 17, 17, 17),
    "T": (31, 4, 4, 4, 4, 4, 4),
    "H": (17, 17, 17, 31, 17, 17, 17),
    "E": (31, 16, 16, 30, 16, 16, 31),
    "I": (14, 4, 4, 4, 4, 4, 14),
    "C": (14, 17, 16, 16, 16, 17, 14),
    "L": (16, 16, 16, 16, 16, 16, 31),
}


def label_mask(shape: tuple[int, int], *, side_marker: bool = True) -> NDArray[np.bool_]:
    """(H, W) True on the strokes of the label (top left) and of the marker of the patient's left side (top right)."""
    dot = max(1, shape[0] // 340)
    out = np.zeros(shape, np.bool_)

    def text(word: str, x: int, y: int, dot: int) -> None:
        for k, letter in enumerate(word):
            bits = np.array([[row >> (4 - c) & 1 for c in range(5)] for row in _GLYPHS[letter]], np.bool_)
            block = bits.repeat(dot, 0).repeat(dot, 1)
            at = x + 6 * dot * k
            out[y : y + block.shape[0], at : at + block.shape[1]] |= block

    margin = shape[0] // 60
    text(LABEL, margin, margin, dot)
    if side_marker:
        text("L", shape[1] - shape[0] // 14, shape[0] // 14, 2 * dot)
    return out


def burn(pixels: U16, *, side_marker: bool = True) -> U16:
    """`pixels` with the label in white on a black rim."""
    strokes = label_mask((pixels.shape[0], pixels.shape[1]), side_marker=side_marker)
    rim = cv2.dilate(strokes.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    out = np.where(rim, 0, pixels)
    return np.where(strokes, MAX_VALUE, out).astype(np.uint16)


def lateral(height: int, width: int) -> U16:
    """A plain left lateral chest, spine on image-right: enough to be told from a frontal film."""
    s = height / 40.0
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / s - 20
    x = (np.arange(width, dtype=np.float32)[None] + 0.5 - width / 2) / s

    def ball(cx: float, cy: float, rx: float, ry: float) -> NDArray[np.float32]:
        return np.sqrt(np.maximum(1 - ((x - cx) / rx) ** 2 - ((y - cy) / ry) ** 2, 0)).astype(np.float32)

    def step(v: NDArray[np.floating]) -> NDArray[np.floating]:
        return 0.5 + 0.5 * np.tanh(v)

    trunk = np.interp(y, [-20, -16, -13, -10, -4, 20], [5.5, 6.5, 9.5, 11.0, 12.2, 12.6]).astype(np.float32)
    water = 30 * np.sqrt(np.maximum(1 - (np.abs(x) / trunk) ** 4, 0))
    dome = 5.5 + np.where(x > -2, 0.045, 0.02) * (x + 2) ** 2
    lung = ball(0.0, 0.5, 10.2, 15.0) ** 0.5 * step(3 * (dome - y))
    water -= 21 * lung * (1 - 0.6 * ball(-3.0, 3.0, 6.5, 5.5) ** 1.5) * (1 - 0.3 * ball(1.0, -2.5, 3.0, 3.0) ** 3)
    spine = 7.2 + 1.2 * np.sin((y + 12) / 9)
    water += 3.0 * step(1.5 * (1.7 - np.abs(x - spine))) * (1 + 0.15 * np.sign(np.sin(2.4 * y)))
    water += 1.5 * np.exp(-(((x + 10.0 + 0.1 * y) / 0.5) ** 2)) * (np.abs(y + 1) < 9)  # sternum
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal((height, width), dtype=np.float32)
    density = 0.16 * cv2.GaussianBlur(np.maximum(water, 0).astype(np.float32), (0, 0), 0.12 * s) + 0.02 * noise
    value = 1 - np.exp(-((np.maximum(density, 0) / np.float32(2.6)) ** np.float32(1.6)))
    return np.clip(np.rint(value * MAX_VALUE), 0, MAX_VALUE).astype(np.uint16)


def _uid(*names: str) -> str:
    """A UID that stays the same for the same names (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, '/'.join(('cxrvit-edge/examples', *names))).int}"


def _code(value: str, meaning: str) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


_VIEWS = {
    "PA": (["L", "F"], ("272479007", "postero-anterior")),
    "AP": (["L", "F"], ("399348003", "antero-posterior")),
    "LL": (["P", "F"], ("399173006", "left lateral")),
}


def dicom(
    name: str,
    pixels: U16,  # (H, W), brighter = denser
    *,
    view: Literal["PA", "AP", "LL"],
    modality: Literal["DX", "CR"] = "DX",
    inverted: bool = False,
    compression: Literal["none", "jpeg-ls", "rle"] = "none",
) -> FileDataset:
    """A Digital X-Ray or Computed Radiography image (PS3.3 A.26, A.2), MONOCHROME1 if `inverted`."""
    from pydicom import uid
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

    orientation, view_code = _VIEWS[view]
    dx = modality == "DX"
    meta = FileMetaDataset()
    sop_class = uid.DigitalXRayImageStorageForPresentation if dx else uid.ComputedRadiographyImageStorage
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = _uid(name, "instance")
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("implementation")
    meta.ImplementationVersionName = "CXRVIT_EXAMPLES"
    ds = FileDataset(name, {}, file_meta=meta, preamble=b"\0" * 128)

    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = f"{LABEL}^PHANTOM", LABEL, "", ""
    ds.StudyInstanceUID, ds.SeriesInstanceUID = _uid(name, "study"), _uid(name, "series")
    ds.StudyDate, ds.StudyTime, ds.ReferringPhysicianName = "20200101", "120000", ""
    ds.StudyID, ds.AccessionNumber, ds.SeriesNumber, ds.InstanceNumber = "1", "", "1", "1"
    ds.ContentDate, ds.ContentTime, ds.AcquisitionDate, ds.AcquisitionTime = ds.StudyDate, ds.StudyTime, "", ""
    ds.Manufacturer, ds.ManufacturerModelName = "cxrvit-edge", "generated phantom"
    ds.SoftwareVersions, ds.DeviceSerialNumber = "1", "0"
    ds.StudyDescription, ds.ImageComments = f"{LABEL} chest", f"{LABEL}: generated, not a patient"
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition, ds.PatientOrientation = modality, "CHEST", view, orientation
    ds.ImageType, ds.BurnedInAnnotation, ds.LossyImageCompression = ["DERIVED", "PRIMARY"], "YES", "00"
    ds.DerivationDescription = "simulated"
    if dx:
        chest, seen_from = _code("816094009", "Chest"), _code(*view_code)
        ds.ImageType = ["DERIVED", "PRIMARY", ""]
        ds.PresentationIntentType, ds.ImageLaterality = "FOR PRESENTATION", "U"
        ds.AnatomicRegionSequence, ds.ViewCodeSequence = [chest], [seen_from]
        seen_from.ViewModifierCodeSequence = []
        ds.PositionerType, ds.DetectorType, ds.AcquisitionContextSequence = "", "SCINTILLATOR", []
        spacing = f"{FIELD_CM[0] * 10 / pixels.shape[0]:.4f}"
        ds.ImagerPixelSpacing = [spacing, spacing]
        ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", 1 if inverted else -1
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
        ds.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    else:
        ds.PlateType = ds.KVP = ""
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME1" if inverted else "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, BITS, BITS - 1, 0
    ds.WindowCenter, ds.WindowWidth = str((MAX_VALUE + 1) // 2), str(MAX_VALUE + 1)
    ds.PixelData = (MAX_VALUE - pixels if inverted else pixels).astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    assert isinstance(ds, Dataset)
    if compression == "jpeg-ls":
        ds.compress(uid.JPEGLSLossless, encoding_plugin="pyjpegls", generate_instance_uid=False)
    elif compression == "rle":
        ds.compress(uid.RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    return ds


def write_all(out: Path) -> list[Path]:
    """Write every example into the folder `out`; the same bytes each time under the same library versions."""
    out.mkdir(parents=True, exist_ok=True)
    normal = make_phantom(2, height=1024, width=896)
    focal = make_phantom(21, height=832, width=728, lesions="focal")
    diffuse = make_phantom(5, height=960, width=960, lesions="diffuse", view="AP")
    other = make_phantom(3, height=896, width=784)
    bedside = make_phantom(6, height=640, width=560, lesions=0.5, view="AP")

    images: dict[str, tuple[NDArray[np.uint8] | U16, Sequence[int]]] = {
        "phantom_normal_pa.png": ((burn(normal.pixels) >> (BITS - 8)).astype(np.uint8), ()),
        "phantom_focal_pa.png": ((burn(focal.pixels) << (16 - BITS)).astype(np.uint16), ()),  # 16 bit
        "phantom_diffuse_ap.jpg": (
            (burn(diffuse.pixels) >> (BITS - 8)).astype(np.uint8),
            (cv2.IMWRITE_JPEG_QUALITY, 90),
        ),
    }
    written = []
    for name, (pixels, options) in images.items():
        if not cv2.imwrite(str(out / name), pixels, options):
            raise OSError(f"cannot write {out / name}")
        written.append(out / name)
    for ds in (
        dicom("phantom_normal_mono2.dcm", burn(other.pixels), view="PA", compression="jpeg-ls"),
        dicom("phantom_diffuse_mono1.dcm", burn(bedside.pixels), view="AP", modality="CR", inverted=True),
        dicom("phantom_lateral.dcm", burn(lateral(448, 384), side_marker=False), view="LL", compression="rle"),
    ):
        path = out / str(ds.filename)
        ds.save_as(path, enforce_file_format=True)
        written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write to")
    for path in write_all(parser.parse_args().out):
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
