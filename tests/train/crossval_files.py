"""A folder for a cross-validation: two sources of two classes each, small films, scores and lung masks of some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from train_files import ZONES, Folder, chest
from typer.testing import CliRunner

from train.__main__ import app

PAIRS = {"nih": ("normal", "other"), "cohen": ("other", "covid")}
TEST = 4  # patients of the test split, two a source


def make_crossval_folder(root: Path, patients: int = 12) -> Folder:
    """`patients` of each source, in two classes by turns, PA and AP; every fifth has two films. The first two of each
    source are in the test split, the last two in val; a film in six has a licence that bars published weights."""
    rng = np.random.default_rng(5)
    out = Folder(root, [], [], [])
    for source, pair in PAIRS.items():
        for patient in range(patients):
            for film in range(2 if patient % 5 == 4 else 1):
                n = len(out.manifest)
                name, mask = f"images/{source}/{patient}-{film}.png", f"masks/lungvae/{source}-{patient}-{film}.png"
                pixels, lungs = chest(rng, 64, 64)
                for path, array in ((root / name, pixels), (root / mask, lungs)):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(path), array)
                out.manifest.append(
                    {
                        "path": name, "label": pair[patient % 2], "view": "PA" if n % 3 else "AP Supine",
                        "group_id": f"{source}:{patient}", "source": source,
                        "reuse": "unknown" if n % 6 == 5 else "yes",
                        "split": "test" if patient < TEST // 2 else "val" if patient >= patients - 2 else "train",
                        "finding_raw": "Pneumonia" if source == "nih" and patient % 2 else "No Finding",
                    }
                )  # fmt: skip
                if n % 2:
                    out.masks.append({"mask_path": mask, "image_path": name, "kind": "lungvae"})
                if source == "cohen" and patient % 3:
                    scores = {f"S-{z}": str((patient + k) % 4) for k, z in enumerate(ZONES)}
                    out.severity.append({"path": name, **scores, **{f"J-{z}": str(patient % 4) for z in ZONES}})
    out.write()
    return out


TINY = ("--image-size", "64", "--layers", "1", "--heads", "2", "--width", "16", "--threads", "1", "--workers", "1")
STEPS = ("--schedule", "64:2:4")


def run(data: Path, out: Path, *arguments: str) -> Any:
    """`python -m train crossval` with two folds, as click's Result."""
    command = ["crossval", "--data", str(data), "--out", str(out), *TINY, *STEPS, "--folds", "2", *arguments]
    return CliRunner().invoke(app, command)
