"""What can run on this box, and why not the rest: plain values for `doctor`."""

from __future__ import annotations

import platform
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cxrvit_edge.bundle import Bundle, cache_dir, default_path
from cxrvit_edge.errors import CxrVitError
from cxrvit_edge.host import cores, cpu_flags, gpus, processor

BASE = ("numpy", "opencv-python-headless", "onnxruntime", "pydicom", "python-gdcm", "pyjpegls", "pylibjpeg-openjpeg")
OPTIONAL = ("openvino", "torch", "tensorrt", "tensorrt-rtx", "cuda-python")
BACKENDS = {  # back end -> what it imports, what installs it
    "onnxruntime": ("onnxruntime", "pip install --force-reinstall cxrvit-edge"),
    "openvino": ("openvino", "pip install openvino"),
    "tensorrt": ("tensorrt", "pip install 'cxrvit-edge[tensorrt]'"),
    "tensorrt-rtx": ("tensorrt_rtx", "pip install 'cxrvit-edge[rtx]'"),
    "torch": ("torch", "pip install 'cxrvit-edge[train]'"),
}


def examine(bundle: str | Path | None = None) -> dict[str, Any]:
    """Everything that triage needs, looked at in turn; `ok` says whether it can run.

    Golden checks are run afresh, whatever is on record. A missing optional part is told and does not count.
    """
    packages = {name: _version(name) for name in ("cxrvit-edge", *BASE, "typer", *OPTIONAL)}
    opened, found = _bundle(bundle)
    backends = [_backend(name, opened) for name in BACKENDS]
    decoders, missing = _decoders()
    problems = [f"{name} is not installed; pip install {name}" for name in BASE if not packages[name]]
    problems += [f"no decoder for {name}" for name in missing]
    if opened is None:
        problems.append(found["why"])
    elif not any(backend["runs"] for backend in backends):
        problems.append("no back end runs this bundle here; see below")
    return {
        "ok": not problems,
        "problems": problems,
        "system": _system(),
        "gpus": [vars(gpu) for gpu in gpus()],
        "packages": packages,
        "bundle": found,
        "backends": backends,
        "speed": _speed(opened),
        "choices": _choices(opened),
        "decoders": decoders,
        "cache": _cache(),
    }


def _system() -> dict[str, Any]:
    from cxrvit_edge.runtime.onnxruntime import exact_int8

    slower = "exact by slower kernels (session.x64quantprecision=1): the fast ones of this processor saturate"
    return {
        "python": sys.version.split()[0],
        "os": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": processor(),
        "cores": cores(),
        "cpu_flags": cpu_flags(),
        "int8": "exact at full speed" if exact_int8() else slower,
    }


def _bundle(path: str | Path | None) -> tuple[Bundle | None, dict[str, Any]]:
    where = str(path if path is not None else default_path())
    try:
        opened = Bundle.open(path)
    except CxrVitError as error:
        return None, {"path": where, "verified": False, "why": str(error)}
    return opened, {
        "path": where,
        "verified": True,
        "name": opened.manifest.name,
        "sha256": opened.sha256,
        "variants": list(opened.manifest.variants),
    }


def _backend(name: str, bundle: Bundle | None) -> dict[str, Any]:
    """runs: precisions that have just reproduced the golden outputs; why: of each that did not."""
    from cxrvit_edge.runtime.select import VARIANTS

    module, install = BACKENDS[name]
    report: dict[str, Any] = {"name": name, "version": None, "runs": [], "why": []}
    if find_spec(module) is None:
        report["why"].append(f"not installed; {install}")
        return report
    report["version"] = _version(module.replace("_", "-"))
    if bundle is None:
        report["why"].append("no bundle to run")
        return report
    runs = {p: v for p, v in VARIANTS[name].items() if v in bundle.manifest.variants}
    if not runs:
        report["why"].append(f"the bundle has no variant for it: {', '.join(VARIANTS[name].values())}; export it again")
    for precision in runs:
        why = _why_not(bundle, name, precision)
        if why is None:
            report["runs"].append(precision)
        elif why not in report["why"]:
            report["why"].append(why)
    return report


def _why_not(bundle: Bundle, backend: str, precision: str) -> str | None:
    """What keeps a back end from running a precision; None if it has just reproduced the golden outputs."""
    from cxrvit_edge.runtime.select import open_sessions

    try:
        open_sessions(bundle, backend=backend, precision=precision, verify=True)
    except CxrVitError as error:
        return str(error)
    except Exception as error:  # a broken installation, such as a missing shared library
        return f"{type(error).__name__}: {error}; {BACKENDS[backend][1]}"
    return None


def _choices(bundle: Bundle | None) -> list[dict[str, Any]]:
    """What was measured on this box for `--precision auto`, and chosen: seconds a batch."""
    from cxrvit_edge.runtime import measure

    return [] if bundle is None else measure.kept(bundle.sha256)


def _speed(bundle: Bundle | None) -> list[str]:
    """What this box will do, of what `build` has measured on its processor."""
    from cxrvit_edge.runtime import tuning
    from cxrvit_edge.runtime.select import VARIANTS

    if bundle is None:
        return []
    told = []
    for name in ("onnxruntime", "openvino"):
        for precision, variant in VARIANTS[name].items():
            there = find_spec(BACKENDS[name][0]) is not None and variant in bundle.manifest.variants
            tuned = tuning.find(bundle, name, variant) if there else None
            if tuned is not None:
                rate = f"about {tuned.images_a_second:.1f} images a second in batches of {tuned.batch_size}"
                first = f"opened and the first image run in {tuned.first_seconds:.1f} s"
                told.append(f"{name} {precision}: {rate}, {first}")
    return told or ["the processor is not measured yet: run `cxrvit-edge build --backend onnxruntime`"]


def _decoders() -> tuple[dict[str, str], list[str]]:
    """Transfer syntax -> what decodes it; and the syntaxes whose decoder is not installed."""
    from pydicom.uid import UID

    from cxrvit_edge.readers import dicom_pixels as dp

    table = (
        (dp.NATIVE, "numpy", "numpy"),
        ({dp.RLE}, "pydicom", "pydicom"),
        ({"1.2.840.10008.1.2.4.50"}, "cv2", "opencv-python-headless"),
        (dp.JPEG_LOSSLESS, "gdcm", "python-gdcm"),
        (dp.JPEG_LS, "jpeg_ls", "pyjpegls"),
        (dp.JPEG_2000 | dp.HTJ2K, "openjpeg", "pylibjpeg-openjpeg"),
    )
    decoders, missing = {}, []
    for uids, module, package in table:
        there = find_spec(module) is not None
        for name in sorted(UID(uid).name for uid in uids):
            decoders[name] = package if there else f"missing; pip install {package}"
            if not there:
                missing.append(name)
    return decoders, missing


def _cache() -> dict[str, Any]:
    """Engines and records of golden checks are kept here; without it they are made again each time."""
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        hint = "set CXRVIT_EDGE_CACHE to a folder that is"
        return {"path": str(folder), "writable": False, "why": f"{error.strerror}; {hint}"}
    return {"path": str(folder), "writable": True}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
