"""What a training step costs beside its forward and backward, and whether the loader keeps up.

python -m benchmarks.train_step --record: preset edge, stage diagnosis, generated films. Whole steps (waiting for the
batch, clipping, optimiser, running average) and bare forward and backward passes of the same batches take turns; the
loader is timed alone, before and after.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import cv2
import torch

from benchmarks.record import record
from cxrvit_edge.host import keep_memory
from cxrvit_edge.model.config import preset
from cxrvit_edge.model.triage_net import TriageNet
from cxrvit_edge.phantom import make_phantom
from cxrvit_edge.preprocess import PreprocessConfig
from train.cache import open_cache
from train.data.record import Record
from train.loader import Batch
from train.objectives.diagnosis import Diagnosis
from train.recipe import Recipe, parse_schedule
from train.trainer import Trainer


def films(folder: Path, n: int) -> list[Record]:
    out = []
    for i in range(n):
        path = folder / f"{i:03d}.png"
        cv2.imwrite(str(path), make_phantom(i, height=768, width=704).pixels)
        out.append(Record(path, "phantom", f"p{i}", "train", label=i % 3))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--returned", action="store_true", help="freed memory goes back to the system at each step")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/train_step.csv")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if not options.returned:  # as a training run
        keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(Path(folder), options.size, options.batch, options.steps)]
    print(json.dumps(rows[0]))
    if options.record:
        print(record("train_step", rows, ("torch", "opencv-python-headless", "numpy")))


def measure(folder: Path, size: int, batch: int, steps: int) -> dict[str, object]:
    records = films(folder, 4 * batch)
    config = PreprocessConfig()
    cache = open_cache(records, folder / "cache", config)
    recipe = Recipe(parse_schedule(f"{size}:{steps + 1}:{batch}"), ema=0.99)
    objective = Diagnosis(TriageNet(preset("edge")), torch.ones(3))
    for name, part in objective.net.named_children():
        part.requires_grad_(name in ("backbone", "encoder", "diagnosis"))
    trainer = Trainer(objective, preset("edge"), recipe, records, cache, config, folder / "run", say=lambda _: None)
    whole, bare, alone = [], [], [loading(trainer, size, batch)]
    batches = trainer.batches()

    def passes(batch: Batch) -> None:
        start = perf_counter()
        objective.zero_grad(set_to_none=True)
        (term,) = objective(batch, 0).values()
        (term.total / term.weight).backward()
        bare.append(perf_counter() - start)

    while True:
        start = perf_counter()
        parts = next(batches, None)
        if parts is None:
            break
        waited = perf_counter() - start
        first = trainer.step % 2 == 0  # each comes first in turn: what comes first finds the caches cold
        if first:
            passes(parts[0])
        start = perf_counter()
        trainer.take(parts)
        whole.append(waited + perf_counter() - start)
        if not first:
            passes(parts[0])
    alone.append(loading(trainer, size, batch))
    whole, bare = whole[1:], bare[1:]  # the first of each allocates
    return {
        "preset": "edge",
        "stage": "diagnosis",
        "size": size,
        "batch": batch,
        "steps": len(whole),
        "step_over_forward_backward": round(median(w / b for w, b in zip(whole, bare, strict=True)), 3),
        "loader_times_as_fast_as_step": round(median(whole) / (batch * max(alone)), 1),
        "step_s": round(median(whole), 2),
        "forward_backward_s": round(median(bare), 2),
        "loader_images_per_second": round(1 / max(alone)),
        "step_images_per_second": round(batch / median(whole), 2),
        "threads": torch.get_num_threads(),
    }


def loading(trainer: Trainer, size: int, batch: int) -> float:
    """Seconds an image of the loader alone, over two epochs."""
    loader = trainer.loader(trainer.train_index, size, batch, training=True)
    start, images = perf_counter(), 0
    for epoch in (0, 1):
        for made in loader.epoch(epoch):
            images += len(made.image)
    return (perf_counter() - start) / images


if __name__ == "__main__":
    main()
