"""The loop that every stage runs in: steps, validation, checkpoints, and a clean end however it ends."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.preprocess import PreprocessConfig
from train import state
from train.cache import ImageCache
from train.data.record import Record
from train.distributed import World
from train.loader import Batch, Loader
from train.objective import Objective, Term
from train.optimizer import arithmetic, optimizer_of
from train.recipe import Recipe, Timeline
from train.runlog import RunLog
from train.selection import Best
from train.stopping import Interrupted, Stop, out_of_memory

LOG_EVERY = 20  # steps
SAVE_EVERY = 600.0  # seconds: what a kill may cost at most


class Trainer:
    """A run in `out`: last.safetensors (to go on from), model.safetensors (the best weights by validation), CSV logs.

    Run again with the same settings it goes on where it was, and ends with the same weights as a run that was never
    interrupted. index: rows of `records` that are learned from.
    """

    def __init__(
        self,
        objective: Objective,
        config: NetworkConfig,
        recipe: Recipe,
        records: Sequence[Record],
        cache: ImageCache,
        preprocessing: PreprocessConfig,
        out: Path,
        *,
        where: World | None = None,
        loading: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
        tensorboard: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        self.where = where or World()
        self.objective = objective.to(self.where.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config, self.recipe, self.records, self.cache = config, recipe, records, cache
        self.preprocessing, self.out = preprocessing, out
        self.loading, self.about, self.tensorboard = dict(loading or {}), dict(about or {}), tensorboard
        self.say = say if self.where.first else lambda _: None
        self.train_index = [i for i, r in enumerate(records) if r.split == "train"]
        self.val_index = [i for i, r in enumerate(records) if r.split == "val"]
        self.timeline = Timeline(recipe, len(self.train_index))
        for p in recipe.phases:
            if p.batch % (self.where.size * recipe.accumulate):
                raise UsageError(
                    f"a batch of {p.batch} cannot be split over {self.where.size} processes x --accumulate "
                    f"{recipe.accumulate}; use a multiple of {self.where.size * recipe.accumulate}"
                )
        if not self.val_index:
            if recipe.patience:
                raise UsageError("--patience needs a val split, and the data has none; leave it out")
            self.say("no val split: the last weights are kept")
        self._freeze()
        self.average = copy.deepcopy(objective.net).requires_grad_(False) if recipe.ema else None
        self.optimizer = optimizer_of(objective, recipe)
        self.precision = arithmetic(recipe.precision, self.where.device)
        self.scaler = torch.amp.GradScaler(self.where.device.type, enabled=self.precision == torch.float16)
        self.forward = self._shared()
        self.step = 0
        self.best = Best(objective.higher, recipe.patience)
        self.stop = Stop(self.where, self.say)
        self._due = False  # stopped before the weights of this step were judged
        self._data = state.data_digest(records)
        self._sums: dict[str, Tensor] = {}

    def run(self) -> Path:
        """Train to the end of the schedule. Interrupted when asked to stop; UsageError when it cannot go on."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._resume()
        log: RunLog | None = None
        if self.where.first:
            log = RunLog(self.out, self.step, self.timeline.steps, self.say, tensorboard=self.tensorboard)
        saved = time.monotonic()
        try:
            with self.stop.listening():
                due, self._due = self._due, False
                ended = (due and self._validate(log)) or self.best.out_of_patience
                for batches in () if ended else self.batches():
                    self.take(batches)
                    if log:
                        log.step(self.step, sum(len(b.image) for b in batches) * self.where.size)
                        if self.step % LOG_EVERY == 0 or self.step == self.timeline.steps:
                            log.losses(self.step, self._means())
                    stop = self.stop.asked()
                    self._due = stop and self.timeline.validates(self.step - 1)
                    if self.timeline.validates(self.step - 1) and not stop and self._validate(log):
                        self.say(f"no gain in {self.recipe.patience} validations: stopped at step {self.step}")
                        break
                    if stop or self.timeline.validates(self.step - 1) or time.monotonic() - saved > SAVE_EVERY:
                        self._save()
                        saved = time.monotonic()
                    if stop:
                        raise Interrupted(f"{self.out}: stopped after step {self.step}; run it again to go on")
        except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError
            if not out_of_memory(error):
                raise
            raise UsageError(self._too_large()) from error
        finally:
            if log:
                log.close()
        if self.where.first:
            self._save()
        return self.out / "model.safetensors"

    # Steps

    def batches(self) -> Iterator[list[Batch]]:
        """The micro-batches of each step that is still to come."""
        steps = self.timeline.steps
        while self.step < steps:
            phase, epoch, start = self.timeline.place(self.step)
            loader = self.loader(self.train_index, phase.size, phase.batch, training=True)
            here = self.timeline.phase(self.step)
            for batch in loader.epoch(epoch, start=start):
                batch = batch.to(self.where.device)
                yield _split(batch, self.recipe.accumulate)
                if self.step >= steps or self.timeline.phase(self.step) != here:
                    break

    def loader(self, index: Sequence[int], size: int, batch: int, *, training: bool) -> Loader:
        settings: dict[str, Any] = {**self.loading, "seed": self.recipe.seed}
        if training:
            settings |= {"augmentation": self.recipe.augmentation, "training": True, "balance": self.recipe.balance}
            settings |= {"rank": self.where.rank, "ranks": self.where.size}
        elif settings.get("views", 1) > 1:  # two views of an image are told apart by their augmentation alone
            settings |= {"augmentation": self.recipe.augmentation, "training": False}
        return Loader(self.records, self.cache, index, self.preprocessing, size=size, batch=batch, **settings)

    def take(self, batches: list[Batch]) -> None:
        torch.manual_seed((self.recipe.seed << 32) + (self.step << 8) + self.where.rank)  # nothing else is random
        self._train_mode()
        for group in self.optimizer.param_groups:
            group["lr"] = self.timeline.lr(self.step) * group["rate"]
        self.optimizer.zero_grad(set_to_none=True)
        for k, batch in enumerate(batches):
            last = k == len(batches) - 1
            apart = nullcontext() if last or self.where.size == 1 else self.forward.no_sync()
            with apart:
                with torch.autocast(self.where.device.type, self.precision, enabled=self.precision != torch.float32):
                    terms = self.forward(batch, self.step)
                loss = self._loss(terms) / len(batches)
                self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        if self.recipe.clip:
            torch.nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self._update_average()

    def _loss(self, terms: Mapping[str, Term]) -> Tensor:
        """Each sum over its weight in all processes; times their number, since gradients are averaged over them."""
        weights = self.where.sum(torch.stack([t.weight.detach().float() for t in terms.values()]))
        totals = torch.stack([t.total.float() for t in terms.values()])
        losses = totals * self.where.size / weights.clamp_min(1e-6)
        seen = self.where.sum(losses.detach() / self.where.size)
        if not bool(torch.isfinite(seen).all()):
            bad = [k for k, v in zip(terms, seen.tolist(), strict=True) if not math.isfinite(v)]
            raise UsageError(
                f"loss {', '.join(bad)} is not finite at step {self.step + 1}; lower --lr (now {self.recipe.lr:g}), or "
                "--precision fp32; the best weights so far are kept"
            )
        for name, value in zip(terms, seen, strict=True):
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._sums["_n"] = self._sums.get("_n", torch.zeros(())) + 1
        return losses.sum()

    def _means(self) -> dict[str, float]:
        n = self._sums.pop("_n").item()
        out = {k: v.item() / n for k, v in self._sums.items()}
        self._sums = {}
        return {**out, "lr": self.optimizer.param_groups[0]["lr"]}

    def _update_average(self) -> None:
        if self.average is None:
            return
        keep = min(self.recipe.ema, self.step / (self.step + 10))
        with torch.no_grad():
            pairs = zip(self.average.state_dict().values(), self.objective.net.state_dict().values(), strict=True)
            floating = [(a, b) for a, b in pairs if a.is_floating_point()]
            torch._foreach_lerp_([a for a, _ in floating], [b for _, b in floating], 1 - keep)

    # Weights

    def _freeze(self) -> None:
        """What is found frozen here stays in eval mode."""
        backbone = getattr(self.objective.net, "backbone", None)
        self._frozen: list[nn.Module] = []
        if self.recipe.freeze == "backbone":
            if not isinstance(backbone, nn.Module):
                raise UsageError(f"--freeze backbone: {self.config.network} has none; use batchnorm or none")
            self._frozen = [backbone]
        if self.recipe.freeze == "early":
            if not hasattr(backbone, "early"):
                raise UsageError(f"--freeze early: is for efficientnet-lite0, not {self.config.network}; use none")
            self._frozen = backbone.early()  # type: ignore[union-attr]
        for module in self._frozen:
            module.requires_grad_(False)

    def _train_mode(self) -> None:
        self.objective.train()
        for module in self._frozen:
            module.eval()
        if self.recipe.freeze == "batchnorm":
            for module in self.objective.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _shared(self) -> Any:
        """The objective, wrapped where there are many processes."""
        if self.where.size == 1:
            return self.objective
        if self.where.device.type == "cuda" and self.recipe.freeze != "batchnorm":
            self.objective = nn.SyncBatchNorm.convert_sync_batchnorm(self.objective)
        return nn.parallel.DistributedDataParallel(self.objective, broadcast_buffers=self.recipe.freeze != "batchnorm")

    # Validation and checkpoints

    def _validate(self, log: RunLog | None) -> bool:
        """Judge the weights and keep the best of this phase; whether patience has run out."""
        if not self.val_index:
            self._keep(self.average or self.objective.net, {})
            return False
        index = self.timeline.phase(self.step - 1)
        self.best.enter(index)
        candidates = {"last": self.objective.net} if self.average is None else {"average": self.average}
        if self.average is not None and self.timeline.last_of_phase(self.step - 1):
            candidates["last"] = self.objective.net  # a short phase leaves the average behind
        phase, figures = self.recipe.phases[index], {}
        for name, net in candidates.items():
            batches = self.loader(self.val_index, phase.size, phase.batch, training=False).epoch(0)
            with torch.inference_mode():
                net.eval()
                figures[name] = self.objective.validate(net, (b.to(self.where.device) for b in batches))
            if log:
                log.validation(self.step, name, figures[name])
        kept = self.best.judge({k: self._agreed(v[self.objective.metric]) for k, v in figures.items()})
        if kept:
            self._keep(candidates[kept[-1]], figures[kept[-1]])
        return self.best.out_of_patience

    def _agreed(self, value: float) -> float:
        """The same in all processes, whose arithmetic may differ in the last digit."""
        return float(self.where.sum(torch.tensor(value, device=self.where.device)) / self.where.size)

    def _keep(self, net: nn.Module, figures: Mapping[str, float]) -> None:
        if self.where.first:
            extra = {**self._extra(), "validation": {k: round(float(v), 6) for k, v in figures.items()}}
            checkpoint.save(self.out / "model.safetensors", net.state_dict(), self.config, extra)

    def _same(self) -> dict[str, Any]:
        """What must be equal for a run to be one run."""
        return {
            "stage": self.objective.name,
            "recipe": self.recipe.to_dict(),
            "data": self._data,
            "preprocessing": {**self.preprocessing.to_dict(), "size": self._size()},
            "processes": self.where.size,
            "about": self.about,
        }

    def _size(self) -> int:
        """Pixels of an image that the network is used on: as it ends, or more where its trunk sees the same of them."""
        last, whole = self.recipe.phases[-1].size, self.config.image_size
        return whole if self.config.seen(last) == self.config.seen(whole) else last

    def _extra(self) -> dict[str, Any]:
        sources: dict[str, int] = {}
        for i in self.train_index:
            sources[self.records[i].source] = sources.get(self.records[i].source, 0) + 1
        return {
            **self._same(),
            "step": self.step,
            "steps": self.timeline.steps,
            "sources": dict(sorted(sources.items())),
        }

    def _modules(self) -> dict[str, nn.Module]:
        average = {} if self.average is None else {"average": self.average}
        return {"objective": self.objective, **average}

    def _save(self) -> None:
        if not self.where.first:
            return
        extra = {**self._extra(), "best": self.best.to_dict(), "due": self._due}
        state.save(self.out / "last.safetensors", self._modules(), self.optimizer, self.scaler, self.config, extra)

    def _resume(self) -> None:
        path = self.out / "last.safetensors"
        if not path.is_file():
            return
        extra = state.restore(path, self._modules(), self.optimizer, self.scaler, self.config, self._same())
        self.step, self._due = int(extra["step"]), bool(extra["due"])
        self.best.restore(extra["best"])
        self.say(f"goes on after step {self.step} of {self.timeline.steps}")

    def _too_large(self) -> str:
        phase = self.recipe.phases[self.timeline.phase(min(self.step, self.timeline.steps - 1))]
        micro = phase.batch // self.recipe.accumulate // self.where.size
        return (
            f"out of memory with {micro} images of {phase.size} pixels at once; raise --accumulate (now "
            f"{self.recipe.accumulate}) to split the batch of {phase.batch}, or lower batch or size in --schedule"
        )


def _split(batch: Batch, parts: int) -> list[Batch]:
    if parts == 1:
        return [batch]
    pieces = {k: v.chunk(parts) for k, v in vars(batch).items() if len(v)}
    empty = {k: v for k, v in vars(batch).items() if not len(v)}
    return [Batch(**{k: v[i] for k, v in pieces.items()}, **empty) for i in range(parts)]
