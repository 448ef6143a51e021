"""What a radiograph, a bundle or an engine says of itself: plain values for `inspect`.

No name, ID or free text of a patient.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxrvit_edge.bundle import MANIFEST, Bundle
from cxrvit_edge.errors import BundleError, EngineError, InputError, UsageError
from cxrvit_edge.guard import check_pixels
from cxrvit_edge.host import gpus
from cxrvit_edge.preprocess import Geometry, PreprocessConfig
from cxrvit_edge.radiograph import Limits, Radiograph
from cxrvit_edge.readers import decode, load, sniff
from cxrvit_edge.runtime import engines
from cxrvit_edge.runtime.builder import inspected
from cxrvit_edge.runtime.engines import PLAN, SIDECAR
from cxrvit_edge.runtime.fusion import Sources, fusion
from cxrvit_edge.runtime.layers import parse


def inspect_path(path: str | Path) -> dict[str, Any]:
    """A bundle if `path` is a folder with a manifest, or a .zip; an engine if it is its folder, plan or sidecar; else
    an image.

    UsageError if it does not exist or is another folder; BundleError and EngineError for what does not verify. An image
    that triage would turn away is no error: the report gives its status and reason.
    """
    path = Path(path)
    if path.is_dir():
        if (path / SIDECAR).exists():
            return inspect_engine(path)
        if not (path / MANIFEST).exists():
            raise UsageError(f"{path}: a folder without {MANIFEST}, no bundle; name a bundle, an engine or one image")
        return inspect_bundle(Bundle.open(path), path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder; check the spelling and the mount")
    if path.suffix.lower() == ".zip" or (path.is_file() and zipfile.is_zipfile(path)):
        return inspect_bundle(Bundle.open(path), path)
    if path.name in (PLAN, SIDECAR):
        return inspect_engine(path.parent)
    return inspect_image(path)


def inspect_engine(folder: Path) -> dict[str, Any]:
    """What an engine, verified, was compiled to: of each attention block whether it is one fused kernel.

    inspector: the same as the engine itself tells it, where a driver is present, else why not.
    """
    engine = engines.load(folder)
    side = engine.sidecar
    key = engine.key.to_dict()
    kept = {name: key[name] for name in ("backend", "version", "os", "arch", "sm", "precision", "profile")}
    found = engine.fusion
    return {
        "kind": "engine",
        "path": str(engine.plan),
        "verified": True,
        "key": engine.key.digest,
        **kept,
        "graph_sha256": engine.key.graph_sha256,
        "weights": dict(engine.key.weights),
        "options": dict(engine.key.options),
        "plan": side["plan"],
        **{name: side.get(name) for name in ("state", "bundle", "gpu", "driver", "built", "built_on", "seconds")},
        **found.summary(),
        "not_int8": sorted(n for n, kind in found.nodes.items() if kind != "Int8")
        if engine.key.precision == "int8"
        else None,
        "inspector": _inspector(engine),
    }


def _inspector(engine: engines.Engine) -> dict[str, Any] | str:
    """The engine inspector's view."""
    if not gpus():
        return "no driver on this box: the layer list is the one that was kept when it was compiled"
    try:
        lines = inspected(engine.key.backend, engine.plan.read_bytes())
        return fusion(parse(lines), Sources.from_dict(engine.sidecar["sources"])).summary()
    except EngineError as error:
        return str(error)


def inspect_bundle(bundle: Bundle, path: Path) -> dict[str, Any]:
    """What the manifest of an opened, hence verified, bundle says."""
    m = bundle.manifest
    sizes = {name: bundle.file(name).stat().st_size for name in sorted(m.files)}
    variants = {
        name: {
            "files": {graph: f"{file}, {sizes.get(file, 0):,} bytes" for graph, file in v.files.items()},
            "opset": v.opset,
            "tolerance": dict(vars(v.tolerance)),
            "parity": _parity(v.parity),
            "calibration": {k: x for k, x in v.calibration.items() if k != "sha256"} if v.calibration else None,
            "quantisation": _quantisation(m.raw["variants"][name].get("quantisation")),
        }
        for name, v in m.variants.items()
    }
    return {
        "kind": "bundle",
        "path": str(path),
        "name": m.name,
        "sha256": bundle.sha256,
        "verified": True,
        "intended_use": m.intended_use,
        "caveat": m.raw.get("caveat"),
        "licences": m.raw.get("licences"),
        "classes": list(m.classes),
        "operating_points": dict(m.operating_points),
        "sensitive_points": None if m.sensitive_points is None else dict(m.sensitive_points),
        "selective": None if m.selective is None else vars(m.selective),
        "temperature": m.temperature,
        "views": dict(m.views),
        "priority": {
            "flagged": list(m.priority.flagged),
            "urgent_score": m.priority.urgent_score,
            "order": list(m.priority.order),
        },
        "guard": vars(m.guard),
        "preprocessing": dict(m.preprocessing),
        "variants": variants,
        "engines": [
            f"{key.precision} for sm{key.sm}, {key.backend} {key.version}: {folder.name}"
            for folder, key in engines.stored(engines.places(bundle)[0])
        ],
        "files": sizes,
        "bytes": sum(sizes.values()),
        "network": m.raw.get("network"),
        "training": m.raw.get("training"),
    }


