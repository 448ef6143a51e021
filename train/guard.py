"""The input guard: its head, fitted on reusable training films and on what is none, and the films that are familiar.

The head's threshold lets in all but a share of the frontal films of train and val, each judged by a head that saw no
film of its source: another hospital's films are what it will meet. The test split is not touched. The familiar films, a
score of the network's embedding, are fitted by train/ood.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cxrvit_edge.bundle import MANIFEST, Bundle
from cxrvit_edge.errors import UsageError
from cxrvit_edge.guard_head import KINDS, Expert, Head, log_odds, read_head, write_head
from cxrvit_edge.ood import read as read_familiar
from cxrvit_edge.ood import write as write_familiar
from cxrvit_edge.preprocess import Float32, PreprocessConfig
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from train import ood
from train.data.record import Record
from train.guard_samples import Amounts, Described, described, film_samples, learnable, output_samples

FILE, OOD_FILE = "guard.npz", "ood.npz"
OUTPUTS_WEIGHT = 0.5  # of the outputs' logits beside the film's: chosen by leaving sources out
Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """Chosen by leaving sources out: noise is in standard deviations of an input."""

    hidden: int
    epochs: int
    batch: int
    decay: float
    dropout: float
    input_dropout: float
    noise: float = 0.0
    rate: float = 2e-3


@dataclass(frozen=True)
class Guard:
    """familiar: None for a network without embedding, or data that has nothing to fit it to."""

    head: Head
    familiar: ood.Fitted | None

    @property
    def threshold(self) -> float:
        return self.head.threshold


FILM = Recipe(hidden=48, epochs=10, batch=256, decay=3e-3, dropout=0.3, input_dropout=0.1)
OUTPUTS = Recipe(hidden=24, epochs=40, batch=64, decay=1e-1, dropout=0.4, input_dropout=0.3, noise=0.5)


def fit_expert(seen: Float32, label: NDArray[np.integer], recipe: Recipe, seed: int) -> Expert:
    torch.manual_seed(seed)
    x, y = torch.from_numpy(seen), torch.from_numpy(label).long()
    centre, scale = x.mean(0), x.std(0) + 0.05
    x = (x - centre) / scale
    first, last = nn.Linear(x.shape[1], recipe.hidden), nn.Linear(recipe.hidden, len(KINDS))
    net = nn.Sequential(nn.Dropout(recipe.input_dropout), first, nn.ReLU(), nn.Dropout(recipe.dropout), last)
    steps = max(1, recipe.epochs * (len(x) // recipe.batch))
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps)
    weight = torch.bincount(y, minlength=len(KINDS)).clamp(min=1).float() ** -0.5
    loss_of = nn.CrossEntropyLoss(weight=weight / weight.mean(), label_smoothing=0.02)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (recipe.batch,))
        noisy = x[rows] + recipe.noise * torch.randn(recipe.batch, x.shape[1])
        loss = loss_of(net(noisy), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    parts = (centre, scale, first.weight.T, first.bias, last.weight.T, last.bias)
    return Expert(*(np.ascontiguousarray(p.detach().numpy(), np.float32) for p in parts))


def fit_head(films: Described, outputs: Described, seed: int, without: str | None = None) -> Head:
    """A head without a threshold, of what may be learned from; `without` films of that source."""
    experts = []
    for samples, recipe, weight in ((films, FILM, 1.0), (outputs, OUTPUTS, OUTPUTS_WEIGHT)):
        rows = samples.learned if without is None else samples.learned & (samples.source != without)
        expert = fit_expert(samples.seen[rows], samples.label[rows], recipe, seed)
        experts.append(
            replace(expert, out=expert.out * np.float32(weight), out_bias=expert.out_bias * np.float32(weight))
        )
    return Head(experts[0], experts[1], 0.0)


def threshold(films: Described, outputs: Described, seed: int, share: float, say: Say) -> float:
    """Log odds that all but `share` of the plain films exceed, each by a head that saw none of its source."""
    one, two = films.seen[films.plain], outputs.seen[outputs.plain]  # the same films in the same order
    source = films.source[films.plain]
    odds = np.empty(len(one))
    for name in sorted(set(source.tolist())):
        head = fit_head(films, outputs, seed, name)
        rows = np.flatnonzero(source == name)
        odds[rows] = [float(log_odds(head.logits(one[r], two[r]))) for r in rows]
        low = ", ".join(f"{q:.1%} under {np.quantile(odds[rows], q):.2f}" for q in (0.005, 0.01, 0.05))
        say(f"{name} left out, {len(rows)} films: {low}")
    return float(np.floor(np.quantile(odds, share) * 100) / 100)


def fit(
    records: Sequence[Record],
    folder: Path | None,
    bundle: Bundle,
    *,
    share: float = 0.003,
    seed: int = 0,
    amounts: Amounts | None = None,
    say: Say,
) -> Guard:
    """Head and familiar films for the bundle. UsageError if there is nothing for the head to learn from."""
    amounts = amounts or Amounts()
    used = [r for r in records if r.split != "test"]
    if not any(learnable(r) for r in used):
        raise UsageError("no film of the train split may be learned from (licence); name other --data")
    if len({r.source for r in used}) < 2:
        raise UsageError("every film is of one source: the guard's threshold needs two or more; name more --data")
    graphs = set(bundle.manifest.views.values())
    if len(graphs) != 1:
        raise UsageError(f"{bundle.root}: has a graph a view; a guard's head is fitted to a bundle of one graph")
    config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
    file = bundle.file(bundle.variant("fp32").files[graphs.pop()])
    session = OnnxRuntimeSession(file, precision="fp32", threads=torch.get_num_threads())
    films = described(film_samples(used, folder, amounts, seed), config, None, say)
    outputs = described(output_samples(used, folder, amounts, seed), config, session, say)
    for samples, what in ((films, "films"), (outputs, "outputs")):
        counts = np.bincount(samples.label[samples.learned], minlength=len(KINDS))
        say(f"{what}: " + ", ".join(f"{name} {n}" for name, n in zip(KINDS, counts.tolist(), strict=True)))
    bound = threshold(films, outputs, seed, share, say)
    if outputs.embedding is None:
        say("familiar films: the bundle's graph has no embedding; export it again to have a score")
    familiar = None if outputs.embedding is None else ood.fit(outputs.films, outputs.embedding, say)
    return Guard(replace(fit_head(films, outputs, seed), threshold=bound), familiar)


def write(guard: Guard, out: Path) -> Path:
    """The head into a file, or both into a bundle's folder, whose manifest then names them."""
    if not (out / MANIFEST).is_file():
        if out.suffix != ".npz":
            raise UsageError(f"{out}: no bundle's folder; name one, or a file that ends in .npz")
        write_head(out, guard.head)
        return out
    bundle = Bundle.open(out)
    raw: dict[str, Any] = dict(bundle.manifest.raw)
    write_head(out / FILE, guard.head)
    read_head(out / FILE)
    written, entry = [FILE], {**raw["guard"], "head": FILE}
    if guard.familiar is not None:
        write_familiar(out / OOD_FILE, guard.familiar.familiar)
        read_familiar(out / OOD_FILE)
        written.append(OOD_FILE)
        entry["ood"] = {"file": OOD_FILE, **guard.familiar.record}
    files: Mapping[str, str] = {**raw["files"], **{n: sha256((out / n).read_bytes()).hexdigest() for n in written}}
    raw |= {"guard": entry, "files": dict(sorted(files.items()))}
    (out / MANIFEST).write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    return out / FILE
