"""Where saliency points: the maximum of each map against the opacities that radiologists outlined.

python -m benchmarks.pointing_game --data ../shared/data [--weights FILE] [--record]

Maps of the network in --weights (the embedded bundle's by default) at its own size, for the class it predicts, as the
report draws them. "all" includes images it was trained on: their figures say nothing of new images. The lung mask as a
map is chance inside the lungs.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.record import record
from cxrvit_edge.bundle import WEIGHTS, Bundle
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.triage_net import TriageNet
from cxrvit_edge.preprocess import PreprocessConfig, preprocess
from cxrvit_edge.radiograph import read
from train.saliency import METHODS, Map, pointing_game

KIND = "generalblockchain_opacity"
SPLITS = {"test": ("test",), "val and test": ("val", "test"), "all, training images too": ("train", "val", "test")}


@dataclass(frozen=True)
class Outlined:
    image: Path
    mask: Path
    patient: str
    split: str


def outlined(folder: Path) -> Iterator[Outlined]:
    """Images of the folder's manifest that have an opacity mask."""
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as f:
        patients = {row["path"]: row["group_id"] for row in csv.DictReader(f)}
    with (folder / "masks" / "masks.csv").open(newline="", encoding="utf-8") as f:
        for row in csv.DictReader(f):
            if row["kind"] == KIND:
                name = row["image_path"]
                yield Outlined(folder / name, folder / row["mask_path"], patients[name], row["split"])


def maps_of(net: TriageNet, config: PreprocessConfig, case: Outlined) -> tuple[dict[str, Map], NDArray[np.bool_]]:
    """Every method's map and the mask, on the frame of the image."""
    mask = cv2.imread(str(case.mask), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    tensor, geometry = preprocess(read(case.image), config)
    with torch.no_grad():
        image = torch.from_numpy(tensor)[None]
        features = net.features(image)
        said = net.heads(features, net.enlargement(image))
        class_index = int(said.logits[0].argmax())
        severity = said.severity.sigmoid()[0, 0].numpy()
        lungs = said.lungs.sigmoid()[0].amax(0).numpy()
    square: dict[str, Map] = {
        name: method(net, features.s32, class_index)[0].numpy() for name, method in METHODS.items()
    }
    inside = (lungs >= 0.5).astype(np.float32)
    square |= {"severity map": severity, "severity map x lungs": severity * inside, "lungs alone": inside}
    height, width = mask.shape
    return {name: geometry.to_source(grid, height, width) for name, grid in square.items()}, mask > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv and masks/masks.csv")
    parser.add_argument("--weights", type=Path, help="a checkpoint; the embedded bundle's weights by default")
    parser.add_argument("--tolerance", type=int, default=0, help="pixels by which a maximum may miss a mask")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/pointing_game.csv")
    options = parser.parse_args()
    bundle = Bundle.open(None)
    weights = options.weights or bundle.file(WEIGHTS)
    tensors, config, extra = checkpoint.load(weights)
    net = checkpoint.network(tensors, config, name=str(weights))
    preprocessing = PreprocessConfig.from_dict(extra.get("preprocessing") or bundle.manifest.preprocessing)
    cases = list(outlined(options.data))
    results = []
    for number, case in enumerate(cases, 1):
        results.append(maps_of(net, preprocessing, case))
        print(f"\r{number} of {len(cases)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    rows = []
    for name, splits in SPLITS.items():
        chosen = [i for i, case in enumerate(cases) if case.split in splits]
        masks, patients = [results[i][1] for i in chosen], [cases[i].patient for i in chosen]
        for method in results[0][0]:
            maps = [results[i][0][method] for i in chosen]
            game = pointing_game(maps, masks, patients, tolerance=options.tolerance)
            print(f"{name}, {game.images} images: {method}: {game.accuracy}, energy {game.energy}")
            figures = {"accuracy": game.accuracy, "energy": game.energy}
            rows.append(
                {"split": name, "method": method, "images": game.images, "patients": game.patients}
                | {
                    f"{figure}{suffix}": round(value, 4)
                    for figure, e in figures.items()
                    for suffix, value in (("", e.value), ("_low", e.low), ("_high", e.high))
                }
                | {"chance": round(game.chance, 4), "tolerance": options.tolerance, "network": weights.parent.name}
                | {"bundle": "" if options.weights else bundle.sha256[:12]}
            )
    if options.record:
        print(record("pointing_game", rows, ("torch", "numpy")))


if __name__ == "__main__":
    main()
