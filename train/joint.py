"""Stage `joint`: one shared trunk, all heads (diagnosis, severity map, lungs, findings through PCAM) at once.

The shared trunk is ours; the paper trains its networks one after the other. Training goes from low to full resolution,
which two CPU cores can pay for; weights are averaged over steps (EMA), and the average or
the last weights are kept, by validation.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.triage_net import TriageNet
from cxrvit_edge.preprocess import PreprocessConfig
from train.augment import Augmentation
from train.cache import ImageCache
from train.data.record import Record
from train.evaluate import Predictions, predict, summary
from train.loader import Batch, Loader
from train.losses import findings_loss, lung_loss, zone_loss, zones_for


@dataclass(frozen=True)
class Phase:
    """`epochs` at `size` pixels with `batch` images a step; learning rates scale with sqrt(batch / 16)."""

    size: int
    epochs: int
    batch: int


def parse_schedule(text: str) -> tuple[Phase, ...]:
    """'256:14:16,512:1:8' -> phases of size:epochs:batch. UsageError on anything else."""
    try:
        phases = tuple(Phase(*(int(v) for v in part.split(":"))) for part in text.split(","))
    except (ValueError, TypeError):
        raise UsageError(
            f"schedule {text!r}: write size:epochs:batch, joined by commas, as 256:14:16,512:1:8"
        ) from None
    if any(p.size % 32 or min(p.size, p.epochs, p.batch) < 1 for p in phases):
        raise UsageError(f"schedule {text!r}: sizes are multiples of 32, epochs and batches at least 1")
    return phases


@dataclass(frozen=True)
class JointOptions:
    phases: tuple[Phase, ...]
    lr: float = 8e-4
    weight_decay: float = 0.05
    warmup_steps: int = 60
    clip: float = 1.0
    ema: float = 0.99
    label_smoothing: float = 0.05
    severity_weight: float = 0.5
    findings_weight: float = 0.3
    lungs_weight: float = 1.0
    severity_from_epoch: int = 3  # before it, predicted lungs are no zones
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)


class Joint:
    """A run in `out`: last.safetensors (to resume), model.safetensors (what is kept), log.csv."""

    def __init__(
        self,
        config: NetworkConfig,
        options: JointOptions,
        records: list[Record],
        cache: ImageCache,
        preprocessing: PreprocessConfig,
        out: Path,
        say: Callable[[str], None] = print,
    ) -> None:
        self.config, self.options, self.records, self.cache = config, options, records, cache
        self.preprocessing, self.out, self.say = preprocessing, out, say
        self.train_index = [i for i, r in enumerate(records) if r.split == "train"]
        self.val_index = [i for i, r in enumerate(records) if r.split == "val"]
        if len(self.train_index) < max(p.batch for p in options.phases):
            raise UsageError(f"{len(self.train_index)} training images are fewer than one batch; lower the batch")
        torch.manual_seed(options.seed)
        self.net = TriageNet(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        decay = [p for p in self.net.parameters() if p.ndim > 1]
        rest = [p for p in self.net.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": options.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr)
        self.epochs = [p for p in options.phases for _ in range(p.epochs)]  # the phase of each epoch
        counts = np.bincount(
            [r.label for r in (records[i] for i in self.train_index) if r.label is not None], minlength=3
        )
        self.class_weight = torch.tensor(np.sqrt(counts.sum() / (3 * np.maximum(counts, 1))), dtype=torch.float32)
        self.step = self.epoch = 0

    def run(self) -> Path:
        """Train to the end of the schedule, from the last whole epoch if there is one. Returns model.safetensors."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._resume()
        while self.epoch < len(self.epochs):
            started = time.monotonic()
            losses = self._one_epoch(self.epochs[self.epoch])
            self.epoch += 1
            self._save()
            row: dict[str, Any] = {"epoch": self.epoch, "size": self.epochs[self.epoch - 1].size, **losses}
            row["seconds"] = round(time.monotonic() - started, 1)
            last_of_phase = self.epoch == len(self.epochs) or self.epochs[self.epoch] != self.epochs[self.epoch - 1]
            if self.val_index and (self.epoch % 3 == 0 or last_of_phase):
                row.update(summary(self.validate(self.epochs[self.epoch - 1].size)))
            self._log(row)
        path = self.out / "model.safetensors"
        checkpoint.save(path, self._better().state_dict(), self.config, self._extra())
        return path

    def _better(self) -> TriageNet:
        """The average or the last weights: a short last phase may leave the average behind at its resolution.

        By mean AUC on val; the average without one.
        """
        best, best_auc = self.average, -1.0
        for name, net in (("average", self.average), ("last", self.net)):
            row = summary(self.validate(self.epochs[-1].size, net)) if self.val_index else {}
            self._log({"weights": name, **row})
            if row.get("auc", -1.0) > best_auc:
                best, best_auc = net, row["auc"]
        return best

    def validate(self, size: int, net: TriageNet | None = None) -> Predictions:
        loader = Loader(self.records, self.cache, self.val_index, self.preprocessing, size=size, batch=16)
        return predict((net or self.average).eval(), loader)

    def _one_epoch(self, phase: Phase) -> dict[str, float]:
        o = self.options
        loader = Loader(
            self.records, self.cache, self.train_index, self.preprocessing,
            size=phase.size, batch=phase.batch, augmentation=o.augmentation, seed=o.seed,
        )  # fmt: skip
        total: dict[str, float] = {}
        self.net.train()
        n = loader.batches()
        for i, batch in enumerate(loader.epoch(self.epoch)):
            lr = self._lr((self.epoch + i / n) / len(self.epochs)) * (phase.batch / 16) ** 0.5
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            parts = self._losses(batch)
            loss = torch.stack(list(parts.values())).sum()
            if not torch.isfinite(loss):
                raise UsageError(f"loss is not finite at epoch {self.epoch + 1}, step {i + 1}; lower --lr (now {o.lr})")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), o.clip)
            self.optimizer.step()
            self.step += 1
            self._update_average()
            for name, value in parts.items():
                total[name] = total.get(name, 0.0) + value.item() / n
        return {k: round(v, 4) for k, v in total.items()}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        o = self.options
        out = self.net.training_forward(batch.image.contiguous(memory_format=torch.channels_last))
        zero = out.logits.sum() * 0
        losses = {"lungs": zero, "severity": zero}
        labelled = batch.label >= 0
        losses["diagnosis"] = (
            F.cross_entropy(
                out.logits[labelled], batch.label[labelled], self.class_weight, label_smoothing=o.label_smoothing
            )
            if bool(labelled.any())
            else zero
        )
        losses["findings"] = o.findings_weight * findings_loss(out.findings, batch.findings)
        if bool(batch.has_lungs.any()):
            losses["lungs"] = o.lungs_weight * lung_loss(out.lungs[batch.has_lungs], batch.lungs[batch.has_lungs])
        if self.epoch >= o.severity_from_epoch and bool((batch.zone_weight > 0).any()):
            zones = zones_for(out.lungs, batch.lungs)
            keep = [i for i, z in enumerate(zones) if z is not None and bool(batch.zone_weight[i].any())]
            if keep:
                stacked = np.stack([zones[i] for i in keep])  # type: ignore[misc]
                losses["severity"] = o.severity_weight * zone_loss(
                    out.severity[keep, 0], stacked, batch.zones[keep], batch.zone_weight[keep]
                )
        return losses

    def _lr(self, progress: float) -> float:
        warm = min(1.0, (self.step + 1) / self.options.warmup_steps)
        return self.options.lr * warm * max(0.02, 0.5 * (1 + float(np.cos(np.pi * progress))))

    def _update_average(self) -> None:
        keep = min(self.options.ema, self.step / (self.step + 10))
        with torch.no_grad():
            for a, b in zip(self.average.state_dict().values(), self.net.state_dict().values(), strict=True):
                if a.is_floating_point():
                    a.lerp_(b, 1 - keep)
                else:
                    a.copy_(b)

    def _extra(self) -> dict[str, Any]:
        counted = sorted({r.source for r in self.records})
        return {
            "stage": "joint",
            "options": asdict(self.options),
            "epoch": self.epoch,
            "step": self.step,
            "sources": {s: sum(self.records[i].source == s for i in self.train_index) for s in counted},
            "preprocessing": self.preprocessing.to_dict(),
        }

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors.update({f"average.{k}": v for k, v in self.average.state_dict().items()})
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{i}.{k}": v for k, v in state.items()})
        checkpoint.save(self.out / "last.safetensors", tensors, self.config, self._extra())

    def _resume(self) -> None:
        path = self.out / "last.safetensors"
        if not path.is_file():
            return
        tensors, config, extra = checkpoint.load(path)
        wanted = json.loads(json.dumps(self._extra()["options"]))
        if config != self.config or extra["options"] != wanted:
            raise UsageError(f"{path}: made with another preset or options; name another --out or delete it")
        self.net.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("net.")})
        self.average.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("average.")})
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, i, name = key.split(".")
                state.setdefault(int(i), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.epoch, self.step = int(extra["epoch"]), int(extra["step"])
        self.say(f"resumed after epoch {self.epoch} of {len(self.epochs)}")

    def _log(self, row: dict[str, Any]) -> None:
        self.say("  ".join(f"{k} {v}" for k, v in row.items()))
        with (self.out / "log.jsonl").open("a") as f:
            f.write(json.dumps(row) + "\n")
