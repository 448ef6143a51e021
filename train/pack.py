"""A small copy of a manifest's data set: what is learned from, at the size that a network sees, for another machine."""

from __future__ import annotations

import csv
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import UsageError
from cxrvit_edge.preprocess import equalisation_table
from cxrvit_edge.radiograph import Radiograph, read
from train.data import manifest

MB = 1_000_000
Pixels = NDArray[np.uint8]
Row = dict[str, str]


class Packed(NamedTuple):
    """size: in bytes."""

    images: int
    masks: int
    size: int


class _Place(NamedTuple):
    """Of a copied image: its path in the data set, height and width."""

    path: str
    height: int
    width: int


def pack(
    data: Path,
    out: Path,
    *,
    size: int = 512,
    quality: int = 90,
    limit_mb: float = 50.0,
    all_licences: bool = False,
    say: Callable[[str], None] = print,
) -> Packed:
    """Write train and val of the manifest `data` to `out`, a new folder or .zip that opens as `data` does.

    Images are grayscale JPEG of `quality`, their longest side at most `size` (more than 8 bits are equalised first, as
    preprocessing does); masks have one bit, at the size of their image; tables keep their columns, with paths and sizes
    as they are now. Only rows that published weights may learn from, unless `all_licences`.
    UsageError for another layout, for an `out` that is there, and for more than `limit_mb` (10^6 bytes), with nothing
    left behind; InputError for an image that cannot be read.
    """
    if not manifest.is_layout(data):
        raise UsageError(f"{data}: pack copies a folder that has {manifest.LOOKS_FOR}")
    if out.exists():
        raise UsageError(f"{out}: is there already; name another, or remove it")
    folder = data.parent if data.is_file() else data
    work = out.with_name(f"{out.name}.{os.getpid()}.part")
    work.mkdir(parents=True)
    try:
        images, masks = _copy(folder, work, size, quality, all_licences, say)
        made = _zipped(work) if out.suffix.lower() == ".zip" else work
        files = made.rglob("*") if made.is_dir() else [made]
        packed = Packed(images, masks, sum(p.stat().st_size for p in files if p.is_file()))
        if packed.size > limit_mb * MB:
            raise UsageError(
                f"{out}: {images} images of at most {size} pixels at quality {quality} take {packed.size / MB:.1f} MB, "
                f"more than --limit-mb {limit_mb:g}; lower --quality or --size"
            )
        made.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        _archive(work).unlink(missing_ok=True)
    return packed


def _copy(
    folder: Path, work: Path, size: int, quality: int, all_licences: bool, say: Callable[[str], None]
) -> tuple[int, int]:
    reuse = None if all_licences else manifest.REUSABLE
    records = {r.path: r for r in manifest.read(folder, reuse=reuse) if r.split != "test"}
    rows, columns = _table(folder / "manifest.csv")
    rows = [r for r in rows if folder / r["path"] in records]
    if not rows:
        raise UsageError(f"{folder}: no image in train or val; pack copies what is learned from")
    places: dict[str, _Place] = {}
    for done, row in enumerate(rows, 1):
        pixels = _shrunk(_gray(read(folder / row["path"])), size)
        place = _Place(_named(row["path"], ".jpg", ".jpeg"), *pixels.shape)
        _write(work, place.path, pixels, cv2.IMWRITE_JPEG_QUALITY, quality)
        places[row["path"]] = place
        row["path"] = place.path
        now = {"height": place.height, "width": place.width}
        row |= {name: str(value) for name, value in now.items() if name in columns}
        if done % 200 == 0:
            say(f"{done} of {len(rows)} images")
    _write_table(work / "manifest.csv", rows, columns)
    if (table := folder / "severity.csv").is_file():
        rows, columns = _table(table)
        scored = [{**r, "path": places[r["path"]].path} for r in rows if r["path"] in places]
        _write_table(work / "severity.csv", scored, columns)
    kept = _copy_masks(folder, work, places)
    return len(places), kept


def _copy_masks(folder: Path, work: Path, places: Mapping[str, _Place]) -> int:
    if not (table := folder / "masks" / "masks.csv").is_file():
        return 0
    rows, columns = _table(table)
    rows = [r for r in rows if r["image_path"] in places]
    for row in rows:
        place = places[row["image_path"]]
        mask = cv2.imread(str(folder / row["mask_path"]), cv2.IMREAD_GRAYSCALE)
        if mask is None:
            raise UsageError(f"{folder / row['mask_path']}: cannot read this mask; restore it or unlist it")
        full = (mask > 0).astype(np.uint8) * 255
        small = cv2.resize(full, (place.width, place.height), interpolation=cv2.INTER_AREA)
        row |= {"mask_path": _named(row["mask_path"], ".png"), "image_path": place.path}
        _write(work, row["mask_path"], (small > 127).astype(np.uint8) * 255, cv2.IMWRITE_PNG_BILEVEL, 1)
    _write_table(work / "masks" / "masks.csv", rows, columns)
    return len(rows)


def _gray(film: Radiograph) -> Pixels:
    """(H, W) in 8 bits."""
    if film.pixels.dtype == np.uint8:
        return film.pixels.astype(np.uint8, copy=False)
    table = equalisation_table(film.pixels, film.valid)
    return np.rint(255 * table[film.pixels]).astype(np.uint8)


def _shrunk(pixels: Pixels, size: int) -> Pixels:
    """Longest side at most `size`; area averages, as preprocessing takes them."""
    height, width = pixels.shape
    ratio = size / max(height, width)
    if ratio >= 1:
        return pixels
    to = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return np.asarray(cv2.resize(pixels, to, interpolation=cv2.INTER_AREA), np.uint8)


def _named(path: str, *suffixes: str) -> str:
    """With the first suffix, unless it has one of them. UsageError for a path that leads out of the folder."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise UsageError(f"{path}: lies outside the data's folder; move it in, so that its copy has a place")
    return path if path.lower().endswith(suffixes) else path + suffixes[0]


def _write(work: Path, path: str, pixels: Pixels, option: int, value: int) -> None:
    target = work / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(target), pixels, [option, value]):
        raise UsageError(f"{target}: cannot be written; is the disk full?")


def _table(path: Path) -> tuple[list[Row], list[str]]:
    with path.open(newline="", encoding="utf-8") as f:
        reader = csv.DictReader(f)
        return list(reader), list(reader.fieldnames or ())


def _write_table(path: Path, rows: Iterable[Mapping[str, Any]], columns: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _archive(work: Path) -> Path:
    return work.with_name(work.name + ".zip")


def _zipped(work: Path) -> Path:
    path = _archive(work)
    with zipfile.ZipFile(path, "w") as archive:  # stored: JPEG and PNG do not deflate further
        for file in sorted(p for p in work.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(work).as_posix())
    return path
