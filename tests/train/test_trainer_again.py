"""A run that is called again: one that is out of patience stays ended, one stopped before its validation makes it."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.preprocess import PreprocessConfig
from train.cache import ImageCache
from train.data.record import Record
from train.loader import Batch
from train.objective import Objective, Term
from train.recipe import Recipe, parse_schedule
from train.stopping import Interrupted
from train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_torch_thread")

CONFIG = NetworkConfig("edge", layers=1, heads=1, width=16, image_size=64)
RECIPE = Recipe(parse_schedule("64:3e:3"), warmup=0, lr=1e-3, validate=2, augmentation=None)  # 6 steps

Drawn = tuple[list[Record], ImageCache]


class Mean(Objective):
    """A line through images' means; judged by what `figures` says next. A SIGTERM comes in step `sent`."""

    name, metric = "mean", "figure"

    def __init__(self, figures: list[float], sent: int = -1) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(1, 1))
        self.figures, self.sent = figures, sent

    def forward(self, batch: Batch, step: int) -> dict[str, Term]:
        if step == self.sent:
            os.kill(os.getpid(), signal.SIGTERM)
        error = (self.net(batch.image.mean((2, 3))) - 1).square()
        return {"error": Term(error.sum(), torch.tensor(float(len(error))))}

    def validate(self, net: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        return {"figure": self.figures.pop(0)}


def run(drawn: Drawn, out: Path, objective: Mean, recipe: Recipe = RECIPE) -> Trainer:
    records, cache = drawn
    trainer = Trainer(objective, CONFIG, recipe, records, cache, PreprocessConfig(size=64), out, say=lambda _: None)
    trainer.run()
    return trainer


def judged(out: Path) -> list[str]:
    with (out / "validation.csv").open(newline="") as f:
        return [row["step"] for row in csv.DictReader(f)]


def test_out_of_patience_it_stays_ended(drawn: Drawn, tmp_path: Path) -> None:
    recipe = replace(RECIPE, validate=1, patience=2)
    first = run(drawn, tmp_path, Mean([0.5, 0.4, 0.3]), recipe)
    assert first.step == 3
    kept = (tmp_path / "model.safetensors").read_bytes()
    again = run(drawn, tmp_path, Mean([]), recipe)  # a further validation would have nothing to say
    assert again.step == 3
    assert judged(tmp_path) == ["1", "2", "3"]
    assert (tmp_path / "model.safetensors").read_bytes() == kept


@pytest.mark.parametrize("sent", range(6))
def test_stopped_anywhere_it_is_judged_where_it_would_have_been(drawn: Drawn, tmp_path: Path, sent: int) -> None:
    """Also in the last step, and in one whose weights turn out to be the best."""
    figures = [0.1, 0.9, 0.5]
    whole = run(drawn, tmp_path / "whole", Mean(list(figures)))
    assert whole.step == 6
    out = tmp_path / "stopped"
    objective = Mean(list(figures), sent)
    with pytest.raises(Interrupted):
        run(drawn, out, objective)
    run(drawn, out, Mean(objective.figures))
    assert judged(out) == judged(tmp_path / "whole") == ["2", "4", "6"]
    for name in ("model", "last"):
        found, wanted = (checkpoint.load(folder / f"{name}.safetensors")[0] for folder in (out, tmp_path / "whole"))
        assert set(found) == set(wanted)
        assert all(torch.equal(found[k], wanted[k]) for k in wanted)
    assert checkpoint.load(out / "model.safetensors")[2]["step"] == 4
