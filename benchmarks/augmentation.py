"""Our augmentation beside MONAI's transforms for the same changes, one film and its two lung masks at a time.

python -m benchmarks.augmentation --record

Geometry (rotation, scale, shift; films linear, masks on half the grid), gamma and a histogram bend, noise, blur, boxes.
One thread each, in turn. MONAI's are set to the same ranges; its dictionary transforms carry masks along.
"""

from __future__ import annotations

import argparse
import math
from statistics import median
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.record import record
from cxrvit_edge.phantom import make_phantom
from train.augment import Augmentation, augment


def monai_transform(a: Augmentation, size: int) -> Any:
    from monai.transforms import (
        Compose,
        RandAdjustContrastd,
        RandAffined,
        RandCoarseDropoutd,
        RandGaussianNoised,
        RandGaussianSmoothd,
        RandHistogramShiftd,
    )

    box = int(0.14 * size)
    return Compose(
        [
            RandAffined(
                ("image", "lungs"),
                prob=1.0,
                rotate_range=math.radians(a.rotation),
                scale_range=a.scale,
                translate_range=a.shift * size,
                padding_mode="zeros",
            ),
            RandAdjustContrastd("image", prob=1.0, gamma=(math.exp(-a.gamma), math.exp(a.gamma))),
            RandHistogramShiftd("image", num_control_points=5, prob=0.5),
            RandCoarseDropoutd("image", holes=3, spatial_size=box, prob=a.boxes, fill_value=(0, 1)),
            RandGaussianNoised("image", prob=a.noise, std=9 / 255),
            RandGaussianSmoothd("image", prob=a.noise, sigma_x=(0.4, 1.4), sigma_y=(0.4, 1.4)),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/augmentation.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    size, a = options.size, Augmentation(negative=0.0)
    made = make_phantom(0, height=size, width=size)
    film = (made.pixels >> 4).astype(np.uint8)
    lungs = np.stack([cv2.resize(m.astype(np.uint8) * 255, (size // 2, size // 2)) for m in made.lungs])
    transform = monai_transform(a, size)
    wide = np.stack([cv2.resize(m, (size, size)) for m in lungs])  # its geometry needs one grid
    unit = {"image": film[None].astype(np.float32) / 255, "lungs": wide.astype(np.float32) / 255}
    times: dict[str, list[float]] = {"ours": [], "monai": []}
    for i in range(options.rounds + 1):
        start = perf_counter()
        augment(film, lungs, a, np.random.default_rng(i))
        middle = perf_counter()
        transform(dict(unit))
        times["ours"].append(middle - start)
        times["monai"].append(perf_counter() - middle)
    ours = median(times["ours"][1:])
    rows = [
        {
            "transforms": name,
            "size": size,
            "rounds": options.rounds,
            "median_ms": round(1e3 * median(seconds[1:]), 1),
            "times_ours": round(median(seconds[1:]) / ours, 1),
        }
        for name, seconds in times.items()
    ]
    for row in rows:
        print(row)
    if options.record:
        print(record("augmentation", rows, ("monai", "opencv-python-headless", "torch", "numpy")))


if __name__ == "__main__":
    main()
