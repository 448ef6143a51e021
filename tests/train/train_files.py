"""A small data set, generated: chest-like drawings in the layout of the manifest, and the same as a cache in memory."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.preprocess import Geometry
from train.cache import ImageCache
from train.data.record import Record, Split

ZONES = "ABCDEF"
TRAIN, VAL = 8, 3


def chest(rng: np.random.Generator, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A film (H, W) and the union of its lungs, 0 or 255; the image-left lung is the larger one."""
    film = np.full((height, width), 25.0, np.float32)
    lungs = np.zeros((height, width), np.uint8)
    half = (int(width * 0.42), int(height * 0.45))
    cv2.ellipse(film, (width // 2, int(height * 0.55)), half, 0, 0, 360, 170, -1)
    for x, scale in ((0.32, 1.0), (0.69, 0.85)):
        axes = (int(width * 0.12 * scale), int(height * 0.3 * scale))
        cv2.ellipse(lungs, (int(width * x), int(height * 0.5)), axes, 0, 0, 360, 255, -1)
    film[lungs > 0] = 60
    film += rng.normal(0, 8, film.shape).astype(np.float32)
    return np.clip(film, 0, 255).astype(np.uint8), lungs


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@dataclass
class Folder:
    """A generated data set and the rows of its three tables, to be changed and written again."""

    root: Path
    manifest: list[dict[str, str]]
    severity: list[dict[str, str]]
    masks: list[dict[str, str]]

    def write(self) -> Path:
        write_csv(self.root / "manifest.csv", self.manifest)
        write_csv(self.root / "severity.csv", self.severity)
        write_csv(self.root / "masks" / "masks.csv", self.masks)
        return self.root


def make_folder(root: Path) -> Folder:
    """12 films of 3 sources: 8 train, 3 val, 1 test; one of an unknown licence; masks of two kinds; four scored."""
    rng = np.random.default_rng(0)
    out = Folder(root, [], [], [])
    labels = ("normal", "other", "covid", "")
    findings = {"normal": "No Finding", "other": "Pneumonia|Infiltration"}
    for i in range(12):
        label = labels[i % 3] if i < 11 else labels[3]
        source = "nih" if label in ("normal", "other") and i % 2 == 0 else "cohen"
        name = f"images/{source}/{i:02d}.{'png' if i % 3 else 'jpg'}"
        film, lungs = chest(rng, 80 + 4 * i, 96)
        mask = f"masks/{'generalblockchain' if i % 2 else 'lungvae'}/{i:02d}.png"
        for path, pixels in ((root / name, film), (root / mask, lungs)):
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels)
        out.manifest.append(
            {
                "path": name, "label": label, "view": "PA" if i % 2 else "AP Supine", "group_id": f"{source}:{i // 2}",
                "source": source, "reuse": "unknown" if i == 7 else "yes", "split":
                "train" if i < TRAIN else "val" if i < TRAIN + VAL else "test",
                "finding_raw": findings.get(label, "") if source == "nih" else "COVID-19",
            }
        )  # fmt: skip
        if i % 4 != 3:
            out.masks.append({"mask_path": mask, "image_path": name, "kind": mask.split("/")[1]})
        if i % 3 == 2 or i == 11:
            scores = {f"S-{z}": str((i + k) % 4) for k, z in enumerate(ZONES)}
            out.severity.append({"path": name, **scores, **{f"J-{z}": "3" for z in ZONES}})
    out.write()
    return out


SIZE = 64


def draw() -> tuple[list[Record], ImageCache]:
    """10 records and their cache at 64 pixels, without any file: 7 train, 3 val; 7 with lungs, 3 scored."""
    rng = np.random.default_rng(1)
    records, images, lungs = [], [], []
    for i in range(10):
        film, both = chest(rng, SIZE, SIZE)
        split: Split = "train" if i < 7 else "val"
        has_lungs = i % 4 != 3
        findings = np.full(10, np.nan, np.float32)
        if i % 2 == 0:
            findings[:9] = 0.0
            findings[i] = 1.0
        records.append(
            Record(
                path=Path(f"{i}.png"),
                source="nih" if i % 2 == 0 else "cohen",
                patient=f"p{i}",
                split=split,
                label=None if i == 5 else i % 3,
                findings=findings,
                brixia=np.full((3, 2), i % 4, np.float32) if i in (2, 5, 8) else None,
                lungs=Path(f"{i}-mask.png") if has_lungs else None,
                lungs_kind="lungvae" if has_lungs else None,
            )
        )
        half = cv2.resize(both, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
        left, right = half.copy(), half.copy()
        left[:, SIZE // 4 :] = 0
        right[:, : SIZE // 4] = 0
        images.append(film)
        lungs.append(np.stack([left, right]) * has_lungs)
    g = Geometry.fit(SIZE, SIZE, SIZE, "pad")
    return records, ImageCache(np.stack(images), np.stack(lungs).astype(np.uint8), [g] * len(records))