def _parity(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The figures that its bounds are about; the whole record is in the manifest and in the bundle's parity.html."""
    if not record or "splits" not in record:
        return dict(record) if record else None
    found = record["splits"]["both"]
    return {
        "within": record["within"],
        "failures": list(record["failures"]),
        "reference": record["reference"],
        "executor": record["executor"],
        "images": found["images"],
        "flips": found["flips"]["images"],
        "largest_probability_difference": found["probabilities"]["largest"],
        "logits_rms_of_std": found["logits"]["rms_of_std"],
        "severity_mae": found["severity"]["mae"],
        "mean_auc_difference": dict(found["auc"]["mean"]["difference"]),
    }


def _quantisation(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    names = ("range", "int8_operations", "operations", "int8_multiply_adds", "fp16_nodes")
    return {name: record[name] for name in names} if record else None


def inspect_image(path: Path, limits: Limits | None = None) -> dict[str, Any]:
    """What the header says, and what reading gives, of one file; the network is not asked."""
    limits = limits or Limits()
    report: dict[str, Any] = {"kind": "image", "path": str(path), "status": "ok", "reason": None}
    try:
        data = load(path, limits)
        report |= {"bytes": len(data), "format": _format(data, path.name)}
        if report["format"] == "DICOM":
            report["header"] = dicom_header(data, limits)
        radiograph = decode(data, path.name, limits)
        report |= _read(radiograph)
        check_pixels(radiograph)
    except InputError as error:
        report |= {"status": error.reason.status, "reason": {"code": error.reason.value, "message": str(error)}}
    return report


def dicom_header(data: bytes, limits: Limits) -> dict[str, Any]:
    """Header values that decide how a DICOM file is read; none if the data set is broken. Free text stays out."""
    from pydicom.uid import UID

    from cxrvit_edge.readers.dicom import read_header

    try:
        header, _, _ = read_header(data, limits)
    except InputError:  # read() says what is wrong with it
        return {}
    lut = "modality LUT" if header.modality_lut else None
    voi = "VOI LUT" if header.voi_lut else header.voi_function.lower() or None
    return {
        "object": header.class_name or None,
        "modality": header.modality or None,
        "body_part": header.body_part or None,
        "view_position": header.view_position or None,
        "patient_orientation": list(header.patient_orientation),
        "transfer_syntax": UID(header.syntax).name,
        "photometric": header.photometric or None,
        "rows": header.rows,
        "columns": header.columns,
        "frames": header.frames,
        "bits_stored": header.stored,
        "bits_allocated": header.allocated,
        "signed": header.signed,
        "rescale": lut or f"{header.slope:g} x + {header.intercept:g}",
        "presentation": header.lut_shape.lower() or voi,
        "window": list(header.window) if header.window else None,
        "padding": list(header.padding) if header.padding else None,
    }


def _read(radiograph: Radiograph) -> dict[str, Any]:
    pixels = radiograph.pixels
    shown = pixels if radiograph.valid is None else pixels[radiograph.valid]
    levels = np.percentile(shown, (0, 1, 50, 99, 100)) if shown.size else [float("nan")] * 5
    config = _preprocessing()
    geometry = Geometry.fit(pixels.shape[0], pixels.shape[1], config.size, config.aspect)
    return {
        "view": radiograph.view,
        "warnings": list(radiograph.warnings),
        "height": int(pixels.shape[0]),
        "width": int(pixels.shape[1]),
        "depth": f"{pixels.dtype.itemsize * 8} bit",
        "gray": dict(zip(("least", "p1", "median", "p99", "most"), map(float, levels), strict=True)),
        "gray_levels": int(np.unique(shown).size),
        "padding_pixels": int(pixels.size - shown.size),
        "display_window": list(radiograph.window) if radiograph.window else None,
        "network_input": {
            "size": [geometry.size, geometry.size],
            "content": [geometry.content_height, geometry.content_width],
            "top": geometry.top,
            "left": geometry.left,
        },
    }


def _preprocessing() -> PreprocessConfig:
    """Of the embedded bundle, or the code's own where there is none."""
    try:
        return PreprocessConfig.from_dict(Bundle.open().manifest.preprocessing)
    except BundleError:
        return PreprocessConfig()


def _format(data: bytes, name: str) -> str | None:
    from cxrvit_edge.readers.containers import sniff_raster

    return "DICOM" if sniff(data[:256], name) == "dicom" else sniff_raster(data[:256])
